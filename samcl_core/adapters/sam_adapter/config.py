"""Settings of a SAM-Adapter."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from samcl_core.adapters.options import whole_number

__all__ = ["SamAdapterConfig"]


@dataclass(frozen=True)
class SamAdapterConfig:
    """How narrow the adapter is.

    Attributes:
        reduction: the hidden width is the backbone's divided by this, at least 1; 32 in the published code.
    """

    reduction: int = 32

    def __post_init__(self) -> None:
        whole_number("reduction", self.reduction, 1024)

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)
