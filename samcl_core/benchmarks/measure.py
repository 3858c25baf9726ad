"""What the units of a benchmark compute. Data and modules of one seed stand in one folder, laid out like a workspace.

A bank's mask of an image is the mask of the module that its selector chose. So every module is scored on every test
image once, and banks of any order and any selector are looked up in these scores; only selectors are fitted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from torch import Tensor

from samcl_core import __version__
from samcl_core.adapters import Adapter, build_adapter
from samcl_core.bank import Bank, Module
from samcl_core.benchmarks.streams import StreamSpec
from samcl_core.config import Params, SelectorParams
from samcl_core.domains import Domain, Sample
from samcl_core.domains.synthetic import write_domain
from samcl_core.evaluation.rmatrix import SCORES, SELECTOR_ACCURACY, score_cells
from samcl_core.evaluation.selection import expected_answer
from samcl_core.inference import Segmenter
from samcl_core.inference.scoring import score_samples
from samcl_core.progress import Progress, silent
from samcl_core.selectors import SelectorState, empty_state, fit_state
from samcl_core.selectors.base import PLAIN
from samcl_core.stages import ingest, points
from samcl_core.stages.gallery import draw_gallery
from samcl_core.stages.machine import open_cache
from samcl_core.stages.places import Places
from samcl_core.strategies import base_bank, extend_bank
from samcl_core.training import PrefixCache, TrainResult, clear_checkpoint, train_module

__all__ = [
    "Ground",
    "bank_rows",
    "fit_facts",
    "joint_rows",
    "module_facts",
    "naive_rows",
    "oracle_rows",
    "prepare_domains",
    "score_modules",
    "train_domain",
    "write_pictures",
    "zero_shot_rows",
]

_SHARED = "shared"
"""Name of the one module of a strategy without a bank."""

_FIT_REPEATS, _FIT_SECONDS = 5, 2.0
_UNSEEN_TRAIN = 2
"""Training pictures of a domain that is never learnt; the layout wants some."""


@dataclass(frozen=True)
class Ground:
    """What one seed is measured on.

    Attributes:
        root: output folder of the benchmark.
        spec: the stream.
        seed: of everything random.
        profile: ``default`` or ``reference``.
        device: where to compute.
        progress: called after each piece of work.
        scores: one row a test image and module, from ``score_modules``.
    """

    root: Path
    spec: StreamSpec
    seed: int
    profile: str
    device: str
    progress: Progress = silent
    scores: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)

    def with_scores(self, scores: pd.DataFrame) -> Ground:
        """The same ground with the scores of every module."""
        return replace(self, scores=scores)

    @property
    def folder(self) -> Path:
        """Where the seed's domains, prefixes and checkpoints are."""
        return self.root / "seeds" / f"seed-{self.seed}"

    @cached_property
    def params(self) -> Params:
        """Parameters of this seed and profile."""
        return self.spec.params_of(self.seed, self.profile, self.device)

    @cached_property
    def cache(self) -> PrefixCache:
        """Prefixes of the seed's images, with the backbone."""
        return open_cache(self.folder, self.params)

    @cached_property
    def adapter(self) -> Adapter:
        """The kind of module that is trained."""
        options = self.params.adapter
        return build_adapter(options.kind, self.cache.backbone.site, **options.options())

    def samples(self, domain: str, split: str) -> list[Sample]:
        """Samples of one split of a domain."""
        return Domain(Places(self.folder).domain(domain)).samples(split)

    def embeddings(self, domain: str, split: str) -> Tensor:
        """(n, C) selector embeddings."""
        return self.cache.embeddings(self.samples(domain, split))

    def module_folder(self, domain: str) -> Path:
        """Where the module of a domain is stored."""
        return self.root / "modules" / self.profile / domain / f"seed-{self.seed}"

    def modules(self) -> list[Module]:
        """The trained modules, in the order of the stream's file."""
        return [Module.load(self.module_folder(name)) for name in self.spec.names("learn")]

    def selector_params(self, kind: str) -> SelectorParams:
        """Options of a selector; the published one has a fixed number of outputs, which is made large enough here."""
        num_classes = max(2, len(self.spec.names("learn")) + len(self.spec.names("natural")))
        return self.params.selector.model_copy(update={"kind": kind, "num_classes": num_classes})


