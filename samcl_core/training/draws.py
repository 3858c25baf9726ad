"""Random streams of a training, each named by what it is for: no step needs the state of the steps before it."""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["stream_of"]


def stream_of(purpose: str, *numbers: int) -> np.random.Generator:
    """The stream of ``purpose`` and ``numbers`` (a seed, an epoch or step): the same ones give the same draws."""
    key = ":".join([purpose, *map(str, numbers)])
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big"))
