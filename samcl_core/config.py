"""``params.yaml`` as validated values. Everything wrong with it is collected and reported at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from samcl_core.errors import ConfigError
from samcl_core.quality import CheckParams

__all__ = [
    "PROFILES",
    "AdapterParams",
    "BackboneParams",
    "CacheParams",
    "DomainParams",
    "EvaluateParams",
    "InboxParams",
    "IngestParams",
    "ModuleParams",
    "Params",
    "PipelineParams",
    "PromotionParams",
    "PromptParams",
    "SelectorParams",
    "SourceParams",
    "StepParams",
    "TokenParams",
    "TrainParams",
    "VersioningParams",
    "load_params",
    "parse_params",
    "problems_of",
    "valid_domain_name",
]

DOMAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
RESERVED_NAMES = frozenset({"plain", "base", "none", "auto", "raw", "inbox", "rejected", "natural"})

PROFILES: dict[str, dict[str, dict[str, Any]]] = {
    # The published SAMCL code, number for number (METHOD: deviations 1-10). Each value is one named option.
    "reference": {
        "ingest": {"mask_threshold": 255},
        "prompts": {},
        "adapter": {"window_heatmap": "shrink", "neck_axes": "transposed", "point_labels": "ignored"},
        "train": {
            "schedule": "cosine_per_iteration",
            "upsampling": "nearest",
            "loss_reduction": "reference",
            "module_dtype": "float32",
            "precision": "float32",
        },
        "selector": {"kind": "mlp", "classes": "fixed", "fallback": "never", "min_steps": 0},
        "evaluate": {"upsampling": "nearest"},
        "cache": {"dtype": "float32"},
    },
    "default": {
        "ingest": {"mask_threshold": 128},
        "prompts": {},
        "adapter": {"window_heatmap": "crop", "neck_axes": "image", "point_labels": "signed"},
        "train": {
            "schedule": "cosine",
            "upsampling": "bilinear",
            "loss_reduction": "mean",
            "module_dtype": "float16",
            "precision": "auto",
        },
        "selector": {"kind": "gaussian", "classes": "growing", "fallback": "novelty", "min_steps": 300},
        "evaluate": {"upsampling": "bilinear"},
        "cache": {"dtype": "auto"},
    },
}
"""What a profile gives to options that ``params.yaml`` leaves at null."""


def valid_domain_name(name: str) -> str:
    """``name`` itself, when it can be a folder, a DVC stage key and a registry tag.

    Raises:
        ValueError: it is not 1 to 64 letters, digits, ``_`` or ``-``, or it is a reserved word.
    """
    if not DOMAIN_NAME.fullmatch(name):
        raise ValueError(
            f"domain name {name!r}: expected 1 to 64 letters, digits, '_' or '-', not starting with '_' or '-'"
        )
    if name.lower() in RESERVED_NAMES:
        raise ValueError(f"domain name {name!r} is reserved; reserved are {sorted(RESERVED_NAMES)}")
    return name


DomainName = Annotated[str, AfterValidator(valid_domain_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_SectionT = TypeVar("_SectionT", bound=_Section)
_TABLES = ("domains", "modules", "stream")


class BackboneParams(_Section):
    """Which frozen model. ``checkpoint`` (with its ``sha256``) overrides the named one."""

    name: str = "sam_nano"
    checkpoint: str | None = None
    sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _checkpoint_needs_digest(self) -> BackboneParams:
        if self.checkpoint is not None and self.sha256 is None:
            raise ValueError(
                "a checkpoint of your own needs its sha256 beside it; `samcl checkpoints hash FILE` prints it"
            )
        return self


class IngestParams(_Section):
    """How files become a domain."""

    mask_threshold: int | None = Field(None, ge=1, le=255, description="mask pixels >= this are foreground")
    test_frac: float = Field(0.2, gt=0, lt=1, description="share for the test split when the source has none")
    val_frac: float = Field(0.0, ge=0, lt=1, description="share of the training images for a source without val split")
    max_bad_frac: float = Field(0.2, ge=0, le=1, description="an arrival with a larger share of bad images fails")
    checks: CheckParams = CheckParams()


class PromptParams(_Section):
    """How prompts are drawn from masks."""

    num_points: int = Field(3, ge=1, le=64)
    num_background_points: int = Field(0, ge=0, le=64)
    boxes: bool = False
    keep_existing: bool = True


_AUGMODULE = "augmodule"


class AdapterParams(_Section):
    """Which module. Null options take the profile's value; other kinds than ``augmodule`` have options of their own."""

    model_config = ConfigDict(extra="allow")

    kind: str = _AUGMODULE
    rank: int = Field(10, ge=1, le=256)
    window_heatmap: Literal["crop", "shrink"] | None = None
    neck_axes: Literal["image", "transposed"] | None = None
    point_labels: Literal["signed", "ignored"] | None = None

    @model_validator(mode="after")
    def _options_fit_the_kind(self) -> AdapterParams:
        own = {"window_heatmap", "neck_axes", "point_labels"}
        given = {name for name in self.model_fields_set if getattr(self, name) is not None}
        unknown = sorted(self.model_extra or {}) if self.kind == _AUGMODULE else sorted(own & given)
        if unknown:
            raise ValueError("\n".join(f"{name}: unknown option of kind {self.kind!r}" for name in unknown))
        return self

    def options(self) -> dict[str, Any]:
        """What the kind's builder gets: every option of an ``augmodule``, of other kinds those that were given."""
        if self.kind == _AUGMODULE:
            return self.model_dump(exclude={"kind"})
        return self.model_dump(exclude={"kind"}, exclude_unset=True, exclude_none=True)


