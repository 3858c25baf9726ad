"""All modules and the selector as one immutable folder, named by a digest of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from samcl_core.bank.layout import BANK_FILE, SELECTOR_FILE, STATE_FILE, Contents, checksum, read_bank
from samcl_core.bank.module import MODULE_FILES, Module
from samcl_core.bank.records import SCHEMA_VERSION, json_bytes, parse_tensors
from samcl_core.errors import BackboneMismatch, BankError, IntegrityError, SamclError
from samcl_core.files import digest_json, staged_folder
from samcl_core.selectors import Selector, SelectorState, load_selector, load_state
from samcl_core.tensors import tensor_bytes

__all__ = ["Bank", "check_alike", "verify_bank"]


@dataclass(frozen=True, eq=False)
class Bank:
    """Ordered modules, the selector over them, and what the next selector fit needs. Adding gives a new bank.

    Attributes:
        backbone: name of the frozen model.
        backbone_sha256: digest of its checkpoint; every module was trained on it.
        modules: in the order in which their domains arrived.
        selector: its ``domains`` are the modules' in the same order. Inside a back-fill only the first of them:
            the others wait for the next fit, and until then are used only where a caller names them.
        state: buffers or statistics of all classes so far; ``None`` where they were never published, and the bank
            cannot grow.
        lineage: where the bank came from (JSON values); not part of the digest.
    """

    backbone: str
    backbone_sha256: str
    modules: tuple[Module, ...]
    selector: Selector
    state: SelectorState | None = field(repr=False)
    lineage: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for module in self.modules:
            _check_backbone(module, self.backbone, self.backbone_sha256)
        if self.selector.domains != self.names[: len(self.selector.domains)]:
            raise BankError(f"the selector knows {list(self.selector.domains)}, the modules are {list(self.names)}")
        folded = [name.lower() for name in self.names]
        if len(set(folded)) < len(folded):
            raise BankError(f"two modules have one name: {list(self.names)}")
        check_alike(self.modules)

    @staticmethod
    def empty(
        backbone: str,
        backbone_sha256: str,
        selector: Selector,
        state: SelectorState | None,
        lineage: Mapping[str, Any] | None = None,
    ) -> Bank:
        """A bank without modules; ``selector`` answers plain to everything."""
        return Bank(backbone, backbone_sha256, (), selector, state, dict(lineage or {}))

    def with_module(
        self,
        module: Module,
        selector: Selector,
        state: SelectorState | None,
        lineage: Mapping[str, Any] | None = None,
    ) -> Bank:
        """This bank and one module more, with the selector fitted for it.

        Raises:
            BackboneMismatch: the module was trained on another backbone.
            BankError: the domain is already there, the adapter is another one, or the selector does not fit.
        """
        return Bank(self.backbone, self.backbone_sha256, (*self.modules, module), selector, state, dict(lineage or {}))

    def with_lineage(self, lineage: Mapping[str, Any]) -> Bank:
        """The same bank with another lineage; its digest stays."""
        return replace(self, lineage=dict(lineage))

    @property
    def names(self) -> tuple[str, ...]:
        """Domains with a module, in the order of arrival."""
        return tuple(module.domain for module in self.modules)

    @property
    def waiting(self) -> tuple[str, ...]:
        """Domains whose module the selector does not know yet: the bank is a step inside a back-fill."""
        return self.names[len(self.selector.domains) :]

    @property
    def digest(self) -> str:
        """sha256 over everything that determines what the bank does; not over lineage and metrics."""
        return str(self._written[1]["digest"])

    @cached_property
    def _written(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        json_bytes(self.lineage, "the lineage of a bank")
        files: dict[str, bytes] = {}
        for module in self.modules:
            files |= {f"modules/{module.domain}/{name}": data for name, data in module.files().items()}
        selector, tensors = self.selector.state()
        files[SELECTOR_FILE] = tensor_bytes(_own(tensors))
        state, kept = ({}, {}) if self.state is None else self.state.state()
        files[STATE_FILE] = tensor_bytes(_own(kept))
        known = {f"modules/{module.domain}/module.safetensors": module.tensors_sha256 for module in self.modules}
        sha256 = {path: known.get(path) or hashlib.sha256(data).hexdigest() for path, data in sorted(files.items())}
        content = {
            "schema_version": SCHEMA_VERSION,
            "backbone": {"name": self.backbone, "sha256": self.backbone_sha256},
            "domains": list(self.names),
            "modules": {module.domain: module.digest for module in self.modules},
            "selector": selector,
            "state": state,
        }
        digest = digest_json({**content, "tensors": {path: sha256[path] for path in (SELECTOR_FILE, STATE_FILE)}})
        record = {**content, "digest": digest, "files": sha256, "lineage": self.lineage}
        return files, {**record, "checksum": checksum(record)}

    def save(self, folder: Path) -> None:
        """Write the bank as ``folder``: complete, in place of what stood there, or not at all.

        The same bank gives the same bytes.

        Raises:
            BankError: lineage or metrics are not JSON values.
            SamclError: the disk is full or the folder cannot be written.
        """
        files, record = self._written
        head = json_bytes(record, f"bank {folder.name}")
        with staged_folder(folder) as staging:
            for path, data in {**files, BANK_FILE: head}.items():
                (staging / path).parent.mkdir(parents=True, exist_ok=True)
                (staging / path).write_bytes(data)

    @staticmethod
    def load(folder: Path, backbone_sha256: str | None = None) -> Bank:
        """The bank in ``folder``, after every file was compared with its digest.

        Args:
            folder: a bank folder.
            backbone_sha256: checkpoint digest of the backbone it shall run on; ``None`` does not compare.

        Raises:
            BankError: there is no bank, or its schema is newer than this program.
            IntegrityError: files are missing, surplus or changed; all of them are named.
            BackboneMismatch: the bank was made for another backbone.
        """
        contents = read_bank(folder)
        if contents.problems:
            raise IntegrityError(
                f"{folder} is not the bank that was written:\n  - " + "\n  - ".join(contents.problems),
                hint=f"dvc checkout {folder}",
            )
        found = contents.record["backbone"]
        if backbone_sha256 is not None and found["sha256"] != backbone_sha256:
            raise BackboneMismatch(
                f"{folder} was made for backbone {found['name']} with sha256 {found['sha256']}, "
                f"found a backbone with sha256 {backbone_sha256}",
                hint=f"samcl checkpoints fetch {found['name']}, or set backbone.name in params.yaml",
            )
        return _assemble(folder, contents)


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies: a safetensors file cannot hold tensors that share memory."""
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def _assemble(folder: Path, contents: Contents) -> Bank:
    record, files = contents.record, contents.files
    modules = tuple(
        Module.from_files(
            {file: files[f"modules/{name}/{file}"] for file in MODULE_FILES}, str(folder / "modules" / name)
        )
        for name in record["domains"]
    )
    kept = parse_tensors(files[STATE_FILE], f"{folder}/{STATE_FILE}")
    state = load_state(record["state"], kept) if record["state"] else None
    own = parse_tensors(files[SELECTOR_FILE], f"{folder}/{SELECTOR_FILE}")
    selector = load_selector(record["selector"], own, state)
    backbone = record["backbone"]
    try:
        bank = Bank(backbone["name"], backbone["sha256"], modules, selector, state, record["lineage"])
    except BankError as exc:
        raise IntegrityError(f"the parts of {folder} do not fit together: {exc.message}") from exc
    if bank.digest != record["digest"]:
        raise IntegrityError(f"{folder} has digest {bank.digest}, expected {record['digest']}")
    return bank


