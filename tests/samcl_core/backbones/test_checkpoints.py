"""Checkpoints come whole or not at all, and only the right ones are loaded."""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from samcl_core.backbones import (
    KNOWN,
    SamBackbone,
    checkpoint_dir,
    fetch,
    is_present,
    load_backbone,
    locate,
    register_backbone,
    tiny_backbone,
)
from samcl_core.backbones import build as build_module
from samcl_core.backbones import checkpoints as checkpoints_module
from samcl_core.backbones.checkpoints import load_state, read_state, verified
from samcl_core.backbones.nano import _TINY, build_nano
from samcl_core.config import BackboneParams
from samcl_core.errors import (
    CheckpointError,
    CheckpointMismatch,
    CheckpointMissing,
    ConfigError,
    UnsafeFileError,
    UsageError,
)

BODY = bytes(range(256)) * 9000


@dataclass
class Served:
    """What the local server does."""

    body: bytes = BODY
    ranges: bool = True
    stop_after: int | None = None
    status: int = 200
    asked: list[str | None] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server() -> Iterator[Served]:
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            served.asked.append(wanted)
            if served.status != 200:
                self.send_error(served.status)
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and served.ranges else 0
            if start and start >= len(served.body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(served.body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(served.body) - 1}/{len(served.body)}")
            self.send_header("Content-Length", str(len(served.body) - start))
            self.end_headers()
            stop, served.stop_after = served.stop_after, None
            self.wfile.write(served.body[start:][:stop])

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        served.url = f"http://127.0.0.1:{http.server_port}/sam_vit_b_01ec64.pth"
        yield served
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAMCL_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setenv("NO_PROXY", "*")
    known = replace(KNOWN["sam_vit_b"], sha256=hashlib.sha256(BODY).hexdigest())
    monkeypatch.setitem(checkpoints_module.KNOWN, "sam_vit_b", known)
    return checkpoint_dir()


def test_the_table_is_complete() -> None:
    assert len(KNOWN) == 7
    assert all(len(entry.sha256) == 64 and entry.url.startswith("https://") for entry in KNOWN.values())
    assert KNOWN["sam2.1_hiera_tiny"].file == "sam2.1_hiera_tiny.pt"


def test_a_missing_checkpoint_says_how_to_get_it() -> None:
    assert not is_present("sam_vit_b")
    with pytest.raises(CheckpointMissing, match="samcl checkpoints fetch sam_vit_b"):
        locate("sam_vit_b")
    with pytest.raises(CheckpointMissing, match="samcl checkpoints fetch sam_vit_b"):
        load_backbone(BackboneParams(name="sam_vit_b"))
    with pytest.raises(UsageError, match="'sam_vit_x'"):
        locate("sam_vit_x")


def test_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SAMCL_CHECKPOINTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert checkpoint_dir() == tmp_path / "samcl" / "checkpoints"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert checkpoint_dir() == Path.home() / ".cache" / "samcl" / "checkpoints"


def test_fetch_reports_progress_and_is_done_once(server: Served) -> None:
    seen: list[tuple[str, int, int]] = []
    path = fetch("sam_vit_b", lambda *step: seen.append(step), url=server.url)
    assert path == locate("sam_vit_b")
    assert path.read_bytes() == BODY
    assert seen[-1] == ("sam_vit_b_01ec64.pth", len(BODY), len(BODY))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    fetch("sam_vit_b", url=server.url)
    assert len(server.asked) == 1


def test_fetch_continues_what_was_begun(server: Served, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "sam_vit_b_01ec64.pth.part").write_bytes(BODY[:1000])
    assert fetch("sam_vit_b", url=server.url).read_bytes() == BODY
    assert server.asked == ["bytes=1000-"]


def test_fetch_continues_after_a_broken_connection(server: Served) -> None:
    server.stop_after = 1_500_000
    assert fetch("sam_vit_b", url=server.url).read_bytes() == BODY
    assert server.asked[0] is None
    assert server.asked[1] is not None


def test_fetch_starts_over_where_the_server_cannot_continue(server: Served, folder: Path) -> None:
    server.ranges = False
    folder.mkdir(parents=True)
    (folder / "sam_vit_b_01ec64.pth.part").write_bytes(b"x" * 1000)
    assert fetch("sam_vit_b", url=server.url).read_bytes() == BODY


@pytest.mark.parametrize("begun", [BODY, BODY + b"surplus"], ids=["whole", "too long"])
def test_fetch_with_nothing_left_to_ask_for(server: Served, folder: Path, begun: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / "sam_vit_b_01ec64.pth.part").write_bytes(begun)
    assert fetch("sam_vit_b", url=server.url).read_bytes() == BODY


def test_a_file_with_another_digest_is_deleted(server: Served, folder: Path) -> None:
    server.body = b"not the checkpoint"
    with pytest.raises(CheckpointMismatch, match=hashlib.sha256(server.body).hexdigest()):
        fetch("sam_vit_b", url=server.url)
    assert not is_present("sam_vit_b")
    assert not list(folder.glob("*.part"))


def test_server_errors_are_mapped(server: Served) -> None:
    server.status = 404
    with pytest.raises(CheckpointError, match="404"):
        fetch("sam_vit_b", url=server.url)
    with pytest.raises(CheckpointError, match="cannot download"):
        fetch("sam_vit_b", url="http://127.0.0.1:9/sam_vit_b_01ec64.pth")


def test_two_downloads_of_one_file_exclude_each_other(server: Served, folder: Path) -> None:
    from filelock import FileLock

    folder.mkdir(parents=True)
    with FileLock(folder / ".sam_vit_b_01ec64.pth.lock"), pytest.raises(CheckpointError, match="another process"):
        fetch("sam_vit_b", url=server.url)


def test_changed_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    assert verified(path, digest) == digest
    path.write_bytes(b"abd")
    with pytest.raises(CheckpointMismatch, match=f"expected {digest}"):
        verified(path, digest)


class Attack:
    """Runs a command when it is unpickled carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    target, mark = tmp_path / "weights.pth", tmp_path / "ran"
    torch.save({"a": Attack(mark)}, target)
    with pytest.raises(UnsafeFileError, match="more than tensors"):
        read_state(target)
    target.write_bytes(pickle.dumps(Attack(mark), protocol=2))
    with pytest.raises(UnsafeFileError, match="more than tensors"):
        read_state(target)
    assert not mark.exists()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"model": {"a": torch.zeros(1000)}}, path)
    state, is_pretrained = read_state(path)
    assert is_pretrained
    assert list(state) == ["a"]
    path.write_bytes(path.read_bytes()[:-800])
    with pytest.raises(CheckpointMismatch, match=r"weights.pt cannot be read"):
        read_state(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointMismatch, match="holds list"):
        read_state(path)
    broken = tmp_path / "weights.safetensors"
    broken.write_bytes(b"\x08\x00")
    with pytest.raises(CheckpointMismatch, match=r"weights.safetensors cannot be read"):
        read_state(broken)


def test_only_the_same_keys_and_shapes_are_loaded() -> None:
    module = torch.nn.Linear(2, 3)
    before = module.weight.clone()
    with pytest.raises(CheckpointMismatch, match=r"bias is missing; surplus is unknown; weight has shape \(3, 3\)"):
        load_state(module, {"weight": torch.zeros(3, 3), "surplus": torch.zeros(1)}, "x.pth")
    assert torch.equal(module.weight, before)


@pytest.fixture(scope="module")
def own_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a user's own for the network registered as ``own_tiny``."""
    path = tmp_path_factory.mktemp("own") / "own.pth"
    state = {key: value + 0.5 for key, value in tiny_backbone().module.state_dict().items()}
    torch.save(state, path)
    save_file(state, path.with_suffix(".safetensors"), metadata={"is_pretrained": "false"})
    loader = partial(build_module._load_official, lambda name: build_nano(_TINY), SamBackbone)
    register_backbone("own_tiny", loader)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_checkpoint_of_ones_own(own_file: Path, suffix: str) -> None:
    path = own_file.with_suffix(suffix)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    backbone = load_backbone(BackboneParams(name="own_tiny", checkpoint=str(path), sha256=digest))
    assert backbone.sha256 == digest
    assert backbone.is_pretrained == (suffix == ".pth")
    assert backbone.weights_digest() != tiny_backbone().weights_digest()
    with pytest.raises(CheckpointMismatch, match="0000"):
        load_backbone(BackboneParams(name="own_tiny", checkpoint=str(path), sha256="0" * 64))


def test_unknown_names_and_devices() -> None:
    with pytest.raises(ConfigError, match="'sam_vit_x'"):
        load_backbone(BackboneParams(name="sam_vit_x"))
    with pytest.raises(UsageError, match="'cuda:99'"):
        load_backbone(BackboneParams(name="tiny"), "cuda:99")
    with pytest.raises(UsageError, match="'toaster'"):
        load_backbone(BackboneParams(name="tiny"), "toaster")
    with pytest.raises(ConfigError, match="takes none"):
        load_backbone(BackboneParams(name="tiny", checkpoint="x", sha256="0" * 64))
    with pytest.raises(ValueError, match="'tiny' is already registered"):
        register_backbone("tiny", lambda params: tiny_backbone())


@pytest.mark.gpu
def test_gpu_equals_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from samcl_core.backbones import Prompts

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    for name in ("tiny", "tiny_sam2", "sam_nano"):
        cpu = load_backbone(BackboneParams(name=name))
        pixels = torch.randn(2, 3, cpu.image_size, cpu.image_size, generator=torch.Generator().manual_seed(0))
        prompts = Prompts(torch.tensor([[[100.0, 200.0]], [[500.0, 900.0]]]), torch.ones(2, 1).long())
        expected = cpu.suffix(cpu.prefix(pixels), prompts, training=True)
        gpu = load_backbone(BackboneParams(name=name), "cuda")
        assert gpu.weights_digest() == cpu.weights_digest()
        found = gpu.suffix(gpu.prefix(pixels.cuda()), prompts.to("cuda"), training=True)
        torch.testing.assert_close(found.logits.cpu(), expected.logits, rtol=0, atol=1e-4)
