"""The default profile differs from the published code where docs/profiles.md says so, and each difference shows."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from samcl_core.adapters import build_adapter
from samcl_core.backbones import Backbone, Prefix, Prompts, tiny_backbone, tiny_sam2_backbone
from samcl_core.bank import Bank, Module, export_samcl, pack
from samcl_core.config import PROFILES, DomainParams, Params, parse_params
from samcl_core.domains import load_mask
from samcl_core.inference import Prompt, Segmenter
from samcl_core.selectors import MlpSelector
from samcl_core.stages import ingest
from samcl_core.stages.machine import cache_dtype
from samcl_core.strategies import base_bank, extend_bank
from samcl_core.tensors import load_tensors
from samcl_core.training import Batch, Updates, learning_rate, mask_loss, resize_logits
from samcl_core.training.precision import precision_of

PAGE = (Path(__file__).parents[2] / "docs" / "profiles.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w+\.\w+)` \| `(.+?)` \| `(.+?)` \| .{20,} \|$", re.MULTILINE)
POINTS = torch.tensor([[[100.0, 700.0], [900.0, 130.0]]])
LABELS = torch.tensor([[1, 0]])
OF_THE_MLP = {"selector.classes", "selector.min_steps"}


def options_of(profile: str, option: str | None = None, **backbone: str) -> Params:
    """The default profile, with ``option`` as in ``profile``; options of the MLP with the MLP."""
    if option is None:
        return parse_params({"profile": profile, "backbone": backbone})
    section, name = option.split(".")
    values = {name: PROFILES[profile][section][name]}
    return parse_params({"backbone": backbone, section: {"kind": "mlp", **values} if option in OF_THE_MLP else values})


DIFFERENT = {
    f"{section}.{name}"
    for section, options in PROFILES["default"].items()
    for name, value in options.items()
    if PROFILES["reference"][section][name] != value
}


# What the page says ---------------------------------------------------------------------------------------------------


def test_profiles_name_the_same_options() -> None:
    names = [{(section, name) for section in values for name in values[section]} for values in PROFILES.values()]
    assert names[0] == names[1]
    assert {f"{section}.{name}" for section, name in names[0]} == DIFFERENT, "an option with one value is no difference"


def test_the_page_lists_exactly_the_differences() -> None:
    found = {name: (reference, default) for name, reference, default in ROW.findall(PAGE)}
    expected = {
        option: tuple(str(PROFILES[profile][option.split(".")[0]][option.split(".")[1]]) for profile in PROFILES)
        for option in DIFFERENT
    }
    assert found == expected
    assert set(SHOWN) == DIFFERENT, "every difference has a test here that shows it"


def test_one_value_makes_the_reference_profile() -> None:
    params = options_of("reference")
    for section, options in PROFILES["reference"].items():
        for name, value in options.items():
            assert getattr(getattr(params, section), name) == value
    assert options_of("reference", name="sam2.1_hiera_tiny").evaluate.upsampling == "bilinear", "as published"
    assert options_of("reference", "train.schedule").train.upsampling == "bilinear", "options combine freely"


# Each option shows ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (60, 90, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def prefix(backbone: Backbone, image: np.ndarray) -> Prefix:
    return backbone.prefix(backbone.preprocess(image)[None])


@pytest.fixture
def world(backbone: Backbone, prefix: Prefix, tmp_path: Path) -> dict[str, Any]:
    return {"backbone": backbone, "prefix": prefix, "folder": tmp_path}


def module_tensors(adapter: Any, seed: int) -> dict[str, torch.Tensor]:
    """A module that changes something everywhere."""
    draw = torch.Generator().manual_seed(seed)
    return {name: value + 0.3 * torch.randn(value.shape, generator=draw) for name, value in adapter.fresh(seed).items()}


def embeddings(k: int, dim: int = 16) -> torch.Tensor:
    return torch.randn(30, dim, generator=torch.Generator().manual_seed(k)) * 0.1 + k


def adapted(params: Params, world: dict[str, Any]) -> np.ndarray:
    """Logits of the same module under these options."""
    options = params.adapter.model_dump(exclude={"kind"})
    adapter = build_adapter(params.adapter.kind, world["backbone"].site, **options)
    prompts = Prompts(POINTS, LABELS)
    with torch.no_grad():
        hooks = adapter.hooks(module_tensors(adapter, 1), prompts)
        return world["backbone"].suffix(world["prefix"], prompts, hooks).logits.numpy()


def foreground(params: Params, world: dict[str, Any]) -> np.ndarray:
    """Pixels of a JPEG mask after ingest."""
    source = world["folder"] / "data" / "raw" / "D"
    for shade, split in ((90, "train"), (160, "test")):
        for name in ("images", "masks"):
            (source / split / name).mkdir(parents=True, exist_ok=True)
        grey = np.zeros((40, 50), np.uint8)
        grey[10:30, 10:30], grey[12:28, 12:28] = 200, 255
        Image.fromarray(np.full((40, 50, 3), shade, np.uint8)).save(source / split / "images" / "a.png")
        Image.fromarray(grey).save(source / split / "masks" / "a.png")
    params = params.model_copy(update={"domains": {"D": DomainParams(role="unseen")}})
    ingest.run(world["folder"], params, "D")
    return load_mask(world["folder"] / "data" / "D" / "annotations" / "test" / "a.png").astype(float)


def rates(params: Params, world: dict[str, Any]) -> np.ndarray:
    """Learning rates of 20 epochs with 10 steps each."""
    train = params.train
    steps = 10 * train.epochs
    common = {"num_steps": steps, "epochs": train.epochs, "lr": train.lr, "lr_min": train.lr_min}
    return np.array([learning_rate(step, **common, schedule=train.schedule) for step in range(steps)])


def trained(params: Params, world: dict[str, Any]) -> np.ndarray:
    """Loss and weights after one training step on two images."""
    options = params.adapter.model_dump(exclude={"kind"})
    adapter = build_adapter(params.adapter.kind, world["backbone"].site, **options)
    tensors = {name: value.requires_grad_() for name, value in module_tensors(adapter, 1).items()}
    descent = torch.optim.SGD(tensors.values(), lr=1e-3)
    prompts = Prompts(POINTS.repeat(2, 1, 1), LABELS.repeat(2, 1))
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[:, 11:37, 20:51] = 1
    batch = Batch(Prefix.cat([world["prefix"]] * 2), prompts, masks)
    loss = Updates(world["backbone"], adapter, tensors, params.train, descent)([batch])
    return np.array([loss["total"], *tensors["B_000.weight"].detach().flatten().tolist()])


def bits_on_a_gpu(params: Params, world: dict[str, Any]) -> np.ndarray:
    """Number format of the suffix in training, in bits."""
    assert params.train.precision is not None
    return np.array([torch.finfo(precision_of(params.train.precision, "cuda", has_bfloat16=True)).bits])


def cached_bits_on_a_gpu(params: Params, world: dict[str, Any]) -> np.ndarray:
    """Number format of cached features, in bits."""
    return np.array([torch.finfo(getattr(torch, cache_dtype(params.cache.dtype, "cuda"))).bits])


def masks_at_full_size(params: Params, world: dict[str, Any]) -> np.ndarray:
    assert params.evaluate.upsampling is not None
    logits = world["backbone"].suffix(world["prefix"], Prompts(POINTS, LABELS)).logits
    return resize_logits(logits, 64, params.evaluate.upsampling).numpy()


def bank_of(params: Params, *domains: str, network: Backbone | None = None) -> Bank:
    """A bank whose domains have well separated embeddings."""
    network = network or tiny_backbone()
    options = params.adapter.model_dump(exclude={"kind"})
    adapter = build_adapter(params.adapter.kind, network.site, **options)
    bank = base_bank(network.name, network.sha256, {}, params.selector, 0)
    for number, domain in enumerate(domains):
        module = Module(
            domain=domain,
            kind=adapter.kind,
            parameters=adapter.parameters(),
            backbone=network.name,
            backbone_sha256=network.sha256,
            split=network.site.blocks[0],
            data_digest="unknown",
            seed=0,
            code="test",
            metrics={},
            tensors=module_tensors(adapter, number),
        )
        bank = extend_bank(bank, module, embeddings(number, network.site.dim), params.selector, 0)
    return bank


def num_outputs(params: Params, world: dict[str, Any]) -> np.ndarray:
    """Outputs of the selector after one and after two domains."""
    banks = [bank_of(params, *names) for names in (("a",), ("a", "b"))]
    selectors = [bank.selector for bank in banks if isinstance(bank.selector, MlpSelector)]
    return np.array([selector.logits(embeddings(0)).shape[1] for selector in selectors])


def answers_to_strangers(params: Params, world: dict[str, Any]) -> np.ndarray:
    """What the first domain's bank says about images that are nothing like it: -1 is plain SAM."""
    return bank_of(params, "a").selector.choose(embeddings(9)).index.numpy().astype(float)


