"""Settings of prompt tokens."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from samcl_core.adapters.options import whole_number

__all__ = ["PromptTokensConfig"]


@dataclass(frozen=True)
class PromptTokensConfig:
    """How many tokens are learnt.

    Attributes:
        num_tokens: keys and values that are added to each adapted block.
    """

    num_tokens: int = 8

    def __post_init__(self) -> None:
        whole_number("num_tokens", self.num_tokens, 1024)

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)
