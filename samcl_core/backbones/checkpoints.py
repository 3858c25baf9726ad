"""Official checkpoints by name: where they are, how they come, and that they are the right bytes."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from samcl_core.errors import CheckpointError, CheckpointMismatch, CheckpointMissing, UnsafeFileError, UsageError
from samcl_core.files import sha256_file
from samcl_core.progress import Progress, silent

__all__ = [
    "KNOWN",
    "Checkpoint",
    "checkpoint_dir",
    "fetch",
    "is_present",
    "load_state",
    "locate",
    "read_state",
    "verified",
]

_SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
_SAM2_URL = "https://dl.fbaipublicfiles.com/segment_anything_2/092824/"
_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = (10.0, 60.0)
_ATTEMPTS = 3


@dataclass(frozen=True)
class Checkpoint:
    """One published file of weights.

    Attributes:
        name: the backbone it is for.
        url: where its authors serve it.
        sha256: digest of the file.
    """

    name: str
    url: str
    sha256: str

    @property
    def file(self) -> str:
        """The file's name, the same everywhere."""
        return self.url.rsplit("/", 1)[-1]


def _known(base: str, files: Mapping[str, tuple[str, str]]) -> dict[str, Checkpoint]:
    return {name: Checkpoint(name, base + file, sha256) for name, (file, sha256) in files.items()}


