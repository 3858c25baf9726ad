"""Score a bank that is no step of the workspace any more, the champion for instance, on the present test data."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from samcl_core.bank import Bank
from samcl_core.config import Params
from samcl_core.inference import Segmenter
from samcl_core.progress import Progress, silent
from samcl_core.stages.machine import open_cache
from samcl_core.stages.places import Places
from samcl_core.stages.scores import Scores, embedded_digest

__all__ = ["rescore"]


def rescore(
    root: Path, params: Params, folder: Path, progress: Progress = silent
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The row of the R matrix that the bank in ``folder`` has now: its learnt domains and the natural images.

    Nothing is written but the prefix cache. Domains of the bank that the workspace does not have are left out.

    Returns:
        The long form, with the number of the bank's modules as step; domain to digest of the test data.

    Raises:
        BankError: the bank is damaged, or was made for another backbone.
        DataError: test data is missing, or is not what was embedded.
    """
    places = Places(root)
    cache = open_cache(root, params)
    bank = Bank.load(folder, backbone_sha256=cache.backbone.sha256)
    segmenter = Segmenter(cache.backbone, bank)
    scores = Scores(root, params, cache, progress)
    learnt = [name for name in bank.names if name in params.names("learn")]
    for name in (*learnt, *params.names("natural")):
        role = params.domains[name].role
        scores.add(segmenter, step=len(bank.names), domain=name, digest=embedded_digest(places, role, name))
    return scores.cells(), scores.digests
