from __future__ import annotations

import re
from pathlib import Path

import pytest

from samcl_core.benchmarks import built_in_streams, check_data, load_stream, parse_method, plan, read_cells, run_unit
from samcl_core.benchmarks.report import build_report
from samcl_core.domains import Domain
from samcl_core.domains.scenes import SCENES
from samcl_core.domains.synthetic import write_domain
from samcl_core.errors import ConfigError, DataError, UsageError


def test_synthdomains_has_six_domains_natural_images_and_two_strangers() -> None:
    spec = load_stream("synthdomains")
    assert "synthdomains" in built_in_streams()
    assert len(spec.names("learn")) >= 6
    assert len(spec.names("natural")) == 1
    assert len(spec.names("unseen")) == 2
    assert len(spec.orders) >= 2
    assert {domain.scene for domain in spec.domains.values()} <= set(SCENES)
    params = spec.params_of(3, "reference")
    assert (params.seed, params.profile, params.train.schedule) == (3, "reference", "cosine_per_iteration")
    assert params.names("unseen") == spec.names("unseen")


def test_an_unknown_stream_is_one_error_that_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'nothing' is unknown, expected one of .*synthdomains"):
        load_stream("nothing")


def test_all_that_is_wrong_with_a_stream_is_told(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\ntitle: Mine\ndomains:\n  A: {scene: polyp}\n  B: {scene: moon}\norders: {default: [A, C]}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_stream(str(path))
    assert "domains.B.scene is 'moon'" in caught.value.message
    assert "orders.default is ['A', 'C'], expected every learnt domain once: ['A', 'B']" in caught.value.message
    path.write_text("name: [")
    with pytest.raises(ConfigError, match="not YAML"):
        load_stream(str(path))
    path.write_text(
        "name: mine\ntitle: M\ndomains: {A: {scene: polyp}}\norders: {o: [A]}\nparams: {train: {epoch: 1}}\n"
    )
    with pytest.raises(ConfigError, match="unknown option"):
        load_stream(str(path))


def test_two_orders_are_always_there_and_positions_are_all_rotations(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    scenes = "".join(f"  {name}: {{scene: {scene}}}\n" for name, scene in zip("ABC", SCENES, strict=False))
    path.write_text(f"name: mine\ntitle: M\ndomains:\n{scenes}orders: {{odd: [B, A, C]}}\n")
    spec = load_stream(str(path))
    assert list(spec.orders) == ["default", "reverse", "odd"]
    assert (spec.order("default"), spec.order("reverse")) == (("A", "B", "C"), ("C", "B", "A"))
    names = spec.order_names(["odd", "positions", "default"])
    assert names == ("odd", "default", "rotate-1", "rotate-2")
    rotations = [spec.order(name) for name in names[1:]]
    assert rotations == [("A", "B", "C"), ("B", "C", "A"), ("C", "A", "B")]
    for name in "ABC":
        assert sorted(order.index(name) for order in rotations) == [0, 1, 2]
    with pytest.raises(UsageError, match="order rotate-3 is unknown, expected some of default, reverse, odd, pos"):
        spec.order_names(["rotate-3"])
    with pytest.raises(UsageError, match="no order is given"):
        spec.order_names([])


def test_what_is_said_of_adapters_and_strategies_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    start = "name: mine\ntitle: M\ndomains: {A: {scene: polyp}, B: {scene: crack}}\n"
    path.write_text(
        f"{start}adapters: {{lora: {{rank: 2, train: {{lr: 0.01}}}}}}\nstrategies: {{er: {{buffer_size: 7}}}}\n"
    )
    spec = load_stream(str(path))
    assert spec.settings(parse_method("bank@lora"))["train"]["lr"] == 0.01
    whole = spec.settings(parse_method("er@lora"))
    assert (whole["adapter"]["rank"], whole["strategy"]["buffer_size"]) == (2, 7)
    assert spec.settings(parse_method("zero_shot")) == {}
    for wrong, message in (
        ("adapters: {magic: {}}", r"adapters\.magic is unknown, expected one of augmodule"),
        ("strategies: {magic: {}}", r"strategies\.magic is unknown"),
        ("adapters: {lora: {train: {speed: 1}}}", "speed: unknown option"),
        ("params: {adapter: {kind: lora}}", "params.adapter.kind is 'lora'; a strategy names it, as in naive@lora"),
    ):
        path.write_text(f"{start}{wrong}\n")
        with pytest.raises(ConfigError, match=message):
            load_stream(str(path))
    path.write_text(f"{start}strategies: {{er: {{magic: 1}}}}\n")
    with pytest.raises(UsageError, match="strategy er has no option magic"):
        load_stream(str(path))


def test_a_domain_is_drawn_or_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    domains = "{A: {scene: polyp, path: x}, B: {}, C: {scene: crack, classes: [dent]}, D: {path: d, classes: [dent]}}"
    path.write_text(f"name: mine\ntitle: M\ndomains: {domains}\n")
    with pytest.raises(ConfigError) as caught:
        load_stream(str(path))
    for line in (
        "domains.A has scene 'polyp' and path 'x', expected one of them",
        "domains.B has scene None and path None, expected one of them",
        "domains.C.classes goes with path, domains.C is drawn",
    ):
        assert line in caught.value.message
    path.write_text("name: mine\ntitle: M\ndomains: {D: {path: d, classes: [dent]}, E: {path: /data/e}}\n")
    spec = load_stream(str(path))
    assert (spec.folder_of("D"), spec.folder_of("E")) == (tmp_path / "d", Path("/data/e"))
    assert load_stream(str(path), Path("/elsewhere")).folder_of("D") == Path("/elsewhere/d")
    assert spec.params_of(0).domains["D"].classes == ("dent",)


def test_missing_data_are_one_error_that_lists_what_is_expected_where(tmp_path: Path) -> None:
    for name, count in (("samcl", 6), ("cosam", 9)):
        spec = load_stream(name, tmp_path)
        assert len(spec.domains) == count
        (tmp_path / "CAMO").mkdir(exist_ok=True)
        with pytest.raises(DataError) as caught:
            check_data(spec)
        message = caught.value.message
        assert f"stream {name}: {count - 1} of {count} data folders are missing" in message
        assert f"  - {tmp_path / 'COCO'}: COCO, everyday photographs" in message
        assert "CAMO:" not in message and "--data DIR" in caught.value.hint
    assert load_stream("cosam").params_of(0).evaluate.prompts == "box"


TEN_LINES = """\
name: mine
title: Two folders of my own
domains:
  Polyps: {path: polyp}
  Cracks: {path: crack, max_samples: 3}
params:
  backbone: {name: tiny}
  train: {epochs: 1}
val_frac: 0.25
"""


def test_the_stream_in_the_docs_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(block.splitlines()) <= 10
    (tmp_path / "mine.yaml").write_text(block)
    spec = load_stream(str(tmp_path / "mine.yaml"))
    assert (spec.names("learn"), spec.val_frac) == (("Polyps", "Cracks"), 0.1)


def test_a_stream_of_two_folders_takes_ten_lines(tmp_path: Path) -> None:
    assert len(TEN_LINES.splitlines()) <= 10
    for scene in ("polyp", "crack"):
        write_domain(tmp_path / "in" / scene, scene, 4, 2, 64, 0)
    (tmp_path / "in" / "mine.yaml").write_text(TEN_LINES)
    spec, root = load_stream(str(tmp_path / "in" / "mine.yaml")), tmp_path / "out"
    units = plan(spec, strategies=["naive"], seeds=[0, 1], orders=["default"])
    for unit in units:
        run_unit(root, spec, unit, "cpu")
    cells = read_cells(root)
    assert [cell.order for cell in cells] == [("Polyps", "Cracks")] * 2
    counts = cells[0].frame.drop_duplicates("domain").set_index("domain")["n"]
    assert counts.to_dict() == {"Polyps": 2, "Cracks": 2}
    # Splits and prefixes are those of the data, whatever the seed.
    splits = [
        {
            split: [sample.id for sample in Domain(root / "seeds" / f"seed-{seed}" / "data" / "Polyps").samples(split)]
            for split in ("train", "val", "test")
        }
        for seed in (0, 1)
    ]
    assert splits[0] == splits[1]
    assert [len(ids) for ids in splits[0].values()] == [3, 1, 2]
    assert (root / "seeds" / ".samcl" / "cache" / "prefix").is_dir()
    files = build_report(root, spec, units=units, command="samcl benchmark mine.yaml")
    assert "test images: Cracks 2, Polyps 2" in files[0].read_text()
