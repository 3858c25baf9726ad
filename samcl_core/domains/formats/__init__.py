"""Source formats: how a data set is laid out when it arrives. One file a format, registered once."""

from __future__ import annotations

from samcl_core.domains.formats.base import (
    CARD,
    Format,
    ReadOptions,
    SourceImage,
    detect_format,
    format_names,
    get_format,
    register_format,
    unwrap,
)
from samcl_core.domains.formats.folders import FoldersFormat
from samcl_core.domains.formats.samcl import SamclFormat

__all__ = [
    "CARD",
    "FoldersFormat",
    "Format",
    "ReadOptions",
    "SamclFormat",
    "SourceImage",
    "detect_format",
    "format_names",
    "get_format",
    "register_format",
    "unwrap",
]

# Tried in this order: what is recognized by a file or folder of its own comes before what any folder could be.
register_format(SamclFormat())
register_format(FoldersFormat())
