from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import torch

from samcl_core.adapters.base import Adapter, ModuleTensors
from samcl_core.backbones import Backbone
from samcl_core.config import TrainParams
from samcl_core.domains.layout import Sample
from samcl_core.errors import TrainingError
from samcl_core.progress import Progress, silent
from samcl_core.tensors import load_tensors
from samcl_core.training import PrefixCache, TrainResult, clear_checkpoint, train_module
from samcl_core.training.batches import ahead
from samcl_core.training.checkpoint import load_checkpoint
from samcl_core.training.loop import training_key

HERE = Path(__file__).parent


class Stopped(Exception):
    """What the tests interrupt a training with."""


def same(a: ModuleTensors, b: ModuleTensors) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


class Training:
    """One small training task; everything can be varied."""

    def __init__(self, case: ModuleType, backbone: Backbone, adapter: Adapter, samples: list[Sample]) -> None:
        self.backbone, self.adapter, self.samples = backbone, adapter, samples
        self.options: TrainParams = case.OPTIONS
        self.cache = PrefixCache(None, backbone)

    def run(
        self,
        options: dict[str, Any] | None = None,
        seed: int = 3,
        samples: list[Sample] | None = None,
        checkpoint: Path | None = None,
        progress: Progress = silent,
        cache: PrefixCache | None = None,
    ) -> TrainResult:
        return train_module(
            self.backbone,
            self.adapter,
            cache or self.cache,
            self.samples if samples is None else samples,
            self.options.model_copy(update=options or {}),
            seed=seed,
            checkpoint=checkpoint,
            progress=progress,
        )


@pytest.fixture
def training(case: ModuleType, backbone: Backbone, adapter: Adapter, samples: list[Sample]) -> Training:
    return Training(case, backbone, adapter, samples)


def stop_at(at: int) -> Progress:
    def report(what: str, done: int, total: int) -> None:
        if what.startswith("epoch") and done == at:
            raise Stopped

    return report


def test_training_learns_a_domain_that_the_backbone_is_poor_at(case: ModuleType, training: Training) -> None:
    case.teach_decoder(training.backbone, training.samples)
    dim = case.with_low_contrast(training.samples)
    curve = training.run({"epochs": 40, "batch_size": 10, "lr": 0.003}, samples=dim).curve
    assert curve[-1]["total"] < 0.9 * curve[0]["total"]


def test_nothing_but_the_module_moves(training: Training) -> None:
    before = training.backbone.weights_digest()
    result = training.run()
    assert training.backbone.weights_digest() == before
    assert not any(parameter.requires_grad for parameter in training.backbone.module.parameters())
    assert all(parameter.grad is None for parameter in training.backbone.module.parameters())
    assert {name: tuple(tensor.shape) for name, tensor in result.tensors.items()} == training.adapter.shapes()
    assert all(tensor.dtype == torch.float32 and not tensor.requires_grad for tensor in result.tensors.values())
    fresh = training.adapter.fresh(3)
    assert all(not torch.equal(result.tensors[name], fresh[name]) for name in fresh)


def test_curve_says_what_happened(training: Training) -> None:
    seen: list[tuple[str, int, int]] = []
    result = training.run(progress=lambda *call: seen.append(call))
    assert [entry["epoch"] for entry in result.curve] == [1, 2, 3, 4, 5, 6]
    assert [entry["step"] for entry in result.curve] == [3, 6, 9, 12, 15, 18]  # 10 samples in batches of 4: 4, 4, 2
    for entry in result.curve:
        assert set(entry) == {"epoch", "step", "lr", "focal", "dice", "iou", "total", "seconds"}
        assert entry["total"] == pytest.approx(entry["focal"] + 10 * entry["dice"] + entry["iou"], rel=1e-5)
    assert result.curve[-1]["lr"] < result.curve[0]["lr"] < 0.01
    steps = [(done, total) for what, done, total in seen if what.startswith("epoch")]
    assert steps == [(step, 18) for step in range(1, 19)]
    assert seen[-1][0].startswith("epoch 6/6, loss ")


def test_same_seed_same_bytes_whatever_the_order_and_the_cache(training: Training, tmp_path: Path) -> None:
    first = training.run()
    cache = PrefixCache(tmp_path / "cache", training.backbone, memory_gb=0)
    cache.embeddings(training.samples[5:7])
    assert same(first.tensors, training.run(samples=training.samples[::-1], cache=cache).tensors)
    assert same(first.tensors, training.run(cache=PrefixCache(tmp_path / "cache", training.backbone)).tensors)
    assert not same(first.tensors, training.run(seed=4).tensors)


