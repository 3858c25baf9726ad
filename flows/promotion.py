"""The flow of a promotion, and how an arrival decides about the bank it registered."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from prefect.states import Completed

from tasks.limits import held
from tasks.steps import artifact_key, decide, decided
from tasks.tracking import RegistryUnavailable

__all__ = ["bank_promotion", "concluded", "settle"]

NOT_PROMOTED = "Not promoted"
Result = TypeVar("Result")


def settle(root: Path, step: str, registered: Mapping[str, Any]) -> dict[str, Any]:
    """Decide whether a registered bank becomes champion; the page of the decision is an artifact of the flow run.

    Nothing is decided twice: as long as bank, scores, settings and champion are the same, so is the answer.

    Returns:
        ``Decision.values`` without the page. Where the registry does not answer, even after some time, the bank is not
        promoted.
    """
    actor = f"flow run {flow_run.get_id()}"
    version = str(registered["version"])

    def make() -> dict[str, Any]:
        from tasks.promotion import refuse_unreachable

        try:
            return decide(root, version, actor=actor, is_automatic=True)
        except RegistryUnavailable as exc:
            bank = str(registered["digest"])
            return refuse_unreachable(root, version=version, bank=bank, actor=actor, error=exc).values()

    decision = decided(root, step, registered, make)
    if decision["is_new"]:
        _show(decision)
    return {key: value for key, value in decision.items() if key != "markdown"}


def concluded(result: Result, registered: Mapping[str, Any] | None) -> Result:
    """What a flow returns: the result, in a completed state named *Not promoted* where the gates refused the bank."""
    decision = (registered or {}).get("promotion")
    if decision is None or decision["promoted"]:
        return result
    state: Any = Completed(
        name=NOT_PROMOTED, message=f"version {decision['version']}: {decision['reason']}", data=result
    )
    return state  # type: ignore[no-any-return]  # Prefect hands the state's data to the caller


@flow(name="bank-promotion", flow_run_name="promote version {version}", validate_parameters=False)
def bank_promotion(
    root: str | Path, version: str, *, actor: str, force: bool = False, reason: str = ""
) -> dict[str, Any]:
    """A person asks for a promotion: judged like an arrival's, under the limit ``bank``.

    Returns:
        ``Decision.values``.

    Raises:
        UsageError: there is no such version, or ``force`` has no reason.
        RegistryUnavailable: MLflow cannot be reached; nothing is promoted.
    """
    with held("bank"):
        decision = decide(Path(root), version, actor=actor, force=force, reason=reason)
    if decision["is_new"]:
        _show(decision)
    return concluded(decision, {"promotion": decision})


def _show(decision: Mapping[str, Any]) -> None:
    key = artifact_key("promotion", f"version-{decision['version']}")
    create_markdown_artifact(str(decision["markdown"]), key, f"{decision['decision']}: {decision['reason']}"[:500])
