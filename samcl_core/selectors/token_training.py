"""Training of MoDA's tokens on the stored images of every domain so far (arXiv 2412.06418, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samcl_core.backbones.base import Backbone, PrefixPlan
from samcl_core.backbones.tokens import normed_patches, token_step, two_pass
from samcl_core.config import TokenParams
from samcl_core.errors import BankError
from samcl_core.selectors.choosing import derived_seed
from samcl_core.selectors.images import ImageBuffers, check_images
from samcl_core.selectors.novelty import NoveltyGate
from samcl_core.selectors.tokens import TokenEncoder, TokenSelector

__all__ = ["fit_token_selector", "fit_tokens"]

_CACHE_BYTES = 2_000_000_000
_INITIAL_STD = 0.02
"""As class tokens of vision transformers start."""


def fit_token_selector(
    backbone: Backbone,
    learnt: Mapping[str, Tensor],
    natural: Mapping[str, Tensor] | None = None,
    *,
    seed: int = 0,
    options: TokenParams = TokenParams(),
    plan: PrefixPlan = PrefixPlan(),
    fallback: str = "novelty",
    novelty_quantile: float = 0.99,
) -> TokenSelector:
    """Train tokens and linear layer on images; of each class up to ``options.buffer_size`` are used.

    Args:
        backbone: frozen; SAM or SAM 2 of any size.
        learnt: name to (n, S, S, 3) uint8 RGB images squashed to the backbone's square, in the order of the bank.
        natural: the same for natural images, which get plain SAM.
        seed: of the initial tokens, the choice of images and their order; the same input gives the same bytes.
        options: form, numbers and rates; the defaults are the paper's, in the one-pass form.
        plan: of the prefixes that queries will be computed with; it decides the depth where ``options`` do not.
        fallback: ``novelty``, or ``never`` as in the paper: every image gets a domain or natural class.
        novelty_quantile: share of a class's own images that its novelty threshold shall let in.

    Returns:
        The selector, bound to ``backbone``: ``query(images)``, then ``choose(queries)``.

    Raises:
        BankError: there is no learnt domain, images are not what they should be, or the training diverged.
        ConfigError: the backbone takes no tokens, or has no such depth.
    """
    state = ImageBuffers(options.buffer_size)
    for name, images in (natural or {}).items():
        state = state.added(name, images, seed=seed, is_natural=True)
    for name, images in learnt.items():
        state = state.added(name, images, seed=seed)
    encoder = TokenEncoder.of(backbone, options.form, options.depth, plan)
    return fit_tokens(state, encoder, options, seed, None if fallback == "never" else novelty_quantile)


def fit_tokens(
    state: ImageBuffers, encoder: TokenEncoder, options: TokenParams, seed: int, quantile: float | None
) -> TokenSelector:
    """The selector of stored images.

    Args:
        state: the images of all classes, at least one of them a learnt domain.
        encoder: form and depth count, ``options`` do not decide them any more.
        options: number of tokens, epochs, batch size and rate.
        seed: of everything random; on the CPU the same input gives the same bytes.
        quantile: of the novelty gate, ``None`` without one.

    Raises:
        BankError: there is no learnt domain, or the training diverged.
    """
    if not state.domains:
        raise BankError("a token selector needs at least one learnt domain, found none")
    order = (*state.domains, *state.natural)
    for name in order:
        check_images(name, state.classes[name], encoder.backbone.image_size)
    text = derived_seed(seed, "tokens", *order)
    tokens, head = _initial(options.num, encoder.backbone.site.dim, len(order), text)
    tokens, head = tokens.to(encoder.backbone.device), head.to(encoder.backbone.device)
    images = torch.cat([state.classes[name] for name in order])
    labels = torch.cat([torch.full((len(state.classes[name]),), k) for k, name in enumerate(order)])
    queries = _Queries(encoder, images, tokens, is_frozen=options.frozen)
    if len(order) > 1:  # one output needs no training: its probability is 1
        _train(queries, head, labels, options, text)
    with torch.no_grad():
        found = torch.cat([queries(torch.tensor([row])) for row in range(len(images))]).cpu()
    if not bool(torch.isfinite(found).all()) or not bool(torch.isfinite(head.weight).all()):
        raise BankError(
            "token training diverged: a query or weight is not finite", hint="lower selector.tokens.lr in params.yaml"
        )
    of_class = {name: found[labels == k] for k, name in enumerate(order)}
    gate = None if quantile is None else NoveltyGate.fit(of_class, quantile)
    selector = TokenSelector(
        tokens,
        head.weight,
        head.bias,
        state.domains,
        state.natural,
        form=encoder.form,
        depth=encoder.depth,
        gate=gate,
        encoder=encoder,
    )
    return selector.to(encoder.backbone.device)


def _initial(num: int, dim: int, num_classes: int, seed: int) -> tuple[Tensor, nn.Linear]:
    """Tokens that do not depend on the number of classes, and a linear layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _INITIAL_STD * torch.randn(num, dim), nn.Linear(dim, num_classes)