class TrainParams(_Section):
    """How one module is trained. The defaults are the paper's."""

    epochs: int = Field(20, ge=1, le=10_000)
    batch_size: int = Field(8, ge=1, le=4096)
    lr: float = Field(0.005, gt=0, le=10)
    lr_min: float = Field(1e-7, ge=0)
    warmup_frac: float = Field(0.0, ge=0, lt=1, description="share of all iterations with a linearly rising rate")
    schedule: Literal["cosine", "cosine_per_iteration", "constant", "step"] | None = None
    drop_epochs: int = Field(10, ge=1, description="epochs after which the rate falls to a tenth (step)")
    loss: Literal["samcl", "cosam"] = "samcl"
    prompts: Literal["stored", "cosam"] = "stored"
    upsampling: Literal["bilinear", "nearest"] | None = None
    loss_reduction: Literal["mean", "reference"] | None = None
    checkpoint_every_epochs: int = Field(1, ge=1)
    module_dtype: Literal["float32", "float16", "int8"] | None = Field(None, description="how a module is stored")
    precision: Literal["auto", "float32", "bfloat16", "float16"] | None = Field(None, description="of the suffix")
    accumulate: int = Field(1, ge=1, le=4096, description="parts of a batch that are computed one after the other")
    processes: int = Field(1, ge=1, le=64, description="that train one module together on this machine")

    @model_validator(mode="after")
    def _rate_falls(self) -> TrainParams:
        if self.lr_min > self.lr:
            raise ValueError(f"lr_min is {self.lr_min:g}, expected at most lr, which is {self.lr:g}")
        if self.accumulate * self.processes > self.batch_size:
            raise ValueError(
                f"accumulate is {self.accumulate} and processes is {self.processes}, expected a product of at most "
                f"batch_size, which is {self.batch_size}: every part needs an image"
            )
        return self


class TokenParams(_Section):
    """MoDA's tokens, the selector ``tokens``. The numbers are the paper's."""

    form: Literal["one_pass", "two_pass"] = "one_pass"
    num: int = Field(10, ge=1, le=256, description="the feature token and its assistants")
    depth: int | None = Field(None, ge=1, description="encoder blocks of the one-pass form; null: those of the prefix")
    frozen: bool = Field(False, description="tokens stay random, as in the released code")
    buffer_size: int = Field(10, ge=1, le=10_000, description="stored images per domain")
    epochs: int = Field(10, ge=1, le=10_000)
    batch_size: int = Field(4, ge=1, le=4096)
    lr: float = Field(0.001, gt=0, le=10)


