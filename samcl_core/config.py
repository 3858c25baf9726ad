"""``params.yaml`` as validated values. Everything wrong with it is collected and reported at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from samcl_core.errors import ConfigError

__all__ = [
    "PROFILES",
    "AdapterParams",
    "BackboneParams",
    "CacheParams",
    "DomainParams",
    "EvaluateParams",
    "IngestParams",
    "ModuleParams",
    "Params",
    "PromptParams",
    "SelectorParams",
    "StepParams",
    "TrainParams",
    "load_params",
    "parse_params",
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
        "train": {"schedule": "cosine_per_iteration", "upsampling": "nearest", "loss_reduction": "reference"},
        "selector": {"classes": "fixed", "fallback": "never"},
        "evaluate": {"upsampling": "nearest"},
    },
    "default": {
        "ingest": {"mask_threshold": 128},
        "prompts": {},
        "adapter": {"window_heatmap": "crop", "neck_axes": "image", "point_labels": "signed"},
        "train": {"schedule": "cosine", "upsampling": "bilinear", "loss_reduction": "mean"},
        "selector": {"classes": "growing", "fallback": "novelty"},
        "evaluate": {"upsampling": "bilinear"},
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
    max_bad_frac: float = Field(0.2, ge=0, le=1, description="an arrival with a larger share of bad images fails")


class PromptParams(_Section):
    """How prompts are drawn from masks."""

    num_points: int = Field(3, ge=1, le=64)
    num_background_points: int = Field(0, ge=0, le=64)
    boxes: bool = False
    keep_existing: bool = True


class AdapterParams(_Section):
    """Which module. Null options take the profile's value."""

    kind: str = "augmodule"
    rank: int = Field(10, ge=1, le=256)
    window_heatmap: Literal["crop", "shrink"] | None = None
    neck_axes: Literal["image", "transposed"] | None = None
    point_labels: Literal["signed", "ignored"] | None = None


class TrainParams(_Section):
    """How one module is trained. The defaults are the paper's."""

    epochs: int = Field(20, ge=1, le=10_000)
    batch_size: int = Field(8, ge=1, le=4096)
    lr: float = Field(0.005, gt=0, le=10)
    lr_min: float = Field(1e-7, ge=0)
    warmup_frac: float = Field(0.0, ge=0, lt=1, description="share of all iterations with a linearly rising rate")
    schedule: Literal["cosine", "cosine_per_iteration", "constant"] | None = None
    upsampling: Literal["bilinear", "nearest"] | None = None
    loss_reduction: Literal["mean", "reference"] | None = None
    checkpoint_every_epochs: int = Field(1, ge=1)


class SelectorParams(_Section):
    """How the module is chosen from the embedding."""

    kind: Literal["mlp", "gaussian"] = "mlp"
    buffer_size: int = Field(300, ge=1, le=100_000, description="stored embeddings per domain (mlp)")
    epochs: int = Field(25, ge=1)
    batch_size: int = Field(24, ge=2)
    lr: float = Field(0.01, gt=0)
    classes: Literal["growing", "fixed"] | None = None
    fallback: Literal["novelty", "never"] | None = None
    novelty_quantile: float = Field(0.99, gt=0, lt=1, description="share of a domain's own images inside its threshold")


class EvaluateParams(_Section):
    """How masks are scored."""

    batch_size: int = Field(8, ge=1, le=4096)
    upsampling: Literal["bilinear", "nearest"] | None = None
    resolution: Literal["model", "original"] = "model"
    boundary_frac: float = Field(
        0.02, gt=0, lt=0.5, description="band of the boundary IoU, share of the image diagonal"
    )


class CacheParams(_Section):
    """The prefix cache: frozen features, computed once per image."""

    enabled: bool = True
    max_gb: float = Field(20.0, gt=0)
    dtype: Literal["float32", "float16"] = "float32"


