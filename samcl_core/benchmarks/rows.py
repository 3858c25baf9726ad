"""Rows of the R matrix of methods that choose among modules of single domains.

A bank's mask of an image is the mask of the module that its selector chose. So every module is scored on every test
image once, and banks of any order and any selector are looked up in these scores; only selectors are fitted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from torch import Tensor

from samcl_core.bank import Bank, Module
from samcl_core.benchmarks.ground import Ground
from samcl_core.config import SelectorParams
from samcl_core.evaluation.rmatrix import SCORES, SELECTOR_ACCURACY, score_cells
from samcl_core.evaluation.selection import expected_answer
from samcl_core.inference import Segmenter
from samcl_core.inference.scoring import score_samples
from samcl_core.selectors import SelectorState, empty_state, fit_state
from samcl_core.selectors.base import PLAIN
from samcl_core.stages.gallery import draw_gallery
from samcl_core.strategies import base_bank, extend_bank

__all__ = [
    "answers_of",
    "bank_rows",
    "fit_facts",
    "looked_up",
    "module_facts",
    "oracle_rows",
    "score_modules",
    "score_plain",
    "selector_params",
    "state_facts",
    "write_pictures",
    "zero_shot_rows",
]

_FIT_REPEATS, _FIT_SECONDS = 5, 2.0


# Scores of every module on every test image ---------------------------------------------------------------------------


def score_plain(ground: Ground) -> pd.DataFrame:
    """``score_modules`` of the plain backbone alone."""
    return _scored(ground, Segmenter(ground.cache.backbone), (PLAIN,))


def score_modules(ground: Ground) -> pd.DataFrame:
    """One row a test image and answer: ``domain``, ``id``, ``module`` (a learnt domain or plain) and the metrics."""
    modules = ground.modules()
    segmenter = Segmenter(ground.cache.backbone, _bank_of(ground, modules))
    return _scored(ground, segmenter, (PLAIN, *(module.domain for module in modules)))


def _scored(ground: Ground, segmenter: Segmenter, answers: Sequence[str]) -> pd.DataFrame:
    frames = []
    for domain in ground.spec.domains:
        samples = ground.samples(domain, "test")
        for answer in answers:
            frame = score_samples(segmenter, ground.cache, samples, ground.params.evaluate, module=answer)
            frames.append(frame[["id", "module", *SCORES]].assign(domain=domain))
            ground.progress("scoring", len(frames), len(ground.spec.domains) * len(answers))
    return pd.concat(frames, ignore_index=True)


def _bank_of(ground: Ground, modules: Sequence[Module]) -> Bank:
    """All modules with a selector that is never asked: it is the cheapest one."""
    params = ground.params.selector.model_copy(update={"kind": "gaussian"})
    state: SelectorState = empty_state(params)
    for module in modules:
        state = state.added(module.domain, ground.embeddings(module.domain, "train"), seed=ground.seed)
    backbone = ground.cache.backbone
    return Bank(backbone.name, backbone.sha256, tuple(modules), fit_state(state, params, ground.seed), state)


# Rows of the R matrix -------------------------------------------------------------------------------------------------


def zero_shot_rows(ground: Ground, scores: pd.DataFrame) -> pd.DataFrame:
    """Row 0: the plain backbone for everything."""
    return looked_up(ground, scores, 0, {})


def oracle_rows(ground: Ground, scores: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    """Rows 0 to T with every image's own module; the plain backbone for what was not learnt."""

    steps = [
        looked_up(ground, scores, step, {name: name for name in order[:step]}) for step in range(1, len(order) + 1)
    ]
    return pd.concat([zero_shot_rows(ground, scores), *steps], ignore_index=True)


