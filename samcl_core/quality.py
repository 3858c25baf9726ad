"""Thresholds of the data checks: ``ingest.checks`` of ``params.yaml``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["CheckParams"]


class CheckParams(BaseModel):
    """What counts as wrong with a data set. ``docs/data-quality.md`` lists the checks."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model_px: int = Field(1024, ge=32, le=8192, description="long side of the picture that the model sees")
    min_thickness_px: float = Field(
        4.0, ge=0, description="thinner structures are reported, at model_px; SAM's mask grid has cells of 4"
    )
    min_part_frac: float = Field(
        0.1, gt=0, le=1, description="parts of a mask with a smaller share of its foreground are not measured"
    )
    max_foreground_frac: float = Field(0.999, gt=0, le=1, description="a mask with a larger share is full")
    max_grey_frac: float = Field(
        0.05, ge=0, le=1, description="share of a mask's object that may be neither black nor white, edges aside"
    )
    min_contrast: float = Field(2.0, ge=0, description="standard deviation of a picture's grey values, 0..255")
    min_side_px: int = Field(16, ge=1, description="pictures with a shorter side are reported")
    max_aspect: float = Field(40.0, ge=1, description="long side by short side of a picture")
    point_tolerance_px: float = Field(
        8.0, ge=0, description="how far a point may miss its mask, in the 1024 frame; edges of JPEG masks are blurred"
    )
    near_duplicates: bool = Field(True, description="compare all pictures of a domain with each other")
    max_hash_distance: int = Field(8, ge=0, le=32, description="bits of 64 in which near-duplicates may differ")
    min_correlation: float = Field(
        0.95, ge=0, le=1, description="of the details of two pictures, from which on they are near-duplicates"
    )
    min_samples: int = Field(20, ge=2, description="smaller domains have no statistics to judge")
    max_class_ratio: float = Field(50.0, ge=1, description="samples of the largest class by those of the smallest")
    max_median_foreground_frac: float = Field(0.6, gt=0, le=1, description="a larger median: masks may be inverted")
    min_median_foreground_frac: float = Field(0.0001, ge=0, lt=1, description="a smaller median: hardly any object")
