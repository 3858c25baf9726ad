"""``benchmark.json``: what a folder of results was made with, so that nothing made otherwise is mixed with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samcl_core.benchmarks.methods import Method, parse_method
from samcl_core.benchmarks.streams import StreamSpec
from samcl_core.benchmarks.units import Unit
from samcl_core.errors import IntegrityError, UsageError
from samcl_core.files import canonical_json, write_json

__all__ = ["open_benchmark"]

_VERSION = 2


def open_benchmark(root: Path, spec: StreamSpec, backbone_sha256: str, units: Sequence[Unit] = ()) -> None:
    """Say in ``benchmark.json`` what the folder holds, or see that it fits; more methods and orders always do.

    Args:
        root: output folder.
        spec: the stream.
        backbone_sha256: of the frozen model.
        units: the plan; the settings of its methods are recorded, and compared where there are results of them.

    Raises:
        UsageError: the folder holds another stream, other sizes or settings, or results of another backbone.
        IntegrityError: ``benchmark.json`` is not whole.
    """
    record: dict[str, Any] = {
        "schema_version": _VERSION,
        "stream": spec.identity(),
        "orders": {name: list(order) for name, order in spec.orders.items()},
        "backbone_sha256": backbone_sha256,
        "made": _made(spec, units),
    }
    path = root / "benchmark.json"
    if path.is_file():
        found = _read(path)
        _compare(root, found, record)
        record["orders"] = {**found["orders"], **record["orders"]}
        record["made"] = {**found["made"], **record["made"]}
        if canonical_json(found) == canonical_json(record):
            return
    root.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def _made(spec: StreamSpec, units: Sequence[Unit]) -> dict[str, Any]:
    """Folder to the settings of what is in it."""
    made: dict[str, Any] = {}
    for method in {unit.method: parse_method(unit.method) for unit in units if unit.kind == "cell"}.values():
        made |= {folder: spec.settings(method, is_whole=False) for folder in _folders(method)}
    return made


def _folders(method: Method) -> list[str]:
    return [f"cells/{method.name}", *([f"modules/{method.variant}"] if method.has_modules else [])]


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["schema_version"] != _VERSION or {"stream", "orders", "backbone_sha256", "made"} - set(found):
            raise ValueError(f"schema version {found['schema_version']}, expected {_VERSION}")
        return found
    except (ValueError, KeyError, TypeError) as exc:
        raise IntegrityError(f"{path} is no record of a benchmark: {exc}", hint="choose another folder") from exc


def _compare(root: Path, found: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    different = _differences("stream", found["stream"], record["stream"])
    same_orders = {name: order for name, order in found["orders"].items() if name in record["orders"]}
    different += _differences("stream: order", same_orders, {name: record["orders"][name] for name in same_orders})
    different += _differences("backbone_sha256", found["backbone_sha256"], record["backbone_sha256"])
    for folder, settings in record["made"].items():
        if folder in found["made"] and (root / folder).is_dir():
            different += _differences(folder, found["made"][folder], settings)
    if different:
        raise UsageError(
            f"{root} holds a benchmark with another {'; another '.join(different)}",
            hint="choose another folder with --out, or delete what is not wanted any more",
        )


def _differences(what: str, found: Any, expected: Any) -> list[str]:
    """What differs, each as name, value in the folder and value now."""
    if canonical_json(found) == canonical_json(expected):
        return []
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        names = sorted({*found, *expected})
        return [line for name in names for line in _differences(f"{what} {name}", found.get(name), expected.get(name))]
    return [f"{what}: {found!r} there, {expected!r} now"]