class SelectorParams(_Section):
    """How the module is chosen from the embedding."""

    kind: Literal["mlp", "gaussian", "tokens"] = "mlp"
    buffer_size: int = Field(300, ge=1, le=100_000, description="stored embeddings per domain (mlp)")
    epochs: int = Field(25, ge=1)
    min_steps: int | None = Field(None, ge=0, description="with few images more epochs, until this many steps (mlp)")
    batch_size: int = Field(24, ge=2)
    lr: float = Field(0.01, gt=0)
    classes: Literal["growing", "fixed"] | None = None
    num_classes: int = Field(6, ge=2, le=10_000, description="outputs from the first domain on (fixed)")
    fallback: Literal["novelty", "never"] | None = None
    novelty_quantile: float = Field(0.99, gt=0, lt=1, description="share of a domain's own images inside its threshold")
    tokens: TokenParams = TokenParams()


class EvaluateParams(_Section):
    """How masks are scored."""

    batch_size: int = Field(8, ge=1, le=4096)
    prompts: Literal["stored", "box"] = "stored"
    upsampling: Literal["bilinear", "nearest"] | None = None
    resolution: Literal["model", "original"] = "model"
    boundary_frac: float = Field(
        0.02, gt=0, lt=0.5, description="band of the boundary IoU, share of the image diagonal"
    )


class CacheParams(_Section):
    """The prefix cache: frozen features, computed once per image."""

    enabled: bool = True
    max_gb: float = Field(20.0, gt=0)
    dtype: Literal["auto", "float32", "float16"] | None = None


class PromotionParams(_Section):
    """What a new bank must hold to become champion."""

    max_drop: float = Field(0.01, ge=0, le=1, description="IoU that a learnt domain may lose")
    max_natural_drop: float = Field(0.005, ge=0, le=1, description="IoU that natural images may lose")
    min_selector_accuracy: float = Field(0.9, ge=0, le=1, description="mean over the learnt domains")
    require_better_than_zero_shot: bool = True


class InboxParams(_Section):
    """Where data sets are dropped, and when a drop is taken."""

    url: str = Field("data/inbox", min_length=1, description="a folder, or any address that fsspec knows (s3://...)")
    interval_s: float = Field(60.0, gt=0, le=86_400, description="between two looks of `samcl deploy`")
    marker: str = Field(".complete", pattern=r"^[^/\\\s]+$", description="file in a folder that says it is complete")
    settle_looks: int = Field(2, ge=1, le=100, description="looks in a row that must find an unmarked drop unchanged")
    max_tries: int = Field(3, ge=1, le=100, description="failed arrivals of a good drop before it is put aside")
    max_parallel: int = Field(2, ge=1, le=64, description="arrivals at a time (samcl deploy)")
    max_gb: float = Field(100.0, gt=0, description="an archive's files, unpacked")
    max_files: int = Field(1_000_000, ge=1, description="an archive's entries")
    max_ratio: float = Field(200.0, gt=1, description="unpacked bytes for each byte of an archive, above 64 MiB")


class VersioningParams(_Section):
    """What an arrival leaves in git and on the DVC remote."""

    commit: bool | None = Field(None, description="null: only in a repository that `samcl init` made")
    push: bool = True
    remote: str | None = Field(None, description="null: DVC's default remote")


class PipelineParams(_Section):
    """Where the parts of several domains run side by side. No result depends on it."""

    runner: Literal["threads", "dask"] = "threads"
    max_parallel: int | None = Field(None, ge=1, le=256, description="null: one a GPU, at least 2")
    dask_address: str | None = Field(None, min_length=1, description="null: a cluster of this machine's processes")
    gpus: int | None = Field(None, ge=1, le=64, description="null: every CUDA device that is visible")