def _train(queries: _Queries, head: nn.Linear, labels: Tensor, options: TokenParams, seed: int) -> None:
    trained = [*head.parameters()] if options.frozen else [queries.tokens, *head.parameters()]
    queries.tokens.requires_grad_(not options.frozen)
    optimizer = torch.optim.Adam(trained, lr=options.lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(options.epochs):
        rows = torch.randperm(len(labels), generator=generator)
        for start in range(0, len(rows), options.batch_size):
            batch = rows[start : start + options.batch_size]
            optimizer.zero_grad()
            logits = head(queries(batch))
            loss = F.cross_entropy(logits, labels[batch].to(logits.device))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    queries.tokens.requires_grad_(False)


class _Queries:
    """Queries of stored images by row, with gradients to ``tokens``.

    In the one-pass form the patches do not depend on the tokens: what the tokens attend to is computed once an image
    and kept, up to a bound; beyond it, again for every batch. Images go through the encoder alone, so that what is
    kept and what is not gives the same bytes.
    """

    def __init__(self, encoder: TokenEncoder, images: Tensor, tokens: Tensor, *, is_frozen: bool) -> None:
        self.tokens = tokens
        self._encoder, self._images, self._is_frozen = encoder, images, is_frozen
        self._kept: dict[int, list[Tensor]] = {}
        self._fixed: dict[int, Tensor] = {}
        self._free = _CACHE_BYTES

    def __call__(self, rows: Tensor) -> Tensor:
        if self._is_frozen:
            return torch.cat([self._query(row) for row in rows.tolist()])
        if self._encoder.form == "two_pass":
            return two_pass(self._encoder.backbone, self._pixels(rows.tolist()), self.tokens)
        patches = [self._patches(row) for row in rows.tolist()]
        ahead = self.tokens.expand(len(rows), -1, -1)
        for number, of_block in enumerate(zip(*patches, strict=True)):
            index = self._encoder.backbone.token_blocks[number]
            ahead = token_step(self._encoder.backbone.block(index), ahead, torch.cat(of_block))
        return ahead[:, 0]

    def _query(self, row: int) -> Tensor:
        """Of tokens that never change."""
        if row not in self._fixed:
            self._fixed[row] = self._encoder.query(self._pixels([row]), self.tokens)
        return self._fixed[row]

    def _patches(self, row: int) -> list[Tensor]:
        if row in self._kept:
            return self._kept[row]
        patches = normed_patches(self._encoder.backbone, self._pixels([row]), self._encoder.depth)
        size = sum(part.nbytes for part in patches)
        if size <= self._free:
            self._free -= size
            self._kept[row] = patches
        return patches

    def _pixels(self, rows: list[int]) -> Tensor:
        return self._encoder.pixels(self._images[rows])
