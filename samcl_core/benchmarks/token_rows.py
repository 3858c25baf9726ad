"""Rows of MoDA: the modules of a bank, chosen by tokens that read each image inside the frozen encoder.

The tokens are trained anew at each step, so that each step looks at all test images again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from samcl_core.backbones.frozen import squash
from samcl_core.benchmarks.ground import Ground
from samcl_core.benchmarks.rows import answers_of, looked_up, state_facts, zero_shot_rows
from samcl_core.config import TokenParams
from samcl_core.domains import Sample, load_image
from samcl_core.evaluation.rmatrix import read_r_matrix, write_r_matrix
from samcl_core.selectors.images import ImageBuffers, buffer_rows
from samcl_core.selectors.token_training import fit_token_selector
from samcl_core.selectors.tokens import TokenSelector

__all__ = ["token_options", "token_rows"]


def token_options(ground: Ground) -> TokenParams:
    """Options of the tokens: the stream's, then the method's."""
    given = ground.params.selector.tokens.model_dump(exclude_unset=True)
    return TokenParams.model_validate({**given, **ground.method.tokens})


def token_rows(
    ground: Ground, scores: pd.DataFrame, order: Sequence[str], folder: Path
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Rows 0 to T as in the paper: every image gets the module of a domain learnt so far, none the plain backbone.

    Args:
        ground: what it is measured on.
        scores: of every module on every test image.
        order: learnt domains in the order of arrival.
        folder: of the cell; rows that are in it are read.
    """
    frames = [zero_shot_rows(ground, scores)]
    facts: dict[str, float] = {}
    for step in range(1, len(order) + 1):
        path, known = folder / f"row-{step}.parquet", order[:step]
        if not path.is_file() or step == len(order):
            selector, facts = _fit(ground, known)
            tests = {domain: _queries(ground, selector, domain) for domain in ground.spec.domains}
            write_r_matrix(path, looked_up(ground, scores, step, answers_of(selector, tests), known), {})
        frames.append(read_r_matrix(path))
        ground.progress("token selector", step, len(order))
    return pd.concat(frames, ignore_index=True), facts


def _fit(ground: Ground, known: Sequence[str]) -> tuple[TokenSelector, dict[str, float]]:
    options = token_options(ground)
    state = ImageBuffers(options.buffer_size)
    for name in known:
        samples = ground.samples(name, "train")
        kept = [samples[row] for row in buffer_rows(len(samples), options.buffer_size, name, ground.seed)]
        state = state.added(name, _squared(ground, kept), seed=ground.seed)
    started = time.perf_counter()
    selector = fit_token_selector(
        ground.cache.backbone,
        state.classes,
        seed=ground.seed,
        options=options,
        plan=ground.adapter.plan,
        fallback="never",
    )
    fit_ms = 1000 * (time.perf_counter() - started)
    return selector, {"fit_ms": fit_ms, **state_facts(selector, state, known)}


def _squared(ground: Ground, samples: Sequence[Sample]) -> Tensor:
    """(n, S, S, 3) uint8 images in the backbone's square."""
    side = ground.cache.backbone.image_size
    return torch.stack([torch.from_numpy(squash(load_image(sample.image), side)) for sample in samples])


def _queries(ground: Ground, selector: TokenSelector, domain: str) -> Tensor:
    """(n, C) queries of a domain's test images, each image alone: its query depends on no other."""
    samples = ground.samples(domain, "test")
    return torch.cat([selector.query(_squared(ground, [sample])) for sample in samples])
