"""How fast things are, as ratios: each case measures our way and a baseline in one run, in turns."""

from __future__ import annotations

from samcl_core.speed.cases import (
    GROUPS,
    Arm,
    Arms,
    Case,
    Measurement,
    Setup,
    Spent,
    case_names,
    find_cases,
    get_case,
    measure_case,
    register_case,
)
from samcl_core.speed.evaluation import evaluate_case
from samcl_core.speed.ground import NANO_NETWORK, VIT_B, Network
from samcl_core.speed.ingest import ingest_case, reingest_case
from samcl_core.speed.machine import machine_facts
from samcl_core.speed.prefixes import prefix_read_case, prefix_write_case
from samcl_core.speed.selecting import selector_arrival_case, selector_fit_case
from samcl_core.speed.serving import many_modules_case, mixed_batch_case, serve_case
from samcl_core.speed.training import memory_case, train_case

__all__ = [
    "GROUPS",
    "NANO_NETWORK",
    "VIT_B",
    "Arm",
    "Arms",
    "Case",
    "Measurement",
    "Network",
    "Setup",
    "Spent",
    "case_names",
    "evaluate_case",
    "find_cases",
    "get_case",
    "ingest_case",
    "machine_facts",
    "many_modules_case",
    "measure_case",
    "memory_case",
    "mixed_batch_case",
    "prefix_read_case",
    "prefix_write_case",
    "register_case",
    "reingest_case",
    "selector_arrival_case",
    "selector_fit_case",
    "serve_case",
    "train_case",
]

_BOTH = ("cpu", "gpu")
_GPU = ("gpu",)
_EVALUATE = {"cpu": 1.5, "cuda": 10.0}

register_case(train_case(VIT_B, {"cpu": 3.0, "cuda": 10.0}, _BOTH))
register_case(train_case(NANO_NETWORK, {"cpu": 5.0, "cuda": 10.0}, _BOTH))
register_case(evaluate_case(VIT_B, _EVALUATE, _BOTH))
register_case(evaluate_case(VIT_B, _EVALUATE, _GPU, is_warm=True))
register_case(evaluate_case(NANO_NETWORK, {}, _BOTH))
register_case(mixed_batch_case(VIT_B, _GPU))
register_case(mixed_batch_case(NANO_NETWORK, _BOTH))
register_case(many_modules_case(VIT_B))
register_case(selector_fit_case())
register_case(selector_arrival_case())
register_case(prefix_write_case(VIT_B, _BOTH))
register_case(prefix_read_case(VIT_B, _GPU))
register_case(prefix_read_case(NANO_NETWORK, _BOTH))
register_case(serve_case(VIT_B, "latency", 1, _GPU))
register_case(serve_case(NANO_NETWORK, "latency", 1, _BOTH))
register_case(serve_case(VIT_B, "throughput", 8, _GPU))
register_case(serve_case(NANO_NETWORK, "throughput", 8, _BOTH))
register_case(memory_case(VIT_B, _BOTH))
register_case(ingest_case())
register_case(reingest_case())
