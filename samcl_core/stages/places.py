"""Where each file of a workspace is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from samcl_core.config import Params

__all__ = ["BASE", "Places"]

BASE = "base"
"""Name of step 0: the bank without modules."""


@dataclass(frozen=True)
class Places:
    """Paths of a workspace.

    Attributes:
        root: the folder that holds ``params.yaml``.
    """

    root: Path

    def raw(self, domain: str) -> Path:
        """The data set as it arrived."""
        return self.root / "data" / "raw" / domain

    def domain(self, domain: str) -> Path:
        """The ingested domain."""
        return self.root / "data" / domain

    def measured(self, domain: str) -> Path:
        """What was measured of a domain's files; of this machine alone."""
        return self.root / ".samcl" / "cache" / "ingest" / f"{domain}.jsonl"

    def failed_report(self, domain: str) -> Path:
        """The report on data that could not be ingested; of this machine alone."""
        return self.root / ".samcl" / "reports" / domain

    def embeddings(self, role: str, domain: str) -> Path:
        """Selector embeddings of a domain's images."""
        return self.root / "embeddings" / role / f"{domain}.safetensors"

    def module(self, domain: str) -> Path:
        """The trained module of a domain."""
        return self.root / "modules" / domain

    def curve(self, domain: str) -> Path:
        """The training curve of a domain's module."""
        return self.root / "metrics" / "train" / f"{domain}.json"

    def bank(self, step: str) -> Path:
        """The bank after a step."""
        return self.root / "banks" / step

    def scores(self, step: str) -> Path:
        """The part of the R matrix that a step adds."""
        return self.root / "metrics" / "steps" / f"{step}.parquet"

    def images(self, step: str) -> Path:
        """Scores per image of a step's evaluation."""
        return self.root / "metrics" / "images" / f"{step}.parquet"

    def pictures(self, step: str) -> Path:
        """Pictures of a step's evaluation."""
        return self.root / "pictures" / step

    @property
    def r_matrix(self) -> Path:
        """The whole R matrix."""
        return self.root / "metrics" / "r_matrix.parquet"

    @property
    def summary(self) -> Path:
        """The numbers computed from the R matrix."""
        return self.root / "metrics" / "summary.json"

    @property
    def prefix_cache(self) -> Path:
        """Frozen features by image digest; machine-local."""
        return self.root / ".samcl" / "cache" / "prefix"

    def checkpoint(self, domain: str) -> Path:
        """Where an unfinished training is kept; machine-local."""
        return self.root / ".samcl" / "checkpoints" / "train" / f"{domain}.safetensors"

    def latest_bank(self, params: Params) -> Path | None:
        """The bank of the last step that fitted its selector and has one, ``None`` before the first domain."""
        fitted = [params.steps()[number - 1] for number in params.fits()]
        for step in (*reversed(fitted), BASE):
            if (self.bank(step) / "bank.json").is_file():
                return self.bank(step)
        return None
