"""MoDA's selector: learnt tokens read the image inside the frozen encoder (arXiv 2412.06418, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from samcl_core.backbones.base import Backbone, Prefix, PrefixPlan
from samcl_core.backbones.tokens import TokenBackbone, one_pass, two_pass
from samcl_core.errors import BankError, ConfigError
from samcl_core.selectors.base import Choice
from samcl_core.selectors.choosing import check_embeddings, choice_of
from samcl_core.selectors.novelty import NoveltyGate

__all__ = ["Form", "TokenEncoder", "TokenSelector"]

Form = Literal["one_pass", "two_pass"]


@dataclass(frozen=True)
class TokenEncoder:
    """How images and tokens go through a frozen backbone.

    Attributes:
        backbone: whose encoder it is.
        form: ``one_pass`` (patches do not attend to tokens) or ``two_pass`` (they do, as in the paper).
        depth: the tokens go through the blocks below this index; all of them in the two-pass form.
    """

    backbone: TokenBackbone
    form: Form
    depth: int

    @staticmethod
    def of(
        backbone: Backbone, form: Form = "one_pass", depth: int | None = None, plan: PrefixPlan = PrefixPlan()
    ) -> TokenEncoder:
        """The encoder of ``backbone``; ``depth=None`` takes the blocks that a prefix of ``plan`` runs through.

        Raises:
            ConfigError: the backbone takes no tokens, or has no such depth.
        """
        if not isinstance(backbone, TokenBackbone):
            raise ConfigError("selector", [f"kind is 'tokens', and the backbone {backbone.name} takes no tokens"])
        blocks = backbone.token_blocks
        if form == "two_pass":
            if depth not in (None, blocks[-1] + 1):
                raise ConfigError(
                    "selector",
                    [f"tokens.depth is {depth} with the two-pass form, which runs through all blocks; expected null"],
                )
            return TokenEncoder(backbone, form, blocks[-1] + 1)
        if depth is None:
            depth = blocks[-1] + 1 if plan.split == "encoder" else backbone.site.blocks[0]
        if not blocks[0] < depth <= blocks[-1] + 1:
            raise ConfigError(
                "selector",
                [f"tokens.depth is {depth}, expected {blocks[0] + 1} to {blocks[-1] + 1} for {backbone.name}"],
            )
        return TokenEncoder(backbone, form, depth)

    @property
    def num_blocks(self) -> int:
        """Blocks that the tokens go through."""
        return self.depth - self.backbone.token_blocks[0]

    def pixels(self, images: Tensor) -> Tensor:
        """Squashed (n, S, S, 3) uint8 images preprocessed, on the backbone's device; (n, 3, S, S) floats as they are.

        Raises:
            BankError: any other shape or type.
        """
        side, device = self.backbone.image_size, self.backbone.device
        if images.dtype == torch.uint8 and images.shape == (len(images), side, side, 3):
            return torch.stack([self.backbone.preprocess(image.numpy()) for image in images.cpu()]).to(device)
        if images.is_floating_point() and images.shape == (len(images), 3, side, side):
            return images.to(device)
        raise BankError(
            f"images are {tuple(images.shape)} {images.dtype}, expected (n, {side}, {side}, 3) uint8 or "
            f"preprocessed (n, 3, {side}, {side}) floats"
        )

    @torch.no_grad()
    def look(self, images: Tensor, tokens: Tensor, plan: PrefixPlan = PrefixPlan()) -> tuple[Prefix, Tensor]:
        """Prefix of ``plan`` and (B, C) query, from one pass where the form allows it."""
        pixels = self.pixels(images)
        if self.form == "one_pass":
            return one_pass(self.backbone, pixels, tokens, self.depth, plan)
        return self.backbone.prefix(pixels, plan), two_pass(self.backbone, pixels, tokens)

    @torch.no_grad()
    def query(self, images: Tensor, tokens: Tensor) -> Tensor:
        """(B, C) query alone."""
        if self.form == "one_pass":
            return self.look(images, tokens)[1]
        return two_pass(self.backbone, self.pixels(images), tokens)


class TokenSelector:
    """Fitted tokens and the linear layer on the feature token's output, with or without a novelty gate.

    ``choose`` takes queries; ``query`` and ``look`` make them of images once the selector is bound to a backbone.
    Logits are computed in float64 and rounded to float32, so that the company in a batch cannot tip an answer.
    """

    kind = "tokens"

    def __init__(
        self,
        tokens: Tensor,
        weight: Tensor,
        bias: Tensor,
        domains: Sequence[str],
        natural: Sequence[str],
        *,
        form: Form,
        depth: int,
        gate: NoveltyGate | None = None,
        encoder: TokenEncoder | None = None,
    ) -> None:
        """Take (T, C) tokens, (K, C) weights and (K,) biases, learnt domains first, then natural classes."""
        self.domains, self.natural, self.gate = tuple(domains), tuple(natural), gate
        self.form, self.depth = form, depth
        self.tokens = tokens.detach()
        self._weight, self._bias = weight.detach().double(), bias.detach().double()
        self._encoder = encoder

    def bound(self, backbone: Backbone) -> TokenSelector:
        """This selector on ``backbone``'s device, able to look at images; returns itself.

        Raises:
            ConfigError: the backbone takes no tokens.
            BankError: its encoder has another width.
        """
        depth = self.depth if self.form == "one_pass" else None
        self._encoder = TokenEncoder.of(backbone, self.form, depth)
        if (width := self.tokens.shape[1]) != backbone.site.dim:
            raise BankError(
                f"the selector's tokens have width {width}, the encoder of {backbone.name} has {backbone.site.dim}"
            )
        return self.to(backbone.device)

    def query(self, images: Tensor) -> Tensor:
        """Squashed (B, S, S, 3) uint8 or preprocessed (B, 3, S, S) float images to (B, C) queries.

        Raises:
            BankError: the selector is not bound to a backbone, or the images are something else.
        """
        return self._bound().query(images, self.tokens)

    def look(self, images: Tensor, plan: PrefixPlan = PrefixPlan()) -> tuple[Prefix, Tensor]:
        """Images as for ``query`` to the prefix of ``plan`` and the query, in one pass where the form allows it."""
        return self._bound().look(images, self.tokens, plan)

    def _bound(self) -> TokenEncoder:
        if self._encoder is None:
            raise BankError("the token selector looks at images through a backbone, found none", hint="bound(backbone)")
        return self._encoder

    @torch.no_grad()
    def logits(self, queries: Tensor) -> Tensor:
        """(B, C) queries to (B, K) float32 logits: learnt domains, then natural classes."""
        check_embeddings(queries, self.tokens.shape[1], "queries")
        return (queries.double() @ self._weight.T + self._bias).float()

    def choose(self, embeddings: Tensor) -> Choice:
        """(B, C) float queries to a choice each.

        Raises:
            BankError: the queries have another width than the tokens.
        """
        logits = self.logits(embeddings)
        novelty = embeddings.new_zeros(len(embeddings)).float()
        if self.gate is not None:
            novelty = self.gate.novelty(embeddings)
        return choice_of(logits.double().log_softmax(1), len(self.domains), novelty)

    def to(self, device: Any) -> TokenSelector:
        """Move the tensors; returns itself."""
        self.tokens = self.tokens.to(device)
        self._weight, self._bias = self._weight.to(device), self._bias.to(device)
        if self.gate is not None:
            self.gate.to(device)
        return self

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Class names, form and depth; tokens and linear layer; the gate's tensors start with ``gate.``."""
        values: dict[str, Any] = {
            "kind": self.kind,
            "form": self.form,
            "depth": self.depth,
            "domains": list(self.domains),
            "natural": list(self.natural),
            "thresholds": None if self.gate is None else self.gate.limits((*self.domains, *self.natural)),
        }
        tensors = {"tokens": self.tokens, "weight": self._weight.float(), "bias": self._bias.float()}
        tensors = {name: tensor.cpu().clone() for name, tensor in tensors.items()}
        if self.gate is not None:
            tensors |= {f"gate.{name}": tensor for name, tensor in self.gate.tensors().items()}
        return values, tensors

    @staticmethod
    def from_state(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TokenSelector:
        """The selector that ``state`` came from, not bound yet.

        Raises:
            KeyError: a value or a tensor is missing.
            ValueError: their sizes do not fit together.
        """
        names = (*values["domains"], *values["natural"])
        tokens, weight, bias = tensors["tokens"], tensors["weight"], tensors["bias"]
        if weight.shape != (len(names), tokens.shape[1]) or bias.shape != (len(names),):
            raise ValueError(
                f"weights are {tuple(weight.shape)} and {tuple(bias.shape)}, not for {len(names)} classes and tokens "
                f"{tuple(tokens.shape)}"
            )
        if values["form"] not in ("one_pass", "two_pass"):
            raise ValueError(f"form is {values['form']!r}, expected 'one_pass' or 'two_pass'")
        parts = {name.removeprefix("gate."): t for name, t in tensors.items() if name.startswith("gate.")}
        limits = values["thresholds"]
        gate = None if limits is None else NoveltyGate.stored(parts, limits, names)
        domains, natural = values["domains"], values["natural"]
        return TokenSelector(
            tokens, weight, bias, domains, natural, form=values["form"], depth=int(values["depth"]), gate=gate
        )
