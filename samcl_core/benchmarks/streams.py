"""Benchmark streams: which domains, from where, in which orders. A stream is a YAML file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from samcl_core.config import DomainParams, Params, SourceParams, parse_params, problems_of, valid_domain_name
from samcl_core.domains.scenes import SCENES
from samcl_core.errors import ConfigError, DataError, UsageError

if TYPE_CHECKING:
    from samcl_core.benchmarks.methods import Method

__all__ = ["POSITIONS", "DomainSpec", "StreamSpec", "TrainedSpec", "built_in_streams", "check_data", "load_stream"]

POSITIONS = "positions"
"""Stands for all rotations of the default order: every domain at every position."""

_FOLDER = Path(__file__).parent / "streams"
_ROTATION = "rotate-"
_Name = Annotated[str, AfterValidator(valid_domain_name)]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DomainSpec(DomainParams):
    """One domain: drawn, or read from a folder as ``samcl ingest`` reads it, with the same options.

    Attributes:
        scene: name of the drawing function.
        path: the folder with the data; a relative one counts from where the data are.
        description: for captions, and for whoever has to put the data there.
    """

    scene: str | None = None
    path: str | None = None
    description: str = ""

    def problems(self, where: str) -> list[str]:
        """What is wrong with where the data come from."""
        if (self.scene is None) == (self.path is None):
            return [f"{where} has scene {self.scene!r} and path {self.path!r}, expected one of them"]
        if self.scene is None:
            return []
        surplus = [f"{where}.{name} goes with path, {where} is drawn" for name in self.source_options()]
        if self.scene not in SCENES:
            surplus.append(f"{where}.scene is {self.scene!r}, expected one of {', '.join(sorted(SCENES))}")
        return surplus

    def source_options(self) -> dict[str, Any]:
        """The options of ``samcl ingest`` that were given."""
        names = {"format", *SourceParams.model_fields}
        return {name: value for name in sorted(names & self.model_fields_set) if (value := getattr(self, name))}

    def identity(self) -> dict[str, Any]:
        """Everything that results depend on, as JSON values."""
        return self.model_dump(mode="json", exclude={"description", "label"}, exclude_defaults=True)


class TrainedSpec(BaseModel):
    """What differs for one kind of adapter or one strategy: its own options, and ``train``."""

    model_config = ConfigDict(extra="allow", frozen=True)

    train: dict[str, Any] = Field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """All but ``train``."""
        return dict(self.model_extra or {})


class StreamSpec(_Spec):
    """A stream.

    Attributes:
        name: short; names the output folder.
        title: one line for headings.
        size_px: side of drawn pictures.
        num_train: training pictures a drawn domain.
        num_test: test pictures a drawn domain.
        num_val: validation pictures a drawn domain that is learnt.
        val_frac: share of the training images for validation, where the data have no validation split.
        domains: by name.
        orders: name to the learnt domains in the order of arrival; ``default`` (the file's) and ``reverse`` are always
            there.
        params: sections of ``params.yaml`` that differ from their defaults; ``adapter`` means the AugModule.
        adapters: kind to its options and ``train``.
        strategies: registered strategy to its options and ``train``.
        data: where relative paths of domains count from; in a file it counts from there. No result depends on it.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    title: str
    size_px: int = Field(128, ge=32, le=4096)
    num_train: int = Field(300, ge=2)
    num_test: int = Field(60, ge=1)
    num_val: int = Field(0, ge=0)
    val_frac: float = Field(0.0, ge=0, lt=1)
    domains: dict[_Name, DomainSpec]
    orders: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    params: dict[str, Any] = Field(default_factory=dict)
    adapters: dict[str, TrainedSpec] = Field(default_factory=dict)
    strategies: dict[str, TrainedSpec] = Field(default_factory=dict)
    data: Path = Field(Path(), exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _has_orders(cls, values: Any) -> Any:
        """Fill in the two orders that are always there."""
        domains, orders = (values.get("domains"), values.get("orders") or {}) if isinstance(values, dict) else (0, 0)
        if not isinstance(domains, dict) or not isinstance(orders, dict):
            return values
        learnt = [name for name, domain in domains.items() if _role_of(domain) == "learn"]
        default = orders.get("default", learnt)
        reverse = list(reversed(default)) if isinstance(default, list | tuple) else default
        return {**values, "orders": {"default": default, "reverse": orders.get("reverse", reverse), **orders}}

    @model_validator(mode="after")
    def _fits_together(self) -> StreamSpec:
        learnt = sorted(self.names("learn"))
        problems = [line for name, domain in self.domains.items() for line in domain.problems(f"domains.{name}")]
        problems += [
            f"orders.{name} is {list(order)}, expected every learnt domain once: {learnt}"
            for name, order in self.orders.items()
            if sorted(order) != learnt
        ]
        problems += [] if learnt else ["domains: none has role learn, expected at least one"]
        problems += [
            f"orders.{name}: {POSITIONS} and {_ROTATION}N are made from the default order, expected another name"
            for name in self.orders
            if name == POSITIONS or name.startswith(_ROTATION)
        ]
        if (kind := self.params.get("adapter", {}).get("kind", "augmodule")) != "augmodule":
            problems.append(f"params.adapter.kind is {kind!r}; a strategy names it, as in naive@{kind}")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def names(self, role: str) -> tuple[str, ...]:
        """Names of the domains with ``role``, in the order of the file."""
        return tuple(name for name, domain in self.domains.items() if domain.role == role)

    @property
    def rotations(self) -> dict[str, tuple[str, ...]]:
        """``default`` and ``rotate-1``, ``rotate-2`` ...: together every domain at every position."""
        default = self.orders["default"]
        turned = {f"{_ROTATION}{k}": (*default[k:], *default[:k]) for k in range(1, len(default))}
        return {"default": default, **turned}

    def order(self, name: str) -> tuple[str, ...]:
        """The learnt domains in the order ``name``.

        Raises:
            UsageError: there is no such order.
        """
        known = {**self.rotations, **self.orders}
        if name not in known:
            listed = ", ".join((*self.orders, POSITIONS, *list(self.rotations)[1:]))
            raise UsageError(f"order {name} is unknown, expected some of {listed}")
        return known[name]

    def order_names(self, names: tuple[str, ...] | list[str]) -> tuple[str, ...]:
        """``names`` once each, with ``positions`` spelt out.

        Raises:
            UsageError: an order is unknown, or there is none.
        """
        if not names:
            raise UsageError(f"no order is given, expected some of {', '.join((*self.orders, POSITIONS))}")
        found = [each for name in names for each in (self.rotations if name == POSITIONS else (name,))]
        for name in found:
            self.order(name)
        return tuple(dict.fromkeys(found))

    def folder_of(self, domain: str) -> Path | None:
        """The folder that a domain is read from; ``None`` for a drawn one."""
        path = self.domains[domain].path
        return None if path is None else (self.data / Path(path).expanduser()).absolute()

    @property
    def is_drawn(self) -> bool:
        """Whether every domain is drawn."""
        return all(domain.scene is not None for domain in self.domains.values())

    def identity(self) -> dict[str, Any]:
        """What all results depend on, as JSON values; settings of single methods and orders are not in it."""
        values = self.model_dump(
            mode="json", include={"name", "size_px", "num_train", "num_test", "num_val", "val_frac"}
        )
        domains = {name: domain.identity() for name, domain in self.domains.items()}
        return {**values, "domains": domains, "params": self.params}

    def params_of(
        self, seed: int, profile: str = "default", device: str = "auto", method: Method | None = None
    ) -> Params:
        """The parameters of one seed: what ``params.yaml`` of a workspace with these domains would say.

        Args:
            seed: of everything random.
            profile: ``default`` or ``reference``; a method has its own.
            device: where to compute.
            method: whose adapter and training these are; ``None`` is the AugModule's.

        Raises:
            ConfigError: ``params``, ``adapters`` or ``strategies`` of the stream hold anything wrong.
        """
        values: dict[str, Any] = {**self.params, "profile": profile, "seed": seed, "device": device}
        if method is not None:
            values |= {"profile": method.profile, **self._trained(method)}
        if self.val_frac:
            values["ingest"] = {"val_frac": self.val_frac, **values.get("ingest", {})}
        values["domains"] = {name: self._declared(domain) for name, domain in self.domains.items()}
        values["modules"] = {name: {} for name in self.names("learn")}
        return parse_params(values, f"stream {self.name}")

    def _trained(self, method: Method) -> dict[str, Any]:
        """``adapter`` and ``train`` of a method: the stream's, then its adapter's, then its strategy's."""
        from samcl_core.benchmarks.methods import AUGMODULE
        from samcl_core.strategies.base import registered_strategies

        nothing = TrainedSpec()
        adapter, strategy = self.adapters.get(method.adapter, nothing), self.strategies.get(method.strategy, nothing)
        given = self.params.get("adapter", {}) if method.adapter == AUGMODULE else {}
        made_for = getattr(registered_strategies().get(method.strategy), "adapter", None) or {}
        return {
            "adapter": {"kind": method.adapter, **given, **adapter.options, **made_for},
            "train": {**self.params.get("train", {}), **adapter.train, **strategy.train},
        }

    def strategy_options(self, method: Method) -> dict[str, Any]:
        """Hyper-parameters of a method's strategy; where it can choose the epoch, the best on validation samples."""
        from samcl_core.strategies.base import registered_strategies

        builder: Any = registered_strategies()[method.strategy]
        given = self.strategies[method.strategy].options if method.strategy in self.strategies else {}
        known = {entry.name for entry in dataclasses.fields(builder)}
        return {"choose": "best_val", **given} if "choose" in known else given

    def settings(self, method: Method, *, is_whole: bool = True) -> dict[str, Any]:
        """Everything about a method that its results depend on, as JSON values; or only what is not a default."""
        from samcl_core.strategies.base import build_strategy

        if not method.strategy and not method.has_modules:
            return {}
        params = self.params_of(0, method=method)
        train = params.train.model_dump(mode="json", exclude_unset=not is_whole, exclude={"checkpoint_every_epochs"})
        sections = {"adapter": {"kind": method.adapter, **params.adapter.options()}, "train": train}
        if method.has_modules:
            return sections
        options = self.strategy_options(method)
        strategy: Any = build_strategy(method.strategy, **options)
        return {**sections, "strategy": dataclasses.asdict(strategy) if is_whole else options}

    def _declared(self, domain: DomainSpec) -> dict[str, Any]:
        values = {"role": domain.role, **domain.source_options()}
        if domain.scene is not None and domain.role == "learn" and self.num_val:
            values["val"] = self.num_val / (self.num_train + self.num_val)
        return values


def _role_of(domain: Any) -> str:
    if isinstance(domain, DomainSpec):
        return domain.role
    return str(domain.get("role", "learn")) if isinstance(domain, dict) else "learn"


def check_data(spec: StreamSpec) -> None:
    """See that the folders of all domains are there.

    Raises:
        DataError: some are not; all of them are listed with what is expected in them.
    """
    folders = {name: spec.folder_of(name) for name in spec.domains}
    missing = {name: folder for name, folder in folders.items() if folder is not None and not folder.is_dir()}
    if missing:
        lines = [
            f"  - {folder}: {name}" + (f", {text}" if (text := spec.domains[name].description) else "")
            for name, folder in missing.items()
        ]
        raise DataError(
            f"stream {spec.name}: {len(missing)} of {len(folders)} data folders are missing:\n" + "\n".join(lines),
            hint="put the data there, or give the folder that holds them all with --data DIR; "
            "docs/formats.md says how each may be laid out",
        )


def built_in_streams() -> tuple[str, ...]:
    """Names of the streams that come with the package."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def load_stream(name: str, data: Path | None = None) -> StreamSpec:
    """A built-in stream by name, or one of your own by the path of its YAML file.

    Args:
        name: name or path.
        data: where relative paths of domains count from; the folder of the file, or the current one for a built-in
            stream, when ``None``.

    Raises:
        UsageError: there is no such stream.
        ConfigError: the file is not YAML or holds anything wrong.
    """
    is_built_in = name in built_in_streams()
    path = _FOLDER / f"{name}.yaml" if is_built_in else Path(name)
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
        raise ConfigError(str(path), problems_of(exc), hint=f"correct {path}") from exc
    _check_params(spec, str(path))
    return spec.model_copy(update={"data": data or (Path() if is_built_in else path.parent) / spec.data})


def _check_params(spec: StreamSpec, where: str) -> None:
    from samcl_core.adapters import registered_adapters
    from samcl_core.benchmarks.methods import parse_method
    from samcl_core.strategies.base import build_strategy, registered_strategies

    problems = [
        f"{section}.{name} is unknown, expected one of {', '.join(known)}"
        for section, given, known in (
            ("adapters", spec.adapters, registered_adapters()),
            ("strategies", spec.strategies, tuple(registered_strategies())),
        )
        for name in given
        if name not in known
    ]
    if problems:
        raise ConfigError(where, problems, hint=f"correct {where}")
    spec.params_of(0)
    for kind in spec.adapters:
        spec.params_of(0, method=parse_method(f"oracle@{kind}"))
    for name, strategy in spec.strategies.items():
        build_strategy(name, **strategy.options)
        spec.params_of(0, method=parse_method(name))
