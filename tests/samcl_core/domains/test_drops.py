"""Drops: what is one, when it is complete, what its card may say; and archives that want to do harm."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from samcl_core.config import Params, parse_params
from samcl_core.domains.archives import Limits, archive_stem, is_archive, unpack
from samcl_core.domains.drops import Card, Drop, Entry, Look, card_of, default_name, drops_in, next_look
from samcl_core.domains.splits import named_images
from samcl_core.domains.synthetic import write_domain
from samcl_core.errors import ConfigError, DataError, UnsafeFileError, UsageError
from samcl_core.stages.ingest import survey

MARKER = ".complete"


def folder(name: str, *files: str, time: float = 10.0) -> Entry:
    return Entry(name, True, dict.fromkeys(files, (5, time)))


def file(name: str, time: float = 10.0) -> Entry:
    return Entry(name, False, {"": (5, time)})


def only(*entries: Entry) -> Drop:
    (drop,) = drops_in(entries, MARKER)
    return drop


class TestCompleteness:
    def test_names_that_are_no_drops(self) -> None:
        names = (".hidden", "~lock", "x.zip.part", "x.crdownload", "README.md", "Thumbs.db", "Kvasir.done", "a.tmp")
        assert drops_in([file(name) for name in names], MARKER) == []

    def test_half_copied_then_complete(self) -> None:
        first, more = only(folder("A", "x.png")), only(folder("A", "x.png", "y.png"))
        look = next_look(None, first.entry.digest, 0, 5)
        assert not first.is_complete(look, 2)
        look = next_look(look, more.entry.digest, 10, 5)
        assert (look.num, more.is_complete(look, 2)) == (1, False)
        look = next_look(look, more.entry.digest, 20, 5)
        assert (look.num, more.is_complete(look, 2)) == (2, True)

    def test_size_time_and_names_change_the_digest(self) -> None:
        one = Entry("A", True, {"x": (1, 2.0)})
        others = [
            Entry("A", True, {"x": (2, 2.0)}),
            Entry("A", True, {"x": (1, 2.5)}),
            Entry("A", True, {"y": (1, 2.0)}),
        ]
        assert len({entry.digest for entry in (one, *others)}) == 4
        assert one.digest == Entry("A", True, {"x": (1, 2.0)}).digest

    def test_looks_that_come_close_count_once(self) -> None:
        look = next_look(next_look(None, "d", 0, 30), "d", 29, 30)
        assert look == Look("d", 1, 0)
        assert next_look(look, "d", 30, 30) == Look("d", 2, 30)
        # A clock that was set back starts again.
        assert next_look(look, "d", -5, 30) == Look("d", 1, -5)

    @pytest.mark.parametrize(
        ("entries", "marker"),
        [
            ([folder("A", "x.png"), file("A.done", 11)], "A.done"),
            ([file("A.tar.gz"), file("A.done", 10)], "A.done"),
            ([file("A.tar.gz"), file("A.tar.gz.done", 12)], "A.tar.gz.done"),
            ([Entry("A", True, {"x.png": (5, 10.0), MARKER: (0, 10.0)})], MARKER),
        ],
    )
    def test_a_marker_makes_complete_at_once(self, entries: list[Entry], marker: str) -> None:
        drop = only(*entries)
        assert drop.marker == marker
        assert drop.is_complete(next_look(None, drop.entry.digest, 0, 5), 2)
        assert MARKER not in drop.entry.files

    def test_a_marker_of_an_earlier_drop_does_not_count(self) -> None:
        drop = only(folder("A", "x.png", time=20), file("A.done", 10))
        assert drop.marker is None
        assert not drop.is_complete(Look(drop.entry.digest, 1, 0), 2)
        assert drop.is_complete(Look(drop.entry.digest, 2, 0), 2)

    def test_an_empty_folder_and_a_download_inside_are_not_complete(self) -> None:
        empty, loading = only(folder("A")), only(folder("A", "x.png", "y.png.part"))
        for drop, why in ((empty, "empty"), (loading, "being copied")):
            assert why in drop.waits_for
            assert not drop.is_complete(Look(drop.entry.digest, 9, 0), 2)


class TestCard:
    def write(self, folder: Path, text: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "domain.yaml").write_text(text)
        return folder

    def test_all_of_it_and_none_of_it(self, tmp_path: Path) -> None:
        text = "name: Kvasir\nrole: unseen\nformat: folders\nlabel: Polyps\ntest: 0.25\nnotes: two readers\n"
        expected = Card(name="Kvasir", role="unseen", format="folders", label="Polyps", test=0.25, notes="two readers")
        assert card_of(self.write(tmp_path, text)) == expected
        assert card_of(self.write(tmp_path, "# nothing yet\n")) == card_of(tmp_path / "absent") == Card()
        assert card_of(self.write(tmp_path, "test: x.jpg\n")).test == ("x.jpg",)

    def test_it_is_found_above_and_below_a_level_that_an_archive_added(self, tmp_path: Path) -> None:
        for number, level in enumerate(("", "Kvasir")):
            root = tmp_path / str(number)
            (root / "Kvasir" / "images").mkdir(parents=True)
            (root / "Kvasir" / "masks").mkdir()
            self.write(root / level, "name: Found\n")
            assert card_of(root).name == "Found"

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("role: teach\n", "role: .*found 'teach'"),
            ("nmae: X\n", r"nmae: unknown option \(value 'X'\)"),
            ("name: a/b\n", "'a/b': expected 1 to 64 letters"),
            ("test: 1.5\n", "test: expected a share .* found 1.5"),
            ("- a\n", "expected a mapping, found list"),
            ("name: [\n", "is not YAML"),
            ("notes: {a: {b: c}}\n", "notes: expected a text"),
            ("name: !!python/object:os.system x\n", "is not YAML"),
        ],
    )
    def test_what_is_wrong_is_said(self, tmp_path: Path, text: str, problem: str) -> None:
        with pytest.raises(ConfigError, match=problem) as caught:
            card_of(self.write(tmp_path, text))
        assert caught.value.message.startswith("domain.yaml: 1 problem")

    def test_every_problem_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            card_of(self.write(tmp_path, "role: teach\nname: raw\ntest: [1, 2]\nsize: 3\n"))
        assert len(caught.value.problems) == 3

    def test_names(self) -> None:
        assert default_name("My Set (v2).tar.gz") == "My_Set_v2"
        assert default_name("natural") == "natural_images"
        with pytest.raises(UsageError, match="raw"):
            default_name("raw.zip")

    def test_test_split_by_share_and_by_name(self, tmp_path: Path) -> None:
        source = tmp_path / "set"
        write_domain(tmp_path / "drawn", "polyp", 4, 1, 64, 0)
        (tmp_path / "drawn" / "train").rename(source)
        params: Params = parse_params({"version": 1, "ingest": {"test_frac": 0.25}})
        assert sum(pair.split == "test" for pair in survey(source, params).good) == 1
        self.write(source, "test: 0.5\n")
        assert sum(pair.split == "test" for pair in survey(source, params).good) == 2
        keys = sorted(pair.key for pair in survey(source, params).good)
        wanted = Path(keys[2]).stem
        self.write(source, f"test: ['{wanted}']\n")
        assert [pair.key for pair in survey(source, params).good if pair.split == "test"] == [keys[2]]
        self.write(source, "test: [nothing*]\n")
        with pytest.raises(DataError, match=r"'nothing\*', which is none of the 4 images"):
            survey(source, params)

    def test_patterns(self) -> None:
        keys = ["images/a_1.png", "images/a_2.png", "images/b.png"]
        assert named_images(keys, ["a_*", "images/b.png"]) == set(keys)
        assert named_images(keys, ["b.png"]) == {keys[2]}


def zipped(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, *entries: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for info, data in entries:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_link(path: Path) -> Path:
    info = zipfile.ZipInfo("images/link.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    return path


def encrypted(path: Path) -> Path:
    zipped(path, {"x.png": b"data"})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(data))
    return path


HOSTILE: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "zip-slip": ("a.zip", lambda p: zipped(p, {"../outside.txt": b"x"}), "'../outside.txt' leads out"),
    "zip-slip-deep": ("a.zip", lambda p: zipped(p, {"a/../../outside.txt": b"x"}), "leads out of the folder"),
    "zip-backslash": ("a.zip", lambda p: zipped(p, {"..\\outside.txt": b"x"}), "leads out of the folder"),
    "zip-absolute": ("a.zip", lambda p: zipped(p, {"/tmp/samcl_outside.txt": b"x"}), "leads out of the folder"),
    "zip-drive": ("a.zip", lambda p: zipped(p, {"C:/outside.txt": b"x"}), "leads out of the folder"),
    "zip-link": ("a.zip", zip_link, "is a link"),
    "zip-control": ("a.zip", lambda p: zipped(p, {"a\nb.png": b"x"}), "no file can have"),
    "zip-clash": ("a.zip", lambda p: zipped(p, {"a": b"x", "a/b": b"y"}), "twice"),
    "tar-slip": ("a.tar", lambda p: tarred(p, (entry("../outside.txt"), b"x")), "leads out of the folder"),
    "tar-absolute": ("a.tar", lambda p: tarred(p, (entry("/tmp/samcl_outside.txt"), b"x")), "leads out of the folder"),
    "tar-symlink": (
        "a.tar.gz",
        lambda p: tarred(p, (entry("out", tarfile.SYMTYPE, "/tmp"), b""), (entry("out/x"), b"x"), mode="w:gz"),
        "is a link, to '/tmp'",
    ),
    "tar-hardlink": ("a.tar", lambda p: tarred(p, (entry("x", tarfile.LNKTYPE, "/etc/passwd"), b"")), "is a link"),
    "tar-device": ("a.tar", lambda p: tarred(p, (entry("x", tarfile.CHRTYPE), b"")), "no plain file"),
    "tar-fifo": ("a.tar", lambda p: tarred(p, (entry("x", tarfile.FIFOTYPE), b"")), "no plain file"),
    "tar-twice": ("a.tar", lambda p: tarred(p, (entry("x"), b"1"), (entry("x"), b"2")), "'x' twice"),
}
LIMITS = Limits(max_bytes=10_000_000, max_files=50, max_ratio=20, free_bytes=100_000)


class TestArchives:
    @pytest.mark.parametrize("case", HOSTILE)
    def test_hostile_archives_write_nothing(self, tmp_path: Path, case: str) -> None:
        name, make, problem = HOSTILE[case]
        (tmp_path / "in").mkdir()
        archive = make(tmp_path / "in" / name)
        before = sorted(str(path) for path in tmp_path.rglob("*"))
        with pytest.raises(UnsafeFileError) as caught:
            unpack(archive, tmp_path / "in" / "out", LIMITS)
        assert problem in caught.value.message
        assert sorted(str(path) for path in tmp_path.rglob("*")) == before
        assert not Path("/tmp/samcl_outside.txt").exists()

    @pytest.mark.parametrize("name", ["bomb.zip", "bomb.tar.gz"])
    @pytest.mark.parametrize(
        ("limits", "problem"),
        [
            (Limits(max_bytes=400_000), "at least .* bytes unpacked, expected at most 400000"),
            (Limits(max_ratio=20, free_bytes=100_000), "for each of its"),
            (Limits(max_files=2), "more than 2 entries"),
        ],
    )
    def test_bombs_by_size_ratio_and_count(self, tmp_path: Path, name: str, limits: Limits, problem: str) -> None:
        zeros = bytes(250_000)
        if name.endswith(".zip"):
            archive = zipped(tmp_path / name, {f"{n}.png": zeros for n in range(4)})
        else:
            archive = tarred(tmp_path / name, *((entry(f"{n}.png"), zeros) for n in range(4)), mode="w:gz")
        with pytest.raises(UnsafeFileError, match=problem):
            unpack(archive, tmp_path / "out", limits)
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_a_size_that_lies_is_found_out(self, tmp_path: Path) -> None:
        archive = zipped(tmp_path / "a.zip", {"x.png": bytes(200_000)})
        data = bytearray(archive.read_bytes())
        for start, offset in ((data.index(b"PK\x03\x04"), 22), (data.index(b"PK\x01\x02"), 24)):
            data[start + offset : start + offset + 4] = (1000).to_bytes(4, "little")
        archive.write_bytes(bytes(data))
        with pytest.raises(DataError, match="cannot be unpacked"):
            unpack(archive, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_header_that_would_fill_the_memory(self, tmp_path: Path) -> None:
        huge = tarfile.TarInfo("././@PaxHeader")
        huge.type, huge.size = tarfile.XHDTYPE, 1 << 30
        with gzip.open(tmp_path / "a.tar.gz", "wb") as stream:
            stream.write(huge.tobuf(tarfile.USTAR_FORMAT))
        with pytest.raises(UnsafeFileError, match="header of"):
            unpack(tmp_path / "a.tar.gz", tmp_path / "out")

    @pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.bz2", "a.tar.xz"])
    @pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
    def test_a_cut_off_archive_is_refused(self, tmp_path: Path, name: str, share: float) -> None:
        whole = self.make(tmp_path / "whole" / name)
        data = whole.read_bytes()
        cut = tmp_path / name
        # The last one of the plain tar is cut exactly behind its last file: nothing but the end mark is missing.
        end = 6 * 3584 if name == "a.tar" and share > 0.9 else int(share * len(data))
        cut.write_bytes(data[:end])
        with pytest.raises(DataError) as caught:
            unpack(cut, tmp_path / "out")
        assert name in caught.value.message
        assert not (tmp_path / "out").exists()

    def make(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        files = {f"Kvasir/images/{n}.png": os.urandom(3000) for n in range(6)}
        if path.suffix == ".zip":
            return zipped(path, files)
        mode = {".tar": "w", ".gz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}[path.suffix]
        return tarred(path, *((entry(name), data) for name, data in files.items()), mode=mode)

    @pytest.mark.parametrize("name", ["a.zip", "A.TAR", "a.tar.gz", "a.tar.bz2", "a.tar.xz"])
    def test_good_archives_come_out_as_they_went_in(self, tmp_path: Path, name: str) -> None:
        files = {"K/images/ä 1.png": b"1", "K/masks/x.png": b"22", "__MACOSX/._x": b"junk", "K/.DS_Store": b"junk"}
        archive = tmp_path / name
        if name.endswith(".zip"):
            zipped(archive, files | {"K/empty/": b""})
        else:
            mode = {".tar": "w", ".gz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}[archive.suffix.lower()]
            tarred(archive, *((entry(file), data) for file, data in files.items()), mode=mode)
        assert is_archive(name)
        assert archive_stem(name).lower() == "a"
        assert unpack(archive, tmp_path / "out") == 2
        found = {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*.*")}
        assert found == {"K/images/ä 1.png": b"1", "K/masks/x.png": b"22"}

    @pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
    def test_no_archive_at_all(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"this is a text, whatever its name says " * 40)
        with pytest.raises(DataError, match=r"no such archive|damaged"):
            unpack(tmp_path / name, tmp_path / "out")

    def test_encrypted_and_empty(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="encrypted"):
            unpack(encrypted(tmp_path / "a.zip"), tmp_path / "out")
        with pytest.raises(DataError, match="holds no file"):
            unpack(zipped(tmp_path / "b.zip", {"K/": b""}), tmp_path / "out")
