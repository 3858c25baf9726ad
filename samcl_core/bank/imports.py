"""Published SAMCL checkpoints as a bank."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from samcl_core.bank.bank import Bank
from samcl_core.bank.module import Module
from samcl_core.bank.torch_reader import Record, read_torch_file
from samcl_core.errors import BankError, LayoutError
from samcl_core.files import sha256_file
from samcl_core.selectors import MlpSelector
from samcl_core.selectors.mlp import SelectorMlp

__all__ = [
    "PUBLISHED_BACKBONES",
    "PUBLISHED_CLASSES",
    "PUBLISHED_NATURAL",
    "PUBLISHED_OPTIONS",
    "SELECTOR_NAME",
    "import_samcl",
    "published_backbone",
    "read_published_module",
]

PUBLISHED_CLASSES = ("Kvasir", "camo", "ISTD", "ISIC", "cod", "COCO")
"""Outputs of the published ``Module_Selector.pth``, in order."""
PUBLISHED_NATURAL = ("COCO",)
"""Classes that mean plain SAM."""
SELECTOR_NAME = "Module_Selector.pth"
PUBLISHED_BACKBONES = {(768, 7): "sam_vit_b", (384, 6): "sam2.1_hiera_tiny"}
"""Width and first adapted block of the published modules, and the model that has them."""
PUBLISHED_OPTIONS = {"window_heatmap": "shrink", "neck_axes": "transposed", "point_labels": "ignored"}
"""What the published code does in the AugModule; its files do not say."""

_EPS = 1e-5
_MAX_DEPTH = 2


def import_samcl(
    folder: Path,
    backbone: str,
    backbone_sha256: str,
    *,
    classes: Sequence[str] = PUBLISHED_CLASSES,
    natural: Collection[str] = PUBLISHED_NATURAL,
) -> Bank:
    """Read a folder of published files (``<domain>.pth`` for every class with a module, and ``Module_Selector.pth``).

    Nothing in the files is executed. The bank works as the published code does: its modules get the published heat-map
    options, and there is no novelty gate. Embeddings were not published, so the bank cannot be extended.

    Args:
        folder: where the files are.
        backbone: name of the model they belong to; ``published_backbone`` knows those of the published files.
        backbone_sha256: digest of its checkpoint.
        classes: the selector's outputs in order.
        natural: those of ``classes`` that have no module.

    Raises:
        LayoutError: files are missing or surplus.
        UnsafeFileError: a file is damaged, or asks for anything but tensors and the known containers.
        BankError: a file does not hold what a published one holds, or it belongs to another published model.
    """
    learnt = [name for name in classes if name not in natural]
    _check_folder(folder, learnt)
    selector = _read_selector(folder / SELECTOR_NAME, learnt, [name for name in classes if name in natural], classes)
    modules = []
    for name in learnt:
        path = folder / f"{name}.pth"
        tensors, split = read_published_module(path)
        _check_backbone(path, backbone, tensors, split)
        modules.append(
            Module(
                domain=name,
                kind="augmodule",
                parameters={"rank": int(tensors["A.weight"].shape[0]), **PUBLISHED_OPTIONS},
                backbone=backbone,
                backbone_sha256=backbone_sha256,
                split=split,
                data_digest="unknown",
                seed=0,
                code=f"SAMCL, file sha256 {sha256_file(path)}",
                metrics={},
                tensors=tensors,
            )
        )
    lineage = {"imported": {path.name: sha256_file(path) for path in sorted(folder.glob("*.pth"))}}
    return Bank(backbone, backbone_sha256, tuple(modules), selector, None, lineage)


def _check_folder(folder: Path, learnt: Sequence[str]) -> None:
    expected = {SELECTOR_NAME, *(f"{name}.pth" for name in learnt)}
    found = {path.name for path in folder.glob("*.pth")}
    if found != expected:
        missing, surplus = sorted(expected - found), sorted(found - expected)
        raise LayoutError(
            f"{folder}: missing {missing}, surplus {surplus}; expected {sorted(expected)}",
            hint="name the selector's classes in order if they are not the published ones",
        )


def published_backbone(folder: Path) -> str | None:
    """The model that a folder of published files belongs to, ``None`` where its modules fit none of the published ones.

    Raises:
        LayoutError: the folder holds no module.
        UnsafeFileError: the first module is damaged or asks for anything that is not data.
        BankError: it is data, and not a module.
    """
    paths = sorted(path for path in folder.glob("*.pth") if path.name != SELECTOR_NAME)
    if not paths:
        raise LayoutError(f"{folder} holds no <domain>.pth", hint="name the folder that holds the published files")
    tensors, split = read_published_module(paths[0])
    return PUBLISHED_BACKBONES.get((int(tensors["A.weight"].shape[-1]), split))


def _check_backbone(path: Path, backbone: str, tensors: dict[str, Tensor], split: int) -> None:
    width = int(tensors["A.weight"].shape[-1])
    expected = {name: site for site, name in PUBLISHED_BACKBONES.items()}.get(backbone, (width, split))
    if (width, split) != expected:
        fits = PUBLISHED_BACKBONES.get((width, split), "another model")
        raise BankError(
            f"{path} adapts blocks of width {width} from block {split} on, {backbone} has {expected[0]} from block "
            f"{expected[1]} on; it was made for {fits}",
            hint="--backbone NAME",
        )


def read_published_module(path: Path) -> tuple[dict[str, Tensor], int]:
    """One ``<domain>.pth`` as (tensors by name, index of the first adapted block).

    The names are the file's own, flattened: ``A.weight``, ``B_000.bias``, ``extra.layer.weight`` ...

    Raises:
        UnsafeFileError: the file is damaged or asks for anything that is not data.
        BankError: it is data, and not a module.
    """
    content = read_torch_file(path)
    if not isinstance(content, dict) or not {"extra", "A", "lora_layer"} <= set(content):
        raise BankError(f"{path} holds no SAMCL module: expected entries 'extra', 'lora_layer', 'A', 'B_000' ...")
    blocks = content["lora_layer"]
    if (
        not isinstance(blocks, list)
        or not blocks
        or not all(type(block) is int for block in blocks)
        or blocks != list(range(blocks[0], blocks[0] + len(blocks)))
    ):
        raise BankError(f"{path}: lora_layer is {blocks!r}, expected consecutive block numbers")
    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if name != "lora_layer":
            tensors |= _flatten(path, str(name), value)
    expected = _names(len(blocks), has_neck="extra.upward.weight" in tensors)
    if set(tensors) != expected:
        raise BankError(
            f"{path} has tensors {sorted(set(tensors) ^ expected)} too many or too few for {len(blocks)} blocks"
        )
    return {name: tensors[name].float() for name in sorted(tensors)}, blocks[0]


def _names(num_blocks: int, *, has_neck: bool) -> set[str]:
    layers = ["A", "extra.layer", "extra.norm", *(["extra.upward", "extra.upward_"] if has_neck else [])]
    layers += [f"{layer}_{position:03d}" for layer in ("B", "norm1", "norm2") for position in range(num_blocks)]
    return {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}


def _flatten(path: Path, name: str, value: Any, depth: int = 0) -> dict[str, Tensor]:
    if depth > _MAX_DEPTH:
        raise BankError(f"{path}: layers of {name} are nested deeper than {_MAX_DEPTH}")
    if not isinstance(value, Record):
        raise BankError(f"{path}: entry {name!r} is {type(value).__name__}, expected a layer")
    if value.name.endswith(" LayerNorm") and value.state.get("eps") != _EPS:
        raise BankError(f"{path}: {name} has eps {value.state.get('eps')!r}, expected {_EPS}")
    tensors: dict[str, Tensor] = {}
    for part, tensor in _table(path, value, "_parameters").items():
        if not isinstance(tensor, Tensor):
            raise BankError(f"{path}: {name}.{part} is {type(tensor).__name__}, expected a tensor")
        tensors[f"{name}.{part}"] = tensor
    for part, layer in _table(path, value, "_modules").items():
        tensors |= _flatten(path, f"{name}.{part}", layer, depth + 1)
    return tensors


def _table(path: Path, value: Record, key: str) -> dict[Any, Any]:
    table = value.state.get(key, {})
    if not isinstance(table, dict):
        raise BankError(f"{path}: {key} of {value.name} is {type(table).__name__}, expected names to values")
    return table


def _read_selector(path: Path, learnt: Sequence[str], natural: Sequence[str], classes: Sequence[str]) -> MlpSelector:
    content = read_torch_file(path)
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise BankError(f"{path} holds no selector: expected names to tensors")
    first, last, bias = (content.get(name) for name in ("layer1.weight", "layer4.weight", "layer4.bias"))
    if first is None or last is None or bias is None or first.ndim != 2 or first.shape[0] != first.shape[1]:
        raise BankError(f"{path} holds no selector: its tensors are {sorted(content)[:30]}")
    if len(last) != len(classes) or bias.shape != (len(classes),):
        raise BankError(f"{path} has {len(last)} outputs, expected {len(classes)}: {list(classes)}")
    # Ours are sorted: learnt domains first.
    order = [list(classes).index(name) for name in (*learnt, *natural)]
    tensors = {**content, "layer4.weight": last[order], "layer4.bias": bias[order]}
    network = SelectorMlp.seeded(int(first.shape[1]), len(classes), 0)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as exc:
        raise BankError(f"{path} is not the published network: {exc}") from exc
    return MlpSelector(network, learnt, natural)
