"""How fast things are, as ratios: each case measures our way and a baseline in one run, in turns."""

from __future__ import annotations

from samcl_core.speed.cases import (
    Arm,
    Case,
    Measurement,
    case_names,
    get_case,
    machine_facts,
    measure_case,
    register_case,
)
from samcl_core.speed.ingest import IngestCase, ReingestCase

__all__ = [
    "Arm",
    "Case",
    "IngestCase",
    "Measurement",
    "ReingestCase",
    "case_names",
    "get_case",
    "machine_facts",
    "measure_case",
    "register_case",
]

register_case(IngestCase())
register_case(ReingestCase())