# Data and modules -----------------------------------------------------------------------------------------------------


def prepare_domains(ground: Ground) -> dict[str, Any]:
    """Draw, ingest and prompt every domain, and compute its prefixes; what is there already is taken as it is."""
    places, counts = Places(ground.folder), {}
    for name, domain in ground.spec.domains.items():
        num_train = _UNSEEN_TRAIN if domain.role == "unseen" else ground.spec.num_train
        sizes = (num_train, ground.spec.num_test, ground.spec.size_px)
        if not (places.domain(name) / "manifest.parquet").is_file():
            write_domain(places.raw(name), domain.scene, *sizes, ground.seed, ground.progress)
            ingest.run(ground.folder, ground.params, name, ground.progress)
        points.run(ground.folder, ground.params, name, ground.progress)
        for split in ("train", "test"):
            ground.cache.embeddings(ground.samples(name, split), ground.progress)
        counts[name] = Domain(places.domain(name)).data_digest()
    return counts


def train_domain(ground: Ground, domain: str) -> dict[str, Any]:
    """Train and store the module of one domain."""
    samples = ground.samples(domain, "train")
    checkpoint = Places(ground.folder).checkpoint(f"{ground.profile}-{domain}")
    result = _train(ground, samples, checkpoint)
    _module(ground, domain, result, samples).save(ground.module_folder(domain))
    clear_checkpoint(checkpoint)
    return {"train_seconds": sum(epoch["seconds"] for epoch in result.curve), "epochs": result.curve}


def _train(ground: Ground, samples: Sequence[Sample], checkpoint: Path, before: Module | None = None) -> TrainResult:
    return train_module(
        ground.cache.backbone,
        ground.adapter,
        ground.cache,
        samples,
        ground.params.train,
        seed=ground.seed,
        initial=None if before is None else before.tensors,
        checkpoint=checkpoint,
        progress=ground.progress,
    )


def _module(ground: Ground, domain: str, result: TrainResult, samples: Sequence[Sample]) -> Module:
    backbone = ground.cache.backbone
    return Module(
        domain=domain,
        kind=ground.adapter.kind,
        parameters=ground.adapter.parameters(),
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        split=backbone.site.blocks[0],
        data_digest="",
        seed=ground.seed,
        code=__version__,
        metrics={"num_train": len(samples)},
        tensors=result.tensors,
    )


# Scores of every module on every test image ---------------------------------------------------------------------------


def score_modules(ground: Ground) -> pd.DataFrame:
    """One row a test image and answer: ``domain``, ``image``, ``module`` (a learnt domain or plain) and the metrics."""
    modules = ground.modules()
    learnt = {module.domain: ground.embeddings(module.domain, "train") for module in modules}
    segmenter = Segmenter(ground.cache.backbone, _bank_of(ground, modules, learnt))
    frames = []
    for domain in ground.spec.domains:
        samples = ground.samples(domain, "test")
        for answer in (PLAIN, *learnt):
            frame = _scored(ground, segmenter, samples, answer)
            frames.append(frame[["id", "module", *SCORES]].assign(domain=domain))
        ground.progress("scoring", len(frames), len(ground.spec.domains) * (len(modules) + 1))
    return pd.concat(frames, ignore_index=True)


def _scored(ground: Ground, segmenter: Segmenter, samples: Sequence[Sample], answer: str) -> pd.DataFrame:
    return score_samples(segmenter, ground.cache, samples, ground.params.evaluate, module=answer)


def _bank_of(ground: Ground, modules: Sequence[Module], learnt: dict[str, Tensor]) -> Bank:
    """All modules with a selector that is never asked: it is the cheapest one."""
    params = ground.params.selector.model_copy(update={"kind": "gaussian"})
    state: SelectorState = empty_state(params)
    for name, embeddings in learnt.items():
        state = state.added(name, embeddings, seed=ground.seed)
    backbone = ground.cache.backbone
    return Bank(backbone.name, backbone.sha256, tuple(modules), fit_state(state, params, ground.seed), state)


# Rows of the R matrix -------------------------------------------------------------------------------------------------