def selector_answers(params: Params, world: dict[str, Any]) -> np.ndarray:
    """Probabilities after training on few images."""
    return bank_of(params, "a", "b").selector.choose(embeddings(0)).confidence.numpy()


def stored_module(params: Params, world: dict[str, Any]) -> np.ndarray:
    """Bytes of the stored tensors of one module."""
    adapter = build_adapter(params.adapter.kind, world["backbone"].site)
    return np.array([sum(tensor.nbytes for tensor in pack(adapter.fresh(0), params.train.module_dtype).values())])


def kept_for_later_fits(params: Params, world: dict[str, Any]) -> np.ndarray:
    """Bytes of what a bank of two domains keeps beside its modules."""
    folder = world["folder"] / "bank"
    shutil.rmtree(folder, ignore_errors=True)
    bank_of(params, "a", "b").save(folder)
    kept = [path for path in folder.rglob("*.safetensors") if path.name != "module.safetensors"]
    return np.array([sum(path.stat().st_size for path in kept)])


SHOWN: dict[str, Callable[[Params, dict[str, Any]], np.ndarray]] = {
    "adapter.window_heatmap": adapted,
    "adapter.neck_axes": adapted,
    "adapter.point_labels": adapted,
    "ingest.mask_threshold": foreground,
    "train.schedule": rates,
    "train.upsampling": trained,
    "train.loss_reduction": trained,
    "train.module_dtype": stored_module,
    "train.precision": bits_on_a_gpu,
    "cache.dtype": cached_bits_on_a_gpu,
    "evaluate.upsampling": masks_at_full_size,
    "selector.kind": kept_for_later_fits,
    "selector.classes": num_outputs,
    "selector.fallback": answers_to_strangers,
    "selector.min_steps": selector_answers,
}


