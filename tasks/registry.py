"""Every bank is a registered model version: the verified folder, its lineage as tags, the alias ``candidate``."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samcl_core.config import Params
from samcl_core.errors import BankError, IntegrityError, SamclError, UsageError
from samcl_core.files import staged_folder
from tasks.lineage import Lineage, lineage_of
from tasks.serving.package import write_model
from tasks.tracking import RegistryUnavailable, Tracker, log_evaluation, open_tracker

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


__all__ = [
    "CANDIDATE",
    "CHAMPION",
    "BankVersion",
    "Registered",
    "RegistryUnavailable",
    "aliases",
    "all_versions",
    "load_registered",
    "model_name",
    "read_version",
    "register_bank",
]

CANDIDATE = "candidate"
CHAMPION = "champion"
DEFAULT_MODEL = "samcl-bank"
MODEL_FOLDER = "model"
"""Where the pyfunc model is in the artifacts of a version's run."""


@dataclass(frozen=True)
class Registered:
    """A bank in the registry.

    Attributes:
        name: registered model.
        version: version number, as text.
        digest: the bank's content digest.
        run_id: MLflow run that holds the bank's files and its evaluation.
        created: False when this very bank was registered before.
        lineage: the record on the version; of this call, also when the version is older.
    """

    name: str
    version: str
    digest: str
    run_id: str
    created: bool
    lineage: dict[str, Any]

    def values(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class BankVersion:
    """A version as the registry holds it.

    Attributes:
        version: its number, as text.
        digest: content digest of its bank.
        domains: with a module, in the order of arrival.
        data: domain to digest of the training data.
        run_id: MLflow run of its evaluation.
        source: where its files are.
        created_ms: when it was registered, in ms since 1970.
        tags: all its tags.
    """

    version: str
    digest: str
    domains: tuple[str, ...]
    data: dict[str, str]
    run_id: str
    source: str
    created_ms: int
    tags: dict[str, str]


def model_name() -> str:
    """Name of the registered model: ``SAMCL_MODEL_NAME``, else ``samcl-bank``."""
    return os.environ.get("SAMCL_MODEL_NAME") or DEFAULT_MODEL


def register_bank(
    root: Path,
    params: Params,
    step: str,
    flow_run_id: str | None = None,
    *,
    bundle_backbone: bool | None = None,
    commit: str | None = None,
) -> Registered:
    """Put ``banks/<step>`` into the registry as ``candidate``, exactly the bytes that were verified here.

    The version is a pyfunc model that holds them. ``bundle_backbone`` says whether the backbone's weights travel in it:
    ``None`` is what ``SAMCL_BUNDLE_BACKBONE`` (1 or 0) says, else yes for ``sam_nano`` alone.

    The same bank is registered once: a second call finds the version by the bank's digest. The alias then moves only
    for the newest step, so that going over old steps again does not bring an old bank forward. A version that no commit
    could reproduce takes over the commit that can by now. ``commit`` is one that was made for this bank.

    Raises:
        BankError: there is no such bank, it is damaged (``IntegrityError``), or its selector was not fitted.
        RegistryUnavailable: MLflow cannot be reached; the bank on disk is as it was, and the call can be repeated.
    """
    from samcl_core.bank import Bank

    folder = root / "banks" / step
    if not (folder / "bank.json").is_file():
        raise BankError(f"there is no bank {folder}", hint="samcl stream")
    with tempfile.TemporaryDirectory(prefix="samcl-register-") as scratch:
        # A copy, then its verification, then its upload: a bank step running beside this cannot mix two banks.
        snapshot, model = Path(scratch) / "bank", Path(scratch) / MODEL_FOLDER
        shutil.copytree(folder, snapshot, ignore=shutil.ignore_patterns(".gitignore"))
        bank = Bank.load(snapshot)
        if bank.waiting:
            raise BankError(
                f"{folder} is a step inside a back-fill: its selector does not know {', '.join(bank.waiting)} yet",
                hint=f"samcl register {_end_of_back_fill(params, step)}",
            )
        run_id = log_evaluation(root, params, step, flow_run_id=flow_run_id)
        lineage = lineage_of(root, params, bank, run_id=run_id, flow_run_id=flow_run_id, step=step, commit=commit)
        with open_tracker(root) as tracker:
            found = _find_version(tracker, bank.digest)
            if found is None:
                # Inside the lock: MLflow takes the model of a code file from a global variable.
                bundle = _bundle_setting() if bundle_backbone is None else bundle_backbone
                write_model(model, snapshot, bank, params, root=root, bundle=bundle)
            elif found.tags.get("git_dirty") != "false" and not lineage.git_dirty:
                _take_over_commit(tracker, found, lineage)
            version = found or _create_version(tracker, model, lineage)
            if found is None or step == (list(params.stream) or ["base"])[-1]:
                tracker.client.set_registered_model_alias(model_name(), CANDIDATE, str(version.version))
    return Registered(
        name=model_name(),
        version=str(version.version),
        digest=bank.digest,
        run_id=str(version.run_id or run_id),
        created=found is None,
        lineage=lineage.values(),
    )


def _end_of_back_fill(params: Params, step: str) -> str:
    steps = params.steps()
    after = steps[steps.index(step) :] if step in steps else ()
    return next((name for name in after if params.stream[name].fit), "")


def aliases(tracker: Tracker) -> dict[str, str]:
    """Alias to version of the registered model; empty where no bank was registered yet."""
    from mlflow.exceptions import MlflowException

    try:
        found = tracker.client.get_registered_model(model_name()).aliases
    except MlflowException as exc:
        if exc.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
    return {alias: str(version) for alias, version in found.items()}


def read_version(tracker: Tracker, version: str) -> BankVersion:
    """A version by its number or by ``@alias``, with or without the ``@``.

    Raises:
        UsageError: there is no such version or alias.
        BankError: the version was not registered by samcl.
    """
    from mlflow.exceptions import MlflowException

    known = aliases(tracker)
    number = known.get(version.removeprefix("@"), version.removeprefix("@"))
    if not number.isdecimal():
        shown = ", ".join(f"@{alias} = {found}" for alias, found in sorted(known.items())) or "no alias"
        hint = {CHAMPION: "samcl promote", CANDIDATE: "samcl register"}.get(number, "samcl bank history")
        raise UsageError(f"{model_name()} has no version or alias {version!r}, found {shown}", hint=hint)
    try:
        found = tracker.client.get_model_version(model_name(), number)
    except MlflowException as exc:
        if exc.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise UsageError(f"{model_name()} has no version {number}", hint="samcl bank history") from exc
    if "bank_digest" not in found.tags:
        raise BankError(f"{model_name()} version {number} holds no bank (no tag bank_digest)")
    return _bank_version(found)


def all_versions(tracker: Tracker) -> list[BankVersion]:
    """Every registered bank, oldest first."""
    found = tracker.client.search_model_versions(f"name = '{model_name()}'", max_results=10_000)
    banks = [_bank_version(version) for version in found if "bank_digest" in version.tags]
    return sorted(banks, key=lambda bank: int(bank.version))


def _bank_version(found: ModelVersion) -> BankVersion:
    tags = {str(key): str(value) for key, value in found.tags.items()}
    data = {key.removeprefix("data."): value for key, value in tags.items() if key.startswith("data.")}
    names = tuple(name for name in tags.get("domains", "").split(",") if name)
    return BankVersion(
        str(found.version),
        tags["bank_digest"],
        names,
        data,
        str(found.run_id or ""),
        str(found.source or ""),
        int(found.creation_timestamp or 0),
        tags,
    )


def load_registered(root: Path, version: str = f"@{CHAMPION}") -> Path:
    """The bank folder of a registered version, compared with its digest; kept in the workspace's cache.

    Args:
        root: the workspace.
        version: a number, or an alias such as ``@champion``.

    Raises:
        UsageError: there is no such version or alias.
        IntegrityError: the files in the registry are not the bank that was registered.
        RegistryUnavailable: MLflow cannot be reached.
    """
    with open_tracker(root) as tracker:
        found = read_version(tracker, version)
        folder = root / ".samcl" / "registry" / found.digest
        if not _is_bank(folder, found.digest):
            _download(tracker, found, folder)
    return folder


def _is_bank(folder: Path, digest: str) -> bool:
    from samcl_core.bank import Bank

    try:
        return Bank.load(folder).digest == digest
    except SamclError:
        return False


def _download(tracker: Tracker, found: BankVersion, folder: Path) -> None:
    from mlflow.artifacts import download_artifacts

    from samcl_core.bank import Bank

    with tempfile.TemporaryDirectory(prefix="samcl-registered-") as scratch:
        local = Path(download_artifacts(artifact_uri=found.source, dst_path=scratch, tracking_uri=tracker.uri))
        # The bank may lie inside a larger model; the outermost one is meant.
        heads = sorted(local.rglob("bank.json"), key=lambda path: (len(path.parts), path))
        if not heads:
            raise IntegrityError(f"{model_name()} version {found.version} has no bank.json at {found.source}")
        digest = Bank.load(heads[0].parent).digest
        if digest != found.digest:
            raise IntegrityError(f"{model_name()} version {found.version} holds {digest}, expected {found.digest}")
        with staged_folder(folder) as staging:
            shutil.copytree(heads[0].parent, staging, dirs_exist_ok=True)


def _find_version(tracker: Tracker, digest: str) -> ModelVersion | None:
    """The ready version with this bank digest, the newest if there are several."""
    found = tracker.client.search_model_versions(f"name = '{model_name()}' and tags.`bank_digest` = '{digest}'")
    ready = [version for version in found if version.status == "READY"]
    return max(ready, key=lambda version: int(version.version), default=None)


def _bundle_setting() -> bool | None:
    text = os.environ.get("SAMCL_BUNDLE_BACKBONE", "")
    if text not in ("", "0", "1"):
        raise UsageError(f"SAMCL_BUNDLE_BACKBONE is {text!r}, expected 0 or 1")
    return text == "1" if text else None


def _take_over_commit(tracker: Tracker, found: ModelVersion, lineage: Lineage) -> None:
    """The same bank is made by what is committed now: the version's record names that."""
    names = ("git_commit", "git_dirty", "dvc_lock_sha256", "params_sha256", "code_sha256")
    tags = {key: value for key, value in lineage.tags().items() if key in names or key.startswith("raw_data.")}
    for key, value in tags.items():
        tracker.client.set_model_version_tag(model_name(), str(found.version), key, value)


def _create_version(tracker: Tracker, model: Path, lineage: Lineage) -> ModelVersion:
    client = tracker.client
    _ensure_model(tracker)
    client.log_artifacts(lineage.run_id, str(model), MODEL_FOLDER)
    source = f"{str(client.get_run(lineage.run_id).info.artifact_uri).rstrip('/')}/{MODEL_FOLDER}"
    return client.create_model_version(
        model_name(),
        source=source,
        run_id=lineage.run_id,
        tags=lineage.tags(),
        description=_description(lineage),
    )


def _ensure_model(tracker: Tracker) -> None:
    from mlflow.exceptions import MlflowException

    try:
        tracker.client.create_registered_model(
            model_name(), description="Banks of domain modules for a frozen Segment Anything backbone."
        )
    except MlflowException as exc:
        if exc.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _description(lineage: Lineage) -> str:
    names = ", ".join(lineage.domains) or "no module: the plain backbone"
    return (
        f"Bank after step {lineage.step} on `{lineage.backbone}`: {names}.\n\n"
        f"Digest `{lineage.bank_digest}`. The source run holds its scores and pictures."
    )
