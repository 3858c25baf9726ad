from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from samcl_core.bank import Module, pack, unpack
from samcl_core.errors import BankError, IntegrityError
from samcl_core.files import digest_files
from samcl_core.tensors import tensor_bytes

MakeModule = Callable[..., Module]


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_comes_back_as_it_was(make_module: MakeModule, tmp_path: Path) -> None:
    module = make_module()
    module.save(tmp_path / "Kvasir")
    again = Module.load(tmp_path / "Kvasir")
    assert all(torch.equal(again.tensors[name], module.tensors[name]) for name in module.tensors)
    assert again.digest == module.digest and again.files() == module.files()
    for name in ("domain", "kind", "parameters", "backbone", "backbone_sha256", "split", "seed", "code", "metrics"):
        assert getattr(again, name) == getattr(module, name)
    assert sorted(path.name for path in (tmp_path / "Kvasir").iterdir()) == ["module.json", "module.safetensors"]


def test_same_module_same_bytes(make_module: MakeModule, tmp_path: Path) -> None:
    make_module().save(tmp_path / "a")
    make_module().save(tmp_path / "b")
    assert digest_files(tmp_path / "a") == digest_files(tmp_path / "b")


def test_record_says_everything_a_reader_needs(make_module: MakeModule) -> None:
    record = json.loads(make_module().files()["module.json"])
    assert record["schema_version"] == 1
    assert record["backbone"] == {"name": "tiny", "sha256": "ab" * 32}
    assert record["parameters"]["rank"] == 2 and record["split"] == 2
    assert "tensors" not in record, "names, shapes and number formats stand in module.safetensors alone"


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_stored_bytes_stay_and_weights_are_float32(make_module: MakeModule, tmp_path: Path, dtype: Any) -> None:
    trained = make_module()
    module = replace(trained, tensors=pack(trained.tensors, dtype))
    module.save(tmp_path / "m")
    again = Module.load(tmp_path / "m")
    assert again.files() == module.files() and again.digest == module.digest
    assert {name: tensor.dtype for name, tensor in again.tensors.items()} == {
        name: tensor.dtype for name, tensor in module.tensors.items()
    }
    assert list(again.shapes) == sorted(trained.tensors) and again.num_weights == trained.num_weights
    assert {name: tuple(tensor.shape) for name, tensor in again.weights.items()} == again.shapes
    for name, tensor in unpack(module.tensors).items():
        assert again.weights[name].dtype == torch.float32 and torch.equal(again.weights[name], tensor)
    assert (again.digest == trained.digest) == (dtype == "float32")


def test_modules_that_list_their_tensors_are_read(make_module: MakeModule, tmp_path: Path) -> None:
    """As modules were written before; the list is compared, and the digest is the same."""
    module = make_module()
    module.save(tmp_path / "m")
    table = {name: {"shape": list(t.shape), "dtype": "float32"} for name, t in module.tensors.items()}
    edit(tmp_path / "m" / "module.json", tensors=table)
    again = Module.load(tmp_path / "m")
    assert again.digest == module.digest and again.weights.keys() == module.weights.keys()


def test_stored_tensors_that_are_no_weights(make_module: MakeModule, tmp_path: Path) -> None:
    module = make_module()
    module.save(tmp_path / "m")
    data = tensor_bytes({**module.tensors, "A.weight": torch.ones(2, 16, dtype=torch.int8)})
    (tmp_path / "m" / "module.safetensors").write_bytes(data)
    edit(tmp_path / "m" / "module.json", tensors_sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(IntegrityError, match=r"module\.json: tensor A\.weight is torch\.int8 with no scale, expected"):
        Module.load(tmp_path / "m")


def test_digest_is_about_what_the_module_does(make_module: MakeModule) -> None:
    digest = make_module().digest
    for history in ({"metrics": {"total": 9.0}}, {"code": "9"}, {"data_digest": "ef" * 32}):
        assert make_module(**history).digest == digest
    for other in ({"domain": "ISTD"}, {"backbone_sha256": "cd" * 32}, {"split": 3}, {"parameters": {"rank": 2}}):
        assert make_module(**other).digest != digest
    assert make_module(seed=1).digest != digest


def test_saving_replaces_the_folder_as_a_whole(make_module: MakeModule, tmp_path: Path) -> None:
    make_module(seed=0).save(tmp_path / "m")
    (tmp_path / "m" / "surplus").write_text("old")
    make_module(seed=1).save(tmp_path / "m")
    assert Module.load(tmp_path / "m").digest == make_module(seed=1).digest
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_failed_save_leaves_the_old_module(make_module: MakeModule, tmp_path: Path) -> None:
    make_module(seed=0).save(tmp_path / "m")
    with pytest.raises(BankError, match="cannot be written as JSON"):
        make_module(seed=1, metrics={"loss": float("nan")}).save(tmp_path / "m")
    assert Module.load(tmp_path / "m").digest == make_module(seed=0).digest


def test_missing_surplus_and_changed_files(make_module: MakeModule, tmp_path: Path) -> None:
    with pytest.raises(BankError, match="no module at ") as caught:
        Module.load(tmp_path / "m")
    assert caught.value.hint == "samcl step train m"
    make_module().save(tmp_path / "m")
    (tmp_path / "m" / ".gitignore").write_text("/x\n")
    Module.load(tmp_path / "m")
    (tmp_path / "m" / "extra.bin").write_text("x")
    with pytest.raises(IntegrityError, match=r"extra\.bin"):
        Module.load(tmp_path / "m")
    (tmp_path / "m" / "extra.bin").unlink()
    path = tmp_path / "m" / "module.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match=r"module\.safetensors has sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"):
        Module.load(tmp_path / "m")
    path.unlink()
    with pytest.raises(IntegrityError, match="expected"):
        Module.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"schema_version": 2}, BankError, "schema_version 2.*upgrade samcl"),
        ({"schema_version": "1"}, IntegrityError, "schema_version '1'"),
        ({"schema_version": True}, IntegrityError, "schema_version True"),
        ({"seed": "zero"}, IntegrityError, "seed is 'zero'"),
        ({"backbone": {"name": "tiny"}}, IntegrityError, "sha256 is missing"),
        ({"surplus": 1}, IntegrityError, "'surplus' is unknown"),
        ({"domain": "../escape"}, IntegrityError, "escape"),
        ({"domain": "plain"}, IntegrityError, "reserved"),
        ({"tensors": {}}, IntegrityError, "lists other tensors"),
    ],
)
def test_wrong_records(
    make_module: MakeModule, tmp_path: Path, changes: dict[str, Any], error: type[BankError], match: str
) -> None:
    make_module().save(tmp_path / "m")
    edit(tmp_path / "m" / "module.json", **changes)
    with pytest.raises(error) as caught:
        Module.load(tmp_path / "m")
    assert type(caught.value) is error
    assert re.search(match, str(caught.value), flags=re.DOTALL)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": NaN}', "\xff\xfe", "[" * 100_000])
def test_records_that_are_not_json_objects(make_module: MakeModule, tmp_path: Path, text: str) -> None:
    make_module().save(tmp_path / "m")
    (tmp_path / "m" / "module.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(IntegrityError, match=r"module\.json"):
        Module.load(tmp_path / "m")


@pytest.mark.parametrize("name", ["", "..", "a/b", "plain", "x" * 65])
def test_names_that_cannot_be_folders(make_module: MakeModule, name: str) -> None:
    with pytest.raises(BankError, match="domain name"):
        make_module(name)
