"""Modules and banks on disk: safetensors and JSON, every file with its digest, complete or absent."""

from __future__ import annotations

from samcl_core.bank.bank import Bank, describe_bank, verify_bank
from samcl_core.bank.exports import export_samcl
from samcl_core.bank.imports import import_samcl
from samcl_core.bank.module import Module
from samcl_core.bank.stack import stack_modules

__all__ = [
    "Bank",
    "Module",
    "describe_bank",
    "export_samcl",
    "import_samcl",
    "stack_modules",
    "verify_bank",
]
