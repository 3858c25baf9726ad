"""The selector's confusion matrix and accuracy."""

from __future__ import annotations

import pytest

from samcl_core.errors import DataError
from samcl_core.evaluation.selection import (
    confusion_matrix,
    expected_answer,
    selector_accuracies,
    selector_accuracy,
)

CHOSEN = {
    "Kvasir": ["Kvasir", "Kvasir", "ISIC", "plain"],
    "ISIC": ["ISIC"],
    "COCO": ["plain", "plain", "Kvasir", "plain"],
    "Cells": ["plain", "ISIC"],
}
LEARNT = ("Kvasir", "ISIC")


def test_confusion_counts_by_hand() -> None:
    confusion = confusion_matrix(CHOSEN, LEARNT)
    assert list(confusion.index) == list(CHOSEN) and list(confusion.columns) == ["Kvasir", "ISIC", "plain"]
    assert confusion.to_numpy().tolist() == [[2, 1, 1], [0, 1, 0], [1, 0, 3], [0, 1, 1]]
    assert (confusion.index.name, confusion.columns.name) == ("domain", "chosen")


def test_plain_is_right_for_everything_not_learnt() -> None:
    assert [expected_answer(name, LEARNT) for name in CHOSEN] == ["Kvasir", "ISIC", "plain", "plain"]
    assert selector_accuracies(confusion_matrix(CHOSEN, LEARNT), LEARNT) == {
        "Kvasir": 0.5,
        "ISIC": 1.0,
        "COCO": 0.75,
        "Cells": 0.5,
    }


def test_accuracy_is_the_mean_over_domains() -> None:
    assert selector_accuracy(confusion_matrix(CHOSEN, LEARNT), LEARNT) == pytest.approx((0.5 + 1 + 0.75 + 0.5) / 4)


def test_before_the_first_domain_only_plain_is_known() -> None:
    confusion = confusion_matrix({"Kvasir": ["plain", "plain"]}, ())
    assert selector_accuracy(confusion, ()) == 1


def test_unknown_answers_and_empty_input() -> None:
    with pytest.raises(DataError, match=r"answered \['ISTD'\], expected one of \['Kvasir', 'ISIC', 'plain'\]"):
        confusion_matrix({"Kvasir": ["ISTD"]}, LEARNT)
    empty = confusion_matrix({"Kvasir": []}, LEARNT)
    assert selector_accuracies(empty, LEARNT) == {}
    with pytest.raises(DataError, match="no image"):
        selector_accuracy(empty, LEARNT)
