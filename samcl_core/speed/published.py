"""What the published SAMCL code does, written anew: the slow arm of the cases.

The official ``segment_anything`` network runs whole and in float32 for every image and in every epoch, with the module
hooked in; prompts and masks are encoded and decoded one image at a time; heat-maps are drawn by OpenCV on the CPU;
every test image deep-copies SAM and reads a module file. Numbers equal those of the profile ``reference``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from samcl_core.adapters import Adapter, ModuleTensors
from samcl_core.backbones import FRAME_PX
from samcl_core.domains import Sample
from samcl_core.selectors.mlp import SelectorMlp

__all__ = [
    "PublishedData",
    "PublishedModule",
    "PublishedSam",
    "answer_image",
    "draw_heat",
    "preprocess",
    "published_loss",
    "save_published",
    "train_epoch",
    "train_selector",
]

_HEAT_CELLS = 64
_MEAN, _DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

Choose = Callable[[Tensor], str]
"""(1, C) embedding to the name of a module, or ``plain``."""


class PublishedModule(nn.Module):
    """One AugModule as layers, whose state has the names of ``Adapter.shapes``."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.extra = nn.Module()
        for name, shape in shapes.items():
            path, _, part = name.rpartition(".")
            if part == "weight":
                layer = nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.LayerNorm(shape[0])
                owner = self.extra if path.startswith("extra.") else self
                owner.add_module(path.removeprefix("extra."), layer)
        self.rank = int(shapes["A.weight"][0])

    def features(self, heat: Tensor) -> Tensor:
        """(B, 64, 64) heat-maps to (B, G, G, r) features of the prompt."""
        if self.grid != _HEAT_CELLS:
            heat = F.adaptive_avg_pool2d(heat[:, None], self.grid)[:, 0]
        repeated = heat[..., None].repeat(1, 1, 1, self.rank)
        layer, norm = self.extra.get_submodule("layer"), self.extra.get_submodule("norm")
        return F.relu(norm(layer(repeated)))

    def addition(self, position: int, x: Tensor, features: Tensor) -> Tensor:
        """What the module adds to the attention of its block ``position``, whose input is ``x`` (B * W, h, w, C)."""
        window = x.shape[1]
        if window != self.grid:
            shrunk = F.interpolate(features.permute(0, 3, 1, 2), (window, window), mode="nearest")
            features = shrunk.permute(0, 2, 3, 1).repeat_interleave(len(x) // len(features), 0)
        low = self._layer("norm1", position)(self.get_submodule("A")(x))
        added: Tensor = self._layer("B", position)(low + self._layer("norm2", position)(features))
        return added

    def _layer(self, name: str, position: int) -> nn.Module:
        return self.get_submodule(f"{name}_{position:03d}")


class PublishedSam:
    """An official SAM with a module hooked into it; the module may be set until the first adapted block runs."""

    def __init__(self, sam: Any, blocks: Sequence[int], module: PublishedModule | None = None) -> None:
        self.sam, self.module = sam, module
        self.choose: Callable[[Tensor], PublishedModule | None] | None = None
        self._features: Tensor | None = None
        self._heat: Tensor | None = None
        encoder = sam.image_encoder
        encoder.blocks[blocks[0]].register_forward_pre_hook(self._before_first)
        for position, block in enumerate(blocks):
            encoder.blocks[block].attn.register_forward_hook(self._attention(position))
        encoder.neck.register_forward_pre_hook(self._before_neck)
        encoder.neck.register_forward_hook(self._after_neck)

    def __call__(self, pixels: Tensor, points: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) pixels and (N, 2) points an image to (B, 1, S / 4, S / 4) logits and (B, 1) IoU.

        Points are in the 1024 frame; all of them count as foreground for the heat-map.
        """
        device = pixels.device
        heat = np.stack([draw_heat(part) for part in points])
        self._heat = torch.from_numpy(heat).to(device)
        embeddings = self.sam.image_encoder(pixels)
        scale = pixels.shape[-1] / FRAME_PX
        logits, scores = [], []
        for row, part in enumerate(points):
            coordinates = torch.as_tensor(part, dtype=torch.float32, device=device)[None] * scale
            labels = torch.ones(coordinates.shape[:2], dtype=torch.int64, device=device)
            sparse, dense = self.sam.prompt_encoder(points=(coordinates, labels), boxes=None, masks=None)
            mask, score = self.sam.mask_decoder(
                image_embeddings=embeddings[row : row + 1],
                image_pe=self.sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            logits.append(mask)
            scores.append(score)
        return torch.cat(logits), torch.cat(scores)

    def _before_first(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        if self.choose is not None:
            self.module = self.choose(args[0].mean(dim=(1, 2)))
        assert self._heat is not None
        self._features = None if self.module is None else self.module.features(self._heat)

    def _attention(self, position: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            if self.module is None or self._features is None:
                return out
            return out + self.module.addition(position, args[0], self._features)

        return add

    def _before_neck(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] + self._upward("upward"),) if self.module is not None else args

    def _after_neck(self, _: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out + self._upward("upward_") if self.module is not None else out

    def _upward(self, name: str) -> Tensor:
        assert self.module is not None and self._features is not None
        layer: nn.Module = self.module.extra.get_submodule(name)
        upward: Tensor = layer(self._features.transpose(1, 2)).permute(0, 3, 1, 2)
        return upward


def draw_heat(points: np.ndarray) -> np.ndarray:
    """(64, 64) float32 heat-map of (N, 2) points in the 1024 frame."""
    heat = np.zeros((_HEAT_CELLS, _HEAT_CELLS), np.float32)
    for x, y in points:
        heat[int(int(y) * _HEAT_CELLS / FRAME_PX), int(int(x) * _HEAT_CELLS / FRAME_PX)] = 1
    return np.asarray(cv2.GaussianBlur(heat, (9, 9), 0), np.float32) * np.float32(255)


def preprocess(image: Image.Image, size_px: int) -> Tensor:
    """An RGB image to (3, S, S) float32, squashed and normalised."""
    square = np.asarray(image.convert("RGB").resize((size_px, size_px), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(square.copy()).permute(2, 0, 1).float()
    return (pixels - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_DEVIATION)[:, None, None]


class PublishedData(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Image, mask and points of samples, read from their files each time."""

    def __init__(self, samples: Sequence[Sample], size_px: int) -> None:
        self.samples, self.size_px = list(samples), size_px

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, Tensor]:
        sample, size = self.samples[row], self.size_px
        with Image.open(sample.image) as image:
            pixels = preprocess(image, size)
        with Image.open(sample.mask) as mask:
            square = np.asarray(mask.convert("L").resize((size, size), Image.Resampling.NEAREST))
        return pixels, torch.from_numpy((square == 255).astype(np.float32)), torch.tensor(sample.points)