def bank_rows(ground: Ground, scores: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    """Rows 0 to T of a growing bank, the selector fitted again at each step."""
    tests = {domain: ground.embeddings(domain, "test") for domain in ground.spec.domains}
    params = selector_params(ground)
    state = _natural_state(ground, params)
    frames = [zero_shot_rows(ground, scores)]
    for step, domain in enumerate(order, 1):
        state = state.added(domain, ground.embeddings(domain, "train"), seed=ground.seed)
        selector = fit_state(state, params, ground.seed)
        frames.append(looked_up(ground, scores, step, answers_of(selector, tests), order[:step]))
        ground.progress(f"{params.kind} selector", step, len(order))
    return pd.concat(frames, ignore_index=True)


def answers_of(selector: Any, tests: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Domain to the modules that ``selector`` chooses for its (n, C) test embeddings or queries."""
    rows = {name: selector.choose(embeddings).index.tolist() for name, embeddings in tests.items()}
    return {name: [PLAIN if row < 0 else selector.domains[row] for row in found] for name, found in rows.items()}


def looked_up(
    ground: Ground,
    scores: pd.DataFrame,
    step: int,
    answers: Mapping[str, str | Sequence[str]],
    known: Sequence[str] | None = None,
) -> pd.DataFrame:
    """One row of the R matrix: for each test image the scores of the module that answered.

    Args:
        ground: what is measured.
        scores: of every module on every test image.
        step: number of the row.
        answers: domain to the module of all its test images, or of each; the plain backbone where nothing is said.
        known: domains learnt so far, for the accuracy of the answers; ``None`` where nothing chose.
    """
    frames = []
    for domain, spec in ground.spec.domains.items():
        of_domain = scores[scores["domain"] == domain]
        ids = of_domain.loc[of_domain["module"] == PLAIN, "id"].tolist()
        answer = answers.get(domain, PLAIN)
        given = pd.DataFrame({"id": ids, "module": [answer] * len(ids) if isinstance(answer, str) else list(answer)})
        found = given.merge(of_domain, on=["id", "module"], how="left", validate="one_to_one")
        columns = {metric: found[metric] for metric in SCORES}
        if known is not None:
            columns[SELECTOR_ACCURACY] = (found["module"] == expected_answer(domain, known)).astype(float)
        frames.append(score_cells(step, domain, spec.role, columns))
    return pd.concat(frames, ignore_index=True)


def selector_params(ground: Ground) -> SelectorParams:
    """Options of the method's selector; the published MLP has a fixed number of outputs: enough of them here."""
    num_classes = max(2, len(ground.spec.names("learn")) + len(ground.spec.names("natural")))
    update = {"kind": ground.method.selector or "gaussian", "num_classes": num_classes}
    return ground.params.selector.model_copy(update=update)


def _natural_state(ground: Ground, params: SelectorParams) -> SelectorState:
    state: SelectorState = empty_state(params)
    for name in ground.natural:
        state = state.added(name, ground.embeddings(name, "train"), seed=ground.seed, is_natural=True)
    return state


# Facts ----------------------------------------------------------------------------------------------------------------


def module_facts(ground: Ground) -> dict[str, float]:
    """Sizes of the modules, and the time of all their trainings as far as it was written down."""
    modules = ground.modules()
    tensors = [tensor for module in modules for tensor in module.tensors.values()]
    return {
        "num_parameters": float(sum(module.num_weights for module in modules)),
        "module_bytes": float(sum(len(data) for module in modules for data in module.files().values())),
        "model_bytes": float(sum(tensor.numel() * tensor.element_size() for tensor in tensors)),
        "memory_bytes": 0.0,
    }


def fit_facts(ground: Ground, order: Sequence[str]) -> dict[str, float]:
    """Bytes of what a selector keeps, and the median time of its fit with all domains."""
    params = selector_params(ground)
    state = _natural_state(ground, params)
    for name in order:
        state = state.added(name, ground.embeddings(name, "train"), seed=ground.seed)
    times: list[float] = []
    while len(times) < _FIT_REPEATS and sum(times) < _FIT_SECONDS:
        started = time.perf_counter()
        selector = fit_state(state, params, ground.seed)
        times.append(time.perf_counter() - started)
    return {"fit_ms": 1000 * median(times), **state_facts(selector, state, order)}


def state_facts(selector: Any, state: Any, order: Sequence[str]) -> dict[str, float]:
    """Bytes of a fitted selector, and of what it keeps for later fits."""
    _, tensors = selector.state()
    sizes = [state.class_bytes(name) for name in order]
    return {
        "selector_bytes": float(sum(t.numel() * t.element_size() for t in tensors.values())),
        "state_bytes_per_domain": float(max(sizes)),
        "state_bytes_shared": float(state.shared_bytes),
        "memory_bytes": float(sum(sizes) + state.shared_bytes),
    }


# Pictures -------------------------------------------------------------------------------------------------------------


def write_pictures(ground: Ground, order: Sequence[str], folder: Path) -> dict[str, Any]:
    """Comparison sheets of the final bank, one a domain, masks from the bank itself and not from looked-up scores."""
    params, backbone = selector_params(ground), ground.cache.backbone
    natural = {name: ground.embeddings(name, "train") for name in ground.natural}
    bank = base_bank(backbone.name, backbone.sha256, natural, params, ground.seed)
    modules = {module.domain: module for module in ground.modules()}
    for name in order:
        bank = extend_bank(bank, modules[name], ground.embeddings(name, "train"), params, ground.seed)
    plain, current = Segmenter(backbone), Segmenter(backbone, bank)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ground.spec.domains:
        draw_gallery(folder / f"{name}-seed-{ground.seed}.png", name, ground.samples(name, "test"), plain, current)
    return {"bank": bank.digest, "domains": list(ground.spec.domains)}