class DomainParams(_Section):
    """One data set of the workspace."""

    role: Literal["learn", "natural", "unseen"] = "learn"
    format: str = "auto"
    label: str | None = None


class ModuleParams(_Section):
    """Overrides of ``adapter`` and ``train`` for one domain alone."""

    adapter: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)


class StepParams(_Section):
    """One bank version: the bank of ``previous`` plus this domain's module. The first step's ``previous`` is ``base``."""

    previous: str = "base"


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
    domains: dict[DomainName, DomainParams] = Field(default_factory=dict)
    modules: dict[DomainName, ModuleParams] = Field(default_factory=dict)
    stream: dict[DomainName, StepParams] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_profile(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        filled = dict(values)
        backbone = filled.get("backbone") or {}
        is_sam2 = isinstance(backbone, dict) and str(backbone.get("name", "")).startswith("sam2")
        for section, options in PROFILES.get(filled.get("profile", "default"), {}).items():
            given = filled.get(section, {})
            if not isinstance(given, dict | None):
                continue
            kept = {key: value for key, value in (given or {}).items() if value is not None}
            # The published code changed the mask upsampling of SAM only; its SAM 2 path kept the official bilinear one.
            published = {"upsampling": "bilinear"} if is_sam2 and "upsampling" in options else {}
            filled[section] = {**options, **published, **kept}
        return filled

    @model_validator(mode="after")
    def _names_agree(self) -> Params:
        problems = []
        folded: dict[str, str] = {}
        for name in self.domains:
            other = folded.setdefault(name.lower(), name)
            if other != name:
                problems.append(
                    f"domains {other!r} and {name!r} differ only in case; some file systems cannot hold both"
                )
        learnt = {name for name, domain in self.domains.items() if domain.role == "learn"}
        for name in sorted(set(self.modules) ^ learnt):
            if name in learnt:
                problems.append(f"domains.{name} has role 'learn' but is not under modules; add `{name}: {{}}` there")
            else:
                problems.append(f"modules.{name} is not under domains with role 'learn'")
        seen = {"base"}
        previous = "base"
        for name, step in self.stream.items():
            if name not in learnt:
                problems.append(f"stream.{name} is not under domains with role 'learn'")
            if step.previous != previous:
                problems.append(
                    f"stream.{name}.previous is {step.previous!r}, expected {previous!r} (the step before it)"
                )
            previous = name
            seen.add(name)
        for name in self.modules:
            try:
                self.adapter_of(name), self.train_of(name)
            except ValidationError as exc:
                problems += [f"modules.{name}: {line}" for line in _explain(exc)]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def adapter_of(self, domain: str) -> AdapterParams:
        """``adapter`` with the overrides of ``domain``."""
        return AdapterParams.model_validate({**self.adapter.model_dump(), **self.modules[domain].adapter})

    def train_of(self, domain: str) -> TrainParams:
        """``train`` with the overrides of ``domain``."""
        return TrainParams.model_validate({**self.train.model_dump(), **self.modules[domain].train})

    def names(self, role: str) -> tuple[str, ...]:
        """Names of the domains with ``role``, in the order of the file."""
        return tuple(name for name, domain in self.domains.items() if domain.role == role)

    def steps(self) -> tuple[str, ...]:
        """Domains of the stream in the order of their arrival: step 1 first."""
        return tuple(self.stream)


def _explain(exc: ValidationError) -> list[str]:
    lines = []
    for error in exc.errors():
        where = ".".join(str(part) for part in error["loc"])
        if error["type"] == "value_error":
            lines += [f"{where}: {part}" if where else part for part in str(error["ctx"]["error"]).split("\n")]
        elif error["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown option (value {error['input']!r})")
        else:
            lines.append(f"{where}: {error['msg'][:1].lower()}{error['msg'][1:]}, found {error['input']!r}")
    return lines


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
        raise ConfigError(source, _explain(exc), hint=f"correct {source}; docs/params.md lists every option") from exc


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
