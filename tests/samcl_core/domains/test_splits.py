"""Splits: by lists, by the source, by seed; groups and near-duplicates stay together whatever the order."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samcl_core.config import SourceParams
from samcl_core.domains.splits import SplitItem, assign_splits, cap_samples, groups_of, listed_names
from samcl_core.errors import DataError


def _items(count: int, **values: str) -> list[SplitItem]:
    return [SplitItem(f"images/{index:03d}.png", **values) for index in range(count)]


def _split(items: list[SplitItem], test: float | list[str] = 0.2, val: float | list[str] = 0.0, **kw) -> dict[str, str]:
    return assign_splits(items, test=test, val=val, seed=kw.pop("seed", 0), **kw)


def test_shares_are_met_and_every_split_differs() -> None:
    splits = list(_split(_items(100), test=0.2, val=0.25).values())
    assert {name: splits.count(name) for name in ("train", "val", "test")} == {"train": 60, "val": 20, "test": 20}
    # The validation part is taken from the training images: the test split stays as it was without it.
    without = _split(_items(100), test=0.2)
    with_val = _split(_items(100), test=0.2, val=0.25)
    assert {key for key, split in without.items() if split == "test"} == {
        key for key, split in with_val.items() if split == "test"
    }


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=12),
    seed=st.integers(0, 2**16),
    share=st.floats(0.05, 0.6),
    val=st.floats(0.0, 0.5),
)
def test_groups_are_never_torn_and_order_is_irrelevant(sizes: list[int], seed: int, share: float, val: float) -> None:
    items = [
        SplitItem(f"{group}/{index}.png", group=f"patient {group}")
        for group, size in enumerate(sizes)
        for index in range(size)
    ]
    splits = assign_splits(items, test=share, val=val, seed=seed)
    by_group: dict[str, set[str]] = {}
    for item in items:
        by_group.setdefault(item.group, set()).add(splits[item.key])
    assert all(len(found) == 1 for found in by_group.values())
    assert {"train", "test"} <= set(splits.values())
    shuffled = random.Random(seed).sample(items, len(items))
    assert assign_splits(shuffled, test=share, val=val, seed=seed) == splits


def test_near_duplicates_stay_together_and_connect_groups() -> None:
    items = [SplitItem(f"{name}.png", group=name[0]) for name in ("a1", "a2", "b1", "b2", "c1", "d1", "e1", "f1")]
    for seed in range(20):
        splits = _split(items, 0.3, seed=seed, twins=[{"a2.png", "b1.png"}, {"c1.png", "gone.png"}])
        assert len({splits[f"{name}.png"] for name in ("a1", "a2", "b1", "b2")}) == 1


def test_the_sources_own_splits_stay() -> None:
    items = [*_items(3, split="train"), SplitItem("x.png"), SplitItem("v.png", "val"), SplitItem("t.png", "test")]
    splits = _split(items, 0.5, 0.5)
    assert splits["t.png"] == "test" and splits["v.png"] == "val" and splits["x.png"] == "train"
    assert list(splits.values()).count("test") == 1


def test_lists_come_before_the_sources_splits() -> None:
    items = [*_items(4, split="test")]
    splits = _split(items, ["00[01].png"], ["images/003.png"])
    assert splits == {
        "images/000.png": "test",
        "images/001.png": "test",
        "images/002.png": "train",
        "images/003.png": "val",
    }
    with pytest.raises(DataError, match=r"test names 'nothing\.png', which is none of the 4 images"):
        _split(items, ["nothing.png"])
    # A bad image may be listed, and gets no split.
    assert "bad.png" not in _split(items, ["bad.png", "001"], others=["bad.png"])


def test_a_group_in_two_given_splits_is_refused() -> None:
    items = [SplitItem("p1_a.png", "train", "p1"), SplitItem("p1_b.png", "test", "p1")]
    with pytest.raises(DataError, match=r"group 'p1' stands in two splits: p1_a\.png is for train, p1_b\.png for test"):
        _split(items)


def test_groups_by_pattern(tmp_path: Path) -> None:
    keys = ["images/pat12_1.png", "images/pat12_2.png", "images/other.png"]
    assert groups_of(keys, SourceParams(group=r"pat(\d+)_"), tmp_path) == {keys[0]: "12", keys[1]: "12"}
    with pytest.raises(DataError, match="fits none of 3 images"):
        groups_of(keys, SourceParams(group=r"video(\d+)"), tmp_path)
    assert groups_of(keys, SourceParams(), tmp_path) == {}
    for pattern, problem in (("(", "is no regular expression"), ("pat", "has 0 groups"), ("(a)(b)", "has 2 groups")):
        with pytest.raises(ValueError, match=problem):
            SourceParams(group=pattern)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_groups_by_a_column(tmp_path: Path, delimiter: str) -> None:
    rows = [["image", "patient"], ["a.png", "p 1"], ["b", "p 2"], ["images/c.png", ""]]
    (tmp_path / "meta.csv").write_text("\n".join(delimiter.join(row) for row in rows), encoding="utf-8-sig")
    keys = ["images/a.png", "images/b.png", "images/c.png"]
    found = groups_of(keys, SourceParams(group_column="meta.csv:patient"), tmp_path)
    assert found == {"images/a.png": "p 1", "images/b.png": "p 2"}
    with pytest.raises(DataError, match=r"no row for images/d\.png"):
        groups_of([*keys, "images/d.png"], SourceParams(group_column="meta.csv:patient"), tmp_path)
    with pytest.raises(DataError, match=r"columns \['image', 'patient'\], expected 'scene'"):
        groups_of(keys, SourceParams(group_column="meta.csv:scene"), tmp_path)


def test_files_outside_of_the_source_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("x\n")
    source = tmp_path / "source"
    source.mkdir()
    (source / "list.txt").write_text("a.png\n\n b c.png \n", encoding="utf-8")
    assert listed_names(["z.png", "@list.txt"], source) == ["z.png", "a.png", "b c.png"]
    (source / "link.txt").symlink_to(tmp_path / "secret.txt")
    for name in ("../secret.txt", "link.txt", str(tmp_path / "secret.txt"), "absent.txt"):
        with pytest.raises(DataError, match="is not a file of the source"):
            listed_names([f"@{name}"], source)


def test_a_cap_keeps_the_same_images_when_others_come() -> None:
    keys = [f"{index}.png" for index in range(50)]
    few = cap_samples(keys, 10, seed=1)
    assert len(few) == 10 and few == [key for key in keys if key in few]
    assert cap_samples(keys, None, 1) == cap_samples(keys, 50, 1) == keys
    # Of a larger source at least those stay whose places no new image takes.
    more = cap_samples([*keys, "new.png"], 10, seed=1)
    assert len(set(few) & set(more)) >= 9