def _check_backbone(module: Module, backbone: str, sha256: str) -> None:
    if module.backbone_sha256 != sha256:
        raise BackboneMismatch(
            f"module {module.domain} was trained on {module.backbone} with sha256 {module.backbone_sha256}, "
            f"the bank is for {backbone} with sha256 {sha256}",
            hint=f"samcl step train {module.domain}",
        )


def check_alike(modules: tuple[Module, ...]) -> None:
    """One forward pass serves all modules of a bank, so they must be of one adapter with the same settings and shapes.

    Raises:
        BankError: two differ; both are named, with the first thing that differs.
    """
    for module in modules[1:]:
        first = modules[0]
        for what, left, right in (
            ("kind", first.kind, module.kind),
            ("parameters", first.parameters, module.parameters),
            ("split", first.split, module.split),
            ("tensor shapes", first.shapes, module.shapes),
        ):
            if left != right:
                raise BankError(
                    f"modules {first.domain} and {module.domain} of one bank differ in {what}: {left} and {right}",
                    hint=f"give both the same adapter settings in params.yaml, then: samcl step train {module.domain}",
                )


def verify_bank(folder: Path) -> list[str]:
    """Everything that is wrong with a bank folder, one line each; empty when it is exactly what was written."""
    try:
        problems = read_bank(folder).problems
        if not problems:
            Bank.load(folder)
    except SamclError as exc:
        return [exc.message]
    return list(problems)
