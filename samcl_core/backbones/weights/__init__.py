"""Trained weights that ship with the package: ``<name>.safetensors``, its ``.json`` and its model card ``.md``."""

from __future__ import annotations

from pathlib import Path

__all__ = ["FOLDER"]

FOLDER = Path(__file__).parent
"""Where the files are."""
