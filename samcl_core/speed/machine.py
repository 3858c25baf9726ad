"""What a number of seconds says nothing without."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from samcl_core import __version__

__all__ = ["machine_facts"]


def machine_facts(device: str = "cpu") -> dict[str, Any]:
    """Versions, processor, threads, load, and the GPU where ``device`` is one; JSON values."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    facts: dict[str, Any] = {
        "samcl": __version__,
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "load_average": None if load is None else [round(value, 2) for value in load],
        "device": torch.device(device).type,
    }
    if facts["device"] == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        facts |= {"gpu": gpu.name, "gpu_memory_bytes": gpu.total_memory, "cuda": torch.version.cuda}
    return facts


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")
