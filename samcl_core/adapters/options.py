"""Options of an adapter as a frozen dataclass: how keyword values become one, and checks that several kinds share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

__all__ = ["options_of", "whole_number"]

T = TypeVar("T")


def options_of(config: type[T], values: Mapping[str, Any]) -> T:
    """A configuration from keyword values; ``None`` takes the default.

    Raises:
        ValueError: an unknown option, or a value that ``config`` refuses.
    """
    known = [entry.name for entry in fields(config)]  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"unknown options {unknown}, expected some of {known}")
    return config(**{name: value for name, value in values.items() if value is not None})


def whole_number(name: str, value: Any, limit: int) -> None:
    """See that ``value`` is a whole number from 1 to ``limit``.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
        raise ValueError(f"{name} is {value!r}, expected a whole number from 1 to {limit}")
