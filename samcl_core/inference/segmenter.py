"""Images and prompts to masks: the prefix once, the selector, then all chosen modules in one suffix pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from samcl_core.adapters.base import Adapter, build_adapter
from samcl_core.adapters.stacked import StackedTensors
from samcl_core.backbones.base import FRAME_PX, Backbone, Masks, Prefix, PrefixPlan, Prompts, SuffixHooks
from samcl_core.backbones.build import load_backbone
from samcl_core.bank import Bank, ModuleStack
from samcl_core.config import BackboneParams
from samcl_core.domains import Sample
from samcl_core.errors import BankError, PromptError, UsageError
from samcl_core.inference.ahead import in_advance
from samcl_core.inference.enlarging import by_size, enlarged_masks
from samcl_core.inference.queries import QueryCache
from samcl_core.selectors import TokenSelector
from samcl_core.selectors.base import PLAIN
from samcl_core.training import PrefixCache

__all__ = ["Prediction", "Prompt", "Routing", "Segmenter", "stack_prompts"]

AUTO = "auto"
_CUDA_WORKERS = 4


@dataclass(frozen=True)
class Prompt:
    """Prompts of one image in the 1024 x 1024 frame.

    Attributes:
        points: (x, y) pairs, 0 <= x, y < 1024.
        labels: 1 foreground or 0 background, one for each point.
        box: ``x0, y0, x1, y1`` or ``None``.
    """

    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        if not self.points and self.box is None:
            raise PromptError("no prompt: expected at least one point or a box", hint="add --point X,Y")
        if len(self.points) != len(self.labels):
            raise PromptError(
                f"{len(self.points)} point(s) but {len(self.labels)} label(s), expected one label a point"
            )
        for x, y in self.points:
            if not (0 <= x < FRAME_PX and 0 <= y < FRAME_PX):
                raise PromptError(f"point ({x:g}, {y:g}) is outside of the image (0 to {FRAME_PX} in the prompt frame)")
        for label in self.labels:
            if label not in (0, 1):
                raise PromptError(f"point label {label!r}, expected 1 (foreground) or 0 (background)")
        if self.box is not None and not all(0 <= side <= FRAME_PX for side in self.box):
            raise PromptError(f"box {self.box} is outside of the image (0 to {FRAME_PX} in the prompt frame)")
        if self.box is not None and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise PromptError(f"box {self.box} is empty, expected x0 < x1 and y0 < y1")


@dataclass(frozen=True)
class Routing:
    """Which module each sample of a batch gets.

    Attributes:
        rows: (B,) int64 rows of the stacked modules, 0 is plain SAM.
        names: the same as names, ``plain`` for row 0.
        confidence: (B,) float in 0..1; 1 where the caller forced the module.
        novelty: (B,) float >= 0; above 1 the image fits no known domain.
    """

    rows: Tensor
    names: tuple[str, ...]
    confidence: Tensor
    novelty: Tensor


@dataclass(frozen=True)
class Prediction:
    """One image's answer.

    Attributes:
        mask: (H, W) bool at the image's own size.
        score: the model's estimate of the mask's IoU.
        module: the domain whose module was used, or ``plain``.
        confidence: probability of that choice, 0..1.
        novelty: above 1 the image fits no known domain.
    """

    mask: np.ndarray
    score: float
    module: str
    confidence: float
    novelty: float


class Segmenter:
    """A frozen backbone and a bank. A module is loaded when it is first used, and stays on the device.

    Attributes:
        backbone: frozen.
        bank: its modules and selector; ``None`` is the plain backbone.
        plan: of the prefixes that the modules need.
        names: ``plain``, then the domains of the bank.
        looker: the bank's selector where it looks at images instead of embeddings (kind ``tokens``).
    """

    def __init__(self, backbone: Backbone, bank: Bank | None = None, *, modules_gb: float = 1.0) -> None:
        """``bank=None`` or a bank without modules is the plain backbone.

        ``modules_gb`` (1e9 bytes) limits the modules on the device: thousands of AugModules, a hundred decoders.
        """
        self.backbone = backbone
        self.bank = bank
        self._adapter: Adapter | None = None
        self._stack: ModuleStack | None = None
        self.looker: TokenSelector | None = None
        self._queries: QueryCache | None = None
        self.plan = PrefixPlan()
        self.names: tuple[str, ...] = (PLAIN,)
        if bank is not None and bank.modules:
            first = bank.modules[0]
            self._adapter = build_adapter(first.kind, backbone.site, **first.parameters)
            self.plan = self._adapter.plan
            self._stack = ModuleStack(bank.modules, self._adapter, backbone.device, max_gb=modules_gb)
            self.names = (PLAIN, *bank.names)
            bank.selector.to(backbone.device)
            if isinstance(bank.selector, TokenSelector):
                self.looker = bank.selector.bound(backbone)
                self._queries = QueryCache(self.looker)
        self._rows: dict[str, int] = {name: row for row, name in enumerate(self.names)}

    @staticmethod
    def load(bank: Path | None, backbone: BackboneParams, device: str = "cpu") -> Segmenter:
        """The segmenter of a bank folder; ``None`` is the plain backbone.

        Raises:
            CheckpointMissing: the backbone's weights are not on this machine.
            IntegrityError: a file of the bank is missing, surplus or changed.
            BackboneMismatch: the bank was made for another backbone.
        """
        network = load_backbone(backbone, device)
        loaded = None if bank is None else Bank.load(bank, backbone_sha256=network.sha256)
        return Segmenter(network, loaded)

    def route(self, embedding: Tensor, module: str | Sequence[str] = AUTO) -> Routing:
        """Choose a module for each row of (B, C) embeddings, or take the named one(s).

        For a bank whose selector looks at images these are its queries: ``looker.query(pixels)``.

        Raises:
            UsageError: a name is neither ``auto``, ``plain`` nor a domain of the bank.
        """
        count = len(embedding)
        wanted = [module] * count if isinstance(module, str) else list(module)
        unknown = sorted({name for name in wanted if name != AUTO and name not in self._rows})
        if unknown or len(wanted) != count:
            found = f"module {unknown[0]!r}" if unknown else f"{len(wanted)} module names for {count} images"
            raise UsageError(f"{found}, expected 'auto' or one of {list(self.names)}", hint="samcl bank show")
        rows, confidence, novelty = self._choose(embedding)
        if isinstance(module, str) and module == AUTO:
            return Routing(rows, tuple(self.names[row] for row in rows.tolist()), confidence, novelty)
        forced = torch.tensor([self._rows.get(name, -1) for name in wanted], device=embedding.device)
        rows = torch.where(forced >= 0, forced, rows)
        confidence = torch.where(forced >= 0, torch.ones_like(confidence), confidence)
        return Routing(rows, tuple(self.names[row] for row in rows.tolist()), confidence, novelty)

    def _choose(self, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self._adapter is None or self.bank is None:
            count, device = len(embedding), embedding.device
            return (
                torch.zeros(count, dtype=torch.long, device=device),
                torch.ones(count, device=device),
                torch.zeros(count, device=device),
            )
        choice = self.bank.selector.choose(embedding)
        return choice.index + 1, choice.confidence, choice.novelty

    @torch.no_grad()
    def segment(
        self,
        prefix: Prefix,
        prompts: Prompts,
        module: str | Sequence[str] = AUTO,
        query: Tensor | None = None,
    ) -> tuple[Masks, Routing]:
        """Masks of a batch whose prefix is known; samples of different domains share one pass.

        Args:
            prefix: by ``plan``.
            prompts: one row a sample.
            module: ``auto``, ``plain``, a domain, or one of these a sample.
            query: (B, C), needed for ``auto`` by a bank whose selector looks at images (``looker``).

        Raises:
            UsageError: an unknown module name, or the query is missing.
        """
        routing = self._routing(prefix, module, query)
        return self.backbone.suffix(prefix, prompts, self._hooks(routing.names, prompts)), routing

    def gather(self, names: Sequence[str]) -> tuple[StackedTensors, Tensor]:
        """What ``Adapter.hooks`` needs for a batch: the tensors of its distinct modules, and (B,) each sample's row.

        Args:
            names: ``plain`` or a domain of the bank for each sample, at least one.

        Raises:
            BankError: there is no bank, or it has no modules.
        """
        if self._stack is None:
            raise BankError("there are no modules to gather, the segmenter is the plain backbone")
        distinct = {name: position for position, name in enumerate(dict.fromkeys(names))}
        tensors = self._stack.tensors([self._rows[name] for name in distinct])
        if len(distinct) == len(names):
            return tensors, tensors.everything()
        return tensors, torch.tensor([distinct[name] for name in names], device=self.backbone.device)

    def _hooks(self, names: Sequence[str], prompts: Prompts) -> SuffixHooks | None:
        """What the named modules do; ``None`` where all are plain."""
        if self._adapter is None or self._stack is None or all(name == PLAIN for name in names):
            return None
        if all(name == names[0] for name in names):
            return self._adapter.hooks(self._stack.tensors([self._rows[names[0]]]).row(0), prompts)
        tensors, index = self.gather(names)
        return self._adapter.hooks(tensors, prompts, index)

    def is_looking(self, module: str | Sequence[str] = AUTO) -> bool:
        """Whether ``segment`` needs a query to answer ``module``."""
        return self.looker is not None and (module == AUTO or (not isinstance(module, str) and AUTO in module))

    def queries(self, samples: Sequence[Sample], cache: PrefixCache) -> Tensor | None:
        """(n, C) queries of samples for ``segment``, each image looked at once; ``None`` without a ``looker``.

        Raises:
            ImageError: an image cannot be read.
            DataError: an image is not the one of the manifest any more.
        """
        return None if self._queries is None else self._queries.get(samples, cache)

    def _routing(self, prefix: Prefix, module: str | Sequence[str], query: Tensor | None) -> Routing:
        if self.looker is None:
            return self.route(prefix.embedding, module)
        if query is None and self.is_looking(module):
            raise UsageError(
                "the selector of this bank looks at images, found prefixes alone",
                hint="give segment the query, looker.query(pixels), or name the module",
            )
        # Every module is named: what the selector would make of a mean embedding says nothing.
        routing = self.route(prefix.embedding if query is None else query, module)
        return routing if query is not None else replace(routing, novelty=torch.zeros_like(routing.novelty))

    def _look(self, pixels: Tensor, module: Sequence[str]) -> tuple[Prefix, Tensor | None]:
        """Prefix, and the query where one is needed: of one pass, where the selector's form allows it."""
        if self.looker is None or not self.is_looking(module):
            return self.backbone.prefix(pixels, self.plan), None
        return self.looker.look(pixels, self.plan)

    @torch.no_grad()
    def predict(
        self,
        images: Sequence[np.ndarray],
        prompts: Sequence[Prompt],
        module: str | Sequence[str] = AUTO,
        batch_size: int = 8,
        upsampling: Literal["bilinear", "nearest"] = "bilinear",
    ) -> list[Prediction]:
        """One prediction an image.

        Args:
            images: (H, W, 3) uint8 RGB arrays of any size.
            prompts: one an image, in the 1024 frame.
            module: ``auto``, ``plain``, a domain, or one of these an image.
            batch_size: images that are in the network at once.
            upsampling: how logits become masks of the images' sizes; ``nearest`` is the published SAMCL code on SAM.

        Raises:
            PromptError: not one prompt an image.
            UsageError: an unknown module name.
        """
        if len(images) != len(prompts):
            raise PromptError(f"{len(images)} image(s) but {len(prompts)} prompt(s), expected one prompt an image")
        wanted = [module] * len(images) if isinstance(module, str) else list(module)
        answers: list[Prediction | None] = [None] * len(images)
        for rows in _alike(prompts, batch_size):
            batch = stack_prompts([prompts[row] for row in rows]).to(self.backbone.device)
            named = [wanted[row] for row in rows]
            prefix, query = self._look(self._pixels([images[row] for row in rows]), named)
            masks, routing = self.segment(prefix, batch, named, query)
            sizes = [(images[row].shape[0], images[row].shape[1]) for row in rows]
            arrays = _arrays(masks.logits, sizes, upsampling)
            numbers = torch.stack([masks.iou[:, 0].float(), routing.confidence.float(), routing.novelty.float()])
            for row, mask, name, values in zip(rows, arrays, routing.names, numbers.T.tolist(), strict=True):
                score, confidence, novelty = values
                answers[row] = Prediction(mask, score, name, confidence, novelty)
        return [answer for answer in answers if answer is not None]

    def _pixels(self, images: Sequence[np.ndarray]) -> Tensor:
        """(B, 3, S, S) preprocessed images on the device; beside a GPU several threads share the work."""
        workers = 0 if self.backbone.device.type == "cpu" or len(images) == 1 else _CUDA_WORKERS
        return torch.stack(list(in_advance(self.backbone.preprocess, images, workers))).to(self.backbone.device)


