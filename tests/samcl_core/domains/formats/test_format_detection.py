"""Each sample tree has one format; how the disk orders files makes no difference."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from samcl_core.config import parse_params
from samcl_core.domains.formats import ReadOptions, detect_format, format_names, get_format
from samcl_core.stages import ingest, points


def test_each_tree_has_one_format(every_sample: tuple[str, Path]) -> None:
    name, root = every_sample
    assert detect_format(root).name == name
    # Plain folders come last: they may fit what a format before them knows better. BSData is LabelMe, with a table that
    # begins as COCO's files do.
    general = {"folders"} | ({"coco", "labelme"} if name == "bsdata" else set())
    assert {other for other in format_names() if get_format(other).matches(root)} - general <= {name}


def test_every_format_says_where_it_is_described() -> None:
    assert len(format_names()) >= 8
    assert format_names()[-1] == "folders"
    for name in format_names():
        found = get_format(name)
        assert found.name == name and found.summary and found.described_at


def test_the_order_of_files_on_disk_makes_no_difference(
    every_sample: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, root = every_sample
    expected = get_format(name).scan(root, ReadOptions())
    order = random.Random(0)
    iterdir, scandir = Path.iterdir, os.scandir

    def shuffled(self: Path) -> Iterator[Path]:
        return iter(order.sample(found := list(iterdir(self)), len(found)))

    class Shuffled:
        def __init__(self, path: str | os.PathLike[str]) -> None:
            with scandir(path) as entries:
                found = list(entries)
            self._entries = iter(order.sample(found, len(found)))

        def __iter__(self) -> Iterator[os.DirEntry[str]]:
            return self

        def __next__(self) -> os.DirEntry[str]:
            return next(self._entries)

        def __enter__(self) -> Shuffled:
            return self

        def __exit__(self, *_: object) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(Path, "iterdir", shuffled)
    monkeypatch.setattr(os, "scandir", Shuffled)
    assert get_format(name).scan(root, ReadOptions()) == expected
    assert detect_format(root).name == name


def test_a_round_trip_through_the_published_layout_keeps_every_object(
    every_sample: tuple[str, Path], scan: Callable, tmp_path_factory: pytest.TempPathFactory
) -> None:
    name, root = every_sample
    drawn = scan(name, root)
    num_drawn = len(drawn.entries) - len(drawn.negatives | drawn.unpaired)
    workspace = tmp_path_factory.mktemp("workspace")
    shutil.copytree(root, workspace / "data/raw/D")
    # Some trees have one image, or one of three without a partner.
    domains = {"D": {"role": "unseen", "test": ["*"]}}
    params = parse_params({"domains": domains, "ingest": {"max_bad_frac": 0.5}})
    summary = ingest.run(workspace, params, "D")
    points.run(workspace, params, "D")
    assert (summary["format"], summary["num_quarantined"]) == (name, len(drawn.unpaired))
    domain = workspace / "data/D"
    assert detect_format(domain).name == "samcl"
    again = scan("samcl", domain)
    assert (len(again.entries), again.pixels) == (num_drawn, drawn.pixels)
    assert again.unpaired == set()
