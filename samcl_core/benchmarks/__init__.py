"""Benchmark streams: strategies of continual learning measured on the same domains, seeds and orders."""

from samcl_core.benchmarks.streams import DomainSpec, StreamSpec, built_in_streams, load_stream
from samcl_core.benchmarks.units import STRATEGIES, Cell, Unit, is_done, plan, read_cells, run_unit

__all__ = [
    "STRATEGIES",
    "Cell",
    "DomainSpec",
    "StreamSpec",
    "Unit",
    "built_in_streams",
    "is_done",
    "load_stream",
    "plan",
    "read_cells",
    "run_unit",
]