def stack_prompts(prompts: Sequence[Prompt]) -> Prompts:
    """Prompts with the same number of points, all or none with a box, as one batch on the CPU."""
    points = torch.tensor([prompt.points for prompt in prompts], dtype=torch.float32).reshape(len(prompts), -1, 2)
    labels = torch.tensor([prompt.labels for prompt in prompts], dtype=torch.int64).reshape(len(prompts), -1)
    boxes = [prompt.box for prompt in prompts if prompt.box is not None]
    return Prompts(points, labels, torch.tensor(boxes, dtype=torch.float32) if boxes else None)


def _alike(prompts: Sequence[Prompt], batch_size: int) -> list[list[int]]:
    """Rows grouped so that one batch has one number of points: a padding point would change the answer a little."""
    groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        groups[len(prompt.points), prompt.box is not None].append(row)
    return [rows[i : i + batch_size] for rows in groups.values() for i in range(0, len(rows), batch_size)]


def _arrays(
    logits: Tensor, sizes: Sequence[tuple[int, int]], upsampling: Literal["bilinear", "nearest"]
) -> list[np.ndarray]:
    """A (height, width) bool mask an image, enlarged where the logits are and brought to the CPU in one copy."""
    groups = by_size(sizes)
    enlarged = []
    for size, positions in groups.items():
        few = logits if len(positions) == len(sizes) else torch.cat([logits[at : at + 1] for at in positions])
        enlarged.append(enlarged_masks(few, size, upsampling))
    if logits.device.type != "cpu":
        flat = torch.cat([masks.flatten() for masks in enlarged]).cpu()
        parts = torch.split(flat, [masks.numel() for masks in enlarged])
        enlarged = [part.reshape(masks.shape) for part, masks in zip(parts, enlarged, strict=True)]
    found = {
        at: mask.numpy()
        for masks, places in zip(enlarged, groups.values(), strict=True)
        for at, mask in zip(places, masks, strict=True)
    }
    return [found[at] for at in range(len(sizes))]
