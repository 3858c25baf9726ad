"""Published checkpoints are read without executing anything, and written so that the published scripts load them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from samcl_core.bank import Bank, Module, export_samcl, import_samcl, verify_bank
from samcl_core.bank.imports import PUBLISHED_CLASSES, published_backbone, read_published_module
from samcl_core.bank.torch_reader import Record, read_torch_file
from samcl_core.config import SelectorParams
from samcl_core.errors import BankError, LayoutError, UnsafeFileError
from samcl_core.selectors import MlpSelector
from samcl_core.selectors.mlp import SelectorMlp
from samcl_core.strategies import extend_bank

MakeModule = Callable[..., Module]
MakeBank = Callable[..., Bank]

TESTS = Path(__file__).parents[2]
RELEASED = TESTS.parents[1] / "shared" / "samples" / "released"
SHA256 = "ab" * 32
FAMILIES = {"SAM1": ("sam_vit_b", 768, "SAM ViT-B"), "SAM2": ("sam2.1_hiera_tiny", 384, "SAM 2.1 tiny")}

needs_released = pytest.mark.skipif(
    not RELEASED.is_dir(), reason=f"needs the published modules at {RELEASED} (SAM1/*.pth, SAM2/*.pth)"
)


class Extra(nn.Module):
    """Stands for the published scripts' own class."""

    def __init__(self, rank: int = 2, dim: int = 16) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(rank, rank), nn.LayerNorm(rank)
        self.upward, self.upward_ = nn.Linear(rank, dim), nn.Linear(rank, 8)
        self.cnt = 0


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules ``module.SAMCL`` and ``module.SAMCL_2`` of the published scripts."""
    for name in ("module", "module.SAMCL", "module.SAMCL_2"):
        fake = ModuleType(name)
        fake.Extra = Extra  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setattr(Extra, "__module__", "module.SAMCL")


def published_module(rank: int = 2, dim: int = 16) -> dict[str, Any]:
    """The object that the published training script saves."""
    content: dict[str, Any] = {"extra": Extra(rank, dim), "lora_layer": [2, 3], "A": nn.Linear(dim, rank)}
    for i in range(2):
        content[f"B_{i:03d}"] = nn.Linear(rank, dim)
        content[f"norm1_{i:03d}"], content[f"norm2_{i:03d}"] = nn.LayerNorm(rank), nn.LayerNorm(rank)
    return content


@pytest.fixture
def released(tmp_path: Path, scripts: None) -> Path:
    """A folder as the published scripts leave it: two domains and natural images."""
    folder = tmp_path / "released"
    folder.mkdir()
    torch.manual_seed(0)
    for name in ("Kvasir", "camo"):
        torch.save(published_module(), folder / f"{name}.pth")
    torch.save(SelectorMlp(16, 3).state_dict(), folder / "Module_Selector.pth")
    return folder


def imported(folder: Path) -> Bank:
    return import_samcl(folder, "tiny", SHA256, classes=("Kvasir", "camo", "COCO"))


def write_torch_zip(path: Path, program: bytes, **extra: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program)
        archive.writestr("x/version", b"3\n")
        for name, data in extra.items():
            archive.writestr(f"x/data/{name.removeprefix('_')}", data)
    return path


# --- what is read -----------------------------------------------------------------------------------------------


def test_a_folder_of_the_published_scripts_becomes_a_bank(released: Path, tmp_path: Path) -> None:
    bank = imported(released)
    assert bank.names == ("Kvasir", "camo") and bank.selector.domains == bank.names
    for name in bank.names:
        expected = torch.load(released / f"{name}.pth", weights_only=False)
        module = bank.modules[bank.names.index(name)]
        assert torch.equal(module.tensors["extra.upward_.weight"], expected["extra"].upward_.weight)
        assert torch.equal(module.tensors["B_001.bias"], expected["B_001"].bias)
        assert module.split == 2 and module.parameters == {
            "rank": 2,
            "window_heatmap": "shrink",
            "neck_axes": "transposed",
            "point_labels": "ignored",
        }
    bank.save(tmp_path / "bank")
    assert verify_bank(tmp_path / "bank") == []
    assert Bank.load(tmp_path / "bank").digest == bank.digest == imported(released).digest


def test_an_imported_bank_cannot_grow_and_says_so(released: Path, make_module: MakeModule) -> None:
    with pytest.raises(BankError, match="cannot grow: it has no stored embeddings of Kvasir, camo"):
        extend_bank(imported(released), make_module("new"), torch.zeros(2, 16), SelectorParams(), 0)


def test_selector_outputs_are_sorted_into_learnt_then_natural(released: Path) -> None:
    bank = import_samcl(released, "tiny", SHA256, classes=("COCO", "Kvasir", "camo"))
    weights = torch.load(released / "Module_Selector.pth", weights_only=True)
    assert isinstance(bank.selector, MlpSelector)
    stored = bank.selector.state()[1]["layer4.weight"]
    assert torch.equal(stored, weights["layer4.weight"][[1, 2, 0]])


def test_missing_and_surplus_files_are_named(released: Path) -> None:
    with pytest.raises(LayoutError, match=r"missing \['ISIC.pth', 'ISTD.pth', 'cod.pth'\], surplus \[\]"):
        import_samcl(released, "tiny", SHA256)
    (released / "rails.pth").write_bytes(b"")
    with pytest.raises(LayoutError, match=r"surplus \['rails.pth'\]"):
        imported(released)


def test_tensors_of_all_kinds_come_back(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    value = OrderedDict(
        transposed=base.reshape(4, 6).T,
        slice=base[5:9],
        half=torch.ones(3, dtype=torch.float16),
        brain=torch.ones(3, dtype=torch.bfloat16),
        count=torch.tensor(7),
        empty=torch.zeros(0, 3),
        parameter=nn.Parameter(torch.eye(2)),
    )
    torch.save({"tensors": value, "list": [1, 2.5, None, True, "x"], "tuple": (1, (2, 3, 4, 5))}, tmp_path / "f.pth")
    read = read_torch_file(tmp_path / "f.pth")
    assert read["list"] == [1, 2.5, None, True, "x"] and read["tuple"] == (1, (2, 3, 4, 5))
    for name, tensor in value.items():
        assert torch.equal(read["tensors"][name], tensor) and read["tensors"][name].dtype == tensor.dtype


def test_classes_we_do_not_have_are_data(released: Path) -> None:
    content = read_torch_file(released / "Kvasir.pth")
    assert isinstance(content["extra"], Record) and content["extra"].name == "module.SAMCL Extra"
    assert content["extra"].state["cnt"] == 0


# --- what is refused ----------------------------------------------------------------------------------------------


class Payload:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["alone", "inside", "beside"])
def test_a_command_in_a_pickle_is_refused_and_not_run(tmp_path: Path, place: str, protocol: int) -> None:
    mark = tmp_path / "executed"
    payload = Payload(os.system, f"touch {mark}")
    value = {"alone": payload, "inside": {"extra": payload}, "beside": {"A": torch.zeros(2), "x": [payload]}}[place]
    torch.save(value, tmp_path / "f.pth", pickle_protocol=protocol)
    with pytest.raises(UnsafeFileError, match="refused, nothing of it was executed"):
        read_torch_file(tmp_path / "f.pth")
    assert not mark.exists()
    torch.load(tmp_path / "f.pth", weights_only=False)
    assert mark.exists(), "the file would have run a command"


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (eval, ("1",), r"__builtin__\.eval"),
        (getattr, ("x", "y"), r"__builtin__\.getattr"),
        (os.system, ("true",), r"(posix|nt)\.system"),
        (torch.load, ("f",), r"torch\.serialization\.load"),
        (Path, ("/",), r"pathlib"),
    ],
)
def test_the_refused_name_is_in_the_message(
    tmp_path: Path, function: Callable[..., Any], arguments: Any, name: str
) -> None:
    torch.save([Payload(function, *arguments)], tmp_path / "f.pth")
    with pytest.raises(UnsafeFileError, match=f"asks for {name}"):
        read_torch_file(tmp_path / "f.pth")


def test_a_tampered_module_is_refused_as_a_whole(released: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    torch.save({**published_module(), "extra": Payload(os.system, f"touch {mark}")}, released / "camo.pth")
    with pytest.raises(UnsafeFileError, match=r"camo\.pth was refused.*system"):
        imported(released)
    assert not mark.exists()


def test_an_unknown_class_is_refused(tmp_path: Path) -> None:
    torch.save({"x": nn.Sequential(nn.ReLU())}, tmp_path / "f.pth")
    with pytest.raises(UnsafeFileError, match=r"asks for torch\.nn\.modules\.container\.Sequential"):
        read_torch_file(tmp_path / "f.pth")


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.", r"os\.system"),
        (b"\x80\x02(X\x04\x00\x00\x00trueios\nsystem\n.", "INST"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "protocol 4"),
        (b"\x8c\x02os\x8c\x06system\x93.", "SHORT_BINUNICODE"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", r"calls torch\.FloatStorage"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "not well formed"),
        (b"\x80\x02ctorch._utils\n_rebuild_parameter\nK\x01\x85R.", "parameter of int"),
        (b"\x80\x02ccollections\nOrderedDict\n}b.", "sets the state of _Name"),
        (b"\x80\x02cmodule.SAMCL\nExtra\n}\x81.", "not well formed|creates"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", r"creates collections\.OrderedDict"),
        (b"\x80\x02cmodule.SAMCL\nExtra\n)\x81K\x01b.", "state that is int"),
        (b"\x80\x02}K\x01K\x02s.", "key that is not a text"),
        (b"\x80\x02}X\x01\x00\x00\x00aK\x02e.", "not well formed"),
        (b"\x80\x02]\x85\x85h\x07.", "not well formed"),
        (b"\x80\x02K\x01K\x02.", "not well formed"),
        (b"\x80\x02\x85.", "more from the stack"),
        (b"\x80\x02", "not well formed"),
        (b"", "not well formed"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "not well formed"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "not well formed"),
        (b"\x80\x02X\x07\x00\x00\x00storageQ.", "not well formed"),
    ],
)
def test_programs_that_are_not_a_saved_module(tmp_path: Path, program: bytes, why: str) -> None:
    with pytest.raises(UnsafeFileError, match=why):
        read_torch_file(write_torch_zip(tmp_path / "f.pth", program))


def tensor_program(key: str, num: int, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A pickle of one tensor with any numbers in it."""
    stream = io.BytesIO()
    pickler = pickle._Pickler(stream, protocol=2)  # type: ignore[attr-defined]
    head = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    pickler.save(key)
    pickler.save("cpu")
    pickler.save(num)
    stream.write(b"tQ")
    pickler.save(offset)
    pickler.save(shape)
    pickler.save(stride)
    return head + stream.getvalue() + b"\x89ccollections\nOrderedDict\n)RtR."


