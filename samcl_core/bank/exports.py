"""A bank as files for the published SAMCL scripts."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from samcl_core.bank.bank import Bank
from samcl_core.bank.imports import PUBLISHED_OPTIONS, SELECTOR_NAME
from samcl_core.bank.module import Module
from samcl_core.bank.records import json_bytes
from samcl_core.bank.torch_reader import Record
from samcl_core.bank.torch_writer import layer_record, torch_file_bytes
from samcl_core.errors import BankError
from samcl_core.files import staged_folder
from samcl_core.selectors import MlpSelector

__all__ = ["export_samcl"]

_README = """Modules in the file format of the published SAMCL code
======================================================

{files}

<domain>.pth     pickled layers under the published names. They load where the published code can be imported
                 (class module.{package}.Extra) with torch.load(..., weights_only=False).
{selector}
export.json      order of the selector's outputs, digests, and everything below as data.

What the format cannot say, and the published scripts therefore do not do:
{limits}
"""


def export_samcl(bank: Bank, folder: Path) -> dict[str, Any]:
    """Write ``bank`` as the files that the published scripts load.

    The format has no place for a novelty gate, for options of the AugModule, or for another selector than the MLP;
    ``export.json`` and ``README.txt`` in the folder say what was left out.

    Args:
        bank: with at least one module, all of kind ``augmodule``.
        folder: is replaced as a whole.

    Returns:
        The content of ``export.json``.

    Raises:
        BankError: the bank has no module, or modules of another kind.
    """
    wrong = sorted({module.kind for module in bank.modules} - {"augmodule"})
    if wrong or not bank.modules:
        raise BankError(
            f"the published format holds modules of kind 'augmodule', the bank has {wrong or 'no module'}",
            hint="samcl bank show",
        )
    files = {f"{module.domain}.pth": _module_bytes(module) for module in bank.modules}
    summary = _summary(bank)
    if isinstance(bank.selector, MlpSelector):
        files[SELECTOR_NAME] = _selector_bytes(bank.selector)
    files["export.json"] = json_bytes({**summary, "files": sorted(files)}, "export.json")
    files["README.txt"] = _readme(bank, summary, sorted(files)).encode()
    with staged_folder(folder) as staging:
        for name, data in files.items():
            (staging / name).write_bytes(data)
    return summary


def _summary(bank: Bank) -> dict[str, Any]:
    options = {key: value for key, value in bank.modules[0].parameters.items() if key != "rank"}
    limits = [
        f"the modules were trained with {key} = {value!r}; the published code always does {PUBLISHED_OPTIONS[key]!r}"
        for key, value in sorted(options.items())
        if value != PUBLISHED_OPTIONS.get(key, value)
    ]
    if bank.waiting:
        limits.append(f"the selector does not know {list(bank.waiting)} yet: the bank is a step inside a back-fill")
    classes: list[str] = []
    if isinstance(bank.selector, MlpSelector):
        spare = [f"unused_{number}" for number in range(bank.selector.num_spare)]
        classes = [*bank.selector.domains, *bank.selector.natural, *spare]
        if spare:
            limits.append(f"outputs without a class mean plain SAM here; name them as natural classes there: {spare}")
        if bank.selector.gate is not None:
            limits.append("images that fit no domain get plain SAM here, and the most probable module there")
        limits.append(f"the scripts must be told the order of the selector's outputs: {classes}")
    else:
        limits.append(f"a selector of kind {bank.selector.kind!r} is not exported; choose the module by name")
    return {
        "bank_digest": bank.digest,
        "backbone": {"name": bank.backbone, "sha256": bank.backbone_sha256},
        "classes": classes,
        "modules": {module.domain: module.digest for module in bank.modules},
        "limits": limits,
    }


def _readme(bank: Bank, summary: dict[str, Any], files: list[str]) -> str:
    selector = (
        f"{SELECTOR_NAME}: state dict of the selector." if summary["classes"] else "No selector file (see below)."
    )
    return _README.format(
        files="Made for backbone " + bank.backbone + "\n" + "\n".join(files),
        package=_package(bank.modules[0]).split(" ")[0].split(".")[1],
        selector=selector,
        limits="\n".join(f"- {limit}" for limit in summary["limits"]) or "- nothing",
    )


def _package(module: Module) -> str:
    return "module.SAMCL Extra" if "extra.upward.weight" in module.shapes else "module.SAMCL_2 Extra"


def _module_bytes(module: Module) -> bytes:
    tensors = module.weights
    layers = ["layer", "norm", *(["upward", "upward_"] if "extra.upward.weight" in tensors else [])]
    extra = layer_record(_package(module), {}, {name: _layer(module, f"extra.{name}") for name in layers}, {"cnt": 0})
    num_blocks = sum(name.startswith("B_") and name.endswith(".weight") for name in tensors)
    content: dict[str, Any] = {"extra": extra, "lora_layer": list(range(module.split, module.split + num_blocks))}
    content["A"] = _layer(module, "A")
    for kind in ("B", "norm1", "norm2"):
        content |= {f"{kind}_{i:03d}": _layer(module, f"{kind}_{i:03d}") for i in range(num_blocks)}
    return torch_file_bytes(content, module.domain)


def _layer(module: Module, name: str) -> Record:
    parameters = {part: module.weights[f"{name}.{part}"] for part in ("weight", "bias")}
    if parameters["weight"].ndim == 2:
        num_out, num_in = parameters["weight"].shape
        return layer_record(
            "torch.nn.modules.linear Linear", parameters, {}, {"in_features": num_in, "out_features": num_out}
        )
    shape = {"normalized_shape": tuple(parameters["weight"].shape), "eps": 1e-5, "elementwise_affine": True}
    return layer_record("torch.nn.modules.normalization LayerNorm", parameters, {}, shape)


def _selector_bytes(selector: MlpSelector) -> bytes:
    _, tensors = selector.state()
    stream = io.BytesIO()
    torch.save({name: tensor for name, tensor in tensors.items() if not name.startswith("gate.")}, stream)
    return stream.getvalue()
