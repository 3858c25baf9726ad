"""Settings of an AugModule."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

__all__ = ["AugModuleConfig"]

WindowHeatmap = Literal["crop", "shrink"]
NeckAxes = Literal["image", "transposed"]
PointLabels = Literal["signed", "ignored"]


@dataclass(frozen=True)
class AugModuleConfig:
    """How an AugModule works. The second value of each choice is what the published code does.

    Attributes:
        rank: width of the bottleneck, 10 in the paper.
        window_heatmap: what a windowed block sees of the prompt: ``crop``, its own part of the heat-map; ``shrink``,
            the whole heat-map shrunk to the window's size, the same in every window.
        neck_axes: ``image``, rows are y as everywhere; ``transposed``, rows are x at the neck.
        point_labels: ``signed``, background points cool the map; ``ignored``, they heat it like foreground points.
    """

    rank: int = 10
    window_heatmap: WindowHeatmap = "crop"
    neck_axes: NeckAxes = "image"
    point_labels: PointLabels = "signed"

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank is {self.rank!r}, expected a whole number of at least 1")
        for option, choice in {
            "window_heatmap": WindowHeatmap,
            "neck_axes": NeckAxes,
            "point_labels": PointLabels,
        }.items():
            found, expected = getattr(self, option), get_args(choice)
            if found not in expected:
                raise ValueError(f"{option} is {found!r}, expected one of {list(expected)}")

    @classmethod
    def of(cls, values: dict[str, Any]) -> AugModuleConfig:
        """A configuration from keyword values; ``None`` takes the default.

        Raises:
            ValueError: an unknown option, or a value outside its choices.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown options {unknown}, expected some of {[field.name for field in fields(cls)]}")
        return cls(**{key: value for key, value in values.items() if value is not None})

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)
