"""The one exception tree. Every error says what is wrong, the value found, what was expected and the next command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "BackboneMismatch",
    "BankError",
    "CheckpointError",
    "CheckpointMismatch",
    "CheckpointMissing",
    "ConfigError",
    "DataError",
    "ImageError",
    "IntegrityError",
    "LayoutError",
    "PromptError",
    "SamclError",
    "TrainingError",
    "UnsafeFileError",
    "UsageError",
]


class SamclError(Exception):
    """Base of every error samcl raises on purpose.

    Attributes:
        message: what is wrong, with the value found and the value expected.
        hint: the next command or action to try; empty when there is none.
        exit_code: what the command line exits with: 1 failed, 2 usage.
    """

    exit_code: int = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = message
        self.hint = hint
        super().__init__(f"{message}\n  next: {hint}" if hint else message)

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors come back from worker processes; the default would call a subclass's __init__ with the message alone.
        return _rebuilt, (type(self), self.args), self.__dict__


def _rebuilt(cls: type[SamclError], args: tuple[Any, ...]) -> SamclError:
    error = cls.__new__(cls)
    error.args = args
    return error


class UsageError(SamclError):
    """The caller asked for something that cannot be: a wrong option, path or name."""

    exit_code = 2


class ConfigError(UsageError):
    """``params.yaml`` (or another configuration) is wrong. All problems at once, one line each."""

    def __init__(self, source: str, problems: Sequence[str], *, hint: str = "") -> None:
        self.source = source
        self.problems = tuple(problems)
        lines = "".join(f"\n  - {problem}" for problem in self.problems)
        super().__init__(f"{source}: {len(self.problems)} problem(s){lines}", hint=hint)


class PromptError(UsageError):
    """A point, label or box that cannot be used."""


class DataError(SamclError):
    """A data set cannot be used as it is."""


class LayoutError(DataError):
    """Files are not where the format expects them."""


class ImageError(DataError):
    """An image or mask cannot be read, or has an impossible size."""


class CheckpointError(SamclError):
    """Backbone weights cannot be used."""


class CheckpointMissing(CheckpointError):
    """The weights are not on this machine."""


class CheckpointMismatch(CheckpointError):
    """The weights are there and are not the expected ones (sha256, keys or shapes)."""


class TrainingError(SamclError):
    """Training cannot go on, for instance because the loss is not finite."""


class BankError(SamclError):
    """A module or bank cannot be used."""


class IntegrityError(BankError):
    """Files of a module or bank are missing, surplus or changed."""


class BackboneMismatch(BankError):
    """A module or bank was made for another backbone."""


class UnsafeFileError(SamclError):
    """A foreign file asks for something that could run code or escape its folder. Nothing was executed."""
