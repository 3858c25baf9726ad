"""Rows of the R matrix, gathered while a stage evaluates."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from samcl_core.config import Params
from samcl_core.domains import Domain, Sample
from samcl_core.evaluation.rmatrix import write_r_matrix
from samcl_core.inference import Segmenter
from samcl_core.inference.scoring import score_samples
from samcl_core.progress import Progress
from samcl_core.selectors.base import PLAIN
from samcl_core.stages.places import Places
from samcl_core.tensors import load_tensors
from samcl_core.training.prefix_cache import PrefixCache

__all__ = ["METRICS", "Scores", "test_digest"]

METRICS = ("iou", "f1", "mae", "boundary_iou")


def test_digest(places: Places, role: str, domain: str) -> str:
    """Digest of a domain's test data, as the embed stage saw it."""
    _, meta = load_tensors(places.embeddings(role, domain))
    return str(meta["test_digest"])


class Scores:
    """Evaluates segmenters on domains and keeps the long-form rows."""

    def __init__(self, root: Path, params: Params, cache: PrefixCache, progress: Progress) -> None:
        self._places = Places(root)
        self._params = params
        self._cache = cache
        self._progress = progress
        self._rows: list[dict[str, object]] = []

    def samples(self, domain: str) -> list[Sample]:
        """The domain's test samples."""
        return Domain(self._places.domain(domain)).samples("test")

    def add(self, segmenter: Segmenter, *, step: int, domain: str, digest: str) -> pd.DataFrame:
        """Score ``segmenter`` on the test split of ``domain`` as row ``step``; returns the per-image scores."""

        def report(what: str, done: int, total: int) -> None:
            self._progress(f"row {step}: {domain}", done, total)

        role = self._params.domains[domain].role
        frame = score_samples(segmenter, self._cache, self.samples(domain), self._params.evaluate, progress=report)
        expected = domain if domain in segmenter.names else PLAIN
        values = {name: float(frame[name].mean()) for name in METRICS}
        values["selector_accuracy"] = float((frame["module"] == expected).mean())
        for module, share in frame["module"].value_counts(normalize=True).sort_index().items():
            values[f"chosen:{module}"] = float(share)
        for metric, value in values.items():
            self._rows.append(
                {
                    "step": step,
                    "domain": domain,
                    "metric": metric,
                    "value": value,
                    "n": len(frame),
                    "role": role,
                    "test_digest": digest,
                }
            )
        return frame

    def brief(self, metric: str) -> dict[str, float]:
        """``<domain>@<step>`` to value, of one metric."""
        return {
            f"{row['domain']}@{row['step']}": round(float(str(row["value"])), 4)
            for row in self._rows
            if row["metric"] == metric
        }

    def save(self, path: Path) -> None:
        """Write the rows gathered so far."""
        columns = ["step", "domain", "metric", "value", "n", "role", "test_digest"]
        write_r_matrix(pd.DataFrame(self._rows, columns=columns), path)
