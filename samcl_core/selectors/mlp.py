"""The Module Selector of SAMCL: a small MLP on the mid-layer embedding (Wang et al., AAAI 2026, section 3.3)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samcl_core.config import SelectorParams
from samcl_core.errors import BankError
from samcl_core.selectors.base import Choice
from samcl_core.selectors.choosing import check_embeddings, choice_of, derived_seed
from samcl_core.selectors.novelty import NoveltyGate

__all__ = ["MlpSelector", "SelectorMlp", "batches_of", "fit_mlp", "num_epochs", "train_epoch"]


class SelectorMlp(nn.Module):
    """d -> d -> d/4 -> d/4 -> K with BatchNorm after the first three layers and ReLU after layers 2 and 3.

    The names of its tensors are those of the published ``Module_Selector.pth``.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        hidden = max(dim // 4, 1)
        self.layer1, self.norm1 = nn.Linear(dim, dim), nn.BatchNorm1d(dim)
        self.layer2, self.norm2 = nn.Linear(dim, hidden), nn.BatchNorm1d(hidden)
        self.layer3, self.norm3 = nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden)
        self.layer4 = nn.Linear(hidden, num_classes)

    def forward(self, embeddings: Tensor) -> Tensor:
        """(B, d) embeddings to (B, K) logits."""
        x = self.norm1(self.layer1(embeddings))
        x = self.norm2(self.layer2(x)).relu()
        x = self.norm3(self.layer3(x)).relu()
        return self.layer4(x)  # type: ignore[no-any-return]

    @staticmethod
    def seeded(dim: int, num_classes: int, seed: int) -> SelectorMlp:
        """A new network with PyTorch's own initialisation, drawn from ``seed`` alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SelectorMlp(dim, num_classes)


class MlpSelector:
    """A trained ``SelectorMlp``, with or without a novelty gate.

    Logits are computed in float64 and rounded to float32, so that the company in a batch cannot tip an answer.
    """

    kind = "mlp"

    def __init__(
        self, network: SelectorMlp, domains: Sequence[str], natural: Sequence[str], gate: NoveltyGate | None = None
    ) -> None:
        """Outputs of ``network`` beyond ``domains`` and ``natural`` belong to no class yet and mean plain SAM."""
        self.domains, self.natural, self.gate = tuple(domains), tuple(natural), gate
        self.num_spare = network.layer4.out_features - len(self.domains) - len(self.natural)
        self._network = copy.deepcopy(network).double().eval().requires_grad_(False)
        self._dim = int(network.layer1.in_features)

    @torch.no_grad()
    def logits(self, embeddings: Tensor) -> Tensor:
        """(B, C) embeddings to (B, K) float32 logits: learnt domains, then natural classes, then spare outputs."""
        check_embeddings(embeddings, self._dim)
        return self._network(embeddings.double()).float()  # type: ignore[no-any-return]

    def choose(self, embeddings: Tensor) -> Choice:
        """(B, C) float embeddings to a choice each.

        Raises:
            BankError: the embeddings have another width than those it was trained on.
        """
        logits = self.logits(embeddings)
        novelty = embeddings.new_zeros(len(embeddings)).float()
        if self.gate is not None:
            novelty = self.gate.novelty(embeddings)
        return choice_of(logits.double().log_softmax(1), len(self.domains), novelty)

    def to(self, device: Any) -> MlpSelector:
        """Move the tensors; returns itself."""
        self._network.to(device)
        if self.gate is not None:
            self.gate.to(device)
        return self

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Class names, and the network's tensors under their published names; the gate's start with ``gate.``."""
        values: dict[str, Any] = {
            "kind": self.kind,
            "dim": self._dim,
            "domains": list(self.domains),
            "natural": list(self.natural),
            "num_spare": self.num_spare,
            "thresholds": None if self.gate is None else self.gate.limits((*self.domains, *self.natural)),
        }
        tensors = {
            name: (tensor.float() if tensor.is_floating_point() else tensor).cpu().clone()
            for name, tensor in self._network.state_dict().items()
        }
        if self.gate is not None:
            tensors |= {f"gate.{name}": tensor for name, tensor in self.gate.tensors().items()}
        return values, tensors

    @staticmethod
    def from_state(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> MlpSelector:
        """The selector that ``state`` came from.

        Raises:
            BankError: tensors are missing, unknown or of another shape.
        """
        domains, natural = tuple(values["domains"]), tuple(values["natural"])
        num_classes = len(domains) + len(natural) + int(values["num_spare"])
        network = SelectorMlp.seeded(int(values["dim"]), num_classes, 0)
        weights = {name: tensor for name, tensor in tensors.items() if not name.startswith("gate.")}
        try:
            network.load_state_dict(weights)
        except RuntimeError as exc:
            raise BankError(f"selector tensors do not fit {num_classes} classes: {exc}") from exc
        parts = {name.removeprefix("gate."): t for name, t in tensors.items() if name.startswith("gate.")}
        limits = values["thresholds"]
        gate = None if limits is None else NoveltyGate.stored(parts, limits, (*domains, *natural))
        return MlpSelector(network, domains, natural, gate)


def batches_of(num: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Shuffled row numbers in batches. A last batch of one row joins the batch before it: BatchNorm needs two."""
    order = torch.randperm(num, generator=generator)
    starts = list(range(0, num, batch_size))
    if len(starts) > 1 and num - starts[-1] == 1:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], num], strict=True):
        yield order[start:end]


def train_epoch(
    network: SelectorMlp, optimizer: torch.optim.Optimizer, batches: Iterable[tuple[Tensor, Tensor]]
) -> float:
    """One pass over (embeddings, class numbers) batches with cross-entropy; returns the mean loss of the batches."""
    network.train()
    losses = []
    for embeddings, labels in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(embeddings), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses) / max(len(losses), 1)


def num_epochs(params: SelectorParams, num: int) -> int:
    """Epochs for ``num`` embeddings: ``params.epochs``, or more until there were ``params.min_steps`` steps.

    The published 25 epochs are some 1900 steps for six full buffers, but two dozen for a handful of images, which
    leaves the network at its initial guess.
    """
    min_steps = 300 if params.min_steps is None else params.min_steps
    steps = -(-num // params.batch_size)
    return max(params.epochs, -(-min_steps // steps))


def fit_mlp(
    params: SelectorParams, learnt: Mapping[str, Tensor], natural: Mapping[str, Tensor], seed: int
) -> MlpSelector:
    """Train the selector on stored embeddings, on the CPU; same input, same bytes.

    Args:
        params: epochs, least steps, batch size, rate, fallback and its quantile. With ``classes: fixed`` the network
            has ``num_classes`` outputs from the first domain on, as published; those of domains yet to come are only
            ever taught not to answer.
        learnt: name to (n, C) embeddings of domains with a module, in the order of the bank; at least one.
        natural: the same for natural images.
        seed: of initialisation and order.

    Raises:
        BankError: there are more classes than fixed outputs, or the training diverged.
    """
    classes = {**learnt, **natural}
    num_outputs = _num_outputs(params, len(classes))
    rows = torch.cat([x.float().cpu() for x in classes.values()])
    labels = torch.cat([torch.full((len(x),), k) for k, x in enumerate(classes.values())])
    text = derived_seed(seed, "selector", *classes)
    network = SelectorMlp.seeded(rows.shape[1], num_outputs, text)
    optimizer = torch.optim.SGD(network.parameters(), lr=params.lr)
    generator = torch.Generator().manual_seed(text)
    # One output needs no training (its probability is 1), and one row could not be normalised.
    for _ in range(num_epochs(params, len(rows)) if num_outputs > 1 and len(rows) > 1 else 0):
        order = batches_of(len(rows), params.batch_size, generator)
        train_epoch(network, optimizer, ((rows[batch], labels[batch]) for batch in order))
    if not all(bool(torch.isfinite(p).all()) for p in network.parameters()):
        raise BankError(
            "selector training diverged: its weights are not finite", hint="lower selector.lr in params.yaml"
        )
    gate = None if params.fallback == "never" else NoveltyGate.fit(classes, params.novelty_quantile)
    return MlpSelector(network, tuple(learnt), tuple(natural), gate)


def _num_outputs(params: SelectorParams, num_classes: int) -> int:
    if params.classes != "fixed":
        return num_classes
    if num_classes > params.num_classes:
        raise BankError(
            f"selector.classes is fixed at {params.num_classes} outputs, and there are {num_classes} classes",
            hint=f"set selector.num_classes to {num_classes} or more in params.yaml, or classes to growing",
        )
    return params.num_classes