def published_loss(logits: Tensor, masks: Tensor, scores: Tensor) -> Tensor:
    """Focal and Dice summed over the images, and the mean squared error of the predicted IoU."""
    flat, truth = logits.flatten(1), masks.flatten(1)
    share = torch.sigmoid(flat)
    bce = F.binary_cross_entropy(share, truth, reduction="none")
    focal = (0.8 * (1 - torch.exp(-bce)) ** 2 * bce).mean(1).sum()
    dice = (1 - (2 * (share * truth).sum(1) + 1) / (share.sum(1) + truth.sum(1) + 1)).sum()
    found = (flat > 0.5).float()
    both = (found * truth).sum(1)
    real = both / (found.sum(1) + truth.sum(1) - both + 1e-7)
    return focal + 10 * dice + F.mse_loss(scores[:, 0], real)


def train_epoch(
    network: PublishedSam,
    optimizer: torch.optim.Optimizer,
    data: PublishedData,
    batch_size: int,
    *,
    device: str,
    num_workers: int,
) -> float:
    """One epoch; returns the mean loss of the images. ``num_workers`` processes read files ahead."""
    loader = DataLoader(data, batch_size, shuffle=True, num_workers=num_workers, generator=torch.Generator())
    total = 0.0
    for pixels, masks, points in loader:
        masks = masks.to(device)
        logits, scores = network(pixels.to(device), [part.numpy() for part in points])
        logits = F.interpolate(logits, masks.shape[-2:], mode="nearest")
        loss = published_loss(logits, masks, scores)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += float(loss.detach()) * len(masks)
    return total / len(data)


def save_published(folder: Path, modules: Mapping[str, ModuleTensors]) -> None:
    """Write module files, one a domain, as ``answer_image`` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in modules.items():
        torch.save(dict(tensors), folder / f"{name}.pth")


@torch.no_grad()
def answer_image(
    sam: nn.Module,
    adapter: Adapter,
    modules: Path,
    choose: Choose,
    image: Image.Image,
    points: Sequence[tuple[float, float]],
    size: tuple[int, int] | None = None,
) -> tuple[np.ndarray, str]:
    """The mask of one image, and the module it got.

    Args:
        sam: an official SAM, which is copied and stays as it is.
        adapter: the kind of module.
        modules: folder of ``save_published``.
        choose: the selector; it sees the embedding of the same pass.
        image: RGB.
        points: in the 1024 frame.
        size: height and width of the mask; ``None`` for the network's own.
    """
    device = next(sam.parameters()).device
    own: Any = copy.deepcopy(sam)
    chosen: list[str] = []

    def choose_module(embedding: Tensor) -> PublishedModule | None:
        chosen.append(choose(embedding))
        path = modules / f"{chosen[0]}.pth"
        if not path.is_file():
            return None
        module = PublishedModule(adapter.shapes(), adapter.site.grid)
        module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return module.to(device)

    network = PublishedSam(own, adapter.site.blocks)
    network.choose = choose_module
    size_px = int(own.image_encoder.img_size)
    logits, _ = network(preprocess(image, size_px)[None].to(device), [np.asarray(points)])
    upsampled = F.interpolate(logits, size or (size_px, size_px), mode="nearest")
    return (torch.sigmoid(upsampled[0, 0]) >= 0.5).cpu().numpy(), chosen[0]


def train_selector(rows: Tensor, labels: Tensor, num_classes: int, seed: int) -> SelectorMlp:
    """The MLP selector after 25 epochs of SGD with rate 0.01 and batches of 24, on the CPU.

    Args:
        rows: (n, C) embeddings.
        labels: (n,) class numbers.
        num_classes: outputs.
        seed: of initialisation and order.
    """
    network = SelectorMlp.seeded(rows.shape[1], num_classes, seed).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(25):
        for batch in torch.split(torch.randperm(len(rows), generator=generator), 24):
            if len(batch) > 1:  # BatchNorm needs two
                optimizer.zero_grad()
                F.cross_entropy(network(rows[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return network.eval()
