"""params.yaml: defaults, profiles, overrides, and one error that lists everything that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from samcl_core.config import PROFILES, Params, load_params, parse_params, valid_domain_name
from samcl_core.errors import ConfigError, UsageError

REPOSITORY = Path(__file__).parents[2]


def problems_of(values: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_params(values)
    return list(caught.value.problems)


def workspace(*names: str) -> dict[str, Any]:
    steps = ["base", *names]
    return {
        "domains": {name: {"role": "learn"} for name in names},
        "modules": {name: {} for name in names},
        "stream": {name: {"previous": before} for before, name in zip(steps, names, strict=False)},
    }


def test_defaults() -> None:
    params = parse_params({})
    assert (params.profile, params.seed, params.device, params.backbone.name) == ("default", 0, "auto", "sam_nano")
    assert (params.train.epochs, params.train.batch_size, params.train.lr) == (20, 8, 0.005)
    assert params.steps() == () and params.names("learn") == ()


def test_the_shipped_file_is_valid_and_equals_the_defaults() -> None:
    assert load_params(REPOSITORY / "params.yaml") == parse_params({})


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_fills_every_option_left_open(profile: str) -> None:
    params = parse_params({"profile": profile})
    for section, options in PROFILES[profile].items():
        found = getattr(params, section).model_dump()
        assert {name: found[name] for name in options} == options
    for name in type(params).model_fields:
        section = getattr(params, name)
        if isinstance(section, BaseModel) and name not in ("backbone", "versioning", "pipeline"):
            assert None not in section.model_dump().values(), f"{name} has options that no profile fills"


def test_both_profiles_name_the_same_options() -> None:
    assert len(PROFILES) == 2
    named = [{section: sorted(options) for section, options in profile.items()} for profile in PROFILES.values()]
    assert named[0] == named[1]


def test_a_given_option_wins_over_the_profile() -> None:
    params = parse_params({"profile": "reference", "adapter": {"neck_axes": "image"}})
    assert (params.adapter.neck_axes, params.adapter.window_heatmap) == ("image", "shrink")


@pytest.mark.parametrize("values", [{"train": None}, {"train": {}}, {"train": {"epochs": None, "schedule": None}}])
def test_null_means_left_out(values: dict[str, Any]) -> None:
    assert parse_params(values) == parse_params({})


def test_null_tables_and_entries_mean_empty() -> None:
    assert parse_params({"domains": None, "modules": None, "stream": None}) == parse_params({})
    params = parse_params({"domains": {"Kvasir": None}, "modules": {"Kvasir": {"train": None}}})
    assert params.names("learn") == ("Kvasir",)


@pytest.mark.parametrize(("backbone", "expected"), [("sam_vit_b", "nearest"), ("sam2.1_hiera_tiny", "bilinear")])
def test_the_reference_profile_upsamples_sam2_as_published(backbone: str, expected: str) -> None:
    params = parse_params({"profile": "reference", "backbone": {"name": backbone}})
    assert (params.train.upsampling, params.evaluate.upsampling) == (expected, expected)


def test_unknown_profile() -> None:
    (problem,) = problems_of({"profile": "published"})
    assert "profile" in problem and "'default' or 'reference'" in problem and "found 'published'" in problem


@pytest.mark.parametrize("profile", [["default"], {"a": 1}, 3])
def test_a_profile_of_another_type(profile: Any) -> None:
    assert any(problem.startswith("profile:") for problem in problems_of({"profile": profile}))


BAD = [
    ({"version": 2}, "version", "2"),
    ({"seed": -1}, "seed", "-1"),
    ({"seed": 2**32}, "seed", str(2**32)),
    ({"device": "gpu"}, "device", "'gpu'"),
    ({"backbone": {"sha256": "abc"}}, "backbone.sha256", "'abc'"),
    ({"backbone": {"checkpoint": "my.pth"}}, "backbone", "sha256"),
    ({"ingest": {"mask_threshold": 0}}, "ingest.mask_threshold", "0"),
    ({"ingest": {"test_frac": 1.0}}, "ingest.test_frac", "1.0"),
    ({"ingest": {"max_bad_frac": 1.5}}, "ingest.max_bad_frac", "1.5"),
    ({"prompts": {"num_points": 0}}, "prompts.num_points", "0"),
    ({"prompts": {"boxes": "perhaps"}}, "prompts.boxes", "'perhaps'"),
    ({"adapter": {"rank": "ten"}}, "adapter.rank", "'ten'"),
    ({"adapter": {"window_heatmap": "cut"}}, "adapter.window_heatmap", "'cut'"),
    ({"train": {"epochs": 0}}, "train.epochs", "0"),
    ({"train": {"lr": float("nan")}}, "train.lr", "nan"),
    ({"train": {"lr": 0.001, "lr_min": 0.01}}, "train", "lr_min is 0.01, expected at most lr, which is 0.001"),
    ({"train": 5}, "train", "5"),
    ({"selector": {"kind": "tree"}}, "selector.kind", "'tree'"),
    ({"evaluate": {"boundary_frac": 0.5}}, "evaluate.boundary_frac", "0.5"),
    ({"cache": {"max_gb": 0}}, "cache.max_gb", "0"),
    ({"cache": {"max_bg": 3}}, "cache.max_bg", "unknown option (value 3)"),
    ({"trian": {}}, "trian", "unknown option"),
    ({"domains": {"Kvasir": {"role": "learned"}}, "modules": {"Kvasir": {}}}, "domains.Kvasir.role", "'learned'"),
    ({"domains": ["Kvasir"]}, "domains", "['Kvasir']"),
]


@pytest.mark.parametrize(("values", "where", "found"), BAD, ids=[f"{where}={found}" for _, where, found in BAD])
def test_a_bad_value_names_the_option_and_the_value(values: dict[str, Any], where: str, found: str) -> None:
    problems = problems_of(values)
    assert any(problem.startswith(f"{where}:") and found in problem for problem in problems), problems


def test_everything_wrong_is_listed_at_once() -> None:
    values = {
        "seed": -1,
        "profile": "mine",
        "train": {"epochs": 0, "speed": 3},
        "domains": {"Kvasir": {}, "kvasir": {}, "bad name": {}},
        "modules": {"Kvasir": {}, "kvasir": {}, "ISIC": {}},
        "stream": {"Kvasir": {"previous": "ISTD"}},
    }
    problems = problems_of(values)
    for part in ("seed", "profile", "train.epochs", "train.speed", "bad name", "differ only in case", "ISIC", "'ISTD'"):
        assert any(part in problem for problem in problems), (part, problems)
    assert len(problems) == len(set(problems))


def test_the_error_is_a_usage_error_with_the_next_step() -> None:
    with pytest.raises(
        UsageError, match=r"params.yaml: 1 problem\(s\)\n  - seed: .*found -1\n  next: .*params.md"
    ) as caught:
        parse_params({"seed": -1})
    assert caught.value.exit_code == 2


# Names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Kvasir", "COD10K", "a", "RSDD-I", "x_1", "9", "a" * 64])
def test_good_names(name: str) -> None:
    assert valid_domain_name(name) == name


@pytest.mark.parametrize("name", ["", "_x", "-x", "a b", "a/b", "..", "a.b", "ü", "a" * 65, "x\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(ValueError, match="expected 1 to 64"):
        valid_domain_name(name)


@pytest.mark.parametrize("name", ["plain", "Plain", "base", "raw", "natural"])
def test_reserved_names(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is reserved"):
        valid_domain_name(name)


def test_names_that_differ_only_in_case() -> None:
    (problem,) = problems_of({"domains": {name: {"role": "unseen"} for name in ("Isic", "ISIC")}})
    assert "'Isic' and 'ISIC' differ only in case" in problem


def test_a_learnt_domain_needs_a_module_entry_and_the_reverse() -> None:
    values = {"domains": {"A": {}, "COCO": {"role": "natural"}}, "modules": {"COCO": {}, "B": {}}}
    assert problems_of(values) == [
        "domains.A has role 'learn' but is not under modules; add `A: {}` there",
        "modules.B is not under domains with role 'learn'",
        "modules.COCO is not under domains with role 'learn'",
    ]


# Stream and overrides -------------------------------------------------------------------------------------------------


def test_the_stream_is_a_chain_in_the_order_of_arrival() -> None:
    assert parse_params(workspace("B", "A", "C")).steps() == ("B", "A", "C")


@pytest.mark.parametrize(("previous", "expected"), [("base", "A"), ("C", "A"), ("B", "A")])
def test_a_broken_chain(previous: str, expected: str) -> None:
    values = workspace("A", "B", "C")
    values["stream"]["B"]["previous"] = previous
    (problem,) = problems_of(values)
    assert problem == f"stream.B.previous is {previous!r}, expected {expected!r} (the step before it)"


def test_a_step_that_is_no_learnt_domain() -> None:
    values = workspace("A")
    values["stream"]["COCO"] = {"previous": "A"}
    values["domains"]["COCO"] = {"role": "natural"}
    assert problems_of(values) == ["stream.COCO is not under domains with role 'learn'"]


def test_overrides_hold_for_their_domain_alone() -> None:
    values = workspace("A", "B") | {"profile": "reference"}
    values["modules"]["A"] = {"adapter": {"rank": 4}, "train": {"epochs": 3, "lr": None}}
    params = parse_params(values)
    assert (params.adapter_of("A").rank, params.train_of("A").epochs, params.train_of("A").lr) == (4, 3, 0.005)
    assert params.adapter_of("A").neck_axes == "transposed"
    assert (params.adapter_of("B"), params.train_of("B")) == (params.adapter, params.train)


def test_bad_overrides_are_all_listed() -> None:
    values = workspace("A")
    values["modules"]["A"] = {"adapter": {"rank": 0}, "train": {"epochs": 0, "speed": 1}}
    problems = problems_of(values)
    assert [problem.split(":")[0] for problem in problems] == [
        "modules.A.adapter.rank",
        "modules.A.train.epochs",
        "modules.A.train.speed",
    ]


def test_params_cannot_be_changed() -> None:
    params = parse_params({})
    with pytest.raises(ValueError, match="frozen"):
        params.seed = 1  # type: ignore[misc]
    assert isinstance(params, Params)


# Files ----------------------------------------------------------------------------------------------------------------


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_missing_file_says_samcl_init(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist\n  next: samcl init"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["a: [", "seed: 1\nseed: 2\n", "\t- x", "a: b: c"])
def test_not_yaml(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="is not YAML"):
        load_params(write(tmp_path, text))


def test_not_a_mapping(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a mapping of sections, found list"):
        load_params(write(tmp_path, "- seed\n"))


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_params(path)


def test_yaml_cannot_build_objects(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load_params(write(tmp_path, "seed: !!python/object/apply:os.getcwd []\n"))


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_params(write(tmp_path, "# nothing\n")) == parse_params({})


def test_small_numbers_are_numbers(tmp_path: Path) -> None:
    assert load_params(write(tmp_path, "train: {lr: 5e-3, lr_min: 1e-7}\n")) == parse_params({})
