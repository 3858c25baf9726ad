"""Procedural pictures with one object each, by scene. Import registers every scene."""

from __future__ import annotations

from samcl_core.domains.scenes import medical, outdoors, surfaces
from samcl_core.domains.scenes.registry import SCENES, Drawing, Scene, register_scene

__all__ = ["SCENES", "Drawing", "Scene", "medical", "outdoors", "register_scene", "surfaces"]
