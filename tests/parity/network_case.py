"""A full-size network with recipe weights, and how what it computes is compared with the recorded numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samcl_core.adapters import Adapter, ModuleTensors, build_adapter
from samcl_core.backbones import Backbone, Hooks, Masks, Prefix, Prompts, Sam2Backbone, SamBackbone, SuffixHooks
from samcl_core.backbones.sam import build_sam
from samcl_core.backbones.sam2 import build_sam2
from samcl_core.bank import pack, unpack
from samcl_core.bank.packing import ModuleDtype
from samcl_core.config import Params, parse_params
from samcl_core.training.batches import Batch
from samcl_core.training.losses import mask_loss, resize_logits

NAMES = {"sam1": "sam_vit_b", "sam2": "sam2.1_hiera_tiny"}
LABELS = {"sam1": "SAM ViT-B", "sam2": "SAM 2.1 tiny"}


@dataclass(frozen=True)
class Tolerance:
    """float32 tolerances of the recorded numbers, per family."""

    low_res: float
    iou: float
    embedding: float = 2e-5
    spots_atol: float = 2e-4
    spots_rtol: float = 1e-4
    mask_frac: float = 5e-4
    loss_rtol: float = 1e-5
    iou_loss_atol: float = 2e-5
    gradient_rtol: float = 5e-4


TOLERANCES = {"sam1": Tolerance(low_res=1e-4, iou=2e-5), "sam2": Tolerance(low_res=5e-4, iou=1e-5)}


class Recorder(Hooks):
    """Hooks that pass everything through to a module and keep what they saw at the recorded spots."""

    def __init__(self, inner: SuffixHooks) -> None:
        self.inner = inner
        self.added: dict[int, Tensor] = {}
        self.neck: dict[str, Tensor] = {}

    def attention(self, block: int, x: Tensor, out: Tensor) -> Tensor:
        self.added[block] = self.inner.attention(block, x, torch.zeros_like(out)).detach()
        return self.inner.attention(block, x, out)

    def neck_input(self, x: Tensor) -> Tensor:
        # Copies: hooks may change in place what they are given.
        self.neck = {"last_block": x.detach().clone()}
        out = self.inner.neck_input(x)
        self.neck |= {"neck_input": out.detach().clone()}
        return out

    def neck_output(self, x: Tensor) -> Tensor:
        self.neck |= {"neck": x.detach().clone()}
        out = self.inner.neck_output(x)
        self.neck |= {"image_embeddings": out.detach().clone()}
        return out


@dataclass
class Case:
    """One family's network after its prefix on the synthetic image, with the options of the reference profile."""

    family: str
    params: Params
    backbone: Backbone
    adapter: Adapter
    tensors: ModuleTensors
    pixels: Tensor
    prefix: Prefix
    arrays: dict[str, np.ndarray]
    recipe: Any
    prompts: Prompts
    truth: Tensor
    inputs: dict[str, Tensor]
    of_prefix: dict[str, Tensor] = field(default_factory=dict)
    parity: Any = None
    on: str = ""

    @property
    def label(self) -> str:
        return LABELS[self.family] + self.on

    @property
    def tolerance(self) -> Tolerance:
        return TOLERANCES[self.family]

    @property
    def upsampling(self) -> str:
        assert self.params.evaluate.upsampling is not None
        return self.params.evaluate.upsampling

    def module_hooks(self, tensors: ModuleTensors | None = None) -> SuffixHooks:
        device = self.backbone.device
        on_device = {name: value.to(device) for name, value in (tensors or self.tensors).items()}
        return self.adapter.hooks(on_device, self.prompts.to(device))

    def suffix(self, hooks: SuffixHooks | None = None, *, training: bool = False) -> Masks:
        device = self.backbone.device
        self.inputs.update(self.of_prefix)
        with torch.no_grad():
            return self.backbone.suffix(self.prefix.to(device), self.prompts.to(device), hooks, training=training)

    def check_spots(self, quantity: str, name: str, found: Tensor, layout: str) -> None:
        values = self.recipe.spots(found.detach().cpu().numpy(), layout)[..., :24]
        self.check_block(quantity, values, f"block_{name}_spots")

    def check_block(self, quantity: str, found: Any, key: str) -> None:
        tolerance = self.tolerance
        self.parity(quantity, self.label, found, self.arrays[key], atol=tolerance.spots_atol, rtol=tolerance.spots_rtol)

    def check_embedding(self) -> None:
        embedding = self.prefix.embedding.cpu().numpy()
        atol = self.tolerance.embedding
        self.parity("selector embedding", self.label, embedding, self.arrays["zeroshot_embedding"], atol=atol)
        tokens = self.prefix.tokens.double()
        stats = [float(tokens.mean()), float(tokens.std()), float(tokens.min()), float(tokens.max())]
        self.parity("prefix: mean, deviation, range", self.label, stats, self.arrays["zeroshot_mid_stats"], atol=1e-4)

    def check_blocks(self, name: str) -> None:
        """Every block's output is the next one's input."""
        checked = 0
        for index in range(len(self.inputs) - 1):
            # The successors of SAM 2's blocks 0 and 2 see another width after the projection.
            if not (self.family == "sam2" and index in (0, 2)):
                found = self.inputs[f"{index + 1:02d}"]
                self.check_spots(f"{WHAT[name]}: block outputs", f"{name}_block{index:02d}", found, "BHWC")
                checked += 1
        assert checked >= 9

    def check_masks(self, name: str, masks: Masks, what: str | None = None) -> None:
        """Logits at a quarter of the size, their signs, the predicted IoU, and masks at 1024 px."""
        arrays, tolerance, what = self.arrays, self.tolerance, what or WHAT[name]
        low = masks.logits[0, 0].detach().float().cpu()
        clamped = low.clamp(-32, 32) if self.family == "sam2" else low
        thinned = clamped[2::8, 1::8].numpy()
        self.parity(f"{what}: logits", self.label, thinned, arrays[f"{name}_low_res"], atol=tolerance.low_res)
        iou = masks.iou.detach().float().cpu().reshape(arrays[f"{name}_iou"].shape)
        self.parity(f"{what}: predicted IoU", self.label, iou, arrays[f"{name}_iou"], atol=tolerance.iou)
        signs = arrays[f"{name}_low_res_signs"]
        self.parity.masks(f"{what}: mask, 256 px", self.label, low >= 0, signs, at_most=tolerance.mask_frac)
        up = resize_logits(masks.logits.detach().cpu(), 1024, self.upsampling)[0, 0]
        grid, expected = up[5::64, 11::64].numpy(), arrays[f"{name}_masks_grid"]
        self.parity(f"{what}: logits, 1024 px", self.label, grid, expected, atol=tolerance.low_res)
        self.check_mask(f"{what}: mask, 1024 px", name, up >= 0)

    def check_mask(self, quantity: str, name: str, mask: Any) -> None:
        """A (1024, 1024) bool mask; of SAM the whole mask follows from the signs, as its upsampling repeats pixels."""
        packed = self.arrays.get(f"{name}_mask_packed")
        if packed is None:
            assert self.upsampling == "nearest"
            small = np.unpackbits(self.arrays[f"{name}_low_res_signs"]).reshape(256, 256).astype(bool)
            packed = small.repeat(4, axis=0).repeat(4, axis=1)
            assert packed.sum() == self.arrays[f"{name}_mask_pixels"]
        self.parity.masks(quantity, self.label, np.asarray(mask), packed, at_most=self.tolerance.mask_frac)

    def batch(self) -> Batch:
        """The image as one training batch."""
        return Batch(self.prefix, self.prompts, self.truth)

    def gradients(self, tensors: ModuleTensors) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Parts of the loss of one training step, and the gradient of each tensor."""
        device, train = self.backbone.device, self.params.train
        leaves = {name: value.to(device, copy=True).requires_grad_() for name, value in tensors.items()}
        batch, prompts = self.batch(), self.prompts.to(device)
        hooks = self.adapter.hooks(leaves, prompts)
        masks = self.backbone.suffix(batch.prefix.to(device), prompts, hooks, training=True)
        logits = resize_logits(masks.logits, 1024, train.upsampling)
        loss = mask_loss(logits, batch.masks.to(device), masks.iou, train.loss_reduction)
        loss.total.backward()
        return loss.values(), {name: leaf.grad.cpu() for name, leaf in leaves.items() if leaf.grad is not None}

    def check_loss(self, what: str, found: dict[str, float], expected: np.ndarray) -> None:
        values = [found[name] for name in ("focal", "dice", "total")]
        rtol = self.tolerance.loss_rtol
        self.parity(f"{what}: focal, dice, total", self.label, values, expected[[0, 1, 3]], rtol=rtol)
        self.parity(f"{what}: IoU term", self.label, found["iou"], expected[2], atol=self.tolerance.iou_loss_atol)

    def check_gradients(self, arrays: dict[str, np.ndarray], image: str = "synthetic", what: str = "one step") -> None:
        loss, found = self.gradients(self.tensors)
        self.check_loss(what, loss, arrays[f"{image}_loss_steps"][0])
        names = [str(name) for name in arrays[f"{image}_grad_names"]]
        assert set(names) == set(found) == set(self.adapter.shapes())
        norms = [float(found[name].double().norm()) for name in names]
        recorded, rtol = arrays[f"{image}_grad_norm"], self.tolerance.gradient_rtol
        self.parity(f"{what}: norm of each gradient", self.label, norms, recorded, rtol=rtol)
        for name, norm, first in zip(names, recorded, arrays[f"{image}_grad_first8"], strict=True):
            gradient = found[name].flatten().double().numpy()
            whole = arrays.get(f"{image}_grad__{name}", first[: len(gradient)]).ravel()
            entries = gradient[: len(whole)] / norm
            self.parity(f"{what}: gradients / norm", self.label, entries, whole / norm, atol=rtol)

    def check_stored(self, tensors: ModuleTensors, at_least: dict[ModuleDtype, float]) -> None:
        """Masks of a module that was stored in fewer bytes against those of the module itself: their IoU."""
        exact = self.mask(tensors)
        assert exact.any() and not exact.all()
        for dtype, limit in at_least.items():
            found = self.mask(unpack(pack(tensors, dtype)))
            iou = float((exact & found).sum() / (exact | found).sum())
            quantity = f"{dtype} modules: IoU with the float32 mask"
            self.parity(quantity, self.label, iou, 1.0, atol=1 - limit)

    def mask(self, tensors: ModuleTensors) -> Tensor:
        """(1024, 1024) bool, what a module answers."""
        return resize_logits(self.suffix(self.module_hooks(tensors)).logits, 1024, self.upsampling)[0, 0] >= 0

    def check_bfloat16(self, at_least: float) -> None:
        """Final masks of the whole network under autocast against those in float32: their IoU."""
        device = self.backbone.device
        exact = self.suffix(self.module_hooks()).logits
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            prefix = self.backbone.prefix(self.pixels.to(device))
            hooks = self.module_hooks()
            rough = self.backbone.suffix(prefix, self.prompts.to(device), hooks).logits
        first, second = (resize_logits(logits, 1024, self.upsampling)[0, 0] >= 0 for logits in (exact, rough))
        iou = float((first & second).sum() / (first | second).sum())
        self.parity("bfloat16: IoU with the float32 mask", self.label, iou, 1.0, atol=1 - at_least)


WHAT = {"zeroshot": "without a module", "recipe": "AugModule", "trainmode": "AugModule in train mode"}


def open_case(family: str, recipe: Any, arrays: dict[str, np.ndarray], prompts: Prompts, device: str = "cpu") -> Case:
    """The network of ``family`` on ``device``, filled by the recipe, after its prefix."""
    name = NAMES[family]
    params = parse_params({"profile": "reference", "backbone": {"name": name}})
    network = recipe.fill_(build_sam(name) if family == "sam1" else build_sam2(name))
    wrap = SamBackbone if family == "sam1" else Sam2Backbone
    backbone: Backbone = wrap(name, network, sha256="recipe", is_pretrained=False)
    backbone.sha256 = backbone.weights_digest()
    backbone.to(device)
    adapter = build_adapter(params.adapter.kind, backbone.site, **params.adapter.model_dump(exclude={"kind"}))
    tensors = {key: torch.from_numpy(value) for key, value in recipe.augmodule_tensors(family).items()}
    inputs: dict[str, Tensor] = {}
    blocks = network.image_encoder.blocks if family == "sam1" else network.image_encoder.trunk.blocks
    for index, block in enumerate(blocks):
        block.norm1.register_forward_pre_hook(
            lambda _module, args, at=index: inputs.__setitem__(f"{at:02d}", args[0].detach())
        )
    pixels = backbone.preprocess(recipe.synthetic_image())[None]
    prefix = backbone.prefix(pixels.to(device))
    of_prefix = dict(inputs)
    truth = torch.from_numpy(recipe.synthetic_mask(1024).astype(np.uint8))[None]
    return Case(
        family, params, backbone, adapter, tensors, pixels, prefix, arrays, recipe, prompts, truth, inputs, of_prefix
    )
