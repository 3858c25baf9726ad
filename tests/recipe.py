"""Deterministic stand-in weights and inputs for the parity goldens.

No pretrained SAM weights are used anywhere in this oracle.  Every learned tensor is
drawn from its own state-dict key, so any implementation can refill the same model from
this file alone (numpy + torch).

RECIPE
------
For a state-dict key ``key`` whose tensor is floating point with shape ``shape``::

    x = numpy.random.Generator(
            numpy.random.PCG64(zlib.crc32(key.encode("utf-8")))
        ).standard_normal(shape).astype(numpy.float32)

and the tensor becomes (first rule that applies, all arithmetic in float32):

 1. key ends with ``positional_encoding_gaussian_matrix``   ->  x              (std 1)
 2. key is an embedding / token / position table, that is
    - its last dotted part is one of pos_embed, pos_embed_window, rel_pos_h, rel_pos_w,
      maskmem_tpos_enc, no_mem_embed, no_mem_pos_enc, no_obj_ptr, no_obj_embed_spatial, or
    - it ends with ``_embed.weight``, ``_token.weight`` or ``_tokens.weight``, or
    - it contains ``.point_embeddings.``                      ->  0.02 * x
 3. at most one dimension and the last dotted part is ``weight`` or ``running_var``
    (norm scales, batch-norm variance)                        ->  1 + 0.1 * x
 4. any other tensor with at most one dimension
    (biases, layer-scale gammas, batch-norm running_mean)     ->  0.02 * x
 5. everything else (linear and convolution kernels)          ->  x / sqrt(fan_in)
    with fan_in = product(shape[1:]) exactly as stored (also for transposed
    convolutions), the factor being numpy.float32(1 / math.sqrt(fan_in)).

Tensors that are not floating point (``num_batches_tracked``) keep their value.  Buffers
that are not in the state dict keep their official value (SAM's ``pixel_mean`` =
123.675, 116.28, 103.53 and ``pixel_std`` = 58.395, 57.12, 57.375).

Key sets
--------
* SAM ViT-B: the keys of ``segment_anything.sam_model_registry["vit_b"](checkpoint=None)``.
* SAM 2.1 tiny: the keys of ``sam2.build_sam.build_sam2(
  "configs/sam2.1/sam2.1_hiera_t.yaml", ckpt_path=None, device="cpu")``.
* AugModule: ``augmodule_shapes("sam1" | "sam2")`` below; the seed key is
  ``"augmodule." + name`` where ``name`` is the released checkpoint's own naming
  (``A.weight``, ``B_000.weight``, ``norm1_000.weight``, ``extra.layer.weight`` ...).
  Index 000 is the first adapted block: block 7 of 12 (SAM ViT-B), block 6 of 12 (SAM 2.1 tiny).
* Selector MLP: ``selector_shapes(dim, classes)``; the seed key is
  ``"selector.<dim>." + name``.

Keys are visited in sorted order, but because each key has its own seed the order does
not matter.  ``goldens/recipe_checksums.npz`` holds checks for every tensor.
"""

import math
import zlib

import numpy as np

TABLE_LAST = (
    "pos_embed",
    "pos_embed_window",
    "rel_pos_h",
    "rel_pos_w",
    "maskmem_tpos_enc",
    "no_mem_embed",
    "no_mem_pos_enc",
    "no_obj_ptr",
    "no_obj_embed_spatial",
)
TABLE_END = ("_embed.weight", "_token.weight", "_tokens.weight")


