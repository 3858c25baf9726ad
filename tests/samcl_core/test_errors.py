"""The exception tree: messages carry the next command, exit codes tell usage from failure."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from samcl_core import errors
from samcl_core.errors import ConfigError, SamclError, UsageError

CLASSES = [getattr(errors, name) for name in errors.__all__]


def test_every_class_is_in_the_one_tree_and_documented() -> None:
    assert len(CLASSES) == 15
    for found in CLASSES:
        assert issubclass(found, SamclError) and inspect.getdoc(found)


@pytest.mark.parametrize("found", CLASSES)
def test_exit_code_2_is_for_usage_alone(found: type[SamclError]) -> None:
    assert found.exit_code == (2 if issubclass(found, UsageError) else 1)


def test_message_and_hint() -> None:
    error = SamclError("rank is 0, expected 1 or more", hint="samcl init")
    assert (error.message, error.hint) == ("rank is 0, expected 1 or more", "samcl init")
    assert str(error) == "rank is 0, expected 1 or more\n  next: samcl init"
    assert str(SamclError("alone")) == "alone"


def test_config_error_lists_its_problems() -> None:
    error = ConfigError("params.yaml", ["one", "two"], hint="correct it")
    assert error.problems == ("one", "two") and error.source == "params.yaml"
    assert str(error) == "params.yaml: 2 problem(s)\n  - one\n  - two\n  next: correct it"


@pytest.mark.parametrize("found", CLASSES)
def test_errors_survive_the_way_back_from_another_process(found: type[SamclError]) -> None:
    error = found("params.yaml", ["bad"], hint="next") if found is ConfigError else found("bad", hint="next")  # type: ignore[call-arg]
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is found
        assert (str(again), again.message, again.hint) == (str(error), error.message, error.hint)
