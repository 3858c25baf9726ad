from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from samcl_core.training.schedule import learning_rate


@pytest.mark.parametrize("epochs", [20, 5])
def test_cosine_per_iteration_equals_the_published_code(epochs: int, golden: Any, parity: Any) -> None:
    found = [
        learning_rate(s, num_steps=100, epochs=epochs, lr=0.005, lr_min=1e-7, schedule="cosine_per_iteration")
        for s in range(100)
    ]
    parity("learning rate", "both", found, golden("lr_schedule")[f"lr_T{epochs}"], rtol=1e-12, atol=1e-15)


def test_cosine_falls_once_over_all_steps_as_in_torch() -> None:
    adam = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.005)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=100, eta_min=1e-7)
    for step in range(100):
        rate = learning_rate(step, num_steps=100, epochs=20, lr=0.005, lr_min=1e-7)
        assert rate == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        adam.step()
        scheduler.step()


@pytest.mark.parametrize("schedule", ["cosine", "cosine_per_iteration", "constant"])
def test_warmup_rises_linearly_to_the_highest_rate(schedule: str) -> None:
    rates = [
        learning_rate(s, num_steps=40, epochs=4, lr=1.0, schedule=schedule, warmup_frac=0.25)  # type: ignore[arg-type]
        for s in range(40)
    ]
    np.testing.assert_allclose(np.diff(rates[:11]), 1 / 11)
    assert rates[10] == 1.0 == max(rates)


def test_constant_is_constant() -> None:
    assert {learning_rate(s, num_steps=9, epochs=3, lr=0.5, schedule="constant") for s in range(9)} == {0.5}


@pytest.mark.parametrize(("epochs", "drop_epochs"), [(24, 10), (7, 3), (3, 10)])
def test_step_falls_to_a_tenth_as_in_torch(epochs: int, drop_epochs: int) -> None:
    adam = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.001)
    scheduler = torch.optim.lr_scheduler.StepLR(adam, drop_epochs)
    for step in range(5 * epochs):
        rate = learning_rate(
            step, num_steps=5 * epochs, epochs=epochs, lr=0.001, schedule="step", drop_epochs=drop_epochs
        )
        assert rate == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        adam.step()
        if step % 5 == 4:
            scheduler.step()


def test_impossible_steps_and_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="step is 9, expected 0 to 8"):
        learning_rate(9, num_steps=9, epochs=3, lr=0.5)
    with pytest.raises(ValueError, match="'linear'"):
        learning_rate(0, num_steps=9, epochs=3, lr=0.5, schedule="linear")  # type: ignore[arg-type]