@pytest.mark.parametrize(
    ("num", "offset", "shape", "stride"),
    [
        (4, 0, (5,), (1,)),
        (4, 1, (4,), (1,)),
        (4, 0, (2, 2), (2, 2)),
        (4, 0, (1 << 30, 4), (0, 1)),
        (4, -1, (2,), (1,)),
        (4, 0, (-1,), (1,)),
        (4, 0, (2,), (-1,)),
        (4, 0, (2,), (1, 1)),
        (1 << 40, 0, (4,), (1,)),
        (3, 0, (3,), (1,)),
        (-4, 0, (4,), (1,)),
    ],
)
def test_tensors_beyond_their_storage(
    tmp_path: Path, num: int, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    program = tensor_program("0", num, offset, shape, stride)
    with pytest.raises(UnsafeFileError, match="refused"):
        read_torch_file(write_torch_zip(tmp_path / "f.pth", program, _0=bytes(16)))


def test_tensor_program_is_a_tensor_when_its_numbers_are_right(tmp_path: Path) -> None:
    path = write_torch_zip(tmp_path / "f.pth", tensor_program("0", 4, 1, (3,), (1,)), _0=struct.pack("<4f", 1, 2, 3, 4))
    assert read_torch_file(path).tolist() == [2, 3, 4]
    for key in ("../data.pkl", "1", "x"):
        with pytest.raises(UnsafeFileError):
            read_torch_file(write_torch_zip(tmp_path / "f.pth", tensor_program(key, 4, 1, (3,), (1,)), _0=bytes(16)))


def test_values_that_are_endless_to_print_or_walk(tmp_path: Path, scripts: None) -> None:
    bomb = b"\x80\x02)" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"Q."
    with pytest.raises(UnsafeFileError):
        read_torch_file(write_torch_zip(tmp_path / "f.pth", bomb))
    endless = published_module()
    endless["extra"].itself = endless["extra"]
    torch.save(endless, tmp_path / "f.pth")
    with pytest.raises(BankError, match="nested deeper"):
        read_published_module(tmp_path / "f.pth")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.99])
