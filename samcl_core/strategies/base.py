"""What every strategy of continual learning is: domains arrive one by one, a state is all that it carries between them.

A strategy never changes the backbone. What it learnt, and whatever it keeps to learn on, stands in its ``State``; the
number of bytes it costs is counted there. Strategies are registered once by name.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor

from samcl_core.adapters.base import Adapter, ModuleTensors
from samcl_core.backbones.base import Backbone, Masks, Prefix, Prompts, SuffixHooks
from samcl_core.config import TrainParams
from samcl_core.domains.layout import Sample
from samcl_core.errors import IntegrityError, UsageError
from samcl_core.files import staged_folder, write_json
from samcl_core.progress import Progress, silent
from samcl_core.tensors import load_tensors, save_tensors
from samcl_core.training.prefix_cache import PrefixCache

__all__ = [
    "Context",
    "State",
    "Strategy",
    "Task",
    "build_strategy",
    "register_strategy",
    "registered_strategies",
    "segment",
]

_VERSION = 1
_FILES = ("model.safetensors", "memory.safetensors")


@dataclass(frozen=True)
class Task:
    """One domain that arrives.

    Attributes:
        name: of the domain.
        train: training samples.
        val: validation samples, for the choice of models; may be empty. Test samples never reach a strategy.
    """

    name: str
    train: tuple[Sample, ...]
    val: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class Context:
    """What a strategy works with.

    Attributes:
        backbone: frozen.
        cache: prefixes of ``backbone`` by ``adapter.plan``.
        adapter: the kind of module that is trained.
        options: epochs, batch size, rates and losses of each domain's training.
        seed: of everything random.
        natural: natural images by name: what a selector may know of images that shall keep getting the plain backbone.
            No strategy trains on them.
        folder: for checkpoints of trainings under way, so that a killed one continues; ``None`` keeps none. Whoever
            stored the state may delete it.
        progress: called after each step.
    """

    backbone: Backbone
    cache: PrefixCache
    adapter: Adapter
    options: TrainParams
    seed: int
    natural: Mapping[str, tuple[Sample, ...]] = field(default_factory=dict)
    folder: Path | None = None
    progress: Progress = silent

    def checkpoint(self, name: str) -> Path | None:
        """Where the training ``name`` keeps its checkpoint."""
        return None if self.folder is None else self.folder / f"{name}.safetensors"


@dataclass(frozen=True, eq=False)
class State:
    """Everything a strategy carries from one domain to the next.

    Attributes:
        tasks: domains learnt so far, in order.
        model: tensors that segmentation needs.
        memory: tensors that only later learning needs (importance weights, teachers, stored logits ...).
        values: JSON values that either needs.
        kept: stored training samples by domain: their ids.
        kept_bytes: size of the image and mask files of these samples.
    """

    tasks: tuple[str, ...]
    model: ModuleTensors
    memory: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, tuple[str, ...]] = field(default_factory=dict)
    kept_bytes: int = 0

    @property
    def model_bytes(self) -> int:
        """Bytes of what segmentation needs."""
        return _num_bytes(self.model)

    @property
    def memory_bytes(self) -> int:
        """Bytes of what only later learning needs, stored samples included."""
        return _num_bytes(self.memory) + self.kept_bytes

    def save(self, folder: Path) -> None:
        """Write the state as ``state.json`` and two safetensors files; the folder appears whole or not at all.

        Raises:
            SamclError: the disk is full or not writable.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        with staged_folder(folder) as staged:
            for name, tensors in zip(_FILES, (self.model, self.memory), strict=True):
                save_tensors(staged / name, tensors)
            record = {"schema_version": _VERSION, "tasks": self.tasks, "values": self.values}
            write_json(staged / "state.json", {**record, "kept": self.kept, "kept_bytes": self.kept_bytes})

    @staticmethod
    def load(folder: Path) -> State:
        """What ``save`` wrote.

        Raises:
            IntegrityError: a file is missing or not whole.
        """
        try:
            record = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            if record["schema_version"] != _VERSION:
                raise IntegrityError(f"{folder} has schema version {record['schema_version']}, expected {_VERSION}")
            model, memory = (load_tensors(folder / name)[0] for name in _FILES)
            kept = {name: tuple(ids) for name, ids in record["kept"].items()}
            return State(tuple(record["tasks"]), model, memory, record["values"], kept, int(record["kept_bytes"]))
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise IntegrityError(f"{folder} holds no whole state of a strategy: {exc!r}") from exc


def _num_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


class Strategy(Protocol):
    """How knowledge of several domains is kept. Implementations are frozen dataclasses: fields are hyper-parameters.

    Attributes:
        name: registered name.
        title: for tables.
        reference: the paper, with its arXiv number.
        adapter: kind of adapter it is made for, with its options; ``None`` where any will do.
        is_offline: learns once, from all domains together (joint training).
    """

    name: ClassVar[str]
    title: ClassVar[str]
    reference: ClassVar[str]
    adapter: ClassVar[Mapping[str, Any] | None]
    is_offline: ClassVar[bool]

    def learn(self, state: State | None, tasks: Sequence[Task], context: Context) -> State:
        """The state after the last of ``tasks``.

        Args:
            state: after the tasks before; ``None`` before the first one. It stays as it is.
            tasks: all domains so far, the new one last. Of the earlier ones only samples in ``state.kept`` may be
                used, except by an offline strategy.
            context: backbone, adapter, options.

        Raises:
            TrainingError: there are no samples, or the loss is not finite.
        """
        ...

    def hooks(self, state: State, prefix: Prefix, prompts: Prompts, context: Context) -> SuffixHooks | None:
        """What happens inside the frozen suffix for one batch, whose domains nobody tells; ``None`` is plain SAM."""
        ...


def segment(strategy: Strategy, state: State | None, prefix: Prefix, prompts: Prompts, context: Context) -> Masks:
    """Masks of a batch on the backbone's device; without a state those of the plain backbone."""
    hooks = None if state is None else strategy.hooks(state, prefix, prompts, context)
    return context.backbone.suffix(prefix, prompts, hooks)


Builder = Callable[..., Strategy]
_BUILDERS: dict[str, Builder] = {}


def register_strategy(builder: Builder) -> None:
    """Make a strategy known by the ``name`` of its class.

    Raises:
        ValueError: the name is already registered by another class.
    """
    name = str(builder.name)  # type: ignore[attr-defined]
    if _BUILDERS.get(name, builder) is not builder:
        raise ValueError(f"strategy {name!r} is already registered by {_BUILDERS[name]!r}")
    _BUILDERS[name] = builder


def registered_strategies() -> dict[str, Builder]:
    """Name to class, in the order of registration."""
    return dict(_BUILDERS)


def build_strategy(name: str, **options: Any) -> Strategy:
    """The strategy ``name`` with ``options`` for its hyper-parameters.

    Raises:
        UsageError: the name or an option is unknown, or a value is not accepted.
    """
    if name not in _BUILDERS:
        raise UsageError(f"strategy {name!r} is unknown, expected one of {', '.join(_BUILDERS)}")
    builder = _BUILDERS[name]
    known = [entry.name for entry in dataclasses.fields(builder)]  # type: ignore[arg-type]
    if unknown := sorted(set(options) - set(known)):
        raise UsageError(f"strategy {name} has no option {', '.join(unknown)}, expected some of {', '.join(known)}")
    try:
        return builder(**options)
    except (TypeError, ValueError) as exc:
        raise UsageError(f"strategy {name}: {exc}") from exc