def zero_shot_rows(ground: Ground) -> pd.DataFrame:
    """Row 0: plain SAM for everything."""
    return _rows(ground, 0, lambda domain: [PLAIN] * ground.spec.num_test, is_chosen=False)


def oracle_rows(ground: Ground, order: Sequence[str]) -> pd.DataFrame:
    """Rows 0 to T with every image's own module; plain SAM for what was not learnt."""

    def told(known: Sequence[str]) -> Callable[[str], list[str]]:
        return lambda domain: [expected_answer(domain, known)] * ground.spec.num_test

    steps = [_rows(ground, step, told(order[:step]), is_chosen=False) for step in range(1, len(order) + 1)]
    return pd.concat([zero_shot_rows(ground), *steps], ignore_index=True)


def bank_rows(ground: Ground, order: Sequence[str], kind: str) -> pd.DataFrame:
    """Rows 0 to T of a growing bank, the selector fitted again at each step."""
    params = ground.selector_params(kind)
    tests = {domain: ground.embeddings(domain, "test") for domain in ground.spec.domains}
    state = _natural_state(ground, params)
    frames = [zero_shot_rows(ground)]
    for step, domain in enumerate(order, 1):
        state = state.added(domain, ground.embeddings(domain, "train"), seed=ground.seed)
        selector = fit_state(state, params, ground.seed)

        def chosen(name: str, selector: Any = selector) -> list[str]:
            rows = selector.choose(tests[name]).index.tolist()
            return [PLAIN if row < 0 else selector.domains[row] for row in rows]

        frames.append(_rows(ground, step, chosen, known=order[:step]))
        ground.progress(f"{kind} selector", step, len(order))
    return pd.concat(frames, ignore_index=True)


def naive_rows(ground: Ground, order: Sequence[str], folder: Path) -> tuple[pd.DataFrame, dict[str, float]]:
    """Rows 0 to T of one module that is trained on one domain after the other, and applied to everything."""
    frames = [_single_rows(ground, 0, None)]
    before: Module | None = None
    seconds = 0.0
    for step, domain in enumerate(order, 1):
        before, took = _single(ground, ground.samples(domain, "train"), folder / str(step), before)
        seconds += took
        frames.append(_single_rows(ground, step, before))
    return pd.concat(frames, ignore_index=True), _single_facts(before, seconds)


def joint_rows(ground: Ground, order: Sequence[str], folder: Path) -> tuple[pd.DataFrame, dict[str, float]]:
    """Rows 0 and T of one module that is trained on all learnt domains at once."""
    samples = [sample for domain in order for sample in ground.samples(domain, "train")]
    module, seconds = _single(ground, samples, folder / "all", None)
    frames = [_single_rows(ground, 0, None), _single_rows(ground, len(order), module)]
    return pd.concat(frames, ignore_index=True), _single_facts(module, seconds)


def _single(ground: Ground, samples: Sequence[Sample], folder: Path, before: Module | None) -> tuple[Module, float]:
    """The module in ``folder``, trained now if it is not there."""
    if (folder / "module.json").is_file():
        found = Module.load(folder)
        return found, float(found.metrics.get("seconds", 0.0))
    checkpoint = folder.with_suffix(".safetensors")
    result = _train(ground, samples, checkpoint, before)
    seconds = sum(epoch["seconds"] for epoch in result.curve)
    module = _module(ground, _SHARED, result, samples)
    module = replace(module, metrics={**module.metrics, "seconds": seconds})
    module.save(folder)
    clear_checkpoint(checkpoint)
    return module, seconds


def _single_rows(ground: Ground, step: int, module: Module | None) -> pd.DataFrame:
    """One row of a strategy that has one module for everything; ``None`` is plain SAM."""
    backbone = ground.cache.backbone
    segmenter = Segmenter(backbone)
    if module is not None:
        embeddings = {_SHARED: ground.embeddings(ground.spec.names("learn")[0], "train")}
        segmenter = Segmenter(backbone, _bank_of(ground, [module], embeddings))
    frames = []
    for domain, spec in ground.spec.domains.items():
        answer = PLAIN if module is None else _SHARED
        scored = _scored(ground, segmenter, ground.samples(domain, "test"), answer)
        frames.append(score_cells(step, domain, spec.role, {metric: scored[metric] for metric in SCORES}))
    return pd.concat(frames, ignore_index=True)