def test_truncated_files_are_refused(released: Path, share: float) -> None:
    path = released / "Kvasir.pth"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UnsafeFileError, match="not a whole torch zip file"):
        imported(released)


def test_compressed_bombs_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "f.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(64 << 20))
    with pytest.raises(UnsafeFileError, match="compressed"):
        read_torch_file(tmp_path / "f.pth")


@pytest.mark.parametrize("name", ["../data.pkl", "/data.pkl", "x/../../data.pkl", "data.pkl", "x//data.pkl", "x/y/"])
def test_entries_outside_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "f.pth", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02N.")
        archive.writestr(name, b"\x80\x02N.")
    with pytest.raises(UnsafeFileError, match="not below one common folder"):
        read_torch_file(tmp_path / "f.pth")


def test_other_zip_tricks(tmp_path: Path) -> None:
    path = tmp_path / "f.pth"
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x/data.pkl", b"\x80\x02N.")
        archive.writestr("x/data.pkl", b"\x80\x02N.")
    with pytest.raises(UnsafeFileError, match="two entries have one name"):
        read_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(5000):
            archive.writestr(f"x/{k}", b"")
    with pytest.raises(UnsafeFileError, match="5000 entries"):
        read_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", bytes(5 << 20))
    with pytest.raises(UnsafeFileError, match="pickle has 5242880 bytes"):
        read_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/other", b"")
    with pytest.raises(UnsafeFileError, match=r"no data\.pkl"):
        read_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02N.")
        archive.writestr("x/byteorder", b"big")
    with pytest.raises(UnsafeFileError, match="byte order"):
        read_torch_file(path)
    torch.save({}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsafeFileError, match="not a whole torch zip"):
        read_torch_file(path)
    with pytest.raises(UnsafeFileError, match="no such file"):
        read_torch_file(tmp_path / "nothing.pth")


