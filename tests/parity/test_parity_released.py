"""Real images and the modules their authors released, where the samples are at hand (they are not ours to ship).

The samples are looked for in ``$SAMCL_SHARED``, else in ``shared`` beside the repository.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from flows.cli.bank import app
from samcl_core.backbones import Prompts
from samcl_core.backbones.frozen import squash
from samcl_core.bank import Bank
from samcl_core.bank.imports import read_published_module
from samcl_core.config import parse_params
from samcl_core.domains import Domain
from samcl_core.domains.images import load_image, load_mask
from samcl_core.inference import Prompt, Segmenter
from samcl_core.stages import ingest, points
from samcl_core.training import masks_of, resize_logits

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
LOGITS = {"sam1": "low_res_logits", "sam2": "low_res"}


@pytest.fixture(scope="module")
def shared() -> Path:
    found = Path(os.environ.get("SAMCL_SHARED") or Path(__file__).parents[3] / "shared")
    if not (found / "samples" / "released").is_dir() or not (found / "oracle" / "goldens").is_dir():
        pytest.skip(f"needs samples/ and oracle/ in {found}; set SAMCL_SHARED to the folder that holds them")
    return found


def _sample(shared: Path, name: str) -> tuple[np.ndarray, Prompt]:
    domain, file = FILES[name]
    (path,) = (shared / "samples" / "data" / domain).glob(f"*/images/{file}")
    found, labels = json.loads((path.parents[1] / "masks" / "points.json").read_text())[file]
    return load_image(path), Prompt(tuple((float(x), float(y)) for x, y in found), tuple(labels))


def _golden(shared: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(shared / "oracle" / "goldens" / f"{name}.npz") as arrays:
        return dict(arrays)


def test_decoded_and_squashed_pixels(shared: Path) -> None:
    found = {name: hashlib.sha256(squash(_sample(shared, name)[0], 1024).tobytes()).hexdigest() for name in SQUASHED}
    assert found == SQUASHED


def test_masks_and_points_through_the_stages(shared: Path, tmp_path: Path, parity: Any) -> None:
    """JPEG masks with grey edges, PNG masks called .jpg: ingested with the reference profile they are the published."""
    recorded = _golden(shared, "preprocess")
    kept = {name: place for name, place in FILES.items() if f"{name}_mask_packed" in recorded}
    assert len(kept) >= 4
    domains = {domain: {"role": "unseen"} for domain, _ in kept.values()}
    params = parse_params({"profile": "reference", "domains": domains})
    for name, (domain, file) in kept.items():
        shutil.copytree(shared / "samples" / "data" / domain, tmp_path / "data" / "raw" / domain)
        ingest.run(tmp_path, params, domain)
        points.run(tmp_path, params, domain)
        data = Domain(tmp_path / "data" / domain)
        (sample,) = (s for split in ("train", "test") for s in data.samples(split) if s.image.name == file)
        mask = masks_of([sample], 1024)[0] > 0.5
        parity.masks("ingested ground truth", "both", mask, recorded[f"{name}_mask_packed"], at_most=0)
        parity("ingested points", "both", sample.points, recorded[f"{name}_points"])


@pytest.mark.slow
def test_one_step_on_a_real_image(case: Any, shared: Path) -> None:
    """Loss and gradients with a JPEG mask, of which only the pixels of exactly 255 count."""
    image, prompt = _sample(shared, "Kvasir")
    (path,) = (shared / "samples" / "data" / "Kvasir").glob(f"*/masks/{FILES['Kvasir'][1]}")
    mask = Image.fromarray(load_mask(path, case.params.ingest.mask_threshold)).resize((1024, 1024), Image.NEAREST)
    real = replace(
        case,
        prefix=case.backbone.prefix(case.backbone.preprocess(image)[None]),
        prompts=Prompts(torch.tensor([prompt.points]), torch.tensor([prompt.labels])),
        truth=torch.from_numpy(np.asarray(mask).astype(np.uint8))[None],
    )
    real.check_gradients(_golden(shared, f"gradients_{case.family}"), "Kvasir", "one step, real image")


@pytest.fixture(scope="module")
def imported(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Segmenter]:
    """The segmenter of the published files of a network, read by the command line."""

    def read(case: Any) -> Segmenter:
        folder, out = shared / "samples" / "released" / case.family.upper(), tmp_path_factory.mktemp("banks") / "bank"
        sha256 = case.backbone.sha256
        result = CliRunner().invoke(app, ["import-samcl", str(folder), str(out), "--backbone-sha256", sha256])
        assert result.exit_code == 0, result.output
        return Segmenter(case.backbone, Bank.load(out, backbone_sha256=sha256))

    return read


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["ISTD", "Kvasir", "camo", "COCO"])
def test_imported_modules_segment_as_recorded(
    case: Any, domain: str, shared: Path, imported: Callable[[Any], Segmenter], golden: Any
) -> None:
    """Selector, module and mask; of natural images the answer is plain SAM."""
    segmenter, backbone, parity = imported(case), case.backbone, case.parity
    image, prompt = _sample(shared, domain)
    zeroshot = _golden(shared, f"{case.family}_zeroshot")
    recorded = zeroshot if domain == "COCO" else _golden(shared, f"{case.family}_augmodule")
    prefix = backbone.prefix(backbone.preprocess(image)[None])
    embedding, atol = zeroshot[f"{domain}_embedding"], case.tolerance.embedding
    parity("released files: selector embedding", case.label, prefix.embedding, embedding, atol=atol)
    selectors = golden("selector")
    row, dim = list(FILES).index(domain), backbone.site.dim
    found = segmenter.bank.selector.logits(prefix.embedding)[0]
    parity(
        "released files: selector logits", case.label, found, selectors[f"released_{dim}_logits_images"][row], atol=2e-3
    )

    prompts = Prompts(torch.tensor([prompt.points]), torch.tensor([prompt.labels]))
    masks, routing = segmenter.segment(prefix, prompts)
    choice = int(selectors[f"released_{dim}_choice_images"][row])
    assert routing.names == ((*segmenter.bank.names, "plain")[choice],)
    wanted = "plain" if domain == "COCO" else domain
    if routing.names != (wanted,):  # with stand-in weights the embeddings are not those the selector knows
        masks, _ = segmenter.segment(prefix, prompts, wanted)
    low = masks.logits.clamp(-32, 32) if case.family == "sam2" else masks.logits
    expected = recorded[f"{domain}_{LOGITS[case.family]}"].reshape(256, 256)
    parity("released files: logits", case.label, low[0, 0], expected, atol=case.tolerance.low_res)
    iou = recorded[f"{domain}_iou"].ravel()
    parity("released files: predicted IoU", case.label, masks.iou.ravel(), iou, atol=case.tolerance.iou)
    mask, packed = resize_logits(masks.logits, 1024, case.upsampling)[0, 0] >= 0, recorded[f"{domain}_mask_packed"]
    parity.masks("released files: mask, 1024 px", case.label, mask, packed, at_most=case.tolerance.mask_frac)


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["ISTD", "camo"])
def test_released_modules_in_fewer_bytes(sam2: Any, domain: str, shared: Path, parity: Any) -> None:
    """Published modules on images of their domains, those whose recorded mask is not empty."""
    image, prompt = _sample(shared, domain)
    tensors, _ = read_published_module(shared / "samples" / "released" / "SAM2" / f"{domain}.pth")
    real = replace(
        sam2,
        parity=parity,
        prefix=sam2.backbone.prefix(sam2.backbone.preprocess(image)[None]),
        prompts=Prompts(torch.tensor([prompt.points]), torch.tensor([prompt.labels])),
    )
    real.check_stored(tensors, {"float16": 0.999, "int8": 0.98})


@pytest.mark.slow
def test_imported_modules_predict_the_recorded_masks(
    case: Any, shared: Path, imported: Callable[[Any], Segmenter]
) -> None:
    """From pixels to the mask in one call; an image of the model's own size gets the recorded mask's size."""
    image, prompt = _sample(shared, "ISTD")
    (found,) = imported(case).predict([squash(image, 1024)], [prompt], "ISTD", upsampling=case.upsampling)
    packed = _golden(shared, f"{case.family}_augmodule")["ISTD_mask_packed"]
    quantity = "released files: predicted mask, 1024 px"
    case.parity.masks(quantity, case.label, found.mask, packed, at_most=case.tolerance.mask_frac)