KNOWN: dict[str, Checkpoint] = {
    **_known(
        _SAM_URL,
        {
            "sam_vit_b": (
                "sam_vit_b_01ec64.pth",
                "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            ),
            "sam_vit_l": (
                "sam_vit_l_0b3195.pth",
                "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            ),
            "sam_vit_h": (
                "sam_vit_h_4b8939.pth",
                "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            ),
        },
    ),
    **_known(
        _SAM2_URL,
        {
            "sam2.1_hiera_tiny": (
                "sam2.1_hiera_tiny.pt",
                "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
            ),
            "sam2.1_hiera_small": (
                "sam2.1_hiera_small.pt",
                "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
            ),
            "sam2.1_hiera_base_plus": (
                "sam2.1_hiera_base_plus.pt",
                "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
            ),
            "sam2.1_hiera_large": (
                "sam2.1_hiera_large.pt",
                "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
            ),
        },
    ),
}
"""The official checkpoints (Apache-2.0), served by their authors."""


def checkpoint_dir() -> Path:
    """Folder of downloaded checkpoints: ``$SAMCL_CHECKPOINTS``, else ``samcl/checkpoints`` in the user's cache."""
    if chosen := os.environ.get("SAMCL_CHECKPOINTS"):
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "samcl" / "checkpoints"


def _entry(name: str) -> Checkpoint:
    if name not in KNOWN:
        raise UsageError(
            f"no checkpoint is called {name!r}, expected one of {list(KNOWN)}", hint="samcl checkpoints list"
        )
    return KNOWN[name]


def is_present(name: str) -> bool:
    """Whether the file of checkpoint ``name`` is in ``checkpoint_dir()`` (its digest is checked when it is loaded)."""
    return (checkpoint_dir() / _entry(name).file).is_file()


def locate(name: str) -> Path:
    """The downloaded file of checkpoint ``name``.

    Raises:
        UsageError: no such name.
        CheckpointMissing: it is not on this machine; the hint is the command that fetches it.
    """
    path = checkpoint_dir() / _entry(name).file
    if not path.is_file():
        raise CheckpointMissing(
            f"the weights of {name} are not on this machine (looked for {path})",
            hint=f"samcl checkpoints fetch {name}",
        )
    return path


def verified(path: Path, sha256: str) -> str:
    """``sha256``, after the bytes of ``path`` were found to have it.

    Raises:
        CheckpointMissing: there is no such file.
        CheckpointMismatch: it has another digest.
    """
    try:
        found = sha256_file(path)
    except OSError as exc:
        raise CheckpointMissing(
            f"checkpoint {path} cannot be read: {exc.strerror or exc}",
            hint="correct backbone.checkpoint in params.yaml",
        ) from exc
    if found != sha256:
        raise CheckpointMismatch(
            f"checkpoint {path} has sha256 {found}, expected {sha256}",
            hint=f"delete {path} and fetch it again, or correct backbone.sha256 (samcl checkpoints hash {path})",
        )
    return sha256


def read_state(path: Path) -> tuple[dict[str, Tensor], bool]:
    """Tensors of a checkpoint file by name, and whether they were trained. Nothing in the file is executed.

    ``.safetensors`` says so with ``is_pretrained: false`` in its metadata when they were not; every other file counts
    as trained. Of pickled files only tensors in plain containers are accepted (SAM 2 keeps them under ``model``).

    Raises:
        UnsafeFileError: a pickle that asks for anything but tensors.
        CheckpointMismatch: not a checkpoint, truncated, or without tensors.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        reason = str(exc).splitlines()[0] if str(exc) else "not a pickle of tensors"
        raise UnsafeFileError(
            f"checkpoint {path} holds more than tensors and was not loaded ({reason})",
            hint="convert it to .safetensors where you trust it",
        ) from exc
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as exc:
        raise CheckpointMismatch(f"checkpoint {path} cannot be read: {exc}") from exc
    if isinstance(found, dict) and isinstance(found.get("model"), dict):
        found = found["model"]
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointMismatch(f"checkpoint {path} holds {type(found).__name__}, expected tensors by name")
    return dict(found), True


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], bool]:
    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            metadata = stream.metadata() or {}
            state = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as exc:
        raise CheckpointMismatch(f"checkpoint {path} cannot be read: {exc}") from exc
    return state, metadata.get("is_pretrained", "true") != "false"


def load_state(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy ``state`` into ``module``: the same keys and shapes, none missing, none surplus.

    Raises:
        CheckpointMismatch: keys or shapes differ; nothing was copied.
    """
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    problems = [f"{key} is missing" for key in sorted(expected.keys() - found.keys())]
    problems += [f"{key} is unknown" for key in sorted(found.keys() - expected.keys())]
    problems += [
        f"{key} has shape {found[key]}, expected {shape}"
        for key, shape in sorted(expected.items())
        if key in found and found[key] != shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointMismatch(
            f"checkpoint {source} is for another network: {'; '.join(problems[:5])}{more}",
            hint="check that backbone.name and backbone.checkpoint belong together",
        )
    module.load_state_dict(dict(state))


def fetch(name: str, progress: Progress = silent, *, url: str | None = None) -> Path:
    """Download checkpoint ``name`` into ``checkpoint_dir()`` unless it is there; an interrupted download continues.

    The file takes its name only when it is whole and has the known sha256. ``progress`` counts bytes.

    Args:
        name: a key of ``KNOWN``.
        progress: told ``(file, bytes so far, bytes in all)``.
        url: a mirror that serves the same file.

    Raises:
        UsageError: no such name.
        CheckpointError: network, server or disk failed; what arrived is kept for the next try.
        CheckpointMismatch: the served file has another sha256; it was deleted.
    """
    entry = _entry(name)
    path = checkpoint_dir() / entry.file
    again = f"samcl checkpoints fetch {name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=0):
            if path.is_file() and sha256_file(path) == entry.sha256:
                return path
            part = path.with_name(f"{path.name}.part")
            _download(url or entry.url, part, progress)
            found = sha256_file(part)
            if found != entry.sha256:
                part.unlink()
                raise CheckpointMismatch(
                    f"{url or entry.url} has sha256 {found}, expected {entry.sha256}; it was deleted", hint=again
                )
            part.replace(path)
    except Timeout as exc:
        raise CheckpointError(f"another process is downloading {entry.file}", hint=f"wait, then {again}") from exc
    except requests.RequestException as exc:
        raise CheckpointError(
            f"cannot download {url or entry.url}: {exc}", hint=f"{again} (continues where it stopped)"
        ) from exc
    except OSError as exc:
        raise CheckpointError(
            f"cannot write {path}: {exc.strerror or exc}", hint=f"free the disk, then {again}"
        ) from exc
    return path


def _download(url: str, part: Path, progress: Progress) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            _continue_download(url, part, progress)
            return
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
            if attempt == _ATTEMPTS - 1:
                raise


def _continue_download(url: str, part: Path, progress: Progress) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            if _total(answer, 0) == have:
                return
            part.unlink()
            raise requests.ConnectionError(f"{part.name} was longer than the served file; it was deleted")
        answer.raise_for_status()
        resumed = answer.status_code == requests.codes.partial_content
        done = have if resumed else 0
        total = _total(answer, done)
        with part.open("ab" if resumed else "wb") as stream:
            for chunk in answer.iter_content(_CHUNK_BYTES):
                stream.write(chunk)
                done += len(chunk)
                progress(part.name.removesuffix(".part"), done, total)
    if total and done != total:
        raise requests.ConnectionError(f"the connection ended after {done} of {total} bytes")


def _total(answer: requests.Response, offset: int) -> int:
    """Bytes of the whole file, 0 when the server does not say."""
    size = answer.headers.get("Content-Range", "").rpartition("/")[2]
    if size.isdigit():
        return int(size)
    length = answer.headers.get("Content-Length", "")
    return offset + int(length) if length.isdigit() else 0