def test_files_that_are_too_large(tmp_path: Path) -> None:
    with (tmp_path / "f.pth").open("wb") as stream:
        stream.truncate((512 << 20) + 1)
    with pytest.raises(UnsafeFileError, match="at most 536870912"):
        read_torch_file(tmp_path / "f.pth")


def test_random_damage_never_gets_past_our_errors(released: Path, tmp_path: Path) -> None:
    data = (released / "Kvasir.pth").read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    dice = random.Random(0)
    num_refused = 0
    for _ in range(120):
        damaged = {}
        for name, content in files.items():
            mutable = bytearray(content)
            if name.endswith("data.pkl"):
                for _ in range(dice.randint(1, 4)):
                    mutable[dice.randrange(len(mutable))] = dice.randrange(256)
            damaged[name] = bytes(mutable)
        with zipfile.ZipFile(tmp_path / "f.pth", "w") as archive:
            for name, content in damaged.items():
                archive.writestr(name, content)
        try:
            read_published_module(tmp_path / "f.pth")
        except (UnsafeFileError, BankError):
            num_refused += 1
    for _ in range(80):
        raw = bytearray(data)
        for _ in range(dice.randint(1, 4)):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
        (tmp_path / "f.pth").write_bytes(bytes(raw))
        try:
            read_published_module(tmp_path / "f.pth")
        except (UnsafeFileError, BankError):
            num_refused += 1
    assert num_refused > 40


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"A": None}, "entry 'A' is NoneType"),
        ({"B_001": nn.Linear(2, 16, bias=False)}, r"B_001\.bias.*NoneType"),
        ({"C": nn.Linear(2, 2)}, r"C\.weight"),
        ({"lora_layer": [2, 4]}, r"lora_layer is \[2, 4\]"),
        ({"lora_layer": []}, r"lora_layer is \[\]"),
        ({"lora_layer": [2, 3, 4]}, r"B_002\.weight"),
        ({"norm1_000": nn.LayerNorm(2, eps=1e-6)}, r"norm1_000 has eps 1e-06, expected 1e-05"),
    ],
)
def test_data_that_is_no_module(released: Path, change: dict[str, Any], match: str) -> None:
    torch.save({**published_module(), **change}, released / "camo.pth")
    with pytest.raises(BankError, match=match):
        imported(released)


