"""One trained module: what it is, what it was trained on, and its tensors. ``module.json`` + ``module.safetensors``."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from samcl_core.bank.packing import packed_shapes, unpack
from samcl_core.bank.records import SCHEMA_VERSION, json_bytes, parse_record, parse_tensors, require
from samcl_core.config import valid_domain_name
from samcl_core.errors import BankError, IntegrityError
from samcl_core.files import digest_json, staged_folder
from samcl_core.tensors import tensor_bytes

__all__ = ["MODULE_FILES", "Module"]

MODULE_FILES = ("module.json", "module.safetensors")

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "schema_version": int,
    "domain": str,
    "kind": str,
    "parameters": dict,
    "backbone": dict,
    "split": int,
    "data_digest": str,
    "seed": int,
    "code": str,
    "metrics": dict,
    "tensors_sha256": str,
}


@dataclass(frozen=True, eq=False)
class Module:
    """One trained adapter of one domain.

    Attributes:
        domain: its name.
        kind: the adapter's registered name.
        parameters: the adapter's settings (JSON values).
        backbone: name of the frozen model.
        backbone_sha256: digest of its checkpoint.
        split: index of the first adapted block.
        data_digest: digest of the training data.
        seed: seed of the training.
        code: version of the code that trained it.
        metrics: what the training measured (JSON values; no timings, they would change the bytes).
        tensors: trained tensors by name, as they are stored (``packing``); ``weights`` are the numbers in them.
    """

    domain: str
    kind: str
    parameters: dict[str, Any]
    backbone: str
    backbone_sha256: str
    split: int
    data_digest: str
    seed: int
    code: str
    metrics: dict[str, Any]
    tensors: dict[str, Tensor] = field(repr=False)

    def __post_init__(self) -> None:
        try:
            valid_domain_name(self.domain)
        except ValueError as exc:
            raise BankError(str(exc)) from exc
        _ = self.shapes

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """What the adapter computes with: float32, by name. Every user of a module sees these, whoever stored it."""
        return unpack(self.tensors)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of the weights, sorted by name; nothing is decoded for it."""
        return packed_shapes(self.tensors)

    @cached_property
    def digest(self) -> str:
        """sha256 over what the module does: domain, kind, settings, backbone, split, tensors; not over its history."""
        record = self._record(self.tensors_sha256)
        names = ("domain", "kind", "parameters", "backbone", "split", "tensors_sha256")
        return digest_json({"tensors": _table(self.tensors), **{name: record[name] for name in names}})

    @cached_property
    def tensors_sha256(self) -> str:
        """sha256 of ``module.safetensors``."""
        return hashlib.sha256(self._tensor_bytes).hexdigest()

    @property
    def num_weights(self) -> int:
        """How many trained numbers it holds."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def files(self) -> dict[str, bytes]:
        """File name to content; same module, same bytes.

        Raises:
            BankError: metrics or parameters are not JSON values.
        """
        return {"module.json": self._json_bytes, "module.safetensors": self._tensor_bytes}

    # Both are known already where the module was read from its files: a bank of thousands is not written to be named.
    @cached_property
    def _tensor_bytes(self) -> bytes:
        return tensor_bytes(self.tensors)

    @cached_property
    def _json_bytes(self) -> bytes:
        return json_bytes(self._record(self.tensors_sha256), f"module {self.domain}")

    def _record(self, tensors_sha256: str) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "domain": self.domain,
            "kind": self.kind,
            "parameters": self.parameters,
            "backbone": {"name": self.backbone, "sha256": self.backbone_sha256},
            "split": self.split,
            "data_digest": self.data_digest,
            "seed": self.seed,
            "code": self.code,
            "metrics": self.metrics,
            "tensors_sha256": tensors_sha256,
        }

    def save(self, folder: Path) -> None:
        """Write the module as ``folder``, which is complete or as it was before.

        Raises:
            BankError: metrics or parameters are not JSON values.
            SamclError: the disk is full or the folder cannot be written.
        """
        files = self.files()
        with staged_folder(folder) as staging:
            for name, data in files.items():
                (staging / name).write_bytes(data)

    @staticmethod
    def load(folder: Path) -> Module:
        """The module in ``folder``, checked.

        Raises:
            BankError: there is no module, or its schema is newer than this program.
            IntegrityError: a file is missing, surplus, changed or not what it says.
        """
        if not folder.is_dir():
            raise BankError(f"there is no module at {folder}", hint=f"samcl step train {folder.name}")
        found = sorted(path.name for path in folder.iterdir() if path.name != ".gitignore")
        if tuple(found) != MODULE_FILES:
            raise IntegrityError(
                f"{folder} holds {found}, expected {list(MODULE_FILES)}", hint=f"samcl step train {folder.name}"
            )
        return Module.from_files({name: (folder / name).read_bytes() for name in MODULE_FILES}, str(folder))

    @staticmethod
    def from_files(files: Mapping[str, bytes], where: str) -> Module:
        """The module in the contents of its files.

        Raises:
            BankError: its schema is newer than this program.
            IntegrityError: a file is changed or not what it says.
        """
        what = f"{where}/module.json"
        record = parse_record(files["module.json"], what)
        # Earlier modules list their tensors here, too.
        table = record.pop("tensors", None)
        require(record, _FIELDS, what)
        require(record["backbone"], {"name": str, "sha256": str}, f"{what}: backbone")
        found = hashlib.sha256(files["module.safetensors"]).hexdigest()
        if found != record["tensors_sha256"]:
            raise IntegrityError(
                f"{where}/module.safetensors has sha256 {found}, expected {record['tensors_sha256']}",
                hint=f"dvc checkout, or train again: samcl step train {Path(where).name}",
            )
        tensors = parse_tensors(files["module.safetensors"], f"{where}/module.safetensors")
        if table is not None and _table(tensors) != table:
            raise IntegrityError(f"{what} lists other tensors than module.safetensors holds")
        names = ("domain", "kind", "parameters", "split", "data_digest", "seed", "code", "metrics")
        try:
            module = Module(
                **{name: record[name] for name in names},
                backbone=record["backbone"]["name"],
                backbone_sha256=record["backbone"]["sha256"],
                tensors=tensors,
            )
        except BankError as exc:
            raise IntegrityError(f"{what}: {exc.message}") from exc
        module.__dict__.update(
            _json_bytes=files["module.json"], _tensor_bytes=files["module.safetensors"], tensors_sha256=found
        )
        return module


def _table(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in sorted(tensors.items())
    }
