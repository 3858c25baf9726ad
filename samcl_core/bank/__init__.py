"""Modules and banks on disk: safetensors and JSON, every file with its digest, complete or absent."""

from __future__ import annotations

from samcl_core.bank.bank import Bank, verify_bank
from samcl_core.bank.describe import describe_bank
from samcl_core.bank.exports import export_samcl
from samcl_core.bank.imports import import_samcl
from samcl_core.bank.module import Module
from samcl_core.bank.packing import pack, unpack
from samcl_core.bank.resident import ModuleStack
from samcl_core.bank.stack import stack_modules

__all__ = [
    "Bank",
    "Module",
    "ModuleStack",
    "describe_bank",
    "export_samcl",
    "import_samcl",
    "pack",
    "stack_modules",
    "unpack",
    "verify_bank",
]
