"""JSON records of modules and banks: same value same bytes, and nothing of a file is believed before it was checked."""

from __future__ import annotations

import json
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from samcl_core.errors import BankError, IntegrityError

__all__ = ["SCHEMA_VERSION", "json_bytes", "parse_record", "parse_tensors", "require"]

SCHEMA_VERSION = 1
"""Version of both records. A reader refuses a newer one; it can read every older one."""


def json_bytes(value: Any, what: str) -> bytes:
    """Readable JSON with sorted keys.

    Raises:
        BankError: ``value`` holds NaN, infinity or something that JSON has no word for.
    """
    try:
        return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (ValueError, TypeError) as exc:
        raise BankError(f"{what} cannot be written as JSON: {exc}") from exc


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def parse_record(data: bytes, what: str) -> dict[str, Any]:
    """The JSON object in ``data``.

    Raises:
        IntegrityError: it is not a JSON object with a schema version.
        BankError: its schema version is newer than this program.
    """
    try:
        record = json.loads(data.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise IntegrityError(f"{what} is not valid JSON: {exc}") from exc
    version = record.get("schema_version") if isinstance(record, dict) else None
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise IntegrityError(f"{what} has schema_version {version!r}, expected a number from 1 to {SCHEMA_VERSION}")
    if version > SCHEMA_VERSION:
        raise BankError(
            f"{what} has schema_version {version}, this program reads versions up to {SCHEMA_VERSION}",
            hint="upgrade samcl: pip install --upgrade samcl",
        )
    return record  # type: ignore[no-any-return]


def require(record: Any, fields: dict[str, type | tuple[type, ...]], what: str) -> None:
    """Check that ``record`` is an object with exactly these fields, each of its type.

    Raises:
        IntegrityError: otherwise; all problems at once.
    """
    if not isinstance(record, dict):
        raise IntegrityError(f"{what} is {type(record).__name__}, expected an object")
    problems = [f"{name} is missing" for name in fields if name not in record]
    problems += [f"{name!r} is unknown" for name in sorted(set(record) - set(fields))]
    problems += [
        f"{name} is {record[name]!r}"[:200]
        for name, kind in fields.items()
        if name in record and (not isinstance(record[name], kind) or isinstance(record[name], bool))
    ]
    if problems:
        raise IntegrityError(f"{what}: " + "; ".join(problems))


def parse_tensors(data: bytes, what: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        IntegrityError: it is not a whole one.
    """
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError) as exc:
        raise IntegrityError(f"{what} is not a whole safetensors file: {exc}") from exc