def test_data_that_is_no_selector(released: Path) -> None:
    for content, match in (
        ([1], "no selector"),
        ({"layer1.weight": torch.zeros(1, 1000)}, "no selector"),
        (SelectorMlp(16, 4).state_dict(), r"4 outputs, expected 3"),
        ({**SelectorMlp(16, 3).state_dict(), "x": torch.zeros(1)}, "not the published network"),
    ):
        torch.save(content, released / "Module_Selector.pth")
        with pytest.raises(BankError, match=match):
            imported(released)


# --- what is written ----------------------------------------------------------------------------------------------


def test_exported_files_are_what_the_published_scripts_load(make_bank: MakeBank, scripts: None, tmp_path: Path) -> None:
    bank = make_bank("a", "b")
    export_samcl(bank, tmp_path / "out")
    for module in bank.modules:
        content = torch.load(tmp_path / "out" / f"{module.domain}.pth", weights_only=False)
        assert list(content)[:3] == ["extra", "lora_layer", "A"] and content["lora_layer"] == [2, 3]
        assert isinstance(content["extra"], Extra) and isinstance(content["B_001"], nn.Linear)
        assert content["A"](torch.ones(3, 16)).shape == (3, 2)
        assert content["extra"].norm(content["extra"].layer(torch.ones(1, 2))).shape == (1, 2)
        assert torch.equal(content["norm2_001"].bias, module.tensors["norm2_001.bias"])
        assert all(parameter.requires_grad for parameter in content["A"].parameters())
        torch.save(content, tmp_path / "again.pth")
    weights = torch.load(tmp_path / "out" / "Module_Selector.pth", weights_only=True)
    SelectorMlp(16, 3).load_state_dict(weights)


def test_export_then_import_gives_the_same_modules(make_bank: MakeBank, tmp_path: Path) -> None:
    bank = make_bank("a", "b")
    export_samcl(bank, tmp_path / "out")
    again = import_samcl(tmp_path / "out", "tiny", SHA256, classes=("a", "b", "nature"), natural=("nature",))
    for left, right in zip(bank.modules, again.modules, strict=True):
        assert left.tensors.keys() == right.tensors.keys()
        assert all(torch.equal(left.tensors[name], right.tensors[name]) for name in left.tensors)
        assert left.split == right.split
    assert isinstance(bank.selector, MlpSelector) and isinstance(again.selector, MlpSelector)
    rows = torch.randn(5, 16)
    assert torch.equal(bank.selector.logits(rows), again.selector.logits(rows))


def test_export_says_what_the_format_cannot(make_bank: MakeBank, tmp_path: Path) -> None:
    summary = export_samcl(make_bank("a"), tmp_path / "out")
    assert summary["classes"] == ["a", "nature"]
    text = " ".join(summary["limits"])
    for word in ("window_heatmap = 'crop'", "neck_axes = 'image'", "point_labels = 'signed'", "fit no domain"):
        assert word in text
        assert word in (tmp_path / "out" / "README.txt").read_text()
    assert json.loads((tmp_path / "out" / "export.json").read_text())["files"] == ["Module_Selector.pth", "a.pth"]


