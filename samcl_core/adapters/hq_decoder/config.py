"""Settings of an HQ decoder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

__all__ = ["HqDecoderConfig"]

Output = Literal["sum", "hq"]


@dataclass(frozen=True)
class HqDecoderConfig:
    """How an HQ decoder answers and where it starts.

    Attributes:
        output: the logits outside of training: ``sum``, those of SAM's mask token 0 plus the HQ token's, HQ-SAM's
            default (``hq_token_only=False``); ``hq``, the HQ token's alone, what CoSAM's training script scores.
        weights: a file of published HQ-SAM weights that new modules start from; ``None`` starts afresh.
        sha256: digest of that file. A module remembers it, and not where the file was.
    """

    output: Output = "sum"
    weights: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if self.output not in get_args(Output):
            raise ValueError(f"output is {self.output!r}, expected one of {list(get_args(Output))}")
        if self.weights is not None and not (isinstance(self.weights, str) and self.weights):
            raise ValueError(f"weights is {self.weights!r}, expected the path of a file")
        if self.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", str(self.sha256)):
            raise ValueError(f"sha256 is {self.sha256!r}, expected 64 hexadecimal digits")
        if self.weights is not None and self.sha256 is None:
            raise ValueError("weights needs its sha256 beside it; `samcl checkpoints hash FILE` prints it")

    def as_json(self) -> dict[str, Any]:
        """What a module must remember, as JSON values."""
        return {"output": self.output, "sha256": self.sha256}
