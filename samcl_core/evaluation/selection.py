"""How well the selector chose: confusion of domains, and accuracy with "plain" as the right answer for strangers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import pandas as pd

from samcl_core.errors import DataError

__all__ = ["confusion_matrix", "expected_answer", "selector_accuracies", "selector_accuracy"]


def expected_answer(domain: str, learnt: Collection[str], plain: str = "plain") -> str:
    """What the selector should say: a learnt domain itself, else ``plain`` (natural, unseen or not yet learnt)."""
    return domain if domain in learnt else plain


def confusion_matrix(chosen: Mapping[str, Sequence[str]], learnt: Sequence[str], plain: str = "plain") -> pd.DataFrame:
    """Number of images of each domain (rows) that got each answer (columns: ``learnt`` in order, then ``plain``).

    Args:
        chosen: domain to the selector's answer for each of its images; rows keep this order.
        learnt: the answers the selector knows besides ``plain``.
        plain: the answer that means no module.

    Returns:
        int64 counts, index named ``domain``, columns named ``chosen``.

    Raises:
        DataError: an answer is not known.
    """
    answers = [*learnt, plain]
    if unknown := sorted({answer for row in chosen.values() for answer in row} - set(answers)):
        raise DataError(f"the selector answered {unknown}, expected one of {answers}")
    counts = [[sum(answer == known for answer in row) for known in answers] for row in chosen.values()]
    index, columns = pd.Index(list(chosen), name="domain", dtype=object), pd.Index(answers, name="chosen", dtype=object)
    return pd.DataFrame(counts, index=index, columns=columns, dtype="int64")


def selector_accuracies(confusion: pd.DataFrame, learnt: Collection[str], plain: str = "plain") -> dict[str, float]:
    """Share of each domain's images that got the right answer. Domains without an image are left out."""
    totals = confusion.sum(axis=1)
    return {
        name: int(confusion.at[name, expected_answer(name, learnt, plain)]) / int(totals[name])  # type: ignore[arg-type]
        for name in map(str, confusion.index)
        if totals[name]
    }


def selector_accuracy(confusion: pd.DataFrame, learnt: Collection[str], plain: str = "plain") -> float:
    """Mean over the domains of the share of right answers, so that a large domain does not hide a small one.

    Raises:
        DataError: there is no image at all.
    """
    shares = selector_accuracies(confusion, learnt, plain)
    if not shares:
        raise DataError("the selector answered for no image, there is no accuracy")
    return sum(shares.values()) / len(shares)
