"""Where the bytes of a bank go, and that five domains on SAM ViT-B take little."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from flows.cli.main import app
from samcl_core.backbones.base import AdapterSite
from samcl_core.bank import Bank, Module, describe_bank, pack
from samcl_core.config import SelectorParams
from samcl_core.strategies import base_bank, extend_bank

VIT_B = AdapterSite(dim=768, neck_dim=256, grid=64, blocks=(7, 8, 9, 10, 11), windows=(14, 0, 14, 14, 0))
GAUSSIAN = SelectorParams(kind="gaussian")
DOMAINS = ("Kvasir", "camo", "ISTD", "ISIC", "cod")
METRICS = {"num_train": 1000, "epoch": 20, "step": 2500, "lr": 1e-7} | dict.fromkeys(
    ("focal", "dice", "iou", "total"), 0.12345678901234567
)

MakeModule = Callable[..., Module]
MakeBank = Callable[..., Bank]


def on_disk(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=["gaussian", "mlp"])
def folder(request: pytest.FixtureRequest, make_bank: MakeBank, make_module: MakeModule, tmp_path: Path) -> Path:
    """A bank of modules in three number formats, with lineage."""
    bank = make_bank(params=SelectorParams(kind=request.param, epochs=1, min_steps=0))
    for k, dtype in enumerate(("float32", "float16", "int8")):
        module = make_module(f"D{k}")
        rows = torch.randn(12, 16, generator=torch.Generator().manual_seed(k))
        params = SelectorParams(kind=request.param, epochs=1, min_steps=0)
        bank = extend_bank(bank, replace(module, tensors=pack(module.tensors, dtype)), rows, params, 0)
    bank.with_lineage({"commit": "é" * 20}).save(tmp_path / "bank")
    return tmp_path / "bank"


def test_every_byte_is_counted_once_three_times(folder: Path) -> None:
    about, files = describe_bank(folder), on_disk(folder)
    sizes, total = about["sizes"], sum(files.values())
    assert about["total_bytes"] == sizes["total_bytes"] == total
    assert sum(part["bytes"] for part in sizes["parts"]) == total
    assert sum(sizes["types"].values()) == total
    assert sum(domain["bytes"] for domain in sizes["domains"]) + sizes["shared_bytes"] == total
    assert sum(domain["frac"] for domain in sizes["domains"]) + sizes["shared_bytes"] / total == pytest.approx(1)
    assert {path: entry["bytes"] for path, entry in about["files"].items()} | {"bank.json": files["bank.json"]} == files
    assert json.loads(json.dumps(about, allow_nan=False)) == about


def test_each_part_is_its_files(folder: Path) -> None:
    about, files = describe_bank(folder), on_disk(folder)
    parts = {part.pop("part"): part for part in about["sizes"]["parts"]}
    assert list(parts) == ["modules/D0", "modules/D1", "modules/D2", "selector", "state", "bank.json"]
    for name, part in parts.items():
        assert part["tensors"] + part["header"] + part["record"] == part["bytes"]
        if name.startswith("modules/"):
            stored = Module.load(folder / name).tensors
            assert part["tensors"] == sum(tensor.nbytes for tensor in stored.values())
            assert part["tensors"] + part["header"] == files[f"{name}/module.safetensors"]
            assert part["record"] == files[f"{name}/module.json"]
    for name in ("selector", "state"):
        assert parts[name]["bytes"] == files[f"selector/{name}.safetensors"] == about[name]["bytes"]
    assert parts["bank.json"] == {"tensors": 0, "header": 0, "record": files["bank.json"], "bytes": files["bank.json"]}
    assert parts["modules/D0"]["tensors"] == 2 * parts["modules/D1"]["tensors"]
    assert [module["bytes"] for module in about["modules"]] == [parts[f"modules/D{k}"]["bytes"] for k in range(3)]


def test_tensors_are_told_by_number_format(folder: Path) -> None:
    bank, types = Bank.load(folder), describe_bank(folder)["sizes"]["types"]
    assert bank.state is not None
    tensors = [tensor for module in bank.modules for tensor in module.tensors.values()]
    tensors += [tensor for part in (bank.selector, bank.state) for tensor in part.state()[1].values()]
    names = {torch.float32: "F32", torch.float16: "F16", torch.int8: "I8", torch.int64: "I64", torch.float64: "F64"}
    expected: dict[str, int] = {}
    for tensor in tensors:
        name = names.get(tensor.dtype, str(tensor.dtype))
        expected[name] = expected.get(name, 0) + tensor.nbytes
    assert {name: count for name, count in types.items() if name not in ("headers", "records")} == expected


def test_a_domain_takes_its_module_and_its_part_of_the_state(folder: Path) -> None:
    bank, sizes = Bank.load(folder), describe_bank(folder)["sizes"]
    assert bank.state is not None
    for k, domain in enumerate(sizes["domains"]):
        assert (domain["domain"], domain["module"]) == (f"D{k}", sizes["parts"][k]["bytes"])
        assert domain["state"] == bank.state.class_bytes(f"D{k}") > 0


def test_a_bank_without_domains_and_one_that_cannot_grow(make_bank: MakeBank, tmp_path: Path) -> None:
    make_bank().save(tmp_path / "base")
    replace(make_bank("a", "b"), state=None).save(tmp_path / "published")
    for name in ("base", "published"):
        sizes = describe_bank(tmp_path / name)["sizes"]
        assert sizes["total_bytes"] == sum(on_disk(tmp_path / name).values())
        assert all(domain["state"] == 0 for domain in sizes["domains"])


def test_the_command_shows_the_same_numbers(folder: Path) -> None:
    result = CliRunner().invoke(app, ["bank", "show", str(folder)])
    assert result.exit_code == 0, result.output
    shown = {line.split()[0]: line.split()[1:] for line in result.output.splitlines() if line.strip()}
    sizes = describe_bank(folder)["sizes"]
    total = f"{sizes['total_bytes']:,}"
    assert shown["total"][-1] == total and f"({total} bytes)" in result.output
    for part in sizes["parts"]:
        assert shown[part["part"]] == [f"{part[name]:,}" for name in ("tensors", "header", "record", "bytes")]
    assert shown["shared"][0] == f"{sizes['shared_bytes']:,}"
    assert f"F16 {sizes['types']['F16']:,}" in result.output
    printed = CliRunner().invoke(app, ["bank", "show", str(folder), "--json"])
    assert json.loads(printed.output)["sizes"] == sizes


# Five domains on SAM ViT-B --------------------------------------------------------------------------------------------


def five_domains(make_module: MakeModule, dtype: Any, embeddings: Callable[[int], Tensor]) -> Bank:
    """A natural class and five modules shaped as on ViT-B, with the default selector."""
    bank = base_bank("tiny", make_module().backbone_sha256, {"COCO": embeddings(0)}, GAUSSIAN, 0)
    for k, name in enumerate(DOMAINS, 1):
        module = make_module(name, seed=k, site=VIT_B, rank=10, split=7, metrics=METRICS)
        module = replace(module, tensors=pack(module.tensors, dtype))
        bank = extend_bank(bank, module, embeddings(k), GAUSSIAN, 0)
    return bank


def anisotropic(k: int) -> Tensor:
    """300 embeddings of one class, most of their variance along few directions, as real ones have it."""
    draw = torch.Generator().manual_seed(k)
    axes = torch.linalg.qr(torch.randn(768, 768, generator=torch.Generator().manual_seed(99)))[0]
    spread = torch.logspace(0, -2, 768)
    return torch.randn(768, generator=draw) + (torch.randn(300, 768, generator=draw) * spread) @ axes


def small(k: int) -> Tensor:
    return torch.randn(12, 16, generator=torch.Generator().manual_seed(k))


@pytest.mark.parametrize(
    ("dtype", "at_most"),
    [("float32", 1_260_000), ("float16", 645_000), ("int8", 412_000)],
    ids=lambda value: str(value),
)
def test_five_modules_on_vit_b(make_module: MakeModule, tmp_path: Path, dtype: str, at_most: int) -> None:
    """All modules, all records and bank.json."""
    five_domains(make_module, dtype, small).save(tmp_path / "bank")
    about = describe_bank(tmp_path / "bank")
    assert [module["num_weights"] for module in about["modules"]] == [61_524] * 5
    parts = {part["part"]: part["bytes"] for part in about["sizes"]["parts"]}
    found = about["total_bytes"] - parts["selector"] - parts["state"]
    assert 0.97 * at_most < found <= at_most
    overhead = sum(part["header"] + part["record"] for part in about["sizes"]["parts"][:5])
    assert overhead <= 5 * 4_800, "names, shapes and history beside the weights"


def test_a_whole_bank_on_vit_b_with_all_it_needs_to_keep_learning(make_module: MakeModule, tmp_path: Path) -> None:
    """Five modules, one natural class, the selector and its state. The published files take 8.84 MiB."""
    five_domains(make_module, "float16", anisotropic).save(tmp_path / "bank")
    about = describe_bank(tmp_path / "bank")
    assert about["total_bytes"] == sum(on_disk(tmp_path / "bank").values()) <= 0.8 * 2**20
    bank = Bank.load(tmp_path / "bank")
    assert bank.state is not None and bank.selector.domains == DOMAINS
    grown = extend_bank(bank, make_module("sixth", site=VIT_B, rank=10, split=7), anisotropic(6), GAUSSIAN, 0)
    assert grown.selector.domains == (*DOMAINS, "sixth")
    found = bank.selector.choose(anisotropic(3)).index
    assert (found == 2).float().mean() > 0.9, "it still tells the domains apart"
