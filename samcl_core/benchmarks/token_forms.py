"""How much MoDA's query changes when it comes out of the prefix's own pass: the forms side by side on drawn domains."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from samcl_core.backbones.base import Backbone
from samcl_core.backbones.frozen import squash
from samcl_core.config import SelectorParams, TokenParams
from samcl_core.domains.images import load_image
from samcl_core.domains.synthetic import write_domain
from samcl_core.progress import Progress, silent
from samcl_core.selectors import Selector, TokenSelector, fit_selector, fit_token_selector

__all__ = ["FORMS", "LEARNT", "NATURAL", "UNSEEN", "compare_forms"]

FORMS: dict[str, dict[str, Any]] = {
    "two_pass": {"form": "two_pass"},
    "one_pass": {"form": "one_pass"},
    "one_pass_all_blocks": {"form": "one_pass"},
    "two_pass_frozen": {"form": "two_pass", "frozen": True},
    "one_pass_frozen": {"form": "one_pass", "frozen": True},
}
"""Name to options; ``one_pass`` goes through the prefix, ``one_pass_all_blocks`` through the whole encoder."""

LEARNT = ("polyp", "lesion", "metal", "rail", "crack")
NATURAL, UNSEEN = "natural", "cells"

_TIMED = 20


def compare_forms(
    backbone: Backbone,
    folder: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    num_train: int = 10,
    num_test: int = 30,
    learnt: Sequence[str] = LEARNT,
    forms: Sequence[str] = (*FORMS, "gaussian"),
    progress: Progress = silent,
) -> pd.DataFrame:
    """Fit every form on the same images of drawn domains, and ask it about fresh ones.

    Args:
        backbone: frozen.
        folder: for the drawn domains.
        seeds: of pictures and selectors.
        num_train: images of each domain; the token selectors store at most 10.
        num_test: fresh images of each domain.
        learnt: scenes of the domains with a module; beside them there are natural images and an unseen domain.
        forms: names of ``FORMS``, ``two_pass`` first; ``gaussian`` reads the embeddings of the same images.
        progress: called after each fit.

    Returns:
        One row a seed and form: ``seed``, ``form``; ``accuracy`` (share of images of learnt domains whose most probable
        learnt domain is their own, whatever novelty gate and natural class say), ``agreement`` (share of the same
        images with the answer of ``two_pass``), with gate and natural class ``right``, ``natural`` and ``unseen``
        (shares of right answers; plain is right for the latter two), ``fit_s``, and ``query_ms`` (an image's prefix
        and query together, batch of one, median).
    """
    rows = []
    for seed in seeds:
        images = {
            name: {
                split: _drawn(folder / f"{name}-{seed}", name, split, num_train, num_test, backbone, seed)
                for split in ("train", "test")
            }
            for name in (*learnt, NATURAL, UNSEEN)
        }
        answers: dict[str, Tensor] = {}
        for form in forms:
            rows.append({"seed": seed, "form": form, **_measured(backbone, form, images, learnt, seed, answers)})
            progress(f"seed {seed}: {form}", len(rows), len(forms) * len(seeds))
    return pd.DataFrame(rows)


def _drawn(root: Path, scene: str, split: str, num_train: int, num_test: int, backbone: Backbone, seed: int) -> Tensor:
    if not root.exists():
        write_domain(root, scene, num_train, num_test, backbone.image_size, seed)
    paths = sorted((root / split / "images").iterdir())
    return torch.stack([torch.from_numpy(squash(load_image(path), backbone.image_size)) for path in paths])


def _measured(
    backbone: Backbone,
    form: str,
    images: Mapping[str, Mapping[str, Tensor]],
    learnt: Sequence[str],
    seed: int,
    answers: dict[str, Tensor],
) -> dict[str, float]:
    started = time.perf_counter()
    selector = _fitted(backbone, form, {name: images[name]["train"] for name in (*learnt, NATURAL)}, seed)
    fit_s = time.perf_counter() - started
    seen = {name: _signals(backbone, selector, parts["test"]) for name, parts in images.items()}
    closed = _closed(backbone, selector, {name: images[name]["train"] for name in learnt}, seed)
    answers[form] = torch.cat([closed(seen[name]) for name in learnt])
    truth = torch.cat([torch.full((len(seen[name]),), k) for k, name in enumerate(learnt)])
    right = [(selector.choose(seen[name]).index == k).float().mean() for k, name in enumerate(learnt)]
    plain = {name: float((selector.choose(seen[name]).index < 0).float().mean()) for name in (NATURAL, UNSEEN)}
    return {
        "accuracy": float((answers[form] == truth).float().mean()),
        "agreement": float(
            (answers[form] == answers[form if "two_pass" not in answers else "two_pass"]).float().mean()
        ),
        "right": float(torch.stack(right).mean()),
        "natural": plain[NATURAL],
        "unseen": plain[UNSEEN],
        "fit_s": fit_s,
        "query_ms": _query_ms(backbone, selector, images[learnt[0]]["test"]),
    }


def _fitted(
    backbone: Backbone, form: str, train: Mapping[str, Tensor], seed: int, fallback: str = "novelty"
) -> Selector:
    learnt = {name: rows for name, rows in train.items() if name != NATURAL}
    natural = {name: rows for name, rows in train.items() if name == NATURAL}
    if form == "gaussian":
        params = SelectorParams(kind="gaussian", fallback="never" if fallback == "never" else "novelty")
        stored = [{name: _embeddings(backbone, rows) for name, rows in part.items()} for part in (learnt, natural)]
        return fit_selector(params, stored[0], stored[1], seed)
    depth = len(backbone.site.blocks) + backbone.site.blocks[0] if form == "one_pass_all_blocks" else None
    options = TokenParams(depth=depth, **FORMS[form])
    return fit_token_selector(backbone, learnt, natural, seed=seed, options=options, fallback=fallback)


def _closed(
    backbone: Backbone, selector: Selector, train: Mapping[str, Tensor], seed: int
) -> Callable[[Tensor], Tensor]:
    """The most probable learnt domain, whatever gate and natural classes say."""
    if isinstance(selector, TokenSelector):
        return lambda signals: selector.logits(signals)[:, : len(train)].argmax(1)
    never = _fitted(backbone, "gaussian", train, seed, "never")
    return lambda signals: never.choose(signals).index


def _signals(backbone: Backbone, selector: Selector, images: Tensor) -> Tensor:
    if isinstance(selector, TokenSelector):
        return torch.cat([selector.query(image[None]) for image in images])
    return _embeddings(backbone, images)


def _embeddings(backbone: Backbone, images: Tensor) -> Tensor:
    pixels = [backbone.preprocess(image.numpy())[None].to(backbone.device) for image in images]
    return torch.cat([backbone.prefix(one).embedding for one in pixels])


def _query_ms(backbone: Backbone, selector: Selector, images: Tensor) -> float:
    times = []
    for image in images[:_TIMED]:
        started = time.perf_counter()
        pixels = backbone.preprocess(image.numpy())[None].to(backbone.device)
        if isinstance(selector, TokenSelector):
            selector.look(pixels)
        else:
            backbone.prefix(pixels)
        times.append(time.perf_counter() - started)
    return 1000 * median(times)
