"""Benchmark streams: which domains, in which orders, drawn how large. A stream is a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from samcl_core.config import Params, parse_params, valid_domain_name
from samcl_core.domains.scenes import SCENES
from samcl_core.errors import ConfigError, UsageError

__all__ = ["DomainSpec", "StreamSpec", "built_in_streams", "load_stream"]

_FOLDER = Path(__file__).parent / "streams"
_Name = Annotated[str, AfterValidator(valid_domain_name)]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DomainSpec(_Spec):
    """One drawn domain.

    Attributes:
        scene: name of the drawing function.
        role: learnt in turn, the natural images, or never learnt.
        description: for captions.
    """

    scene: str
    role: Literal["learn", "natural", "unseen"] = "learn"
    description: str = ""


class StreamSpec(_Spec):
    """A stream.

    Attributes:
        name: short; names the output folder.
        title: one line for headings.
        size_px: side of the pictures.
        num_train: training pictures a domain.
        num_test: test pictures a domain.
        domains: by name.
        orders: name to the learnt domains in the order of arrival.
        params: sections of ``params.yaml`` that differ from their defaults.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    title: str
    size_px: int = Field(128, ge=32, le=4096)
    num_train: int = Field(300, ge=2)
    num_test: int = Field(60, ge=1)
    domains: dict[_Name, DomainSpec]
    orders: dict[str, tuple[str, ...]] = Field(min_length=1)
    params: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> StreamSpec:
        problems = [
            f"domains.{name}.scene is {domain.scene!r}, expected one of {', '.join(sorted(SCENES))}"
            for name, domain in self.domains.items()
            if domain.scene not in SCENES
        ]
        learnt = sorted(self.names("learn"))
        problems += [
            f"orders.{name} is {list(order)}, expected every learnt domain once: {learnt}"
            for name, order in self.orders.items()
            if sorted(order) != learnt
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def names(self, role: str) -> tuple[str, ...]:
        """Names of the domains with ``role``, in the order of the file."""
        return tuple(name for name, domain in self.domains.items() if domain.role == role)

    def params_of(self, seed: int, profile: str = "default", device: str = "auto") -> Params:
        """The parameters of one seed: what ``params.yaml`` of a workspace with these domains would say.

        Raises:
            ConfigError: ``params`` of the stream holds anything wrong.
        """
        values: dict[str, Any] = {**self.params, "profile": profile, "seed": seed, "device": device}
        values["domains"] = {name: {"role": domain.role} for name, domain in self.domains.items()}
        values["modules"] = {name: {} for name in self.names("learn")}
        return parse_params(values, f"stream {self.name}")


def built_in_streams() -> tuple[str, ...]:
    """Names of the streams that come with the package."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def load_stream(name: str) -> StreamSpec:
    """A built-in stream by name, or one of your own by the path of its YAML file.

    Raises:
        UsageError: there is no such stream.
        ConfigError: the file is not YAML or holds anything wrong.
    """
    built_in = _FOLDER / f"{name}.yaml"
    path = built_in if name in built_in_streams() else Path(name)
    if not path.is_file():
        raise UsageError(
            f"stream {name!r} is unknown, expected one of {', '.join(built_in_streams())}, or a YAML file",
            hint="docs/benchmarks.md shows how to write one",
        )
    try:
        values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        spec = StreamSpec.model_validate(values)
    except (YAMLError, UnicodeDecodeError) as exc:
        raise ConfigError(str(path), [f"not YAML: {exc}"]) from exc
    except ValidationError as exc:
        problems = [f"{'.'.join(map(str, error['loc']))}: {error['msg']}".lstrip(": ") for error in exc.errors()]
        raise ConfigError(str(path), problems, hint=f"correct {path}") from exc
    spec.params_of(0)
    return spec
