"""The comparison of one pass with two, on two drawn domains and the smallest backbone."""

from __future__ import annotations

from pathlib import Path

from samcl_core.backbones import tiny_backbone
from samcl_core.benchmarks.token_forms import compare_forms


def test_every_form_is_measured_on_the_same_images(tmp_path: Path) -> None:
    forms = ("two_pass", "one_pass_all_blocks", "gaussian")
    seen: list[tuple[str, int, int]] = []
    frame = compare_forms(
        tiny_backbone(),
        tmp_path,
        seeds=[0],
        num_train=3,
        num_test=2,
        learnt=("polyp", "crack"),
        forms=forms,
        progress=lambda *what: seen.append(what),
    )
    assert frame["form"].tolist() == list(forms)
    assert [what[1:] for what in seen] == [(1, 3), (2, 3), (3, 3)]
    shares = frame[["accuracy", "agreement", "right", "natural", "unseen"]]
    assert ((shares >= 0) & (shares <= 1)).all(axis=None)
    assert frame.loc[frame["form"] == "two_pass", "agreement"].item() == 1
    assert (frame[["fit_s", "query_ms"]] > 0).all(axis=None)
    assert frame["accuracy"].isin([k / 4 for k in range(5)]).all(), "two domains with two images each"
