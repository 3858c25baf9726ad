from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from samcl_core.adapters import build_adapter
from samcl_core.backbones.base import AdapterSite
from samcl_core.bank import Bank, Module, describe_bank, pack, stack_modules, unpack, verify_bank
from samcl_core.bank.layout import checksum
from samcl_core.config import SelectorParams
from samcl_core.errors import BackboneMismatch, BankError, IntegrityError
from samcl_core.files import digest_files
from samcl_core.selectors import fit_state
from samcl_core.strategies import extend_bank

MakeModule = Callable[..., Module]
MakeBank = Callable[..., Bank]
SITE = AdapterSite(dim=16, neck_dim=8, grid=4, blocks=(2, 3), windows=(2, 0))
QUICK = SelectorParams(epochs=1, min_steps=0)
SHA256 = "ab" * 32
FILES = [
    "bank.json",
    "modules/a/module.json",
    "modules/a/module.safetensors",
    "modules/b/module.json",
    "modules/b/module.safetensors",
    "selector/selector.safetensors",
    "selector/state.safetensors",
]


def rows(k: int = 5, num: int = 12) -> Tensor:
    return torch.randn(num, 16, generator=torch.Generator().manual_seed(k)) + 3 * k


def rewrite(folder: Path, **changes: Any) -> None:
    """Change ``bank.json`` the way a careful forger would: with a fitting checksum."""
    record = {**json.loads((folder / "bank.json").read_text()), **changes}
    (folder / "bank.json").write_text(json.dumps({**record, "checksum": checksum(record)}))


@pytest.fixture
def folder(make_bank: MakeBank, tmp_path: Path) -> Path:
    make_bank("a", "b").save(tmp_path / "bank")
    return tmp_path / "bank"


@pytest.mark.parametrize("kind", ["mlp", "gaussian"])
def test_comes_back_as_it_was(make_bank: MakeBank, tmp_path: Path, kind: str) -> None:
    bank = make_bank("a", "b", params=SelectorParams(kind=kind, epochs=1, min_steps=0))
    bank = bank.with_lineage({"commit": "f00", "data": {"a": "1"}})
    bank.save(tmp_path / "bank")
    again = Bank.load(tmp_path / "bank", backbone_sha256=SHA256)
    assert again.names == bank.names == again.selector.domains == ("a", "b")
    assert again.digest == bank.digest and again.lineage == bank.lineage
    left, right = bank.selector.choose(rows()), again.selector.choose(rows())
    assert torch.equal(left.index, right.index) and torch.equal(left.confidence, right.confidence)
    assert list(digest_files(tmp_path / "bank")) == FILES
    assert verify_bank(tmp_path / "bank") == []


def test_same_bank_same_bytes(make_bank: MakeBank, tmp_path: Path) -> None:
    for name in ("x", "y"):
        make_bank("a", "b").save(tmp_path / name)
    Bank.load(tmp_path / "x").save(tmp_path / "z")
    assert digest_files(tmp_path / "x") == digest_files(tmp_path / "y") == digest_files(tmp_path / "z")


def test_a_new_domain_leaves_earlier_modules_byte_identical(
    make_bank: MakeBank, make_module: MakeModule, folder: Path, tmp_path: Path
) -> None:
    before = digest_files(folder / "modules")
    bank = extend_bank(Bank.load(folder), make_module("c", seed=7), rows(), QUICK, 0)
    bank.save(tmp_path / "next")
    after = digest_files(tmp_path / "next" / "modules")
    assert {path: after[path] for path in before} == before and len(after) == len(before) + 2
    assert digest_files(folder / "modules") == before
    assert bank.digest != Bank.load(folder).digest


def test_digest_is_about_what_the_bank_does(make_bank: MakeBank) -> None:
    bank = make_bank("a", "b")
    assert bank.with_lineage({"when": "now"}).digest == bank.digest
    assert make_bank("b", "a").digest != bank.digest
    assert make_bank("a").digest != bank.digest


@pytest.mark.parametrize("path", FILES[1:])
def test_a_missing_file_is_named(folder: Path, path: str) -> None:
    (folder / path).unlink()
    with pytest.raises(IntegrityError, match=f"{path} is missing, expected sha256 [0-9a-f]{{64}}"):
        Bank.load(folder)
    assert len(verify_bank(folder)) == 1


@pytest.mark.parametrize("path", FILES)
def test_one_changed_bit_is_noticed(folder: Path, path: str) -> None:
    data = bytearray((folder / path).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / path).write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match=path):
        Bank.load(folder)
    assert verify_bank(folder)


