"""Checks of hyper-parameters that several strategies share."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["check_weight"]


def check_weight(name: str, value: Any) -> None:
    """See that ``value`` is a finite number of at least 0.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value!r}, expected a number of at least 0")
