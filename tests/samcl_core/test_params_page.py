"""docs/params.md names every option of params.yaml with the default and the range that the code has."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from samcl_core.config import PROFILES, DomainParams, ModuleParams, Params, StepParams, parse_params

PAGE = (Path(__file__).parents[2] / "docs" / "params.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([a-zA-Z0-9_.<>]+)` \| (.*?) \| (.*?) \| (.+?) \|$", re.MULTILINE)
TABLES = {"domains": DomainParams, "modules": ModuleParams, "stream": StepParams}
ROWS = {name: (default, limits, meaning) for name, default, limits, meaning in ROW.findall(PAGE)}


def options() -> Iterator[tuple[str, FieldInfo]]:
    for name, field in Params.model_fields.items():
        if name in TABLES:
            yield from ((f"{name}.<D>.{key}", inner) for key, inner in TABLES[name].model_fields.items())
        else:
            yield from options_of(name, field)


def options_of(name: str, field: FieldInfo) -> Iterator[tuple[str, FieldInfo]]:
    """The options of a section, and of the sections in it; anything else is an option itself."""
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        for key, inner in field.annotation.model_fields.items():
            yield from options_of(f"{name}.{key}", inner)
    else:
        yield name, field


OPTIONS = dict(options())


def shown(value: Any) -> str:
    """A value as it is written in params.yaml."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return "{}" if value == {} else str(value)


def default_of(name: str, field: FieldInfo) -> str:
    section, _, option = name.partition(".")
    values = [PROFILES[profile].get(section, {}).get(option) for profile in ("default", "reference")]
    if values[0] is not None:
        return f"`{shown(values[0])}`, reference `{shown(values[1])}`"
    return f"`{shown(field.get_default(call_default_factory=True))}`"


def kinds_of(annotation: Any) -> tuple[Any, ...]:
    """The parts of a union without ``None``; annotations that only carry limits are opened."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(kind for part in get_args(annotation) if part is not type(None) for kind in kinds_of(part))
    return kinds_of(get_args(annotation)[0]) if get_origin(annotation) is Annotated else (annotation,)


def limits_of(field: FieldInfo) -> str | None:
    """The range as the page writes it, ``None`` where it is text that the page explains."""
    kind, *others = kinds_of(field.annotation)
    if others:
        return None
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if kind is bool:
        return "`true`, `false`"
    if kind not in (int, float):
        return None
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    found = {
        sign: value for mark in field.metadata for sign in signs if (value := getattr(mark, sign, None)) is not None
    }
    return " and ".join(f"{signs[sign]} {found[sign]}" for sign in signs if sign in found)


def test_the_page_names_exactly_the_options() -> None:
    assert len(OPTIONS) > 40
    assert sorted(set(OPTIONS) - set(ROWS)) == [], "options that the page leaves out"
    assert sorted(set(ROWS) - set(OPTIONS)) == [], "options of the page that do not exist"
    assert len(ROW.findall(PAGE)) == len(ROWS), "an option is described twice"


@pytest.mark.parametrize("name", OPTIONS)
def test_default_and_range_are_right(name: str) -> None:
    default, limits, meaning = ROWS[name]
    assert default == default_of(name, OPTIONS[name])
    assert limits_of(OPTIONS[name]) in (None, limits)
    assert len(meaning) > 10


def test_the_example_is_valid() -> None:
    from ruamel.yaml import YAML

    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    params = parse_params(YAML(typ="safe", pure=True).load(example))
    assert params.steps() == ("Kvasir", "ISIC") and params.names("natural") == ("COCO",)
    assert params.train_of("ISIC").epochs == 40