def test_a_changed_file_is_named_with_both_digests(folder: Path) -> None:
    expected = digest_files(folder)["modules/a/module.safetensors"]
    (folder / "modules/a/module.safetensors").write_bytes(b"x")
    found = digest_files(folder)["modules/a/module.safetensors"]
    with pytest.raises(IntegrityError, match=f"modules/a/module.safetensors has sha256 {found}, expected {expected}"):
        Bank.load(folder)


def test_surplus_files_are_named_and_dvcs_are_not(folder: Path) -> None:
    (folder / ".gitignore").write_text("x")
    assert verify_bank(folder) == []
    (folder / "modules" / "c").mkdir()
    (folder / "modules" / "c" / "module.json").write_text("{}")
    assert verify_bank(folder) == ["modules/c/module.json is surplus"]
    with pytest.raises(IntegrityError, match="surplus"):
        Bank.load(folder)


def test_all_problems_at_once(folder: Path) -> None:
    (folder / FILES[1]).unlink()
    (folder / FILES[2]).write_bytes(b"")
    (folder / "note.txt").write_text("x")
    assert len(verify_bank(folder)) == 3


def test_another_backbone_is_refused_with_both_digests(folder: Path) -> None:
    with pytest.raises(BackboneMismatch, match=f"(?s){SHA256}.*{'00' * 32}"):
        Bank.load(folder, backbone_sha256="00" * 32)


def test_a_newer_schema_asks_for_an_upgrade(folder: Path) -> None:
    rewrite(folder, schema_version=99)
    with pytest.raises(BankError, match="schema_version 99") as caught:
        Bank.load(folder)
    assert not isinstance(caught.value, IntegrityError) and "upgrade" in caught.value.hint


