"""Cells of the R matrix and scores per image, gathered while a stage evaluates."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from samcl_core.config import Params
from samcl_core.domains import Domain, Sample
from samcl_core.errors import DataError
from samcl_core.evaluation.rmatrix import COLUMNS, SCORES, SELECTOR_ACCURACY, read_metadata, score_cells, write_r_matrix
from samcl_core.evaluation.selection import expected_answer
from samcl_core.files import write_atomic
from samcl_core.inference import Segmenter
from samcl_core.inference.scoring import score_samples
from samcl_core.progress import Progress
from samcl_core.stages.places import Places
from samcl_core.tensors import load_tensors
from samcl_core.training import MaskCache, PrefixCache

__all__ = ["Scores", "embedded_digest", "scored_bank", "scored_digests"]

_DIGEST = "test_digest/"
_BANK = "bank"
_MASKS_GB = 0.25


def embedded_digest(places: Places, role: str, domain: str) -> str:
    """Digest of a domain's test data as the embed stage saw it."""
    _, meta = load_tensors(places.embeddings(role, domain))
    return str(meta["test_digest"])


def scored_digests(path: Path) -> dict[str, str]:
    """Domain to digest of the test data that a step file was measured on."""
    return {key.removeprefix(_DIGEST): text for key, text in read_metadata(path).items() if key.startswith(_DIGEST)}


def scored_bank(path: Path) -> str | None:
    """Digest of the bank whose scores a step file holds."""
    return read_metadata(path).get(_BANK)


class Scores:
    """Evaluates segmenters on domains and keeps what they scored."""

    def __init__(self, root: Path, params: Params, cache: PrefixCache, progress: Progress) -> None:
        self._places = Places(root)
        self._params = params
        self._cache = cache
        self._masks = MaskCache(cache.backbone.image_size, max_gb=_MASKS_GB)
        self._progress = progress
        self._cells: list[pd.DataFrame] = []
        self._images: list[pd.DataFrame] = []
        self._digests: dict[str, str] = {}

    def samples(self, domain: str) -> list[Sample]:
        """The domain's test samples."""
        return Domain(self._places.domain(domain)).samples("test")

    def add(self, segmenter: Segmenter, *, step: int, domain: str, digest: str) -> None:
        """Score ``segmenter`` on the test split of ``domain`` as row ``step``.

        Raises:
            DataError: the domain's test data is not the data of ``digest`` any more.
        """

        def report(what: str, done: int, total: int) -> None:
            self._progress(f"row {step}: {domain}", done, total)

        found = Domain(self._places.domain(domain)).data_digest(("test",))
        if found != digest:
            raise DataError(
                f"the test data of {domain} has digest {found[:12]}, expected {digest[:12]} as embedded",
                hint="samcl stream, which runs what became stale",
            )
        frame = score_samples(
            segmenter, self._cache, self.samples(domain), self._params.evaluate, progress=report, masks=self._masks
        )
        columns = {metric: frame[metric] for metric in SCORES}
        if step > 0:
            columns[SELECTOR_ACCURACY] = frame["module"] == expected_answer(domain, segmenter.names)
        self._cells.append(score_cells(step, domain, self._params.domains[domain].role, columns))
        self._images.append(frame.assign(step=step, domain=domain))
        self._digests[domain] = digest

    def carry(self, digests: Mapping[str, str]) -> None:
        """Keep the digests of test data that is not scored in this step, for the steps after it."""
        self._digests = {**digests, **self._digests}

    def brief(self, metric: str) -> dict[str, float]:
        """``<domain>@<step>`` to value, of one metric."""
        rows = self.cells()
        wanted = rows[rows["metric"] == metric]
        names = [f"{domain}@{step}" for domain, step in zip(wanted["domain"], wanted["step"], strict=True)]
        return dict(zip(names, wanted["value"].tolist(), strict=True))

    def cells(self) -> pd.DataFrame:
        """Everything scored so far, in the long form of the R matrix."""
        return pd.concat(self._cells) if self._cells else pd.DataFrame(columns=list(COLUMNS))

    @property
    def digests(self) -> dict[str, str]:
        """Domain to digest of the test data it was scored on, or that was carried."""
        return dict(self._digests)

    def save(self, step: str, bank: str) -> None:
        """Write the step's cells, with the digests of ``bank`` and of the test data, and its scores per image."""
        images = pd.concat(self._images, ignore_index=True) if self._images else pd.DataFrame()
        buffer = io.BytesIO()
        images.to_parquet(buffer, index=False)
        write_atomic(self._places.images(step), buffer.getvalue())
        metadata = {_DIGEST + domain: digest for domain, digest in self._digests.items()}
        write_r_matrix(self._places.scores(step), self.cells(), {_BANK: bank, **metadata})
