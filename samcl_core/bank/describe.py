"""What a bank folder holds, for people: its parts, and where every byte of it goes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samcl_core.bank.bank import Bank
from samcl_core.bank.layout import BANK_FILE, SELECTOR_FILE, STATE_FILE, read_bank
from samcl_core.bank.module import Module

__all__ = ["describe_bank"]

_LENGTH_BYTES = 8
"""A safetensors file begins with the length of its header."""


def describe_bank(folder: Path) -> dict[str, Any]:
    """What a person wants to know about a bank, as JSON values; sizes are exact, in bytes of the files.

    ``sizes`` adds up to the same total three times:

    - ``parts``: each module, ``selector``, ``state`` and ``bank.json``, as ``tensors``, ``header`` (names and shapes in
      a safetensors file) and ``record`` (JSON);
    - ``types``: tensors by number format, ``headers`` and ``records``;
    - ``domains`` and ``shared_bytes``: of each domain its module and what later fits keep of it, and all the rest.

    Raises:
        BankError, IntegrityError: as ``Bank.load``.
    """
    bank, contents = Bank.load(folder), read_bank(folder)
    record, files = contents.record, contents.files
    sizes = _sizes(bank, files, (folder / BANK_FILE).stat().st_size)
    of_part = {part["part"]: part["bytes"] for part in sizes["parts"]}
    return {
        "folder": str(folder),
        "digest": bank.digest,
        "schema_version": record["schema_version"],
        "backbone": record["backbone"],
        "domains": list(bank.names),
        "waiting": list(bank.waiting),
        "modules": [_describe_module(module, of_part[f"modules/{module.domain}"]) for module in bank.modules],
        "selector": {**record["selector"], "bytes": of_part["selector"]},
        "state": {**record["state"], "bytes": of_part["state"]},
        "files": {path: {"sha256": record["files"][path], "bytes": len(data)} for path, data in sorted(files.items())},
        "sizes": sizes,
        "total_bytes": sizes["total_bytes"],
        "lineage": bank.lineage,
    }


def _describe_module(module: Module, num_bytes: int) -> dict[str, Any]:
    return {
        "domain": module.domain,
        "kind": module.kind,
        "parameters": module.parameters,
        "split": module.split,
        "digest": module.digest,
        "num_weights": module.num_weights,
        "bytes": num_bytes,
        "data_digest": module.data_digest,
        "seed": module.seed,
        "code": module.code,
        "metrics": module.metrics,
    }


def _sizes(bank: Bank, files: Mapping[str, bytes], head: int) -> dict[str, Any]:
    parts = []
    for name in bank.names:
        folder = f"modules/{name}"
        stored = files[f"{folder}/module.safetensors"]
        parts.append(_part(folder, stored, len(files[f"{folder}/module.json"])))
    parts += [_part("selector", files[SELECTOR_FILE]), _part("state", files[STATE_FILE]), _part(BANK_FILE, b"", head)]
    total = sum(part["bytes"] for part in parts)
    domains = [_domain(bank, part["part"].split("/")[1], part["bytes"], total) for part in parts[: len(bank.names)]]
    return {
        "parts": [{key: value for key, value in part.items() if key != "types"} for part in parts],
        "types": _types(parts),
        "domains": domains,
        "shared_bytes": total - sum(domain["bytes"] for domain in domains),
        "total_bytes": total,
    }


def _part(name: str, stored: bytes, record: int = 0) -> dict[str, Any]:
    """Sizes of one safetensors file and one JSON file; ``types`` are bytes of tensors by number format."""
    header = _LENGTH_BYTES + int.from_bytes(stored[:_LENGTH_BYTES], "little") if stored else 0
    types: dict[str, int] = {}
    for entry in json.loads(stored[_LENGTH_BYTES:header] or b"{}").values():
        if "dtype" in entry:
            begin, end = entry["data_offsets"]
            types[entry["dtype"]] = types.get(entry["dtype"], 0) + end - begin
    sizes = {"tensors": sum(types.values()), "header": header, "record": record}
    return {"part": name, **sizes, "bytes": sum(sizes.values()), "types": types}


def _types(parts: list[dict[str, Any]]) -> dict[str, int]:
    """Bytes by number format as safetensors calls it (``F16``, ``F32``, ``I8`` ...), most first; then the rest."""
    found: dict[str, int] = {}
    for part in parts:
        for dtype, num_bytes in part["types"].items():
            found[dtype] = found.get(dtype, 0) + num_bytes
    ordered = dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
    totals = {f"{key}s": sum(part[key] for part in parts) for key in ("header", "record")}
    return {**ordered, **totals}


def _domain(bank: Bank, name: str, module: int, total: int) -> dict[str, Any]:
    """What a domain takes: its module, and its own part of the selector's state (tensors, and entries in bank.json)."""
    state = 0 if bank.state is None else bank.state.class_bytes(name)
    return {"domain": name, "module": module, "state": state, "bytes": module + state, "frac": (module + state) / total}
