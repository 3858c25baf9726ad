from __future__ import annotations

from pathlib import Path

import pytest

from samcl_core.benchmarks import built_in_streams, load_stream
from samcl_core.domains.scenes import SCENES
from samcl_core.errors import ConfigError, UsageError


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
