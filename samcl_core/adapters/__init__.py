"""Adapters: what a module is made of, and what it does inside the frozen suffix of a backbone."""

from samcl_core.adapters.augmodule import AugModule, AugModuleConfig, build_augmodule
from samcl_core.adapters.base import (
    Adapter,
    ModuleTensors,
    build_adapter,
    gathered,
    register_adapter,
    registered_adapters,
)

__all__ = [
    "Adapter",
    "AugModule",
    "AugModuleConfig",
    "ModuleTensors",
    "build_adapter",
    "build_augmodule",
    "gathered",
    "register_adapter",
    "registered_adapters",
]
