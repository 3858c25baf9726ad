"""A folder of results belongs to one stream and to one setting of each method; more of both may be added."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from samcl_core.benchmarks import StreamSpec, TrainedSpec, open_benchmark, plan
from samcl_core.errors import IntegrityError, UsageError

SPEC = StreamSpec(
    name="two",
    title="Two domains",
    size_px=64,
    num_train=6,
    domains={"A": {"scene": "polyp", "description": "polyps"}, "B": {"scene": "crack"}},
    params={"backbone": {"name": "tiny"}},
)
SHA = "a" * 64


def opened(root: Path, spec: StreamSpec, *strategies: str, sha: str = SHA) -> dict[str, Any]:
    open_benchmark(root, spec, sha, plan(spec, strategies=strategies or ["naive"], seeds=[0], orders=["default"]))
    record: dict[str, Any] = json.loads((root / "benchmark.json").read_text())
    return record


def test_a_folder_belongs_to_one_stream(tmp_path: Path) -> None:
    first = opened(tmp_path, SPEC)
    assert opened(tmp_path, SPEC) == first
    with pytest.raises(UsageError, match=r"another backbone_sha256: 'aaa.* there, 'bbb.* now"):
        opened(tmp_path, SPEC, sha="b" * 64)
    with pytest.raises(UsageError, match=r"another stream num_train: 6 there, 7 now"):
        opened(tmp_path, SPEC.model_copy(update={"num_train": 7}))
    with pytest.raises(UsageError, match=r"another stream domains B scene: 'crack' there, 'rail' now"):
        other = StreamSpec.model_validate(
            {**SPEC.model_dump(), "domains": {"A": {"scene": "polyp"}, "B": {"scene": "rail"}}}
        )
        opened(tmp_path, other)
    with pytest.raises(UsageError, match=r"another stream: order default: \['A', 'B'\] there"):
        opened(tmp_path, SPEC.model_copy(update={"orders": {"default": ("B", "A"), "reverse": ("A", "B")}}))


def test_words_more_orders_and_more_methods_change_nothing(tmp_path: Path) -> None:
    opened(tmp_path, SPEC)
    words = SPEC.model_copy(update={"title": "Other words", "orders": {**SPEC.orders, "mine": ("B", "A")}})
    record = opened(tmp_path, words, "ewc", "bank@lora")
    assert set(record["orders"]) == {"default", "reverse", "mine"}
    assert set(record["made"]) == {"cells/naive", "cells/ewc", "cells/bank@lora", "modules/lora"}
    assert opened(tmp_path, SPEC) == record


def test_results_with_other_settings_are_not_mixed(tmp_path: Path) -> None:
    opened(tmp_path, SPEC, "er", "bank@lora")
    other = SPEC.model_copy(
        update={
            "strategies": {"er": TrainedSpec.model_validate({"buffer_size": 3})},
            "adapters": {"lora": TrainedSpec(train={"lr": 0.5})},
        }
    )
    # Nothing was computed yet.
    assert opened(tmp_path, other, "er")["made"]["cells/er"]["strategy"]["buffer_size"] == 3
    (tmp_path / "cells" / "er").mkdir(parents=True)
    (tmp_path / "modules" / "lora").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"another cells/er strategy buffer_size: 3 there, None now") as caught:
        opened(tmp_path, SPEC, "er")
    assert "--out" in caught.value.hint
    with pytest.raises(UsageError, match=r"another modules/lora train lr: None there, 0.5 now"):
        opened(tmp_path, other, "oracle@lora")
    opened(tmp_path, SPEC, "naive")


def test_a_broken_record_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "benchmark.json").write_text("{}")
    with pytest.raises(IntegrityError, match="no record of a benchmark"):
        opened(tmp_path, SPEC)
