"""Settings of LoRA."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from samcl_core.adapters.options import whole_number

__all__ = ["LoraConfig"]


@dataclass(frozen=True)
class LoraConfig:
    """How low-rank updates are made.

    Attributes:
        rank: inner width r of each update.
        alpha: an update is B A x * alpha / rank; ``None`` is ``rank``, so that the factor is 1.
    """

    rank: int = 4
    alpha: float | None = None

    def __post_init__(self) -> None:
        whole_number("rank", self.rank, 256)
        if self.alpha is None:
            return
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, (int, float)):
            raise ValueError(f"alpha is {self.alpha!r}, expected a number above 0")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise ValueError(f"alpha is {self.alpha!r}, expected a number above 0")

    @property
    def scale(self) -> float:
        """The factor of every update."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)
