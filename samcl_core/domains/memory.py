"""What was measured of files before, by the digests of their bytes: data that came again is hashed and not decoded."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from samcl_core.config import SourceParams
from samcl_core.domains.checks import CheckParams, SampleFacts
from samcl_core.domains.facts import ImageFacts, MaskFacts, PointFacts
from samcl_core.domains.formats import SourceImage
from samcl_core.domains.validation import Measured
from samcl_core.errors import SamclError
from samcl_core.files import digest_json, write_atomic

__all__ = ["FileMemory"]

_VERSION = 2
_encode = json.JSONEncoder(separators=(",", ":")).encode


class FileMemory:
    """The ``Memory`` of one domain in a file of this machine. Safe to lose: what it lacks is measured again.

    Attributes:
        path: the file, JSON lines; the first one says what the measurements depend on beside the bytes.
        num_recalled: images that were not decoded.
    """

    def __init__(self, path: Path, options: SourceParams, threshold: int, checks: CheckParams) -> None:
        self.path = path
        self.num_recalled = 0
        split_free = options.model_dump(exclude={"test", "val", "group", "group_column", "max_samples"})
        self._basis = digest_json([_VERSION, split_free, threshold, checks.model_dump()])
        self._known = _lines_of(path, self._basis)
        self._used: dict[str, str] = {}
        self._lock = threading.Lock()

    def recall(self, source: SourceImage, facts: SampleFacts) -> list[Measured] | None:
        """The samples of an image by its digests, ``None`` where they are not known."""
        key = _key(source, facts)
        line = self._known.get(key)
        if line is None:
            return None
        try:
            found = [_from_json(value, facts) for value in json.loads(line)]
        except (ValueError, KeyError, TypeError):
            return None
        with self._lock:
            self._used[key] = line
            self.num_recalled += 1
        return found

    def keep(self, source: SourceImage, facts: SampleFacts, measured: Sequence[Measured]) -> None:
        """Remember the samples of an image."""
        line = _encode([_to_json(one) for one in measured])
        with self._lock:
            self._used[_key(source, facts)] = line

    def save(self) -> None:
        """Write what was kept or recalled since; the rest is forgotten. A disk that is full is no error here."""
        if self._used == self._known:
            return
        lines = [self._basis, *(f"{key} {line}" for key, line in sorted(self._used.items()))]
        try:
            write_atomic(self.path, ("\n".join(lines) + "\n").encode("ascii"))
        except (SamclError, OSError):
            return


def _lines_of(path: Path, basis: str) -> dict[str, str]:
    try:
        first, *lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return {}
    if first != basis:
        return {}
    return {key: rest for key, space, rest in (line.partition(" ") for line in lines) if space}


def _key(source: SourceImage, facts: SampleFacts) -> str:
    points = digest_json(source.points) if source.points is not None else ""
    return f"{facts.image_sha256}:{facts.mask_digest}:{points}:{int(source.is_negative)}"


def _to_json(measured: Measured) -> dict[str, Any]:
    facts = measured.facts
    image = facts.image
    return {
        "label": facts.label,
        "image_size": facts.image_size,
        "mask_size": facts.mask_size,
        "image": image and [image.contrast, image.hash, base64.b64encode(image.thumbnail).decode("ascii")],
        # ``asdict`` copies every value with care, and takes as long as the checks.
        "mask": facts.mask and vars(facts.mask),
        "points": facts.points and vars(facts.points),
        "sample": [
            measured.part,
            measured.orientation,
            measured.turn_mask,
            measured.keep_image,
            measured.keep_mask,
        ],
    }


def _from_json(value: dict[str, Any], facts: SampleFacts) -> Measured:
    image, mask, points = value["image"], value["mask"], value["points"]
    own = replace(
        facts,
        label=value["label"],
        image_size=tuple(value["image_size"]),
        mask_size=tuple(value["mask_size"]),
        image=image and ImageFacts(image[0], image[1], base64.b64decode(image[2])),
        mask=mask and MaskFacts(**mask),
        points=points and PointFacts(points["problem"], tuple(points["misses_px"])),
    )
    return Measured(own, *value["sample"])
