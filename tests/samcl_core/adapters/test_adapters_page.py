"""docs/adapters.md lists every kind, with its options and the sizes it really has."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import pytest
from segment_anything.modeling import MaskDecoder, TwoWayTransformer

from samcl_core.adapters import build_adapter, registered_adapters
from samcl_core.backbones import AdapterSite, load_nano

PAGE = (Path(__file__).parents[3] / "docs" / "adapters.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE, re.MULTILINE)
KINDS = [(kind, row.split(" | ")) for kind, row in ROWS if "arXiv" in row or "AugModule" in row]
SIZES = {kind: row.split(" | ")[:4] for kind, row in ROWS if re.match(r"[\d,]+ \|", row)}


@pytest.fixture(scope="module")
def sites() -> tuple[AdapterSite, AdapterSite]:
    """ViT-B's site from its published numbers, without building ViT-B; and that of ``sam_nano``."""
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    decoder = MaskDecoder(transformer_dim=256, transformer=transformer, iou_head_depth=3, iou_head_hidden_dim=256)
    vit_b = AdapterSite(
        dim=768,
        neck_dim=256,
        grid=64,
        blocks=(7, 8, 9, 10, 11),
        windows=(14, 0, 14, 14, 0),
        heads=12,
        sides={"patches": (64, 64, 768), "high_frequency": (3, 1024, 1024), "first_global": (64, 64, 768)},
        decoder={name: tuple(value.shape) for name, value in decoder.named_parameters()},
        decoder_dim=256,
    )
    return vit_b, load_nano().site


def test_every_kind_has_a_row_in_both_tables() -> None:
    assert [kind for kind, _ in KINDS] == list(registered_adapters())
    assert list(SIZES) == list(registered_adapters())


@pytest.mark.parametrize("kind", registered_adapters())
def test_sizes(kind: str, sites: tuple[AdapterSite, AdapterSite]) -> None:
    counts = [sum(map(math.prod, build_adapter(kind, site).shapes().values())) for site in sites]
    expected = [f"{number:,}" for count in counts for number in (count, 4 * count)]
    assert SIZES[kind] == expected


@pytest.mark.parametrize(("kind", "row"), KINDS, ids=[kind for kind, _ in KINDS])
def test_options_and_defaults(kind: str, row: list[str], sites: tuple[AdapterSite, AdapterSite]) -> None:
    config = getattr(build_adapter(kind, sites[0]), "config", None)
    options = [] if config is None else [field.name for field in dataclasses.fields(config)]
    assert re.findall(r"`(\w+)`(?: \(| *,|$|:)", row[2].replace(" (`sum`)", "")) == options
    for name, default in re.findall(r"`(\w+)` \((\d+)\)", row[2]):
        assert getattr(config, name) == int(default)