_ONE_GROUP = "expected a regular expression with exactly one group, such as '(patient\\d+)_'"
_COLUMN = "expected FILE:COLUMN, such as 'patients.csv:patient'"
Share = Annotated[float, Field(gt=0, lt=1)]
ImageNames = tuple[str, ...]


class SourceParams(_Section):
    """What a source's files do not say: which objects become samples, and how they are split. Null: not said.

    ``domain.yaml`` in a source and ``domains.<D>`` in ``params.yaml`` hold the same options; the latter win.
    """

    instances: Literal["union", "each"] | None = Field(None, description="a sample: an image, or one object of it")
    classes: tuple[str, ...] | None = Field(None, min_length=1, description="only objects of these classes")
    codes: dict[str, int | str] | None = Field(None, description="class to value, or '#rrggbb', in coded mask files")
    min_area_px: int | None = Field(None, ge=1, description="smaller objects are left out, in pixels of the image")
    max_samples: int | None = Field(None, ge=1, description="cap of each split")
    negatives: Literal["skip", "keep"] | None = Field(None, description="images that are said to hold no object")
    test: Share | ImageNames | None = Field(None, description="a share, or names of images; @FILE holds names")
    val: Share | ImageNames | None = Field(None, description="a share of the training images, or names as for test")
    group: str | None = Field(None, description=f"images of one group stay in one split; {_ONE_GROUP}")
    group_column: str | None = Field(None, description=f"the same from a table in the source; {_COLUMN}")

    @field_validator("group")
    @classmethod
    def _has_one_group(cls, pattern: str | None) -> str | None:
        try:
            num_groups = re.compile(pattern or "()").groups
        except re.error as exc:
            raise ValueError(f"{pattern!r} is no regular expression ({exc}); {_ONE_GROUP}") from exc
        if num_groups != 1:
            raise ValueError(f"{pattern!r} has {num_groups} groups; {_ONE_GROUP}")
        return pattern

    @field_validator("group_column")
    @classmethod
    def _names_a_column(cls, column: str | None) -> str | None:
        if column is not None and not all(column.rpartition(":")[::2]):
            raise ValueError(f"{column!r} names no column; {_COLUMN}")
        return column

    @field_validator("codes")
    @classmethod
    def _are_codes(cls, codes: dict[str, int | str] | None) -> dict[str, int | str] | None:
        for label, code in (codes or {}).items():
            if isinstance(code, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", code) is None:
                raise ValueError(f"{label}: {code!r}, expected a value from 0 to 65535 or a colour '#rrggbb'")
            if isinstance(code, int) and not 0 <= code <= 65535:
                raise ValueError(f"{label}: {code}, expected a value from 0 to 65535 or a colour '#rrggbb'")
        return codes

    def over(self, other: SourceParams) -> SourceParams:
        """These options, and the other's where these say nothing. Two ways to name groups count as one option."""
        said = {name: value for name in SourceParams.model_fields if (value := getattr(self, name)) is not None}
        below = {name: value for name in SourceParams.model_fields if (value := getattr(other, name)) is not None}
        if {"group", "group_column"} & set(said):
            below = {name: value for name, value in below.items() if name not in {"group", "group_column"}}
        return SourceParams.model_validate({**below, **said})


class DomainParams(SourceParams):
    """One data set of the workspace."""

    role: Literal["learn", "natural", "unseen"] = "learn"
    format: str = "auto"
    label: str | None = None


class ModuleParams(_Section):
    """Overrides of ``adapter`` and ``train`` for one domain alone."""

    adapter: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)


class StepParams(_Section):
    """One bank version: the bank of ``previous`` plus this domain's module. The first ``previous`` is ``base``."""

    previous: str = "base"
    fit: bool = Field(True, description="false: a step inside a back-fill, the next one with true fits for it, too")