@pytest.mark.parametrize("option", sorted(DIFFERENT))
def test_the_option_alone_makes_the_difference(option: str, world: dict[str, Any]) -> None:
    first, again, published = (SHOWN[option](options_of(p, option), world) for p in ("default", "default", "reference"))
    np.testing.assert_array_equal(first, again)
    if option not in OF_THE_MLP:
        np.testing.assert_array_equal(first, SHOWN[option](options_of("default"), world))
    assert float(np.abs(first - published).max()) > 1e-3


# What exactly the difference is ---------------------------------------------------------------------------------------


def test_grey_mask_pixels(world: dict[str, Any]) -> None:
    sizes = [foreground(options_of(p, "ingest.mask_threshold"), world).sum() for p in ("default", "reference")]
    assert sizes == [400, 256], "the published code drops the grey edge"


def test_rate_falls_once_or_cycles(world: dict[str, Any]) -> None:
    default, published = (rates(options_of(p, "train.schedule"), world) for p in ("default", "reference"))
    assert (np.diff(default) < 0).all()
    assert published[20] == pytest.approx(1e-7) and published[40] == pytest.approx(0.005), "period: epochs, in steps"


def test_selector_outputs(world: dict[str, Any]) -> None:
    assert num_outputs(options_of("default", "selector.classes"), world).tolist() == [1, 2]
    assert num_outputs(options_of("reference", "selector.classes"), world).tolist() == [6, 6]


def test_strangers_get_plain_sam_from_the_first_domain_on(world: dict[str, Any]) -> None:
    assert (answers_to_strangers(options_of("default"), world) == -1).all()
    assert (answers_to_strangers(options_of("reference", "selector.fallback"), world) == 0).all()


def test_two_images_weigh_as_much_as_one_or_twice(world: dict[str, Any]) -> None:
    logits, truth, iou = torch.randn(1, 1, 8, 8), torch.ones(1, 8, 8), torch.ones(1, 1)
    for profile, factor in (("default", 1), ("reference", 2)):
        reduction = options_of(profile).train.loss_reduction
        assert reduction is not None
        one = mask_loss(logits, truth, iou, reduction)
        two = mask_loss(logits.repeat(2, 1, 1, 1), truth.repeat(2, 1, 1), iou.repeat(2, 1), reduction)
        assert float(two.dice) == pytest.approx(factor * float(one.dice))


# Differences without an option ----------------------------------------------------------------------------------------


def test_no_pickle_is_written_and_the_published_format_is_one(tmp_path: Path) -> None:
    bank = bank_of(options_of("reference", "selector.kind"), "a")
    bank.save(tmp_path / "bank")
    files = [path for path in (tmp_path / "bank").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    for path in files:
        assert json.loads(path.read_text()) if path.suffix == ".json" else load_tensors(path)[0]
    export_samcl(bank, tmp_path / "published")
    for name in ("a.pth", "Module_Selector.pth"):
        assert b"data.pkl" in (tmp_path / "published" / name).read_bytes()


@pytest.mark.parametrize("make", [tiny_backbone, tiny_sam2_backbone], ids=["sam", "sam2"])
def test_nothing_is_copied_or_read_when_the_module_changes(
    make: Callable[[], Backbone], image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published code copies the network and reads a file for every image."""
    backbone = make()
    bank = bank_of(options_of("default"), "a", "b", network=backbone)
    bank.save(tmp_path / "bank")
    segmenter = Segmenter(backbone, Bank.load(tmp_path / "bank", backbone_sha256=backbone.sha256))
    shutil.rmtree(tmp_path / "bank")

    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise AssertionError("something is copied or read")

    places = {name: tensor.data_ptr() for name, tensor in backbone.module.state_dict().items()}
    prompt = Prompt(((100.0, 700.0),), (1,))
    with monkeypatch.context() as patched:
        for owner, name in ((copy, "deepcopy"), (torch, "load"), (Path, "open"), (Path, "read_bytes")):
            patched.setattr(owner, name, refuse)
        patched.setattr("builtins.open", refuse)
        names = ["a", "b", "plain", "a", "b"]
        found = segmenter.predict([image] * 5, [prompt] * 5, names, batch_size=2)
    assert [prediction.module for prediction in found] == names
    assert (found[0].score, found[1].score) == (pytest.approx(found[3].score), pytest.approx(found[4].score))
    assert len({round(prediction.score, 6) for prediction in found[:3]}) == 3
    assert places == {name: tensor.data_ptr() for name, tensor in backbone.module.state_dict().items()}