def rng(name):
    """The generator every seeded array here comes from: PCG64(crc32(name))."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode("utf-8"))))


def tensor_for(key, shape):
    """Recipe value (float32 numpy array) of one floating-point state-dict entry."""
    shape = tuple(int(s) for s in shape)
    x = rng(key).standard_normal(shape).astype(np.float32)
    last = key.rsplit(".", 1)[-1]
    if key.endswith("positional_encoding_gaussian_matrix"):
        return x
    if last in TABLE_LAST or key.endswith(TABLE_END) or ".point_embeddings." in key:
        return np.float32(0.02) * x
    if len(shape) <= 1 and last in ("weight", "running_var"):
        return np.float32(1.0) + np.float32(0.1) * x
    if len(shape) <= 1:
        return np.float32(0.02) * x
    fan_in = int(np.prod(shape[1:]))
    return np.float32(1.0 / math.sqrt(fan_in)) * x


def fill_(module, prefix=""):
    """Fill a torch module in place from its state-dict keys (``prefix`` is prepended)."""
    import torch

    state = module.state_dict()
    with torch.no_grad():
        for key in sorted(state):
            if state[key].is_floating_point():
                state[key].copy_(torch.from_numpy(tensor_for(prefix + key, state[key].shape)))
    return module


# --------------------------------------------------------------------------- AugModule


def augmodule_shapes(kind, r=10):
    """name -> shape of one AugModule.  kind: 'sam1' (ViT-B) or 'sam2' (SAM 2.1 tiny)."""
    dim, blocks = {"sam1": (768, 5), "sam2": (384, 4)}[kind]
    shapes = {
        "extra.layer.weight": (r, r),
        "extra.layer.bias": (r,),
        "extra.norm.weight": (r,),
        "extra.norm.bias": (r,),
    }
    if kind == "sam1":
        shapes.update(
            {
                "extra.upward.weight": (768, r),
                "extra.upward.bias": (768,),
                "extra.upward_.weight": (256, r),
                "extra.upward_.bias": (256,),
            }
        )
    shapes.update({"A.weight": (r, dim), "A.bias": (r,)})
    for i in range(blocks):
        shapes[f"B_{i:03d}.weight"] = (dim, r)
        shapes[f"B_{i:03d}.bias"] = (dim,)
        for n in ("norm1", "norm2"):
            shapes[f"{n}_{i:03d}.weight"] = (r,)
            shapes[f"{n}_{i:03d}.bias"] = (r,)
    return shapes


def augmodule_tensors(kind):
    return {n: tensor_for("augmodule." + n, s) for n, s in augmodule_shapes(kind).items()}


# ---------------------------------------------------------------------------- selector


def selector_shapes(dim, classes=6):
    shapes = {}
    for i, (o, n) in enumerate([(dim, dim), (dim // 4, dim), (dim // 4, dim // 4)], 1):
        shapes[f"layer{i}.weight"] = (o, n)
        shapes[f"layer{i}.bias"] = (o,)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"norm{i}.{part}"] = (o,)
    shapes["layer4.weight"] = (classes, dim // 4)
    shapes["layer4.bias"] = (classes,)
    return shapes


def selector_tensors(dim, classes=6):
    return {n: tensor_for(f"selector.{dim}." + n, s) for n, s in selector_shapes(dim, classes).items()}


def random_embeddings(dim, n=64):
    """(n, dim) float32, standard normal."""
    return rng(f"selector.embeddings.{dim}").standard_normal((n, dim)).astype(np.float32)


def random_embedding_labels(n=64, classes=6):
    return rng("selector.labels").integers(0, classes, size=n)


# ----------------------------------------------------------------------- synthetic input


def synthetic_mask(size=1024):
    """(size, size) uint8 in {0, 1}: a slanted ellipse with a square hole, integers only."""
    y, x = np.mgrid[0:size, 0:size].astype(np.int64)
    u, v = (x - 620) + (y - 400) // 2, (y - 400) - (x - 620) // 3
    inside = (u * u) * 9 + (v * v) * 25 < 9 * 25 * 70 * 70
    hole = (abs(x - 560) < 40) & (abs(y - 380) < 40)
    return (inside & ~hole).astype(np.uint8)


def synthetic_image(size=1024):
    """(size, size, 3) uint8 RGB.  Integer arithmetic and PCG64 integers only."""
    y, x = np.mgrid[0:size, 0:size].astype(np.int64)
    img = np.stack(
        [
            (x * 200) // (size - 1) + 20,
            (y * 180) // (size - 1) + 30,
            ((x // 32 + y // 64) % 2) * 90 + 60,
        ],
        axis=-1,
    )
    m = synthetic_mask(size).astype(bool)
    img[m] = np.stack([255 - img[m][:, 1], img[m][:, 2], img[m][:, 0]], axis=-1)
    img = img + rng("synthetic.noise").integers(-12, 13, size=img.shape)
    return np.clip(img, 0, 255).astype(np.uint8)


def synthetic_points():
    """Three foreground points, (x, y) in the 1024 frame, and their labels."""
    return [[640.0, 430.0], [720.0, 350.0], [470.0, 470.0]], [1, 1, 1]


# -------------------------------------------------------------- losses, metrics, forgetting


def loss_case(name):
    """dict(logits (B,1,H,W) f32, mask (B,H,W) i64, iou_pred (B,1) f32)."""
    g = rng("loss." + name)
    if name == "typical":
        shape, scale = (2, 96, 80), 3.0
    elif name == "small":
        shape, scale = (1, 8, 6), 1.0
    elif name == "saturated":
        shape, scale = (1, 32, 24), 40.0
    elif name in ("empty_mask", "full_mask"):
        shape, scale = (1, 32, 24), 2.0
    else:
        raise KeyError(name)
    logits = (g.standard_normal(shape) * scale).astype(np.float32)
    mask = (g.random(shape) < 0.3).astype(np.int64)
    if name == "empty_mask":
        mask[:] = 0
    if name == "full_mask":
        mask[:] = 1
    iou_pred = g.random((shape[0], 1)).astype(np.float32)
    return {"logits": logits[:, None], "mask": mask, "iou_pred": iou_pred}


LOSS_CASES = ("typical", "small", "saturated", "empty_mask", "full_mask")


def metric_case(name):
    """(logits (1,H,W) f32, gt (1,H,W) i64) with H=96, W=80."""
    g = rng("metric." + name)
    shape = (1, 96, 80)
    logits = (g.standard_normal(shape) * 2.0).astype(np.float32)
    gt = (g.random(shape) < 0.35).astype(np.int64)
    if name == "random":
        pass
    elif name == "good":
        logits = ((gt * 2 - 1) * 2.0 + g.standard_normal(shape)).astype(np.float32)
    elif name == "empty_pred":
        logits[:] = -5.0
    elif name == "empty_gt":
        gt[:] = 0
    elif name == "both_empty":
        logits[:] = -5.0
        gt[:] = 0
    elif name == "all_ones_pred":
        logits[:] = 5.0
    elif name == "both_all_ones":
        logits[:] = 5.0
        gt[:] = 1
    elif name == "zero_logit":  # sigmoid(0) == 0.5: is it foreground?
        logits[:] = 0.0
    elif name == "logit_0.3":  # above 0 but below 0.5
        logits[:] = 0.3
    elif name == "perfect":
        logits = np.where(gt == 1, 4.0, -4.0).astype(np.float32)
    else:
        raise KeyError(name)
    return logits, gt


METRIC_CASES = (
    "random",
    "good",
    "perfect",
    "empty_pred",
    "empty_gt",
    "both_empty",
    "all_ones_pred",
    "both_all_ones",
    "zero_logit",
    "logit_0.3",
)


def forgetting_matrix(domains=5):
    """(domains, domains, 3) float32: [now, task, (iou, f1, mae)].

    Only task <= now + 1 is meaningful (the reference evaluates one task ahead)."""
    return rng(f"forgetting.{domains}").random((domains, domains, 3)).astype(np.float32)


# ------------------------------------------------------------------------------ spot grid


def spot_index(h, w):
    """Row and column indices of the 4 x 4 spot-check grid for an h x w feature map."""
    rows = [(k * h) // 64 for k in (3, 21, 40, 60)]
    cols = [(k * w) // 64 for k in (5, 18, 37, 62)]
    return rows, cols


def spots(x, layout):
    """x: array; layout 'BHWC' or 'BCHW'.  Returns (B, 4, 4, C) at the spot grid."""
    if layout == "BCHW":
        x = np.moveaxis(x, 1, -1)
    r, c = spot_index(x.shape[1], x.shape[2])
    return np.ascontiguousarray(x[:, r][:, :, c])
