"""The images of a source, found by what annotation files call them, and by nothing that leads out of it."""

from __future__ import annotations

import posixpath
import re
import reprlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from samcl_core.domains.formats.base import SourceImage
from samcl_core.domains.formats.reading import Value, folders_of, safe_file, split_of_path
from samcl_core.domains.images import IMAGE_SUFFIXES
from samcl_core.errors import UnsafeFileError

__all__ = ["ImageIndex", "each_once", "plain_path"]

_MAX_DEPTH = 32
_IMAGE_FOLDERS = frozenset({"images", "image", "imgs", "img", "jpegimages"})
_DRIVE = re.compile(r"[a-z]:", re.IGNORECASE)


def plain_path(name: Value, base: PurePosixPath = PurePosixPath()) -> PurePosixPath:
    """A path of an annotation file, relative to the source's folder, without ``.`` and ``..``.

    Args:
        name: as the file says it; backslashes are slashes.
        base: folder below the source's that it is relative to.

    Raises:
        UnsafeFileError: absolute, or above the source's folder.
        DataError: not a text, or one that no file is called.
    """
    text = _slashes(name.text())
    if not text.strip() or any(ord(letter) < 32 for letter in text):
        raise name.wrong("the name of a file")
    path = posixpath.normpath(base.as_posix() + "/" + text)
    if text.startswith("/") or _DRIVE.match(text) or path == ".." or path.startswith("../"):
        raise UnsafeFileError(
            f"{name.file}: {name.place}: {reprlib.repr(name.value)} leads out of the folder of the data set",
            hint="expected a path below that folder; correct this file",
        )
    return PurePosixPath(path)


def _slashes(text: str) -> str:
    return text.replace("\\", "/")


class ImageIndex:
    """The image files below a folder, found by what annotation files call them. Links to folders are not followed."""

    def __init__(self, root: Path) -> None:
        """Walk through ``root`` once. Hidden files and folders are left out."""
        self.root = root
        self._by_name: dict[str, list[PurePosixPath]] = {}
        self._by_folder: dict[PurePosixPath, list[PurePosixPath]] = {}
        for folder, names in folders_of(root, _MAX_DEPTH):
            for name in names:
                if posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                    self._by_name.setdefault(name, []).append(folder / name)
                    self._by_folder.setdefault(folder, []).append(folder / name)

    def paths(self) -> list[PurePosixPath]:
        """All of them relative to the root, sorted."""
        return sorted(path for paths in self._by_name.values() for path in paths)

    def in_folder(self, folder: PurePosixPath) -> list[PurePosixPath]:
        """Those directly in a folder below the root, sorted."""
        return self._by_folder.get(folder, [])

    def find(
        self,
        name: Value,
        near: PurePosixPath = PurePosixPath(),
        *,
        split: str | None = None,
        prefer: Callable[[str], bool] = lambda folder: False,
    ) -> Path:
        """The image that an annotation file calls ``name``.

        That is the file at this path below ``near`` (where the annotation file is) or below the root, else the one
        file whose path ends so.

        Args:
            name: a path with or without folders.
            near: folder below the root.
            split: that the file is of; files in folders of another split do not count.
            prefer: where several files are called so, those with a folder that fulfils this count, then those in a
                folder for images.

        Returns:
            Its path; where there is no such image, the path at which it is missing.

        Raises:
            UnsafeFileError: the path or a link leads out of the root.
            DataError: not the name of a file, or several files fit.
        """
        beside = plain_path(name, near)
        plain = PurePosixPath(*(part for part in _slashes(name.text()).split("/") if part != ".."))
        fitting = [path for path in self._by_name.get(plain.name, ()) if path.parts[-len(plain.parts) :] == plain.parts]
        for exact in (beside, plain):
            if exact in fitting:
                return self.path_of(exact)
        fitting = [path for path in fitting if split_of_path(path) in (None, split or split_of_path(path))]
        for is_preferred in (prefer, lambda folder: folder.lower() in _IMAGE_FOLDERS):
            fitting = [path for path in fitting if any(map(is_preferred, path.parent.parts))] or fitting
        if len(fitting) > 1:
            shown = ", ".join(path.as_posix() for path in sorted(fitting)[:3])
            raise name.wrong(f"the path of one image; {len(fitting)} are called so: {shown}")
        if fitting:
            return self.path_of(fitting[0])
        return safe_file(self.root, self.root / (beside if beside.parent in self._by_folder else plain))

    def path_of(self, path: PurePosixPath) -> Path:
        """The file at a path of the index.

        Raises:
            UnsafeFileError: it is a link that leads out of the root.
        """
        found = self.root / path
        return safe_file(self.root, found) if found.is_symlink() else found


def each_once(entries: Iterable[tuple[Value, SourceImage]]) -> list[SourceImage]:
    """The images of annotation files that list each of theirs, with the entry that does.

    Raises:
        DataError: an image is listed twice.
    """
    images: dict[Path, SourceImage] = {}
    for entry, image in entries:
        assert image.image is not None
        if image.image in images:
            other = images[image.image].annotation
            assert other is not None
            raise entry.wrong(f"each image once; {other.files[0].name} has an entry of it before")
        images[image.image] = image
    return list(images.values())
