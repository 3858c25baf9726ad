"""MoDA's selector: what is trained, what it answers, what it stores."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from samcl_core.backbones import PrefixPlan, TokenBackbone, tiny_backbone, tiny_sam2_backbone
from samcl_core.config import SelectorParams, TokenParams
from samcl_core.errors import BankError, ConfigError, IntegrityError, UsageError
from samcl_core.selectors import (
    TokenEncoder,
    TokenSelector,
    empty_state,
    fit_state,
    fit_token_selector,
    load_selector,
    load_state,
    token_training,
)
from samcl_core.selectors.images import ImageBuffers, buffer_rows
from samcl_core.tensors import tensor_bytes

SIZE = 64
COLOURS = {"red": (200, 40, 40), "green": (40, 190, 60), "blue": (40, 60, 200), "white": (235, 235, 235)}
PARAMS = SelectorParams(kind="tokens", fallback="novelty", tokens=TokenParams(epochs=25))
TWO_PASS, FROZEN = TokenParams(form="two_pass"), TokenParams(frozen=True, epochs=25)


def images(name: str, num: int = 6, seed: int = 0) -> Tensor:
    """(num, 64, 64, 3) uint8: noise around a colour."""
    noise = np.random.default_rng([seed, *name.encode()]).integers(-30, 31, (num, SIZE, SIZE, 3))
    return torch.from_numpy(np.clip(noise + np.asarray(COLOURS[name]), 0, 255).astype(np.uint8))


def fitted(*names: str, natural: tuple[str, ...] = (), **more: Any) -> TokenSelector:
    backbone = more.pop("backbone", None) or tiny_backbone()
    return fit_token_selector(backbone, {n: images(n) for n in names}, {n: images(n) for n in natural}, **more)


def stored(selector: TokenSelector) -> tuple[str, bytes]:
    values, tensors = selector.state()
    return json.dumps(values), tensor_bytes(tensors)


def answers(selector: TokenSelector, name: str) -> list[int]:
    return selector.choose(selector.query(images(name, 8, seed=1))).index.tolist()


class TestAnswers:
    @pytest.mark.parametrize("options", [TokenParams(), TWO_PASS, FROZEN], ids=["one_pass", "two_pass", "frozen"])
    @pytest.mark.parametrize("backbone", [tiny_backbone, tiny_sam2_backbone])
    def test_domains_are_told_apart(self, options: TokenParams, backbone: Any) -> None:
        selector = fitted("red", "green", natural=("blue",), options=options, backbone=backbone())
        assert answers(selector, "red") == [0] * 8
        assert answers(selector, "green") == [1] * 8
        assert answers(selector, "blue") == [-1] * 8, "natural images get plain SAM"

    def test_strangers_get_plain_sam_unless_told_never(self) -> None:
        assert answers(fitted("red", "green"), "white") == [-1] * 8
        never = fitted("red", "green", fallback="never")
        assert set(answers(never, "white")) <= {0, 1}
        assert never.choose(never.query(images("white"))).novelty.tolist() == [0] * 6

    def test_one_domain_needs_no_training(self) -> None:
        selector = fitted("red")
        assert answers(selector, "red") == [0] * 8
        assert answers(selector, "white") == [-1] * 8

    def test_it_grows_with_the_domains(self) -> None:
        state = empty_state(PARAMS)
        encoder = TokenEncoder.of(tiny_backbone())
        for number, name in enumerate(("red", "green", "blue")):
            state = state.added(name, images(name), seed=0)
            selector = fit_state(state, PARAMS, 0, encoder)
            assert isinstance(selector, TokenSelector)
            assert selector.domains == tuple(COLOURS)[: number + 1]
            assert selector.logits(torch.zeros(1, 16)).shape == (1, number + 1)
            for row, known in enumerate(selector.domains):
                assert answers(selector, known) == [row] * 8

    def test_the_company_in_a_batch_does_not_matter(self) -> None:
        selector = fitted("red", "green", natural=("blue",))
        queries = torch.cat([selector.query(images(name, 3, seed=2)) for name in COLOURS])
        together = selector.choose(queries)
        for row in range(len(queries)):
            alone = selector.choose(queries[row : row + 1])
            assert alone.index[0] == together.index[row]
            assert alone.confidence[0] == together.confidence[row]

    def test_preprocessed_pixels_are_as_good_as_images(self) -> None:
        selector, backbone = fitted("red", "green"), tiny_backbone()
        pixels = torch.stack([backbone.preprocess(image.numpy()) for image in images("red")])
        assert torch.equal(selector.query(pixels), selector.query(images("red")))


class TestTraining:
    @pytest.mark.parametrize("options", [TokenParams(), TWO_PASS], ids=["one_pass", "two_pass"])
    def test_only_tokens_and_head_move(self, options: TokenParams) -> None:
        backbone = tiny_backbone()
        before = backbone.weights_digest()
        short = fitted("red", "green", options=options, backbone=backbone)
        long = fitted("red", "green", options=options.model_copy(update={"epochs": 11}), backbone=backbone)
        assert backbone.weights_digest() == before
        assert all(parameter.grad is None for parameter in backbone.module.parameters())
        moved = (short.tokens - long.tokens).abs().amax(1)
        assert bool((moved > 0).all()), "every token gets gradients"
        assert not torch.equal(short.state()[1]["weight"], long.state()[1]["weight"])

    def test_frozen_tokens_stay_as_they_were_drawn(self) -> None:
        first = fitted("red", "green", options=FROZEN)
        longer = fitted("red", "green", options=FROZEN.model_copy(update={"epochs": 26}))
        assert torch.equal(first.tokens, longer.tokens)
        assert not torch.equal(first.state()[1]["weight"], longer.state()[1]["weight"])
        assert not torch.equal(first.tokens, fitted("red", "green").tokens)

    @pytest.mark.parametrize("options", [TokenParams(), TWO_PASS, FROZEN], ids=["one_pass", "two_pass", "frozen"])
    def test_the_same_seed_gives_the_same_bytes(self, options: TokenParams) -> None:
        first, second, other = (fitted("red", "green", seed=seed, options=options) for seed in (0, 0, 1))
        assert stored(first) == stored(second)
        assert stored(first) != stored(other)

    def test_what_is_kept_in_memory_does_not_change_the_result(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kept = stored(fitted("red", "green"))
        monkeypatch.setattr(token_training, "_CACHE_BYTES", 0)
        assert stored(fitted("red", "green")) == kept

    def test_the_global_random_state_is_kept(self) -> None:
        torch.manual_seed(5)
        before = torch.get_rng_state()
        fitted("red", "green")
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_rate_that_is_too_high_is_named(self) -> None:
        with pytest.raises(BankError, match=r"diverged[\s\S]*selector.tokens.lr"):
            options = TokenParams.model_construct(**{**TokenParams().model_dump(), "lr": 1e30})
            fitted("red", "green", options=options)


class TestDepth:
    def test_it_follows_the_prefix(self) -> None:
        backbone = tiny_backbone()
        assert TokenEncoder.of(backbone).depth == backbone.site.blocks[0] == 2
        assert TokenEncoder.of(backbone, plan=PrefixPlan("encoder")).depth == 4
        assert TokenEncoder.of(backbone, "two_pass").depth == 4
        assert fitted("red", options=TokenParams(depth=1)).depth == 1

    def test_of_sam2_only_blocks_of_the_third_stage_count(self) -> None:
        backbone = tiny_sam2_backbone()
        assert backbone.token_blocks == range(3, 6)
        assert TokenEncoder.of(backbone).num_blocks == 1
        assert TokenEncoder.of(backbone, "two_pass").num_blocks == 3

    @pytest.mark.parametrize("depth", [5, 99])
    def test_there_is_no_deeper_than_the_encoder(self, depth: int) -> None:
        with pytest.raises(ConfigError, match=f"tokens.depth is {depth}, expected 1 to 4 for tiny"):
            TokenEncoder.of(tiny_backbone(), depth=depth)

    def test_two_passes_take_no_depth(self) -> None:
        with pytest.raises(ConfigError, match=r"tokens\.depth is 2 with the two-pass form"):
            TokenEncoder.of(tiny_backbone(), "two_pass", 2)

    def test_a_backbone_without_tokens_is_named(self) -> None:
        @dataclass
        class Other:
            name: str = "other"

        with pytest.raises(ConfigError, match="the backbone other takes no tokens"):
            TokenEncoder.of(Other())  # type: ignore[arg-type]


class TestStorage:
    @pytest.mark.parametrize("options", [TokenParams(), TWO_PASS], ids=["one_pass", "two_pass"])
    def test_a_selector_comes_back(self, options: TokenParams) -> None:
        selector = fitted("red", "green", natural=("blue",), options=options)
        values, tensors = selector.state()
        again = load_selector(json.loads(json.dumps(values)), tensors)
        assert isinstance(again, TokenSelector)
        with pytest.raises(BankError, match="found none"):
            again.query(images("red"))
        again.bound(tiny_backbone())
        assert stored(again) == stored(selector)
        queries = selector.query(images("green", seed=3))
        assert torch.equal(again.query(images("green", seed=3)), queries)
        assert torch.equal(again.choose(queries).confidence, selector.choose(queries).confidence)

    def test_a_damaged_selector_is_refused(self) -> None:
        values, tensors = fitted("red", "green").state()
        for wrong, parts in (
            (values, {**tensors, "weight": tensors["weight"][:1]}),
            (values, {name: tensor for name, tensor in tensors.items() if name != "tokens"}),
            ({**values, "form": "three_pass"}, tensors),
        ):
            with pytest.raises(IntegrityError, match="tokens selector is not whole"):
                load_selector(wrong, parts)

    def test_another_width_is_refused(self) -> None:
        selector = fitted("red", backbone=tiny_sam2_backbone())
        width = tiny_sam2_backbone().site.dim
        with pytest.raises(BankError, match=f"width {width}, the encoder of tiny has 16"):
            selector.bound(tiny_backbone())

    def test_buffers_keep_a_few_images(self) -> None:
        state = ImageBuffers(4).added("red", images("red", 9), seed=3)
        rows = buffer_rows(9, 4, "red", 3)
        assert len(rows) == 4 and rows == sorted(set(rows))
        assert torch.equal(state.classes["red"], images("red", 9)[rows])
        assert buffer_rows(9, 4, "red", 4) != rows or buffer_rows(9, 4, "green", 3) != rows
        direct = ImageBuffers(4).added("red", images("red", 9)[rows], seed=3)
        assert torch.equal(direct.classes["red"], state.classes["red"]), "the chosen ones are kept as they are"

    def test_buffers_come_back(self) -> None:
        state = empty_state(PARAMS).added("blue", images("blue", 3), seed=0, is_natural=True)
        state = state.added("red", images("red", 12), seed=0)
        assert isinstance(state, ImageBuffers) and len(state.classes["red"]) == 10
        values, tensors = state.state()
        again = load_state(json.loads(json.dumps(values)), tensors)
        assert isinstance(again, ImageBuffers)
        assert (again.size, again.natural, again.domains) == (10, ("blue",), ("red",))
        assert all(torch.equal(again.classes[name], state.classes[name]) for name in ("blue", "red"))
        assert state.class_bytes("red") >= 10 * SIZE * SIZE * 3
        assert state.shared_bytes > 0
        with pytest.raises(IntegrityError, match="another number of images"):
            load_state(values, {**tensors, "images.red": tensors["images.red"][:2]})


class TestWrongInput:
    @pytest.mark.parametrize(
        "wrong",
        [torch.zeros(3, 16), torch.zeros(2, SIZE, SIZE, 3), torch.zeros(0, SIZE, SIZE, 3, dtype=torch.uint8)],
        ids=["embeddings", "floats", "none"],
    )
    def test_images_of_a_class(self, wrong: Tensor) -> None:
        with pytest.raises(BankError, match="images of red are"):
            fit_token_selector(tiny_backbone(), {"red": wrong})

    def test_images_of_another_size(self) -> None:
        with pytest.raises(
            BankError, match=r"images of red are \(2, 32, 32, 3\) torch.uint8, expected \(n, 64, 64, 3\)"
        ):
            fit_token_selector(tiny_backbone(), {"red": torch.zeros(2, 32, 32, 3, dtype=torch.uint8)})

    def test_images_to_look_at(self) -> None:
        with pytest.raises(BankError, match=r"images are \(2, 32, 32, 3\)"):
            fitted("red").query(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))

    def test_no_domain(self) -> None:
        with pytest.raises(BankError, match="at least one learnt domain"):
            fit_token_selector(tiny_backbone(), {}, {"blue": images("blue")})

    def test_a_name_twice(self) -> None:
        with pytest.raises(BankError, match="already knows 'red'"):
            fitted("red", natural=("red",))

    def test_a_fit_without_a_backbone(self) -> None:
        state = empty_state(PARAMS).added("red", images("red"), seed=0)
        with pytest.raises(UsageError, match="found no encoder"):
            fit_state(state, PARAMS, 0)


def test_tokens_satisfy_the_protocol() -> None:
    assert isinstance(tiny_backbone(), TokenBackbone)
