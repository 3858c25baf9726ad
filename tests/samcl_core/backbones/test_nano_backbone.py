"""``sam_nano``: untrained weights by name, trained weights from a file that says what they are for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from samcl_core.backbones import NanoConfig, SamBackbone, load_backbone, load_nano, save_nano, tiny_backbone
from samcl_core.backbones.nano import NANO, NANO_WEIGHTS, build_nano, nano_backbone
from samcl_core.config import BackboneParams
from samcl_core.errors import CheckpointMismatch, CheckpointMissing
from samcl_core.files import sha256_file


@pytest.fixture(scope="module")
def untrained() -> SamBackbone:
    return nano_backbone("sam_nano", NANO)


def test_untrained_weights_come_from_names(untrained: SamBackbone, tmp_path: Path) -> None:
    assert not untrained.is_pretrained
    assert untrained.sha256 == load_nano(tmp_path / "absent.safetensors").sha256
    assert untrained.sha256 == "9a0dd730c4d6" + untrained.sha256[12:]
    assert untrained.image_size == 128
    assert untrained.site.blocks == (4, 5, 6, 7)
    assert untrained.site.windows == (8, 0, 8, 0)
    assert float(untrained.module.image_encoder.pos_embed.abs().max()) > 0
    assert 1.0e6 < sum(parameter.numel() for parameter in untrained.module.parameters()) < 1.5e6


def test_what_ships_is_what_is_loaded(untrained: SamBackbone) -> None:
    """Also holds while no weights are shipped; then ``sam_nano`` is the untrained one and says so."""
    backbone = load_backbone(BackboneParams(name="sam_nano"))
    assert backbone.is_pretrained == NANO_WEIGHTS.is_file()
    if not backbone.is_pretrained:
        assert backbone.sha256 == untrained.sha256
        return
    assert backbone.sha256 == sha256_file(NANO_WEIGHTS) != untrained.sha256
    assert NANO_WEIGHTS.stat().st_size < 8e6
    about = json.loads(NANO_WEIGHTS.with_suffix(".json").read_text(encoding="utf-8"))
    assert about["scores"]["iou"]["natural"].keys() == {"3 points", "1 point", "box"}
    card = NANO_WEIGHTS.with_suffix(".md").read_text(encoding="utf-8")
    assert backbone.sha256 in card, "the model card is of another file"
    assert about["training"]["command"] in card


def test_trained_weights_are_loaded_and_named_by_their_file(untrained: SamBackbone, tmp_path: Path) -> None:
    sam = build_nano(NANO)
    path = tmp_path / "sam_nano.safetensors"
    digest = save_nano(sam, path, {"training": {"steps": 7}})
    loaded = load_nano(path)
    assert loaded.is_pretrained
    assert loaded.sha256 == digest == sha256_file(path)
    assert loaded.sha256 != untrained.sha256
    assert json.loads(path.with_suffix(".json").read_text())["training"] == {"steps": 7}
    again = load_backbone(BackboneParams(name="sam_nano", checkpoint=str(path), sha256=digest))
    assert again.weights_digest() == loaded.weights_digest()


def test_weights_are_kept_in_half_precision_and_used_in_single(tmp_path: Path) -> None:
    sam = build_nano(NANO)
    path = tmp_path / "sam_nano.safetensors"
    save_nano(sam, path)
    assert 2e6 < path.stat().st_size < 8e6
    loaded = load_nano(path).module
    for name, value in sam.state_dict().items():
        found = loaded.state_dict()[name]
        assert found.dtype == torch.float32
        assert torch.equal(found, value.half().float()), name
    assert save_nano(loaded, tmp_path / "again.safetensors") == sha256_file(path), "nothing is lost a second time"


def test_weights_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    sam = build_nano(NANO)
    with torch.no_grad():
        sam.get_parameter("image_encoder.neck.0.weight")[0, 0] = 7e4
    with pytest.raises(CheckpointMismatch, match=r"image_encoder\.neck\.0\.weight reaches 7e\+04, .* ends at 65504"):
        save_nano(sam, tmp_path / "sam_nano.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "sam_nano.safetensors"
    save_nano(build_nano(NANO), path)
    sidecar = path.with_suffix(".json")
    values = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**values, "config": NanoConfig(depth=6).as_json()}))
    with pytest.raises(CheckpointMismatch, match="'depth': 6"):
        load_nano(path)
    sidecar.write_text("{")
    with pytest.raises(CheckpointMismatch, match="does not hold the architecture"):
        load_nano(path)
    sidecar.unlink()
    with pytest.raises(CheckpointMismatch, match=r"sam_nano.json is missing"):
        load_nano(path)


def test_only_sam_nano_is_saved_as_sam_nano(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMismatch, match="another network"):
        save_nano(tiny_backbone().module, tmp_path / "sam_nano.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing, match=r"gone\.safetensors"):
        load_nano(tmp_path / "gone.safetensors", "0" * 64)
