"""Settings of SLoRA."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from samcl_core.adapters.options import whole_number

__all__ = ["SloraConfig"]


@dataclass(frozen=True)
class SloraConfig:
    """How wide the shared bottleneck is.

    Attributes:
        rank: width of the bottleneck, 10 in the paper.
    """

    rank: int = 10

    def __post_init__(self) -> None:
        whole_number("rank", self.rank, 256)

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)
