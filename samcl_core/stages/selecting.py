"""What a workspace's selector is fitted on: stored embeddings, or for ``tokens`` a few images and the backbone."""

from __future__ import annotations

import torch
from torch import Tensor

from samcl_core.adapters import build_adapter
from samcl_core.backbones import Backbone, load_backbone
from samcl_core.backbones.frozen import squash
from samcl_core.bank import Module
from samcl_core.config import Params
from samcl_core.domains import Domain, Sample, load_image
from samcl_core.errors import DataError
from samcl_core.files import sha256_file
from samcl_core.selectors import TokenEncoder
from samcl_core.selectors.images import buffer_rows
from samcl_core.stages.places import Places
from samcl_core.tensors import load_tensors

__all__ = ["encoder_of", "selector_input"]


def encoder_of(params: Params, module: Module) -> TokenEncoder | None:
    """What the selector is trained through together with ``module``; ``None`` where it reads embeddings.

    Raises:
        ConfigError: the backbone takes no tokens, or not to the depth that ``params`` ask for.
        CheckpointError: the backbone's weights are missing or not the expected ones.
    """
    if params.selector.kind != "tokens":
        return None
    backbone = load_backbone(params.backbone, params.device)
    plan = build_adapter(module.kind, backbone.site, **module.parameters).plan
    return TokenEncoder.of(backbone, params.selector.tokens.form, params.selector.tokens.depth, plan)


def selector_input(places: Places, params: Params, role: str, domain: str, backbone: Backbone | None) -> Tensor:
    """What the selector learns of one domain's training images.

    Args:
        places: of the workspace.
        params: the kind of selector, and the seed that chooses the images.
        role: of the domain.
        domain: its name.
        backbone: only for the kind ``tokens``: whose input size the images get.

    Returns:
        (n, C) embeddings; for the kind ``tokens`` (n, S, S, 3) uint8 images, as many as a domain may store.

    Raises:
        DataError: the images are not those that were embedded.
    """
    tensors, meta = load_tensors(places.embeddings(role, domain))
    if backbone is None or params.selector.kind != "tokens":
        return tensors["train"]
    # Images are no dependency of a bank's stage of their own: the embeddings' metadata names them, and is one.
    data = Domain(places.domain(domain))
    found, expected = data.data_digest(("train",)), str(meta["train_digest"])
    if found != expected:
        raise DataError(
            f"the training data of {domain} has digest {found[:12]}, expected {expected[:12]} as embedded",
            hint="samcl stream, which runs what became stale",
        )
    samples = data.samples("train")
    rows = buffer_rows(len(samples), params.selector.tokens.buffer_size, domain, params.seed)
    return torch.stack([_squashed(samples[row], backbone.image_size) for row in rows])


def _squashed(sample: Sample, size_px: int) -> Tensor:
    found = sha256_file(sample.image) if sample.image.is_file() else "none (no such file)"
    if found != sample.image_sha256:
        raise DataError(
            f"{sample.image} changed since it was ingested: sha256 {found}, expected {sample.image_sha256}",
            hint="ingest the domain again: dvc repro",
        )
    return torch.from_numpy(squash(load_image(sample.image), size_px))