@pytest.mark.parametrize("text", ["", "{]", "[1]", '{"schema_version": 1}'])
def test_a_corrupt_record_is_an_integrity_error(folder: Path, text: str) -> None:
    (folder / "bank.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"bank\.json"):
        Bank.load(folder)
    assert verify_bank(folder)


@pytest.mark.parametrize("name", ["../../outside", "/etc", "a/../b", "", ".", 7, None])
def test_no_path_of_the_record_leaves_the_folder(folder: Path, name: Any) -> None:
    record = json.loads((folder / "bank.json").read_text())
    files = {path.replace("modules/a/", f"modules/{name}/"): sha for path, sha in record["files"].items()}
    rewrite(folder, domains=[name, "b"], modules={str(name): "x", "b": "y"}, files=files)
    with pytest.raises(IntegrityError):
        Bank.load(folder)


def test_a_forged_record_does_not_fit_its_digest(folder: Path) -> None:
    record = json.loads((folder / "bank.json").read_text())
    limits = {**record["selector"]["thresholds"], "a": 1e9}
    rewrite(folder, selector={**record["selector"], "thresholds": limits})
    with pytest.raises(IntegrityError, match="digest"):
        Bank.load(folder)
    assert len(verify_bank(folder)) == 1


def test_files_table_must_be_complete(folder: Path) -> None:
    record = json.loads((folder / "bank.json").read_text())
    rewrite(folder, files=dict(list(record["files"].items())[1:]))
    with pytest.raises(IntegrityError, match="lists files"):
        Bank.load(folder)


def test_domains_and_modules_must_agree(folder: Path) -> None:
    for domains in (["a", "a"], ["a"], ["b", "a"], "ab"):
        rewrite(folder, domains=domains)
        with pytest.raises(IntegrityError):
            Bank.load(folder)


def test_no_bank(tmp_path: Path) -> None:
    with pytest.raises(BankError, match=r"no bank at .*no bank\.json"):
        Bank.load(tmp_path)
    assert len(verify_bank(tmp_path / "nowhere")) == 1


def test_a_failed_save_leaves_the_last_bank(make_bank: MakeBank, folder: Path) -> None:
    before = digest_files(folder)
    with pytest.raises(BankError, match="JSON"):
        make_bank("a").with_lineage({"bad": float("inf")}).save(folder)
    with pytest.raises(BankError, match="JSON"):
        make_bank("a").with_lineage({"bad": {1, 2}}).save(folder)
    assert digest_files(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["bank"]


def test_saving_over_an_older_bank_leaves_nothing_of_it(make_bank: MakeBank, folder: Path) -> None:
    make_bank("c").save(folder)
    assert verify_bank(folder) == [] and Bank.load(folder).names == ("c",)


def test_a_bank_can_be_moved(folder: Path, tmp_path: Path) -> None:
    digest = Bank.load(folder).digest
    shutil.move(folder, tmp_path / "elsewhere")
    assert Bank.load(tmp_path / "elsewhere").digest == digest


def test_modules_must_fit_the_bank(make_bank: MakeBank, make_module: MakeModule) -> None:
    bank = make_bank("a")
    assert bank.state is not None
    state = bank.state.added("b", rows(), seed=0)
    selector = fit_state(state, QUICK, 0)
    for changes, error, match in (
        ({"backbone_sha256": "00" * 32}, BackboneMismatch, f"(?s){'00' * 32}.*{SHA256}"),
        ({"rank": 3}, BankError, "modules a and b .* parameters"),
        ({"kind": "other"}, BankError, "modules a and b .* kind: augmodule and other"),
        ({"split": 3}, BankError, "modules a and b .* split: 2 and 3"),
    ):
        with pytest.raises(error, match=match):
            bank.with_module(make_module("b", **changes), selector, state)
    with pytest.raises(BankError, match=r"the selector knows \['a', 'b'\], the modules are \['a', 'c'\]"):
        bank.with_module(make_module("c"), selector, state)


def test_names_that_differ_only_in_case_are_refused(make_bank: MakeBank) -> None:
    with pytest.raises(BankError, match="one name"):
        make_bank("polyp", "Polyp")


def test_stack_has_the_null_module_first(make_bank: MakeBank) -> None:
    bank = make_bank("a", "b")
    adapter = build_adapter("augmodule", SITE, rank=2)
    stack = stack_modules(bank, adapter)
    assert list(stack) == list(adapter.shapes())
    for name, shape in adapter.shapes().items():
        assert stack[name].shape == (3, *shape) and stack[name].dtype == torch.float32
        assert torch.equal(stack[name][0], adapter.null()[name])
        for k, module in enumerate(bank.modules):
            assert torch.equal(stack[name][k + 1], module.weights[name])
    assert all(len(tensor) == 1 for tensor in stack_modules(make_bank(), adapter).values())


def test_modules_of_all_number_formats_make_one_bank_and_one_stack(
    make_bank: MakeBank, make_module: MakeModule, tmp_path: Path
) -> None:
    bank, trained = make_bank(), make_module("float32")
    for dtype in ("float32", "float16", "int8"):
        module = replace(trained, domain=dtype, tensors=pack(trained.tensors, dtype))
        bank = extend_bank(bank, module, rows(), QUICK, 0)
    bank.save(tmp_path / "bank")
    again = Bank.load(tmp_path / "bank")
    assert again.digest == bank.digest and verify_bank(tmp_path / "bank") == []
    adapter = build_adapter("augmodule", SITE, rank=2)
    stack = stack_modules(again, adapter)
    for name, tensor in trained.tensors.items():
        assert stack[name].dtype == torch.float32 and torch.equal(stack[name][1], tensor)
        for k, module in enumerate(again.modules):
            assert torch.equal(stack[name][k + 1], unpack(module.tensors)[name])
        largest = float(tensor.abs().max())
        torch.testing.assert_close(stack[name][2], tensor, rtol=0, atol=largest / 2048)
        torch.testing.assert_close(stack[name][3], tensor, rtol=0, atol=largest / 220)
        assert not torch.equal(stack[name][2], tensor)


def test_a_bank_whose_modules_list_their_tensors_is_read(folder: Path, tmp_path: Path) -> None:
    """As banks were written before; its digest is the same."""
    digest, files = Bank.load(folder).digest, {}
    for name in ("a", "b"):
        path = folder / "modules" / name / "module.json"
        tensors = Module.load(path.parent).tensors
        table = {key: {"shape": list(t.shape), "dtype": "float32"} for key, t in tensors.items()}
        path.write_text(json.dumps({**json.loads(path.read_text()), "tensors": table}))
        files[f"modules/{name}/module.json"] = digest_files(folder)[f"modules/{name}/module.json"]
    rewrite(folder, files={**json.loads((folder / "bank.json").read_text())["files"], **files})
    assert Bank.load(folder).digest == digest
    assert describe_bank(folder)["total_bytes"] == sum((folder / path).stat().st_size for path in digest_files(folder))


@pytest.mark.parametrize("options", [{"rank": 3}, {"rank": 2, "point_labels": "ignored"}])
def test_stack_refuses_another_adapter(make_bank: MakeBank, options: dict[str, Any]) -> None:
    with pytest.raises(BankError, match="module a has parameters"):
        stack_modules(make_bank("a"), build_adapter("augmodule", SITE, **options))


def test_stack_refuses_another_site(make_bank: MakeBank) -> None:
    site = AdapterSite(dim=8, neck_dim=8, grid=4, blocks=(2, 3), windows=(2, 0))
    with pytest.raises(BankError, match="module a has tensors"):
        stack_modules(make_bank("a"), build_adapter("augmodule", site, rank=2))