def test_export_without_mlp_has_no_selector_file(make_bank: MakeBank, tmp_path: Path) -> None:
    summary = export_samcl(make_bank("a", params=SelectorParams(kind="gaussian")), tmp_path / "out")
    assert not (tmp_path / "out" / "Module_Selector.pth").exists()
    assert summary["classes"] == [] and "'gaussian' is not exported" in " ".join(summary["limits"])


def test_outputs_without_a_class_are_exported_and_named(make_bank: MakeBank, tmp_path: Path) -> None:
    params = SelectorParams(epochs=1, min_steps=0, classes="fixed", num_classes=4)
    summary = export_samcl(make_bank("a", params=params), tmp_path / "out")
    assert summary["classes"] == ["a", "nature", "unused_0", "unused_1"]
    assert "name them as natural classes" in " ".join(summary["limits"])
    classes = summary["classes"]
    again = import_samcl(tmp_path / "out", "tiny", SHA256, classes=classes, natural=classes[1:])
    assert again.names == ("a",)


def test_the_model_is_known_from_the_modules(tmp_path: Path, released: Path) -> None:
    assert published_backbone(released) is None
    with pytest.raises(BankError, match="adapts blocks of width 16 from block 2 on, sam_vit_b has 768 from block 7 on"):
        import_samcl(released, "sam_vit_b", SHA256, classes=("Kvasir", "camo", "COCO"))
    with pytest.raises(LayoutError, match=r"holds no <domain>\.pth"):
        published_backbone(tmp_path)


def test_export_needs_modules_of_the_published_kind(make_bank: MakeBank, tmp_path: Path) -> None:
    with pytest.raises(BankError, match="no module"):
        export_samcl(make_bank(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the published files themselves -------------------------------------------------------------------------------


@needs_released
@pytest.mark.parametrize("family", FAMILIES)
def test_published_modules_equal_their_recorded_checksums(family: str, golden: Any) -> None:
    name, _, _ = FAMILIES[family]
    assert published_backbone(RELEASED / family) == name
    bank = import_samcl(RELEASED / family, name, SHA256)
    assert bank.names == PUBLISHED_CLASSES[:5]
    recorded = golden("released_module_checksums")
    for module in bank.modules:
        prefix = f"{family.lower()}_{module.domain}"
        expected = dict(zip(recorded[f"{prefix}_keys"], recorded[f"{prefix}_sha256"], strict=True))
        found = {n: hashlib.sha256(t.numpy().tobytes()).hexdigest() for n, t in module.tensors.items()}
        assert found == expected
        blocks = recorded[f"{prefix}_lora_layer"]
        assert module.split == blocks[0] and f"B_{len(blocks) - 1:03d}.weight" in found


@needs_released
@pytest.mark.parametrize("family", FAMILIES)
def test_published_selector_gives_the_recorded_logits(
    family: str, recipe: ModuleType, golden: Any, parity: Any
) -> None:
    name, dim, label = FAMILIES[family]
    recorded = golden("selector")
    selector = import_samcl(RELEASED / family, name, SHA256).selector
    assert isinstance(selector, MlpSelector)
    logits = selector.logits(torch.from_numpy(recipe.random_embeddings(dim)))
    parity("released selector: logits", label, logits, recorded[f"released_{dim}_logits_random"], atol=2e-3)
    tensors = selector.state()[1]
    expected = dict(zip(recorded[f"released_{dim}_keys"], recorded[f"released_{dim}_sha256"], strict=True))
    assert {n: hashlib.sha256(tensors[n].numpy().tobytes()).hexdigest() for n in expected} == expected


@needs_released
@pytest.mark.parametrize("family", FAMILIES)
def test_published_modules_survive_export_and_import(family: str, tmp_path: Path) -> None:
    name, _, _ = FAMILIES[family]
    bank = import_samcl(RELEASED / family, name, SHA256)
    export_samcl(bank, tmp_path / "out")
    again = import_samcl(tmp_path / "out", name, SHA256)
    assert [module.digest for module in again.modules] == [module.digest for module in bank.modules]
    package = {"SAM1": "module.SAMCL", "SAM2": "module.SAMCL_2"}[family]
    assert read_torch_file(tmp_path / "out" / "cod.pth")["extra"].name == f"{package} Extra"