def _rows(
    ground: Ground,
    step: int,
    answers: Callable[[str], Iterable[str]],
    *,
    known: Sequence[str] = (),
    is_chosen: bool = True,
) -> pd.DataFrame:
    """One row of the R matrix: for each test image the scores of the answer's module."""
    frames = []
    for domain, spec in ground.spec.domains.items():
        of_domain = ground.scores[ground.scores["domain"] == domain]
        ids = of_domain.loc[of_domain["module"] == PLAIN, "id"]
        given = pd.DataFrame({"id": list(ids), "module": list(answers(domain))[: len(ids)]})
        found = given.merge(of_domain, on=["id", "module"], how="left", validate="one_to_one")
        columns = {metric: found[metric] for metric in SCORES}
        if is_chosen:
            columns[SELECTOR_ACCURACY] = (found["module"] == expected_answer(domain, known)).astype(float)
        frames.append(score_cells(step, domain, spec.role, columns))
    return pd.concat(frames, ignore_index=True)


def _natural_state(ground: Ground, params: SelectorParams) -> SelectorState:
    state: SelectorState = empty_state(params)
    for name in ground.spec.names("natural"):
        state = state.added(name, ground.embeddings(name, "train"), seed=ground.seed, is_natural=True)
    return state


# Facts ----------------------------------------------------------------------------------------------------------------


def module_facts(ground: Ground) -> dict[str, float]:
    """Sizes of the bank's modules."""
    modules = ground.modules()
    return {
        "num_parameters": float(sum(tensor.numel() for module in modules for tensor in module.tensors.values())),
        "module_bytes": float(sum(_num_bytes(module) for module in modules)),
    }


def _num_bytes(module: Module) -> int:
    return sum(len(data) for data in module.files().values())


def _single_facts(module: Module | None, seconds: float) -> dict[str, float]:
    if module is None:
        return {}
    parameters = sum(tensor.numel() for tensor in module.tensors.values())
    return {
        "num_parameters": float(parameters),
        "module_bytes": float(_num_bytes(module)),
        "train_seconds": seconds,
    }


def fit_facts(ground: Ground, order: Sequence[str], kind: str) -> dict[str, float]:
    """Bytes of what a selector keeps, and the median time of its fit with all domains."""
    params = ground.selector_params(kind)
    state = _natural_state(ground, params)
    for name in order:
        state = state.added(name, ground.embeddings(name, "train"), seed=ground.seed)
    times: list[float] = []
    while len(times) < _FIT_REPEATS and sum(times) < _FIT_SECONDS:
        started = time.perf_counter()
        selector = fit_state(state, params, ground.seed)
        times.append(time.perf_counter() - started)
    _, tensors = selector.state()
    return {
        "fit_ms": 1000 * median(times),
        "selector_bytes": float(sum(t.numel() * t.element_size() for t in tensors.values())),
        "state_bytes_per_domain": float(max(state.class_bytes(name) for name in order)),
        "state_bytes_shared": float(state.shared_bytes),
    }


# Pictures -------------------------------------------------------------------------------------------------------------


def write_pictures(ground: Ground, order: Sequence[str], folder: Path) -> dict[str, Any]:
    """Comparison sheets of the final bank, one a domain, masks from the bank itself and not from looked-up scores."""
    params = ground.selector_params("gaussian")
    backbone = ground.cache.backbone
    natural = {name: ground.embeddings(name, "train") for name in ground.spec.names("natural")}
    bank = base_bank(backbone.name, backbone.sha256, natural, params, ground.seed)
    modules = {module.domain: module for module in ground.modules()}
    for name in order:
        bank = extend_bank(bank, modules[name], ground.embeddings(name, "train"), params, ground.seed)
    plain, current = Segmenter(backbone), Segmenter(backbone, bank)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ground.spec.domains:
        draw_gallery(folder / f"{name}-seed-{ground.seed}.png", name, ground.samples(name, "test"), plain, current)
    return {"bank": bank.digest, "domains": list(ground.spec.domains)}
