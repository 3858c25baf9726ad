"""HQ decoder: against a network written after the paper, from published weights, and trained on two domains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from samcl_core.adapters import HqDecoder, build_adapter
from samcl_core.backbones import AdapterSite, Backbone, Masks, Prefix, Prompts, tiny_backbone, tiny_sam2_backbone
from samcl_core.bank import Module, stack_modules
from samcl_core.config import TrainParams
from samcl_core.errors import CheckpointMismatch, CheckpointMissing, ConfigError, UnsafeFileError
from samcl_core.files import sha256_file
from samcl_core.strategies import base_bank
from samcl_core.training import PrefixCache, train_module

VIT_B = AdapterSite(768, 256, 64, (7,), (14,), sides={"first_global": (64, 64, 768)}, decoder_dim=256)
PROMPTS = Prompts(
    torch.tensor([[[100.0, 200.0], [900.0, 30.0]], [[512.0, 512.0], [0.0, 1023.0]], [[7.0, 3.0], [640.0, 600.0]]]),
    torch.tensor([[1, 0], [1, 1], [1, -1]]),
)


class ChannelNorm(nn.Module):
    """SAM's ``LayerNorm2d``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        normed = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return normed * self.weight[:, None, None] + self.bias[:, None, None]


class Paper(nn.Module):
    """HQ-SAM's figure 2 in plain layers, for one image of a SAM of encoder width C and decoder width D."""

    def __init__(self, c: int, d: int) -> None:
        super().__init__()

        def up(first: int, middle: int) -> nn.Sequential:
            return nn.Sequential(
                nn.ConvTranspose2d(first, middle, 2, 2),
                ChannelNorm(middle),
                nn.GELU(),
                nn.ConvTranspose2d(middle, d // 8, 2, 2),
            )

        self.hf_token = nn.Embedding(1, d)
        self.hf_mlp = nn.Module()
        self.hf_mlp.layers = nn.ModuleList([nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d // 8)])
        self.compress_vit_feat, self.embedding_encoder = up(c, d), up(d, d // 4)
        self.embedding_maskfeature = nn.Sequential(
            nn.Conv2d(d // 8, d // 4, 3, padding=1),
            ChannelNorm(d // 4),
            nn.GELU(),
            nn.Conv2d(d // 4, d // 8, 3, padding=1),
        )

    def forward(self, sam: Any, early: Tensor, final: Tensor, points: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Logits of mask token 0 and of the HQ token (h, w), and the predicted IoU."""
        sparse, dense = sam.prompt_encoder(points=(points[None], labels[None]), boxes=None, masks=None)
        decoder = sam.mask_decoder
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight, self.hf_token.weight])
        position = sam.prompt_encoder.get_dense_pe()
        out, image = decoder.transformer(final[None] + dense, position, torch.cat([own[None], sparse], 1))
        upscaled = decoder.output_upscaling(image.transpose(1, 2).reshape(1, *final.shape))
        fused = self.embedding_maskfeature(upscaled)
        fused = fused + self.compress_vit_feat(early.permute(2, 0, 1)[None]) + self.embedding_encoder(final[None])
        weights = out[0, 1 + decoder.mask_tokens.weight.shape[0]]
        for number, layer in enumerate(self.hf_mlp.layers):
            weights = layer(weights).relu() if number < 2 else layer(weights)
        plain = decoder.output_hypernetworks_mlps[0](out[0, 1])
        logits = [
            sum(w * m for w, m in zip(k, maps[0], strict=True)) for k, maps in ((plain, upscaled), (weights, fused))
        ]
        return logits[0], logits[1], decoder.iou_prediction_head(out[0, 0])[0]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture(scope="module")
def prefix(backbone: Backbone) -> Prefix:
    draw = np.random.default_rng(7)
    images = [draw.integers(0, 256, (40, 50, 3), dtype=np.uint8) for _ in range(3)]
    return backbone.prefix(torch.stack([backbone.preprocess(image) for image in images]), HqDecoder.plan)


def adapter_of(backbone: Backbone, **options: Any) -> HqDecoder:
    adapter = build_adapter("hq_decoder", backbone.site, **options)
    assert isinstance(adapter, HqDecoder)
    return adapter


def trained(adapter: HqDecoder, seed: int) -> dict[str, Tensor]:
    """Tensors that change something everywhere."""
    draw = torch.Generator().manual_seed(seed)
    return {name: value + 0.2 * torch.randn(value.shape, generator=draw) for name, value in adapter.fresh(seed).items()}


def expected_of(backbone: Backbone, prefix: Prefix, tensors: dict[str, Tensor]) -> list[tuple[Tensor, ...]]:
    paper = Paper(backbone.site.dim, backbone.site.decoder_dim)
    paper.load_state_dict(tensors)
    answers = []
    for row in range(3):
        used = PROMPTS.labels[row] >= 0
        points = PROMPTS.points[row, used] * backbone.image_size / 1024
        early, final = prefix.side["first_global"][row], prefix.tokens[row].permute(2, 0, 1)
        with torch.no_grad():
            answers.append(paper(backbone.module, early, final, points, PROMPTS.labels[row, used]))
    return answers


def test_the_paper_s_number_of_weights_and_names() -> None:
    adapter = build_adapter("hq_decoder", VIT_B)
    shapes = {name: tuple(value.shape) for name, value in Paper(768, 256).state_dict().items()}
    assert adapter.shapes() == shapes
    assert sum(value.numel() for value in adapter.fresh(0).values()) == 1_071_104


@pytest.mark.parametrize("output", ["sum", "hq", "training"])
def test_equal_to_the_paper_in_plain_layers(backbone: Backbone, prefix: Prefix, output: str) -> None:
    adapter = adapter_of(backbone, output="sum" if output == "training" else output)
    tensors = trained(adapter, 1)
    hooks = adapter.hooks(tensors, PROMPTS)
    with torch.no_grad():
        masks = backbone.suffix(prefix, PROMPTS, hooks, training=output == "training")
    for row, (plain, fine, iou) in enumerate(expected_of(backbone, prefix, tensors)):
        assert fine.abs().mean() > 0.01, "the HQ token says nothing"
        expected = plain + fine if output == "sum" else fine
        torch.testing.assert_close(masks.logits[row, 0], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(masks.iou[row, 0], iou, rtol=1e-4, atol=1e-5)


def test_modules_of_a_mixed_batch_are_the_paper_s_too(backbone: Backbone, prefix: Prefix) -> None:
    adapter = adapter_of(backbone)
    modules = [adapter.null(), trained(adapter, 1), trained(adapter, 2)]
    stack = {name: torch.stack([module[name] for module in modules]) for name in adapter.shapes()}
    with torch.no_grad():
        masks = backbone.suffix(prefix, PROMPTS, adapter.hooks(stack, PROMPTS, torch.tensor([2, 1, 0])))
        plain = backbone.suffix(prefix, PROMPTS)
    for row, module in ((0, 2), (1, 1)):
        coarse, fine, iou = expected_of(backbone, prefix, modules[module])[row]
        torch.testing.assert_close(masks.logits[row, 0], coarse + fine, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(masks.iou[row, 0], iou, rtol=1e-4, atol=1e-5)
    assert torch.equal(masks.logits[2], plain.logits[2]), "the row without a module is not plain SAM"


def test_a_module_of_zeros_is_plain_sam_bit_for_bit(backbone: Backbone, prefix: Prefix) -> None:
    adapter = adapter_of(backbone)
    stack = {name: value[None] for name, value in adapter.null().items()}
    plain = backbone.suffix(prefix, PROMPTS)
    for hooks in (
        adapter.hooks(adapter.null(), PROMPTS),
        adapter.hooks(stack, PROMPTS, torch.zeros(3, dtype=torch.long)),
    ):
        masks = backbone.suffix(prefix, PROMPTS, hooks)
        assert torch.equal(masks.logits, plain.logits) and torch.equal(masks.iou, plain.iou)


def test_a_token_of_zeros_alone_is_no_empty_module(backbone: Backbone, prefix: Prefix) -> None:
    adapter = adapter_of(backbone)
    tensors = {**trained(adapter, 1), "hf_token.weight": torch.zeros(1, backbone.site.decoder_dim)}
    with torch.no_grad():
        masks = backbone.suffix(prefix, PROMPTS, adapter.hooks(tensors, PROMPTS))
    assert not torch.allclose(masks.logits, backbone.suffix(prefix, PROMPTS).logits, atol=1e-3)


def test_a_fresh_module_adds_no_logits_of_its_own(backbone: Backbone, prefix: Prefix) -> None:
    adapter = adapter_of(backbone, output="hq")
    masks = backbone.suffix(prefix, PROMPTS, adapter.hooks(adapter.fresh(0), PROMPTS))
    assert not masks.logits.any()


def test_only_sam_has_what_it_needs() -> None:
    with pytest.raises(
        ConfigError, match=r"'first_global' of SAM's encoder, the backbone gives none; expected .*vit_b"
    ):
        build_adapter("hq_decoder", tiny_sam2_backbone().site)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"output": "mean"}, "output is 'mean', expected one of .*'sum', 'hq'"),
        ({"weights": "a.pth"}, "weights needs its sha256"),
        ({"sha256": "abc"}, "sha256 is 'abc', expected 64"),
        ({"weights": 3, "sha256": "0" * 64}, "weights is 3, expected the path"),
    ],
)
def test_wrong_options_are_named(backbone: Backbone, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        adapter_of(backbone, **options)


# Published weights ----------------------------------------------------------------------------------------------------


def published(adapter: HqDecoder, prefix: str = "mask_decoder.") -> dict[str, Tensor]:
    """A checkpoint as HQ-SAM publishes it: the whole model, and the HQ tensors beside the decoder's own."""
    return {
        "image_encoder.pos_embed": torch.zeros(1, 2, 2, 4),
        f"{prefix}iou_token.weight": torch.zeros(1, 4),
        **{prefix + name: value for name, value in trained(adapter, 5).items()},
    }


@pytest.mark.parametrize("kind", ["pth", "safetensors", "decoder"])
def test_new_modules_start_from_published_weights(backbone: Backbone, tmp_path: Path, kind: str) -> None:
    plain = adapter_of(backbone)
    path = tmp_path / ("hq.safetensors" if kind == "safetensors" else "hq.pth")
    state = published(plain, "" if kind == "decoder" else "mask_decoder.")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    adapter = adapter_of(backbone, weights=str(path), sha256=sha256_file(path))
    for seed in (0, 1):
        found = adapter.fresh(seed)
        assert list(found) == list(adapter.shapes())
        assert all(torch.equal(found[name], value) for name, value in trained(plain, 5).items())
    path.unlink()
    again = adapter_of(backbone, **adapter.parameters())
    assert again.parameters() == adapter.parameters() == {"output": "sum", "sha256": adapter.config.sha256}


def test_the_published_vit_b_file_fits(tmp_path: Path) -> None:
    path = tmp_path / "sam_hq_vit_b.pth"
    state = {f"mask_decoder.{name}": value for name, value in Paper(768, 256).state_dict().items()}
    torch.save(state, path)
    found = build_adapter("hq_decoder", VIT_B, weights=str(path), sha256=sha256_file(path)).fresh(0)
    assert all(torch.equal(found[name.removeprefix("mask_decoder.")], value) for name, value in state.items())


def test_wrong_weights_are_refused(backbone: Backbone, tmp_path: Path) -> None:
    adapter, path = adapter_of(backbone), tmp_path / "hq.pth"

    def fresh(sha256: str | None = None) -> None:
        adapter_of(backbone, weights=str(path), sha256=sha256 or sha256_file(path)).fresh(0)

    with pytest.raises(CheckpointMissing, match=r"there is no file .*hq.pth"):
        fresh("0" * 64)
    torch.save(published(adapter), path)
    with pytest.raises(CheckpointMismatch, match=f"sha256 {sha256_file(path)}, expected 0000"):
        fresh("0" * 64)
    torch.save({"image_encoder.pos_embed": torch.zeros(2)}, path)
    with pytest.raises(CheckpointMismatch, match=r"no tensor mask_decoder.hf_token.weight, so it is no HQ-SAM"):
        fresh()
    torch.save({**published(adapter), "mask_decoder.hf_token.weight": torch.zeros(1, 256)}, path)
    with pytest.raises(CheckpointMismatch, match=r"hf_token.weight has shape \(1, 256\), expected \(1, 16\)"):
        fresh()
    torch.save({**published(adapter), "more": Path("x")}, path)
    with pytest.raises(UnsafeFileError, match="holds more than tensors"):
        fresh()


# Training -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def case(load_file: Callable[[Path], ModuleType]) -> ModuleType:
    return load_file(Path(__file__).parents[1] / "training" / "training_case.py")


def test_two_domains_are_learnt_and_served_in_one_batch(case: ModuleType, tmp_path: Path) -> None:
    backbone = tiny_backbone()
    bright = case.write_samples(tmp_path / "bright")
    dark = [
        replace(sample, id=f"dark/{sample.id}")
        for sample in case.with_low_contrast(case.write_samples(tmp_path / "dark"))
    ]
    case.teach_decoder(backbone, bright)
    adapter = adapter_of(backbone)
    cache = PrefixCache(None, backbone, plan=adapter.plan)
    options = TrainParams(epochs=8, batch_size=5, lr=3e-3, loss="cosam", prompts="cosam", schedule="step")
    frozen = backbone.weights_digest()
    bank = base_bank(backbone.name, backbone.sha256, {}, _gaussian(), 0)
    modules = []
    for name, samples in (("bright", bright), ("dark", dark)):
        result = train_module(backbone, adapter, cache, samples, options, seed=0)
        if name == "dark":
            again = train_module(backbone, adapter, cache, samples[::-1], options, seed=0)
            assert all(torch.equal(value, again.tensors[key]) for key, value in result.tensors.items())
        assert result.curve[-1]["total"] < 0.8 * result.curve[0]["total"]
        modules.append(_module(name, adapter, backbone, result.tensors))
    assert backbone.weights_digest() == frozen
    for module in modules:
        module.save(tmp_path / "modules" / module.domain)
    stored = tuple(Module.load(tmp_path / "modules" / module.domain) for module in modules)
    stack = stack_modules(replace(bank, modules=stored), adapter)
    chosen = [bright[0], dark[0], bright[1]]
    index = torch.tensor([1, 2, 0])
    masks = _answer(backbone, adapter, cache, stack, chosen, index)
    for row, sample in enumerate(chosen):
        alone = _answer(backbone, adapter, cache, stack, [sample], index[row : row + 1])
        # Of norms: a batch of another size sums in another order.
        assert float((masks.logits[row] - alone.logits[0]).norm()) <= 1e-4 * float(alone.logits.norm())


def _gaussian() -> Any:
    from samcl_core.config import SelectorParams

    return SelectorParams(kind="gaussian", fallback="never")


def _module(name: str, adapter: HqDecoder, backbone: Backbone, tensors: dict[str, Tensor]) -> Module:
    about = {"data_digest": "0" * 64, "seed": 0, "code": "test", "metrics": {}}
    return Module(
        domain=name,
        kind=adapter.kind,
        parameters=adapter.parameters(),
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        split=backbone.site.blocks[0],
        tensors=tensors,
        **about,
    )


def _answer(
    backbone: Backbone,
    adapter: HqDecoder,
    cache: PrefixCache,
    stack: dict[str, Tensor],
    samples: list[Any],
    index: Tensor,
) -> Masks:
    from samcl_core.training import prompts_of

    prompts = prompts_of(samples)
    with torch.no_grad():
        return backbone.suffix(cache.get(samples), prompts, adapter.hooks(stack, prompts, index))
