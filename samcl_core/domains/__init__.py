"""Domains on disk: layout and manifest, images and masks, points, source formats, validation, procedural domains."""

from __future__ import annotations

from samcl_core.domains.formats import (
    Format,
    ReadOptions,
    SourceImage,
    detect_format,
    format_names,
    get_format,
    register_format,
)
from samcl_core.domains.images import image_size, load_image, load_mask
from samcl_core.domains.layout import SPLITS, Domain, Sample
from samcl_core.domains.manifest import Record, read_manifest, write_manifest
from samcl_core.domains.points import (
    box_of,
    read_boxes,
    read_points,
    reference_points,
    sample_points,
    write_boxes,
    write_points,
)

__all__ = [
    "SPLITS",
    "Domain",
    "Format",
    "ReadOptions",
    "Record",
    "Sample",
    "SourceImage",
    "box_of",
    "detect_format",
    "format_names",
    "get_format",
    "image_size",
    "load_image",
    "load_mask",
    "read_boxes",
    "read_manifest",
    "read_points",
    "reference_points",
    "register_format",
    "sample_points",
    "write_boxes",
    "write_manifest",
    "write_points",
]
