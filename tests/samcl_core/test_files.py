"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from samcl_core import files
from samcl_core.errors import SamclError
from samcl_core.files import (
    canonical_json,
    copy_file,
    digest_files,
    digest_json,
    replace_folder,
    sha256_file,
    staged_folder,
    write_atomic,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def folder_with(folder: Path, **contents: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in contents.items():
        (folder / name).write_text(text)
    return folder


# Digests --------------------------------------------------------------------------------------------------------------


def test_sha256_of_a_file_larger_than_one_chunk(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(data)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def test_canonical_json_ignores_order_and_refuses_nan() -> None:
    assert canonical_json({"b": 1, "a": [1.5, "ü", None]}) == '{"a":[1.5,"ü",null],"b":1}'
    assert digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("nan")})


def test_digest_files_sees_every_file_but_gitignore(tmp_path: Path) -> None:
    folder_with(tmp_path / "bank" / "sub", inner="i")
    (tmp_path / "bank" / "a").write_text("a")
    (tmp_path / "bank" / ".gitignore").write_text("x")
    digests = digest_files(tmp_path / "bank")
    assert list(digests) == ["a", "sub/inner"]
    assert digests["a"] == hashlib.sha256(b"a").hexdigest()


# write_atomic ---------------------------------------------------------------------------------------------------------


def test_write_atomic_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "x.json"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["x.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_write_json_is_readable_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"b": "ü", "a": None})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n  "b": "ü",\n  "a": null\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "y.json", float("inf"))
    assert names(tmp_path) == ["x.json"]


def test_a_target_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    folder_with(tmp_path / "x", inside="kept")
    with pytest.raises(SamclError, match=r"cannot write .*x: .*\n  next: free disk space"):
        write_atomic(tmp_path / "x", b"data")
    assert names(tmp_path) == ["x"] and names(tmp_path / "x") == ["inside"]


def test_a_parent_that_is_a_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SamclError, match="cannot write"):
        write_atomic(tmp_path / "file" / "x", b"data")
    with pytest.raises(SamclError, match="cannot write"), staged_folder(tmp_path / "file" / "bank"):
        pytest.fail("the block must not run")


def run_limited(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``script`` where no file may grow beyond 64 KiB: writes fail as on a full disk (EFBIG instead of ENOSPC)."""
    head = """
        import resource, signal, sys
        from pathlib import Path
        from samcl_core.errors import SamclError
        from samcl_core.files import staged_folder, write_atomic
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        folder = Path(sys.argv[1])
    """
    text = textwrap.dedent(head) + textwrap.dedent(script)
    return subprocess.run([sys.executable, "-c", text, str(folder)], capture_output=True, text=True, timeout=60)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    script = """
        try:
            write_atomic(folder / "x", bytes(200_000))
        except SamclError as exc:
            print(exc)
    """
    done = run_limited(script, tmp_path)
    assert "cannot write" in done.stdout and os.strerror(errno.EFBIG) in done.stdout, done.stderr
    assert (tmp_path / "x").read_bytes() == b"old" and names(tmp_path) == ["x"]


def test_a_full_disk_leaves_the_old_folder(tmp_path: Path) -> None:
    folder_with(tmp_path / "bank", module="old")
    script = """
        try:
            with staged_folder(folder / "bank") as staging:
                (staging / "module").write_bytes(bytes(200_000))
        except SamclError as exc:
            print(exc)
    """
    done = run_limited(script, tmp_path)
    assert "cannot write" in done.stdout, done.stderr
    assert names(tmp_path) == ["bank"] and (tmp_path / "bank" / "module").read_text() == "old"


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    script = """
        import os
        os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
        write_atomic(folder / "x", b"new")
    """
    assert run_limited(script, tmp_path).returncode == -9
    assert (tmp_path / "x").read_bytes() == b"old"


# Folders --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("can_exchange", [True, False])
def test_replace_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool) -> None:
    if not can_exchange:
        monkeypatch.setattr(files, "_exchange", lambda source, target: False)
    replace_folder(folder_with(tmp_path / "one", a="1"), tmp_path / "deep" / "target")
    replace_folder(folder_with(tmp_path / "two", b="2"), tmp_path / "deep" / "target")
    assert names(tmp_path) == ["deep"] and names(tmp_path / "deep") == ["target"]
    assert names(tmp_path / "deep" / "target") == ["b"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is promised an exchange in one step")
def test_linux_exchanges_in_one_step(tmp_path: Path) -> None:
    one, two = folder_with(tmp_path / "one", a="1"), folder_with(tmp_path / "two", b="2")
    assert files._exchange(one, two)
    assert names(one) == ["b"] and names(two) == ["a"]


def test_staged_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "banks" / "Kvasir"
    with staged_folder(target) as staging:
        (staging / "bank.json").write_text("{}")
        assert not target.exists() and staging.parent == target.parent
    assert names(tmp_path / "banks") == ["Kvasir"] and names(target) == ["bank.json"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_block_leaves_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    target = folder_with(tmp_path / "bank", module="old")
    with pytest.raises(error), staged_folder(target) as staging:
        (staging / "module").write_text("new")
        raise error
    assert names(tmp_path) == ["bank"] and (target / "module").read_text() == "old"


def test_a_missing_input_is_not_reported_as_a_write_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"), staged_folder(tmp_path / "bank"):
        (tmp_path / "absent").read_bytes()
    assert names(tmp_path) == []


def test_an_error_inside_the_new_folder_is_a_write_error(tmp_path: Path) -> None:
    with (
        pytest.raises(SamclError, match=r"cannot write .*bank: No such file"),
        staged_folder(tmp_path / "bank") as staging,
    ):
        (staging / "absent" / "x").write_bytes(b"")
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["bank", "bank[1]"])
def test_leftovers_of_killed_runs_are_removed(tmp_path: Path, name: str) -> None:
    folder_with(tmp_path / f".{name}.k1ll3d.tmp", module="half")
    folder_with(tmp_path / ".other.k1ll3d.tmp", module="of another target")
    folder_with(tmp_path / f".{name}.old.abc" / name, module="surplus")
    folder_with(tmp_path / name, module="good")
    with staged_folder(tmp_path / name) as staging:
        (staging / "module").write_text("new")
    assert names(tmp_path) == [".other.k1ll3d.tmp", name]
    assert (tmp_path / name / "module").read_text() == "new"


def test_a_folder_moved_aside_by_a_killed_run_is_put_back(tmp_path: Path) -> None:
    folder_with(tmp_path / ".bank.old.abc" / "bank", module="last good")
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "bank"):
        raise RuntimeError
    assert names(tmp_path) == ["bank"] and (tmp_path / "bank" / "module").read_text() == "last good"


def test_a_killed_block_leaves_the_old_folder(tmp_path: Path) -> None:
    folder_with(tmp_path / "bank", module="old")
    script = """
        import os
        with staged_folder(folder / "bank") as staging:
            (staging / "module").write_text("new")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run_limited(script, tmp_path).returncode == -9
    assert (tmp_path / "bank" / "module").read_text() == "old"
    with staged_folder(tmp_path / "bank") as staging:
        (staging / "module").write_text("next")
    assert names(tmp_path) == ["bank"] and (tmp_path / "bank" / "module").read_text() == "next"


@pytest.mark.parametrize("size", [0, 1, 70_000])
def test_read_bytes_gives_a_file_whole(tmp_path: Path, size: int) -> None:
    (tmp_path / "x").write_bytes(os.urandom(size))
    assert files.read_bytes(tmp_path / "x") == (tmp_path / "x").read_bytes()


@pytest.mark.parametrize("name", ["folder", "absent"])
def test_read_bytes_fails_as_path_does(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as expected:
        (tmp_path / name).read_bytes()
    with pytest.raises(type(expected.value)) as found:
        files.read_bytes(tmp_path / name)
    assert str(found.value) == str(expected.value)


# Copies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 3 * (1 << 20) + 5])
@pytest.mark.parametrize("problem", [None, errno.EXDEV, errno.ENOSYS, "missing", "nothing copied"])
def test_a_copy_has_the_same_bytes_whatever_the_system_can_do(
    size: int, problem: int | str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        if isinstance(problem, int):
            raise OSError(problem, os.strerror(problem))
        return 0

    if problem == "missing":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    elif problem is not None:
        monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(size))
    copy_file(source, target)
    assert target.read_bytes() == source.read_bytes()


def test_a_copy_replaces_nothing_and_names_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        copy_file(source, target)
    assert target.read_bytes() == b"old"
    monkeypatch.setattr(os, "copy_file_range", full, raising=False)
    with pytest.raises(OSError) as caught:
        copy_file(source, tmp_path / "other")
    assert caught.value.errno == errno.ENOSPC
