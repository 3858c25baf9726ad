"""Benchmark streams: strategies of continual learning measured on the same domains, seeds and orders."""

from samcl_core.benchmarks.methods import GROUPS, Method, expand_methods, known_methods, parse_method, titles_of
from samcl_core.benchmarks.record import open_benchmark
from samcl_core.benchmarks.streams import DomainSpec, StreamSpec, TrainedSpec, built_in_streams, check_data, load_stream
from samcl_core.benchmarks.units import Cell, Unit, check_ready, is_done, plan, read_cells, run_unit, to_do

__all__ = [
    "GROUPS",
    "Cell",
    "DomainSpec",
    "Method",
    "StreamSpec",
    "TrainedSpec",
    "Unit",
    "built_in_streams",
    "check_data",
    "check_ready",
    "expand_methods",
    "is_done",
    "known_methods",
    "load_stream",
    "open_benchmark",
    "parse_method",
    "plan",
    "read_cells",
    "run_unit",
    "titles_of",
    "to_do",
]
