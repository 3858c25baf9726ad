"""What all selectors share: from class probabilities and novelty to a choice, and checks of the embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from samcl_core.errors import BankError
from samcl_core.selectors.base import Choice

__all__ = ["check_classes", "check_embeddings", "choice_of", "derived_seed", "plain_choice"]

_LEAST = -700.0


def derived_seed(*parts: object) -> int:
    """A seed below 2**63 from anything with a stable text, independent of process and platform."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def check_embeddings(embeddings: Tensor, dim: int | None, what: str = "embeddings") -> Tensor:
    """``embeddings`` themselves, when they are (n, C) floats.

    Raises:
        BankError: another shape or type.
    """
    expected = f"(n, {dim if dim is not None else 'C'}) floats"
    if embeddings.ndim != 2 or not embeddings.is_floating_point() or (dim is not None and embeddings.shape[1] != dim):
        raise BankError(f"{what} are {tuple(embeddings.shape)} {embeddings.dtype}, expected {expected}")
    return embeddings


def check_classes(classes: Mapping[str, Tensor]) -> int | None:
    """The common width of all embeddings, ``None`` without any class.

    Raises:
        BankError: a class has no embedding, another width, or values that are not finite.
    """
    dim: int | None = None
    for name, embeddings in classes.items():
        dim = check_embeddings(embeddings, dim, f"embeddings of {name}").shape[1]
        if len(embeddings) == 0:
            raise BankError(f"embeddings of {name} are empty, expected at least one", hint=f"samcl step embed {name}")
        if not bool(torch.isfinite(embeddings).all()):
            raise BankError(f"embeddings of {name} hold values that are not finite", hint=f"samcl step embed {name}")
    return dim


def choice_of(log_probabilities: Tensor, num_domains: int, novelty: Tensor, classes: Tensor | None = None) -> Choice:
    """The most probable class, or plain when that class is a natural one or the image fits none.

    Args:
        log_probabilities: (B, K) of the classes, the ``num_domains`` learnt ones first, then natural and spare ones.
        num_domains: how many classes have a module.
        novelty: (B,) >= 0; above 1 (or NaN) the answer is plain.
        classes: (K,) or (B, K) int64, ascending, what these classes are where others without any probability were
            left out; ``None`` for all of them in order.

    Returns:
        The choice. Its confidence is the class's probability; for a natural image the sum over natural classes; for
        an image that fits no class 1 - 1 / (2 novelty), which is one half at the threshold and grows with distance.
    """
    # exp() of what rounds to nothing takes ten times as long as any other.
    probabilities = log_probabilities.double().clamp_min(_LEAST).exp()
    if classes is not None and classes.shape[1:] == (1,):  # one class an image
        top = plain = probabilities[:, 0]
        index = classes[:, 0]
    elif classes is None:
        top, index = probabilities.max(1)
        plain = probabilities[:, num_domains:].sum(1)
    else:
        top, index = probabilities.max(1)
        plain = torch.where(classes >= num_domains, probabilities, 0).sum(1)
        index = classes.expand_as(probabilities).gather(1, index[:, None])[:, 0]
    is_natural = index >= num_domains
    novelty = torch.where(torch.isfinite(log_probabilities).all(1), novelty, torch.inf).nan_to_num(nan=torch.inf)
    is_novel = novelty > 1
    confidence = torch.where(is_natural, plain, top)
    confidence = torch.where(is_novel, 1 - 0.5 / novelty.double().clamp_min(1), confidence)
    return Choice(torch.where(is_natural | is_novel, -1, index), confidence.clamp(0, 1).float(), novelty.float())


def plain_choice(embeddings: Tensor) -> Choice:
    """Plain for every row, for sure."""
    num, device = len(embeddings), embeddings.device
    index = torch.full((num,), -1, dtype=torch.int64, device=device)
    return Choice(index, torch.ones(num, device=device), torch.zeros(num, device=device))
