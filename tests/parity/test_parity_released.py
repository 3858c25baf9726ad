"""Real images and the modules their authors released, where the samples are at hand (they are not ours to ship).

The samples are looked for in ``$SAMCL_SHARED``, else in ``shared`` beside the repository.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from samcl_core.adapters import build_adapter
from samcl_core.backbones import Backbone, Prefix, Prompts, Sam2Backbone, SamBackbone
from samcl_core.backbones.frozen import squash
from samcl_core.backbones.sam import build_sam
from samcl_core.backbones.sam2 import build_sam2
from samcl_core.bank.imports import read_published_module
from samcl_core.domains.images import load_image
from samcl_core.training.losses import resize_logits

REFERENCE = {"window_heatmap": "shrink", "neck_axes": "transposed", "point_labels": "ignored"}
FILES = {
    "Kvasir": ("Kvasir", "cju1amqw6p8pw0993d9gc5crl.jpg"),
    "camo": ("CAMO", "camourflage_01243.jpg"),
    "ISTD": ("ISTD", "90-1.png"),
    "ISIC": ("ISIC", "ISIC_0000003.jpg"),
    "cod": ("COD", "COD10K-CAM-1-Aquatic-2-ClownFish-11.png"),
    "COCO": ("COCO", "000000000139.jpg"),
}
SQUASHED = {
    "Kvasir": "614b817d4de09951ede29128bf8e755594620c5989361bafe3b0b912f5975ffa",
    "camo": "470d0bbac5acb9dfa2e55ba8e0536962cbec3d3ef723459c2fda1f9342985532",
    "ISTD": "be858be6fcb163d63f6bb842b5f4fec79923858a8b2a9e5002be5d1b47c22f05",
    "ISIC": "279fea644fb0d2f285e276500efe18e851a5bae1498fa57e3d58b5073fb13cc5",
    "cod": "6cef6bf3f35794af031a43e6a61123b8c5173f6a7707a84fe99fe4f266f7231f",
    "COCO": "32f22a50e8944a54088bbb17d0f9004830588ab244e8bd33a716864aa08c15d5",
}
LOW_RES = {"sam1": ("low_res_logits", 1e-4, "nearest"), "sam2": ("low_res", 5e-4, "bilinear")}


@pytest.fixture(scope="module")
def shared() -> Path:
    found = Path(os.environ.get("SAMCL_SHARED") or Path(__file__).parents[3] / "shared")
    if not (found / "samples" / "released").is_dir() or not (found / "oracle" / "goldens").is_dir():
        pytest.skip(f"needs samples/ and oracle/ in {found}; set SAMCL_SHARED to the folder that holds them")
    return found


def _sample(shared: Path, name: str) -> tuple[np.ndarray, Prompts]:
    domain, file = FILES[name]
    (path,) = (shared / "samples" / "data" / domain).glob(f"*/images/{file}")
    points, labels = json.loads((path.parents[1] / "masks" / "points.json").read_text())[file]
    return load_image(path), Prompts(torch.tensor([points]), torch.tensor([labels]))


def _golden(shared: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(shared / "oracle" / "goldens" / f"{name}.npz") as arrays:
        return dict(arrays)


def test_decoded_and_squashed_pixels(shared: Path) -> None:
    found = {name: hashlib.sha256(squash(_sample(shared, name)[0], 1024).tobytes()).hexdigest() for name in SQUASHED}
    assert found == SQUASHED


@pytest.fixture(scope="module")
def sam1(recipe, all_threads) -> Backbone:
    return SamBackbone("sam_vit_b", recipe.fill_(build_sam("sam_vit_b")), sha256="recipe", is_pretrained=False)


@pytest.fixture(scope="module")
def sam2(recipe, all_threads) -> Backbone:
    network = recipe.fill_(build_sam2("sam2.1_hiera_tiny"))
    return Sam2Backbone("sam2.1_hiera_tiny", network, sha256="recipe", is_pretrained=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "domain"), [("sam2", "ISTD"), ("sam2", "Kvasir"), ("sam2", "camo"), ("sam1", "ISTD"), ("sam1", "Kvasir")]
)
def test_released_module(family: str, domain: str, shared: Path, request: pytest.FixtureRequest) -> None:
    backbone: Backbone = request.getfixturevalue(family)
    image, prompts = _sample(shared, domain)
    zeroshot = _golden(shared, f"{family}_zeroshot")
    prefix: Prefix = backbone.prefix(backbone.preprocess(image)[None])
    np.testing.assert_allclose(prefix.embedding.numpy(), zeroshot[f"{domain}_embedding"], rtol=0, atol=2e-5)
    tensors, first = read_published_module(shared / "samples" / "released" / family.upper() / f"{domain}.pth")
    assert first == backbone.site.blocks[0]
    adapter = build_adapter("augmodule", backbone.site, **REFERENCE)
    with torch.no_grad():
        masks = backbone.suffix(prefix, prompts, adapter.hooks(tensors, prompts))
    arrays = _golden(shared, f"{family}_augmodule")
    name, atol, mode = LOW_RES[family]
    low = masks.logits.clamp(-32, 32) if family == "sam2" else masks.logits
    np.testing.assert_allclose(low[0, 0].numpy(), arrays[f"{domain}_{name}"].reshape(256, 256), rtol=0, atol=atol)
    np.testing.assert_allclose(masks.iou.numpy().ravel(), arrays[f"{domain}_iou"].ravel(), rtol=0, atol=2e-5)
    mask = resize_logits(masks.logits, 1024, mode)[0, 0].numpy() >= 0
    expected = np.unpackbits(arrays[f"{domain}_mask_packed"]).astype(bool).reshape(1024, 1024)
    assert (mask != expected).mean() <= 5e-4