def test_float16_cache_trains_too(training: Training) -> None:
    result = training.run({"epochs": 1}, cache=PrefixCache(None, training.backbone, dtype="float16"))
    expected = training.run({"epochs": 1})
    assert result.curve[0]["total"] == pytest.approx(expected.curve[0]["total"], rel=1e-2)


@pytest.mark.parametrize("stop", [2, 7, 9, 17])
def test_an_interrupted_training_continues_to_the_same_bytes(training: Training, tmp_path: Path, stop: int) -> None:
    expected = training.run()
    checkpoint = tmp_path / "run.safetensors"
    with pytest.raises(Stopped):
        training.run(checkpoint=checkpoint, progress=stop_at(stop))
    steps: list[int] = []
    resumed = training.run(checkpoint=checkpoint, progress=lambda what, done, total: steps.append(done))
    assert same(expected.tensors, resumed.tensors)
    # The progress of an epoch's last step comes before its checkpoint.
    assert steps[0] == (stop - 1) // 3 * 3 + 1
    drop = [{k: v for k, v in entry.items() if k != "seconds"} for entry in resumed.curve]
    assert drop == [{k: v for k, v in entry.items() if k != "seconds"} for entry in expected.curve]


def test_a_finished_training_is_not_repeated_until_its_checkpoint_is_cleared(
    training: Training, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "deep" / "run.safetensors"
    first = training.run(checkpoint=checkpoint)
    steps: list[int] = []
    again = training.run(checkpoint=checkpoint, progress=lambda what, done, total: steps.append(done))
    assert same(first.tensors, again.tensors) and again.curve == first.curve and not steps
    leftover = checkpoint.with_name(f".{checkpoint.name}.x.tmp")
    leftover.write_bytes(b"half")
    clear_checkpoint(checkpoint)
    clear_checkpoint(checkpoint)
    assert not list(checkpoint.parent.iterdir())


def test_checkpoints_are_written_every_n_epochs_and_at_the_end(training: Training, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.safetensors"
    epochs: list[int] = []

    def look(what: str, done: int, total: int) -> None:
        if checkpoint.exists():
            epochs.append(int(load_tensors(checkpoint)[1]["epoch"]))

    training.run({"checkpoint_every_epochs": 4}, checkpoint=checkpoint, progress=look)
    assert sorted(set(epochs)) == [4]
    assert load_tensors(checkpoint)[1]["epoch"] == 6


@pytest.mark.parametrize("change", ["lr", "batch_size", "seed", "points", "fewer", "mask", "dtype"])
def test_a_checkpoint_of_another_training_is_ignored(training: Training, tmp_path: Path, change: str) -> None:
    checkpoint = tmp_path / "run.safetensors"
    training.run({"epochs": 2}, checkpoint=checkpoint)
    samples = training.samples
    variants: dict[str, dict[str, Any]] = {
        "lr": {"options": {"epochs": 2, "lr": 0.02}},
        "batch_size": {"options": {"epochs": 2, "batch_size": 5}},
        "seed": {"seed": 9},
        "points": {"samples": [replace(samples[0], points=((5.0, 5.0),)), *samples[1:]]},
        "fewer": {"samples": samples[1:]},
        "mask": {"samples": [replace(samples[0], mask=samples[1].mask, mask_sha256="f" * 64), *samples[1:]]},
        "dtype": {"cache": PrefixCache(None, training.backbone, dtype="float16")},
    }
    arguments = {"options": {"epochs": 2}} | variants[change]
    result = training.run(**arguments, checkpoint=checkpoint)
    assert same(result.tensors, training.run(**arguments).tensors)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign"])
def test_a_broken_checkpoint_is_ignored(training: Training, tmp_path: Path, damage: str) -> None:
    checkpoint = tmp_path / "run.safetensors"
    expected = training.run({"epochs": 2}, checkpoint=checkpoint)
    whole = bytearray(checkpoint.read_bytes())
    whole[-3] ^= 1
    checkpoint.write_bytes({"truncated": whole[:-9], "flipped": whole, "foreign": b"not one"}[damage])
    assert same(training.run({"epochs": 2}, checkpoint=checkpoint).tensors, expected.tensors)


def test_the_key_does_not_know_how_checkpoints_and_the_module_are_written(training: Training) -> None:
    keys = {
        training_key(
            training.backbone,
            training.adapter,
            training.cache,
            training.samples,
            training.options.model_copy(update=update),
            0,
        )
        for update in ({"checkpoint_every_epochs": 1}, {"checkpoint_every_epochs": 5}, {"module_dtype": "int8"})
    }
    assert len(keys) == 1
    assert load_checkpoint(Path("/nonexistent/run.safetensors"), keys.pop()) is None


def test_a_checkpoint_that_cannot_be_written_is_reported_and_costs_nothing(training: Training, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    told: list[str] = []
    result = training.run(
        {"epochs": 2}, checkpoint=tmp_path / "file" / "run", progress=lambda what, done, total: told.append(what)
    )
    assert len(result.curve) == 2
    assert sum(what.startswith("no checkpoint of epoch") for what in told) == 2


def test_a_loss_that_is_not_finite_ends_the_training(training: Training) -> None:
    with pytest.raises(TrainingError, match=r"nan in epoch 1, step 2; expected finite") as caught:
        training.run({"lr": 1e30})
    assert "train.lr" in caught.value.hint and "lower than 1e+30" in caught.value.hint


class WithoutGradients:
    """An adapter whose gradients are lost to NaN while its loss is a number."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def hooks(self, tensors: ModuleTensors, *arguments: Any) -> Any:
        spoilt = {name: tensor * 1 for name, tensor in tensors.items()}
        for tensor in spoilt.values():
            tensor.register_hook(lambda gradient: gradient * float("nan"))
        return self._adapter.hooks(spoilt, *arguments)


def test_weights_that_are_lost_in_the_last_step_end_the_training(training: Training) -> None:
    training.adapter = cast(Adapter, WithoutGradients(training.adapter))
    with pytest.raises(TrainingError, match=r"module holds NaN or infinite weights in epoch 1, step 1"):
        training.run({"epochs": 1, "batch_size": 10})


def test_batches_gathered_ahead_keep_their_order_and_errors() -> None:
    def gather(start: int) -> int:
        if start == 8:
            raise Stopped
        return start

    assert list(ahead(gather, range(0, 8, 2))) == [0, 2, 4, 6]
    assert list(ahead(gather, range(0))) == []
    with pytest.raises(Stopped):
        list(ahead(gather, range(0, 10, 2)))


def test_frozen_weights_that_moved_are_found(training: Training) -> None:
    def touch(what: str, done: int, total: int) -> None:
        if what.startswith("epoch") and done == 4:
            with torch.no_grad():
                next(training.backbone.module.parameters()).flatten()[0] += 1

    with pytest.raises(TrainingError, match="changed the frozen weights"):
        training.run({"epochs": 2}, progress=touch)


def test_no_samples_is_an_error(training: Training) -> None:
    with pytest.raises(TrainingError, match="0 training samples"):
        training.run(samples=[])


def test_null_options_take_the_default_profile(training: Training) -> None:
    explicit = training.run({"epochs": 1})
    nulls = training.run({"epochs": 1, "schedule": None, "upsampling": None, "loss_reduction": None})
    assert same(explicit.tensors, nulls.tensors)
    reference = {"schedule": "cosine_per_iteration", "upsampling": "nearest", "loss_reduction": "reference"}
    assert not same(explicit.tensors, training.run({"epochs": 1} | reference).tensors)


def test_kill_9_in_the_middle_then_the_same_command_again(tmp_path: Path, training: Training) -> None:
    expected = training.run()
    out, checkpoint = tmp_path / "out.safetensors", tmp_path / "run.safetensors"

    def command(seconds_a_step: float) -> list[str]:
        program = [sys.executable, str(HERE / "training_case.py"), str(tmp_path / "domain")]
        return [*program, str(out), str(checkpoint), str(seconds_a_step)]

    # A thread count of its own could change the order of sums; the child takes this process's.
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.Popen(command(0.2), env=environment)
    try:
        deadline = time.monotonic() + 120
        while not checkpoint.exists():
            assert time.monotonic() < deadline and child.poll() is None
            time.sleep(0.02)
        time.sleep(0.3)
    finally:
        child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not out.exists()
    assert 1 <= load_tensors(checkpoint)[1]["epoch"] < 6
    subprocess.run(command(0), env=environment, check=True, timeout=120)
    assert same({name: load_tensors(out)[0][name] for name in expected.tensors}, expected.tensors)