class Params(_Section):
    """The whole of ``params.yaml``."""

    version: Literal[1] = 1
    profile: Literal["default", "reference"] = "default"
    seed: int = Field(0, ge=0, lt=2**32)
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    backbone: BackboneParams = BackboneParams()
    ingest: IngestParams = IngestParams()
    prompts: PromptParams = PromptParams()
    adapter: AdapterParams = AdapterParams()
    train: TrainParams = TrainParams()
    selector: SelectorParams = SelectorParams()
    evaluate: EvaluateParams = EvaluateParams()
    cache: CacheParams = CacheParams()
    promotion: PromotionParams = PromotionParams()
    inbox: InboxParams = InboxParams()
    versioning: VersioningParams = VersioningParams()
    pipeline: PipelineParams = PipelineParams()
    domains: dict[DomainName, DomainParams] = Field(default_factory=dict)
    modules: dict[DomainName, ModuleParams] = Field(default_factory=dict)
    stream: dict[DomainName, StepParams] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_profile(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        filled = {key: _without_nulls(key, value) for key, value in values.items() if value is not None}
        backbone = filled.get("backbone", {})
        is_sam2 = isinstance(backbone, dict) and str(backbone.get("name", "")).startswith("sam2")
        for section, options in PROFILES.get(str(filled.get("profile", "default")), {}).items():
            given = filled.get(section, {})
            if not isinstance(given, dict) or (section == "adapter" and given.get("kind", _AUGMODULE) != _AUGMODULE):
                continue
            # The published code changed the mask upsampling of SAM only; its SAM 2 path kept the official bilinear one.
            published = {"upsampling": "bilinear"} if is_sam2 and "upsampling" in options else {}
            filled[section] = {**options, **published, **given}
        return filled

    @model_validator(mode="after")
    def _names_agree(self) -> Params:
        roles = {name: domain.role for name, domain in self.domains.items()}
        previous = {name: step.previous for name, step in self.stream.items()}
        problems = _name_problems(roles, list(self.modules), previous) + _fit_problems(self.stream)
        for name, overrides in self.modules.items():
            for section, values in (("adapter", overrides.adapter), ("train", overrides.train)):
                problems += _override_problems(getattr(self, section), values, f"modules.{name}.{section}")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def adapter_of(self, domain: str) -> AdapterParams:
        """``adapter`` with the overrides of ``domain``."""
        return _overridden(self.adapter, self.modules[domain].adapter)

    def train_of(self, domain: str) -> TrainParams:
        """``train`` with the overrides of ``domain``."""
        return _overridden(self.train, self.modules[domain].train)

    def names(self, role: str) -> tuple[str, ...]:
        """Names of the domains with ``role``, in the order of the file."""
        return tuple(name for name, domain in self.domains.items() if domain.role == role)

    def steps(self) -> tuple[str, ...]:
        """Domains of the stream in the order of their arrival: step 1 first."""
        return tuple(self.stream)

    def fits(self) -> tuple[int, ...]:
        """Numbers of the steps that fit the selector, ascending: the rows of the R matrix beside row 0."""
        return tuple(number for number, step in enumerate(self.stream.values(), 1) if step.fit)


def _without_nulls(key: str, value: Any) -> Any:
    """A section without its null options; in the tables null entries (``Kvasir:``) are empty ones."""
    if not isinstance(value, dict):
        return value
    if key in _TABLES:
        return {name: {} if entry is None else _without_nulls("", entry) for name, entry in value.items()}
    return {name: entry for name, entry in value.items() if entry is not None}


def _name_problems(roles: Mapping[str, str], modules: Sequence[str], previous: Mapping[str, str]) -> list[str]:
    """What is wrong between the tables ``domains``, ``modules`` and ``stream``."""
    problems = []
    folded: dict[str, str] = {}
    for name in roles:
        if (other := folded.setdefault(name.lower(), name)) != name:
            problems.append(f"domains {other!r} and {name!r} differ only in case; some file systems cannot hold both")
    learnt = {name for name, role in roles.items() if role == "learn"}
    problems += [
        f"domains.{name} has role 'learn' but is not under modules; add `{name}: {{}}` there"
        for name in sorted(learnt - set(modules))
    ]
    problems += [f"modules.{name} is not under domains with role 'learn'" for name in sorted(set(modules) - learnt)]
    expected = "base"
    for name, found in previous.items():
        if name not in learnt:
            problems.append(f"stream.{name} is not under domains with role 'learn'")
        if found != expected:
            problems.append(f"stream.{name}.previous is {found!r}, expected {expected!r} (the step before it)")
        expected = name
    return problems


def _fit_problems(stream: Mapping[str, StepParams]) -> list[str]:
    last = list(stream)[-1] if stream else None
    if last is None or stream[last].fit:
        return []
    return [f"stream.{last}.fit is False, expected True: no later step would fit the selector for it"]


def _override_problems(section: _Section, values: Mapping[str, Any], where: str) -> list[str]:
    try:
        _overridden(section, values)
    except ValidationError as exc:
        return problems_of(exc, where)
    return []


def _overridden(section: _SectionT, values: Mapping[str, Any]) -> _SectionT:
    given = {key: value for key, value in values.items() if value is not None}
    return type(section).model_validate({**section.model_dump(exclude_unset=True), **given})


def problems_of(exc: ValidationError, prefix: str = "") -> list[str]:
    """What a validation found, one line each: the option, what is wrong, the value found."""
    lines = []
    for error in exc.errors():
        parts = [str(part) for part in error["loc"] if part != "[key]"]
        where = ".".join([prefix, *parts] if prefix else parts)
        start = f"{where}: " if where else ""
        if error["type"] == "value_error":
            lines += [f"{start}{part}" for part in str(error["ctx"]["error"]).split("\n")]
        elif error["type"] == "extra_forbidden":
            lines.append(f"{start}unknown option (value {error['input']!r})")
        else:
            lines.append(f"{start}{error['msg'][:1].lower()}{error['msg'][1:]}, found {error['input']!r}")
    return lines


def _table(values: Mapping[Any, Any], key: str) -> dict[str, dict[str, Any]]:
    """A table as far as it can be read: entries that are no mappings are empty."""
    table = values.get(key)
    if not isinstance(table, dict):
        return {}
    return {str(name): entry if isinstance(entry, dict) else {} for name, entry in table.items()}


def parse_params(values: Any, source: str = "params.yaml") -> Params:
    """Validated parameters from plain YAML values.

    Raises:
        ConfigError: anything is wrong; every problem is listed with the value found and the one expected.
    """
    if not isinstance(values, dict):
        raise ConfigError(source, [f"expected a mapping of sections, found {type(values).__name__}"])
    try:
        return Params.model_validate(values)
    except ValidationError as exc:
        problems = problems_of(exc)
        # With a bad value anywhere the model never compares the tables; the person still wants to know.
        roles = {name: str(entry.get("role", "learn")) for name, entry in _table(values, "domains").items()}
        previous = {name: str(entry.get("previous", "base")) for name, entry in _table(values, "stream").items()}
        also = _name_problems(roles, list(_table(values, "modules")), previous)
        problems += [problem for problem in also if problem not in problems]
        raise ConfigError(source, problems, hint=f"correct {source}; docs/params.md lists every option") from exc


def load_params(path: Path) -> Params:
    """Validated parameters of a ``params.yaml``.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds anything wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise ConfigError(str(path), ["the file does not exist"], hint="samcl init") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(str(path), [f"cannot be read: {exc}"]) from exc
    try:
        values = YAML(typ="safe", pure=True).load(text)
    except YAMLError as exc:
        raise ConfigError(str(path), [f"is not YAML: {' '.join(str(exc).split())}"]) from exc
    return parse_params(values if values is not None else {}, path.name)
