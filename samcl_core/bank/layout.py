"""A bank folder as bytes: which files it has, and whether they are those that were written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samcl_core.bank.module import MODULE_FILES
from samcl_core.bank.records import parse_record, require
from samcl_core.config import valid_domain_name
from samcl_core.errors import BankError, IntegrityError
from samcl_core.files import digest_json

__all__ = ["BANK_FILE", "SELECTOR_FILE", "STATE_FILE", "Contents", "bank_paths", "checksum", "read_bank"]

BANK_FILE = "bank.json"
SELECTOR_FILE = "selector/selector.safetensors"
STATE_FILE = "selector/state.safetensors"

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "schema_version": int,
    "digest": str,
    "backbone": dict,
    "domains": list,
    "modules": dict,
    "selector": dict,
    "state": dict,
    "files": dict,
    "lineage": dict,
    "checksum": str,
}


@dataclass(frozen=True)
class Contents:
    """What was read from a bank folder, once: the digests were taken of these very bytes.

    Attributes:
        record: ``bank.json``.
        files: relative path to content of every other file of the bank.
        problems: what is wrong, one line each, naming the file and both digests.
    """

    record: dict[str, Any]
    files: dict[str, bytes]
    problems: tuple[str, ...]


def checksum(record: Mapping[str, Any]) -> str:
    """Digest of a whole ``bank.json`` without its own ``checksum``."""
    return digest_json({key: value for key, value in record.items() if key != "checksum"})


def bank_paths(domains: list[str]) -> list[str]:
    """Relative paths of the files of a bank with these domains, ``bank.json`` left out."""
    return [SELECTOR_FILE, STATE_FILE, *(f"modules/{name}/{file}" for name in domains for file in MODULE_FILES)]


def read_bank(folder: Path) -> Contents:
    """Read a bank folder and compare every file with its digest. No path of the record is followed out of the folder.

    Raises:
        BankError: there is no bank, or its schema is newer than this program.
        IntegrityError: ``bank.json`` is not one.
    """
    head = folder / BANK_FILE
    if not head.is_file():
        raise BankError(f"there is no bank at {folder} (no {BANK_FILE})", hint="samcl stream, or samcl bank show PATH")
    what = str(head)
    record = parse_record(head.read_bytes(), what)
    require(record, _FIELDS, what)
    require(record["backbone"], {"name": str, "sha256": str}, f"{what}: backbone")
    expected = bank_paths(_domains(record, what))
    if sorted(record["files"]) != sorted(expected):
        raise IntegrityError(f"{what} lists files {sorted(record['files'])}, expected {sorted(expected)}")
    files = {path: (folder / path).read_bytes() for path in expected if (folder / path).is_file()}
    problems = []
    if (found := checksum(record)) != record["checksum"]:
        problems.append(f"{BANK_FILE} was changed: its checksum is {found}, expected {record['checksum']}")
    for path in expected:
        problems += _compare(path, files.get(path), str(record["files"][path]))
    problems += [f"{path} is surplus" for path in _listing(folder) if path not in (*expected, BANK_FILE)]
    return Contents(record, files, tuple(problems))


def _domains(record: Mapping[str, Any], what: str) -> list[str]:
    names = record["domains"]
    try:
        valid = [valid_domain_name(name) if isinstance(name, str) else None for name in names]
    except ValueError as exc:
        raise IntegrityError(f"{what}: {exc}") from exc
    if valid != names or len(set(names)) < len(names) or set(names) != set(record["modules"]):
        raise IntegrityError(f"{what} lists domains {names!r} and modules {sorted(record['modules'])}")
    return list(names)


def _compare(path: str, data: bytes | None, expected: str) -> list[str]:
    if data is None:
        return [f"{path} is missing, expected sha256 {expected}"]
    found = hashlib.sha256(data).hexdigest()
    return [] if found == expected else [f"{path} has sha256 {found}, expected {expected}"]


def _listing(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if not path.is_dir() and path.name != ".gitignore")
    return sorted(path.relative_to(folder).as_posix() for path in found)
