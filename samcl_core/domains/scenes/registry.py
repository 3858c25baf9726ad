"""Scenes by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["SCENES", "Drawing", "Scene", "register_scene"]

Drawing: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.bool_]]
"""(S, S, 3) uint8 RGB image and (S, S) bool mask of its one object."""

Scene: TypeAlias = Callable[[np.random.Generator, int], Drawing]
"""Draw one image of a given side in pixels; everything random comes from the generator."""

SCENES: dict[str, Scene] = {}
"""Every scene by name."""


def register_scene(name: str) -> Callable[[Scene], Scene]:
    """Make a drawing function known as ``name``.

    Raises:
        ValueError: the name is taken.
    """

    def register(scene: Scene) -> Scene:
        if name in SCENES:
            raise ValueError(f"scene {name!r} is registered already")
        SCENES[name] = scene
        return scene

    return register
