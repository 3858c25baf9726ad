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
from samcl_core.domains.formats.bsdata import BsdataFormat
from samcl_core.domains.formats.coco import CocoFormat
from samcl_core.domains.formats.cod10k import Cod10kFormat
from samcl_core.domains.formats.cvat import CvatFormat
from samcl_core.domains.formats.folders import FoldersFormat
from samcl_core.domains.formats.isic import IsicFormat
from samcl_core.domains.formats.istd import IstdFormat
from samcl_core.domains.formats.kvasir import KvasirFormat
from samcl_core.domains.formats.labelme import LabelmeFormat
from samcl_core.domains.formats.mvtec import MvtecFormat
from samcl_core.domains.formats.rsdds import RsddsFormat
from samcl_core.domains.formats.samcl import SamclFormat
from samcl_core.domains.formats.voc import VocFormat
from samcl_core.domains.formats.yolo import YoloFormat

__all__ = [
    "CARD",
    "BsdataFormat",
    "CocoFormat",
    "Cod10kFormat",
    "CvatFormat",
    "FoldersFormat",
    "Format",
    "IsicFormat",
    "IstdFormat",
    "KvasirFormat",
    "LabelmeFormat",
    "MvtecFormat",
    "ReadOptions",
    "RsddsFormat",
    "SamclFormat",
    "SourceImage",
    "VocFormat",
    "YoloFormat",
    "detect_format",
    "format_names",
    "get_format",
    "register_format",
    "unwrap",
]

# Tried in this order: data sets with a layout of their own, formats of annotation files, then what any folder could be.
register_format(SamclFormat())
register_format(MvtecFormat())
register_format(IsicFormat())
register_format(IstdFormat())
register_format(Cod10kFormat())
register_format(KvasirFormat())
register_format(RsddsFormat())
register_format(BsdataFormat())
register_format(CocoFormat())
register_format(VocFormat())
register_format(YoloFormat())
register_format(LabelmeFormat())
register_format(CvatFormat())
register_format(FoldersFormat())
