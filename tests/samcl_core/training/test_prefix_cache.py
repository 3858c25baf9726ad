from __future__ import annotations

import os
import resource
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from samcl_core.backbones import Backbone, Prefix, tiny_sam2_backbone
from samcl_core.domains.images import load_image
from samcl_core.domains.layout import Sample
from samcl_core.errors import DataError
from samcl_core.training.prefix_cache import PrefixCache


class Told:
    """A progress callback that remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    def __call__(self, what: str, done: int, total: int) -> None:
        self.calls.append((what, done, total))

    @property
    def num_computed(self) -> int:
        return self.calls[-1][1] if self.calls else 0


def equal(a: Prefix, b: Prefix) -> bool:
    pairs = [(a.tokens, b.tokens), (a.embedding, b.embedding), *((a.side[k], b.side[k]) for k in a.side | b.side)]
    return all(torch.equal(x, y) for x, y in pairs)


def direct(backbone: Backbone, samples: list[Sample]) -> Prefix:
    pixels = [backbone.preprocess(load_image(sample.image)) for sample in samples]
    return Prefix.cat([backbone.prefix(one[None]) for one in pixels])


def stored(root: Path) -> list[Path]:
    return sorted(root.rglob("*.safetensors"))


def test_prefixes_equal_the_backbone_and_are_computed_once(
    tmp_path: Path, backbone: Backbone, samples: list[Sample]
) -> None:
    told = Told()
    first = PrefixCache(tmp_path / "cache", backbone).get(samples, told)
    assert equal(first, direct(backbone, samples))
    assert told.num_computed == len(samples) == len(stored(tmp_path / "cache"))
    again = PrefixCache(tmp_path / "cache", backbone).get(samples[::-1], told := Told())
    assert equal(again, first[list(range(len(samples)))[::-1]]) and not told.calls


def test_files_stand_where_documented(tmp_path: Path, backbone: Backbone, samples: list[Sample]) -> None:
    PrefixCache(tmp_path, backbone).get(samples[:1])
    (path,) = stored(tmp_path)
    assert path.name == f"{samples[0].image_sha256}.safetensors"
    assert path.parent.name == samples[0].image_sha256[:2]
    assert path.parents[2] == tmp_path


def test_bytes_do_not_depend_on_the_batch(tmp_path: Path, backbone: Backbone, samples: list[Sample]) -> None:
    PrefixCache(tmp_path / "a", backbone).get(samples)
    cache = PrefixCache(tmp_path / "b", backbone)
    cache.get(samples[3:5])
    cache.embeddings(samples[6:])
    cache.warm(samples[::-1])
    found = [{p.relative_to(root): p.read_bytes() for p in stored(root)} for root in (tmp_path / "a", tmp_path / "b")]
    assert found[0] == found[1]


def test_side_features_are_cached(tmp_path: Path, samples: list[Sample]) -> None:
    backbone = tiny_sam2_backbone()
    cache = PrefixCache(tmp_path, backbone)
    expected = direct(backbone, samples[:2])
    assert expected.side
    assert equal(cache.get(samples[:2]), expected)
    assert equal(PrefixCache(tmp_path, backbone).get(samples[:2]), expected)


def test_embeddings_equal_those_of_the_prefixes(tmp_path: Path, backbone: Backbone, samples: list[Sample]) -> None:
    cache = PrefixCache(tmp_path, backbone)
    missing = cache.embeddings(samples)
    assert torch.equal(missing, direct(backbone, samples).embedding)
    assert torch.equal(PrefixCache(tmp_path, backbone).embeddings(samples, told := Told()), missing)
    assert not told.calls
    assert cache.embeddings([]).shape == (0, backbone.site.dim)


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "foreign", "unreadable"])
def test_a_broken_file_is_computed_again(
    tmp_path: Path, backbone: Backbone, samples: list[Sample], damage: str
) -> None:
    expected = PrefixCache(tmp_path, backbone).get(samples[:1])
    (path,) = stored(tmp_path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    if damage == "unreadable":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes({"truncated": whole[:-9], "empty": b"", "flipped": flipped, "foreign": b"{}" * 99}[damage])
    cache = PrefixCache(tmp_path, backbone)
    assert equal(cache.get(samples[:1], told := Told()), expected)
    assert told.num_computed == 1
    if damage != "unreadable":
        assert path.read_bytes() == whole


def test_float16_is_stored_small_and_returned_wide(tmp_path: Path, backbone: Backbone, samples: list[Sample]) -> None:
    wide = PrefixCache(tmp_path / "wide", backbone)
    narrow = PrefixCache(tmp_path / "narrow", backbone, dtype="float16")
    computed = narrow.get(samples[:2])
    loaded = PrefixCache(tmp_path / "narrow", backbone, dtype="float16").get(samples[:2])
    assert equal(computed, loaded)
    assert computed.tokens.dtype == torch.float32
    expected = wide.get(samples[:2])
    assert torch.equal(computed.tokens, expected.tokens.half().float())
    assert torch.equal(computed.embedding, expected.embedding)
    sizes = [path.stat().st_size for root in ("wide", "narrow") for path in stored(tmp_path / root)[:1]]
    assert sizes[1] < 0.7 * sizes[0]


def test_another_backbone_or_dtype_never_shares_files(
    tmp_path: Path, backbone: Backbone, samples: list[Sample]
) -> None:
    PrefixCache(tmp_path, backbone).get(samples[:1])
    PrefixCache(tmp_path, backbone, dtype="float16").get(samples[:1], told := Told())
    assert told.num_computed == 1
    backbone.sha256 = "0" * 64
    PrefixCache(tmp_path, backbone).get(samples[:1], told := Told())
    assert told.num_computed == 1
    assert len({path.parents[1] for path in stored(tmp_path)}) == 3


def test_memory_holds_what_fits_and_saves_reading(tmp_path: Path, backbone: Backbone, samples: list[Sample]) -> None:
    cache = PrefixCache(tmp_path, backbone)
    first = cache.get(samples)
    for path in stored(tmp_path):
        path.unlink()
    assert equal(cache.get(samples, told := Told()), first) and not told.calls
    one_gb = stored_bytes(first) / len(samples) / 1e9
    small = PrefixCache(None, backbone, memory_gb=2.5 * one_gb)
    small.warm(samples[:2])
    small.get(samples[2:])
    small.get(samples[:2], told := Told())
    assert not told.calls  # the working set stays
    small.warm(samples[4:6])
    small.get(samples[4:6], told := Told())
    assert not told.calls  # a new one takes its place


def stored_bytes(prefix: Prefix) -> int:
    tensors = [prefix.tokens, prefix.embedding, *prefix.side.values()]
    return sum(tensor.numel() * 4 for tensor in tensors)


def test_what_is_returned_is_a_copy(backbone: Backbone, samples: list[Sample]) -> None:
    cache = PrefixCache(None, backbone)
    expected = cache.get(samples[:1])
    cache.get(samples[:1]).tokens.zero_()
    cache.embeddings(samples[:1]).zero_()
    assert equal(cache.get(samples[:1]), expected)


def test_same_image_twice_in_a_batch_is_computed_once(backbone: Backbone, samples: list[Sample]) -> None:
    twin = replace(samples[0], id="train/images/twin.png")
    prefix = PrefixCache(None, backbone).get([samples[0], twin, samples[0]], told := Told())
    assert told.num_computed == 1
    assert torch.equal(prefix.tokens[0], prefix.tokens[1]) and len(prefix) == 3


def test_least_recently_used_files_go_first(tmp_path: Path, backbone: Backbone, samples: list[Sample]) -> None:
    PrefixCache(tmp_path, backbone).get(samples[:4])
    paths = stored(tmp_path)
    by_key = {path.stem: path for path in paths}
    for age, sample in enumerate(samples[:4]):
        os.utime(by_key[sample.image_sha256], (1000 + age, 1000 + age))
    size = paths[0].stat().st_size
    cache = PrefixCache(tmp_path, backbone, max_gb=4.5 * size / 1e9)
    cache.get(samples[:1])  # the oldest is used now
    cache.get(samples[4:5], told := Told())
    left = {path.stem for path in stored(tmp_path)}
    kept = {samples[row].image_sha256 for row in (0, 3, 4)}
    assert kept <= left and samples[1].image_sha256 not in left
    assert told.calls[-1][0] == "computing frozen features"


def test_files_of_the_current_run_are_never_deleted(tmp_path: Path, backbone: Backbone, samples: list[Sample]) -> None:
    PrefixCache(tmp_path, backbone).get(samples[:1])
    size = stored(tmp_path)[0].stat().st_size
    told = Told()
    cache = PrefixCache(tmp_path, backbone, max_gb=2.5 * size / 1e9)
    first = cache.get(samples, told)
    assert {path.stem for path in stored(tmp_path)} == {sample.image_sha256 for sample in samples[:2]}
    assert sum("takes no more: full" in what for what, _, _ in told.calls) == 1
    again = cache.get(samples, told := Told())  # memory holds the rest
    assert equal(again, first) and not told.calls


def test_leftovers_of_killed_writers_are_deleted(tmp_path: Path, backbone: Backbone, samples: list[Sample]) -> None:
    old, young = tmp_path / "k" / "00" / ".a.tmp", tmp_path / "k" / "00" / ".b.tmp"
    old.parent.mkdir(parents=True)
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (1000, 1000))
    PrefixCache(tmp_path, backbone).get(samples[:1])
    assert not old.exists() and young.exists()


def test_a_full_disk_costs_the_files_and_not_the_run(
    tmp_path: Path, backbone: Backbone, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    told = Told()
    cache = PrefixCache(tmp_path / "cache", backbone)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # the kernel refuses longer files: EFBIG
    try:
        first = cache.get(samples[:3], told)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert equal(first, direct(backbone, samples[:3]))
    assert sum("cannot write below" in what for what, _, _ in told.calls) == 1
    assert not stored(tmp_path / "cache") and not list((tmp_path / "cache").rglob("*.tmp"))
    again = cache.get(samples[:3], told := Told())
    assert equal(again, first) and not told.calls


def test_warming_stops_when_nothing_can_be_kept(backbone: Backbone, samples: list[Sample]) -> None:
    cache = PrefixCache(None, backbone, memory_gb=1e-9)
    cache.warm(samples, told := Told())
    assert told.calls == [("computing frozen features", 1, len(samples))]
    assert equal(cache.get(samples), direct(backbone, samples))


def test_an_image_that_changed_is_refused(tmp_path: Path, backbone: Backbone, samples: list[Sample]) -> None:
    Image.new("RGB", (80, 64)).save(samples[0].image)
    with pytest.raises(DataError, match=r"0\.png changed since it was ingested"):
        PrefixCache(tmp_path, backbone).get(samples[:1])
    samples[0].image.unlink()
    with pytest.raises(DataError, match="no such file"):
        PrefixCache(tmp_path, backbone).warm(samples[:1])
    assert not stored(tmp_path)


def test_batches_ahead_of_a_gpu_give_the_same_features(backbone: Backbone, samples: list[Sample]) -> None:
    batched = PrefixCache(None, backbone, batch_size=3).get(samples, told := Told())
    assert [done for _, done, _ in told.calls] == [3, 6, 9, 10]
    torch.testing.assert_close(batched.tokens, direct(backbone, samples).tokens)


def test_several_users_share_the_files(tmp_path: Path, backbone: Backbone, samples: list[Sample]) -> None:
    expected = direct(backbone, samples)
    with ThreadPoolExecutor(4) as pool:
        caches = [PrefixCache(tmp_path, backbone) for _ in range(3)]
        found = list(pool.map(lambda cache: cache.get(samples), [*caches, caches[0]]))
    assert all(equal(prefix, expected) for prefix in found)
    assert len(stored(tmp_path)) == len(samples) and not list(tmp_path.rglob("*.tmp"))
