"""What the tests run in a group of processes: CASE FOLDER. Every process writes what it got to FOLDER/<case>-<rank>."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samcl_core.backbones import tiny_backbone
from samcl_core.domains.layout import Sample
from samcl_core.errors import ImageError
from samcl_core.tensors import save_tensors
from samcl_core.training import Extra, PrefixCache, train_module
from samcl_core.training.distributed import joined, rank

NUM_SAMPLES = 9
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"batch_size": 4},  # 4, 4, 1: in the last step the first process has no image
    "accumulate": {"batch_size": 6, "accumulate": 3},  # 6, 3
    "cosam": {"batch_size": 6, "loss": "cosam", "prompts": "cosam"},
    "val": {"batch_size": 4},
}
OPTIONS = {"epochs": 2, "lr": 0.001}


class Broken(Extra):
    """A strategy that fails in the second process, in its second step."""

    def chosen(self, samples: Sequence[Sample], step: int) -> Sequence[Sample]:
        if step == 1 and rank() == 1:
            raise ImageError("scratched.png cannot be read")
        return samples


def trained(case: Any, folder: Path, way: str, extra: Extra | None = None) -> dict[str, Any]:
    """Tensors and curve of one way to train, with a shared cache and a checkpoint."""
    backbone = tiny_backbone()
    samples = case.write_samples(folder / f"domain-{rank()}", NUM_SAMPLES)
    result = train_module(
        backbone,
        case.small_adapter(backbone),
        PrefixCache(folder / "cache", backbone),
        samples,
        case.OPTIONS.model_copy(update={**OPTIONS, **WAYS[way]}),
        seed=3,
        checkpoint=folder / f"{way}.checkpoint",
        extra=extra,
        val=samples[:3] if way == "val" else (),
    )
    curve = [{name: value for name, value in entry.items() if name != "seconds"} for entry in result.curve]
    return {"tensors": result.tensors, "curve": curve}


def load_case() -> Any:
    """``training_case.py`` beside this file."""
    spec = importlib.util.spec_from_file_location("training_case", Path(__file__).with_name("training_case.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["training_case"] = module
    spec.loader.exec_module(module)
    return module


def main(what: str, folder: Path) -> None:
    """Run every way to train, or the one that fails."""
    case = load_case()
    with joined("cpu"):
        if what == "broken":
            trained(case, folder, "plain", Broken())
        for _ in range(2):  # the second time everything is in the checkpoints
            for way in WAYS:
                found = trained(case, folder, way)
                save_tensors(folder / f"{way}-{rank()}", found["tensors"], found["curve"])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
