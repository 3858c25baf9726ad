"""Leaving classes out changes nothing: choices among many are those of plain float64 distances to all of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from samcl_core.selectors import Choice, NoveltyGate
from samcl_core.selectors.gaussian import GaussianSelector, Metric
from samcl_core.selectors.shortlist import _NUM_AXES, FEW, Shortlist

DIMS = (24, 160)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def metric_of(dim: int, seed: int = 5) -> Tensor:
    """A root of a metric whose axes differ by a factor of 30."""
    return torch.logspace(0, -1.5, dim, dtype=torch.float64)[:, None] * torch.linalg.qr(normal(dim, dim, seed=seed)).Q


def plain(gate: NoveltyGate, num_domains: int, rows: Tensor) -> Choice:
    """The rule as it is written down, over all classes, one image after the other."""
    index, confidence, novelty = [], [], []
    largest = torch.finfo(torch.float32).max  # in place of infinity
    for row in rows.double():
        distances = ((row - gate.means) @ gate.whiten.T).norm(dim=1)
        probabilities = (-0.5 * distances.square()).softmax(0)
        fit = min(float((distances / gate.thresholds).min().float()), largest)
        best = int(probabilities.argmax())
        sure = float(probabilities[num_domains:].sum() if best >= num_domains else probabilities[best])
        if not math.isfinite(float(probabilities.sum())) or math.isnan(fit):
            fit = largest
        is_novel = fit > 1
        index.append(-1 if is_novel or best >= num_domains else best)
        confidence.append(1 - 0.5 / fit if is_novel else sure)
        novelty.append(fit)
    return Choice(torch.tensor(index), torch.tensor(confidence), torch.tensor(novelty))


def check(gate: NoveltyGate, rows: Tensor, num_domains: int | None = None, *, alone: int = 4) -> Choice:
    """Compare all rows at once, and some one by one, with the plain rule; returns the choice of all."""
    num = len(gate.means)
    num_domains = num if num_domains is None else num_domains
    names = [f"d{k}" for k in range(num)]
    selector = GaussianSelector(Metric(1.0, 1.0), gate, names[:num_domains], names[num_domains:])
    expected, found = plain(gate, num_domains, rows), selector.choose(rows)
    ones = [selector.choose(row[None]) for row in rows[:alone]]
    for part, count in ((found, len(rows)), *((one, row) for row, one in enumerate(ones))):
        rows_of = slice(0, count) if part is found else slice(count, count + 1)
        assert part.index.tolist() == expected.index[rows_of].tolist()
        torch.testing.assert_close(part.confidence, expected.confidence[rows_of].float(), rtol=0, atol=1e-6)
        torch.testing.assert_close(part.novelty, expected.novelty[rows_of].float(), rtol=1e-6, atol=1e-12)
    return found


def drawn_thresholds(num: int, typical: float, spread: float, seed: int = 3) -> Tensor:
    return typical * (spread * normal(num, seed=seed)).exp()


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("num", [FEW + 1, 400])
@pytest.mark.parametrize("apart", [0.01, 0.3, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_near_and_far_classes(dim: int, num: int, apart: float, spread: float) -> None:
    means = apart * normal(num, dim)
    rows = means[:: num // 16] + normal(len(means[:: num // 16]), dim, seed=1)
    gate = NoveltyGate(means, metric_of(dim), drawn_thresholds(num, dim**0.5 / 3, spread))
    check(gate, rows, num * 2 // 3)
    check(gate, rows.float(), 0)


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize(("apart", "close"), [(30.0, 0.3), (1e3, 1e-2), (3.0, 1e-6), (3e4, 3.0)])
def test_clusters_of_classes(apart: float, close: float, offset: float) -> None:
    inside = close * normal(400, 48, seed=1)
    means = (apart * normal(40, 1, 48) + inside.view(40, 10, 48)).flatten(0, 1) + offset
    gate = NoveltyGate(means, metric_of(48), drawn_thresholds(400, close * 3, 0.5))
    check(gate, means[::33] + close * normal(len(means[::33]), 48, seed=2), 300)


@pytest.mark.parametrize("dim", DIMS)
def test_strangers_fit_the_class_with_the_widest_threshold_best(dim: int) -> None:
    means, thresholds = normal(500, dim), drawn_thresholds(500, 0.1, 1.0)
    gate = NoveltyGate(means, metric_of(dim), thresholds)
    for scale in (3.0, 100.0, 1e4):
        rows = scale * normal(6, dim, seed=7)
        nearest = gate.distances(rows).argmin(1)
        fitting = (gate.distances(rows) / thresholds).argmin(1)
        assert not torch.equal(nearest, fitting)
        assert bool((check(gate, rows).novelty > 1).all())


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("apart", [0.5, 50.0])
def test_images_at_the_threshold(dim: int, apart: float) -> None:
    means, root = apart * normal(200, dim), metric_of(dim)
    thresholds = drawn_thresholds(200, 2.0, 0.7)
    away = torch.linalg.solve(root, normal(200, dim, seed=4).T).T
    away *= (thresholds / (away @ root.T).norm(dim=1))[:, None]
    gate = NoveltyGate(means, root, thresholds)
    for factor in (1 - 1e-5, 1 + 1e-5):
        found = check(gate, (means + factor * away)[:20])
        if apart > 10:
            assert bool((found.novelty > 1).all()) == (factor > 1)


@pytest.mark.parametrize("dim", DIMS)
def test_open_thresholds(dim: int) -> None:
    means, rows = 5 * normal(100, dim), 5 * normal(8, dim, seed=2)
    everything = NoveltyGate(means, metric_of(dim), torch.full((100,), math.inf))
    assert check(everything, means[:8] + 0.1 * rows).novelty.tolist() == [0] * 8
    one = torch.ones(100)
    one[70] = math.inf
    assert check(NoveltyGate(means, metric_of(dim), one), rows).novelty.tolist() == [0] * 8
    check(NoveltyGate(means, metric_of(dim), drawn_thresholds(100, 1e-30, 40.0)), rows)


@pytest.mark.parametrize("num_same", [2, 3, 50])
def test_of_classes_that_tie_the_first_is_chosen(num_same: int) -> None:
    means = 40 * normal(100, 16).round()
    means[7 : 7 + num_same] = means[7]
    gate = NoveltyGate(means, torch.eye(16), torch.full((100,), 9.0))
    found = check(gate, torch.stack([means[7], means[7] + 1, means[90]]))
    assert found.index.tolist() == [7, 7, 90]
    torch.testing.assert_close(found.confidence[0], torch.tensor(1 / num_same), rtol=1e-6, atol=0)
    assert check(gate, means[7:8], 7).confidence.tolist() == [1.0], "all that tie are natural"


@pytest.mark.parametrize("dim", DIMS)
def test_embeddings_that_are_no_numbers_or_huge(dim: int) -> None:
    means = 9 * normal(200, dim)
    means[9] = means[8] + 0.1
    gate = NoveltyGate(means, metric_of(dim), drawn_thresholds(200, float(dim), 0.1))
    rows = means[:9].clone()
    for row, value in enumerate([math.nan, math.inf, -math.inf, 1e14, 1e16, 1e19, 1e25, 1e150]):
        rows[row, row] = value
    for row in rows:
        check(gate, row[None])
    found = check(gate, rows)
    assert found.index.tolist() == [-1] * 8 + [8]
    assert bool((found.confidence[:8] == 1).all()) and found.confidence[8] < 1


@pytest.mark.parametrize("scale", [1e-25, 1e-10, 1e14, 1e17, 1e30])
def test_classes_of_any_size(scale: float) -> None:
    means = scale * normal(100, 120)
    root = metric_of(120)
    for typical in (scale, scale * 1e-3, 1.0):
        check(NoveltyGate(means, root, drawn_thresholds(100, typical, 0.5)), means[:6] * (1 + 1e-5))
    check(NoveltyGate(means, root / scale, torch.full((100,), 5.0)), means[:6] + 0.1 * scale * normal(6, 120, seed=8))


def test_no_image() -> None:
    gate = NoveltyGate(9 * normal(100, 16), torch.eye(16), torch.ones(100))
    assert gate.novelty(torch.empty(0, 16)).shape == (0,)
    assert gate.distances(torch.empty(0, 16)).shape == (0, 100)


def test_bounds_are_below_and_close_to_the_distances() -> None:
    means, rows = 3 * normal(300, 160), 3 * normal(20, 160, seed=1)
    gate = NoveltyGate(means, metric_of(160), torch.ones(300))
    listed = gate._shortlist
    assert isinstance(listed, Shortlist)
    points = (rows - gate._origin) @ listed._root.T
    squares = gate.distances(rows).square()
    rest = points[:, _NUM_AXES:].norm(dim=1, keepdim=True)
    coarse, lengths = torch.cat([points[:, :_NUM_AXES], rest], 1), points.norm(dim=1, keepdim=True).float()
    for bounds, parts, share in ((listed._coarse, coarse, 0.5), (listed._fine, points, 0.999)):
        lower = bounds.bounds(parts.float(), lengths)
        assert bool((lower <= squares).all())
        assert float((lower / squares).mean()) > share


def test_few_distances_are_measured() -> None:
    means, whiten = 9 * normal(1000, 160), torch.eye(160)
    rows = means[::125] + normal(8, 160, seed=1)
    near = NoveltyGate(means, whiten, torch.full((1000,), 20.0)).deciding(rows)
    assert near.classes is not None and near.classes[:, 0].tolist() == list(range(0, 1000, 125))
    # A class that lets much in may fit best wherever it is; of classes close together some more have a chance.
    wide = torch.full((1000,), 20.0)
    wide[3] = 400.0
    near = NoveltyGate(means, whiten, wide).deciding(rows)
    assert near.classes is not None and set(range(0, 1000, 125)) | {3} <= set(near.classes.tolist())
    assert len(near.classes) <= FEW
    wide[5:15] = 400 + torch.arange(10.0)
    check(NoveltyGate(means, whiten, wide), rows)
    close = (means[:100, None] + 0.5 * normal(1000, 160, seed=2).view(100, 10, 160)).flatten(0, 1)
    near = NoveltyGate(close, whiten, torch.full((1000,), 20.0)).deciding(close[::125])
    assert near.classes is not None and 8 <= len(near.classes) <= 80
    assert Shortlist.of(means[:FEW], whiten.double(), wide[:FEW].double()) is None
