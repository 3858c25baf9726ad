"""What happened in a training or an evaluation, written to MLflow: one run for one result, however often asked."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from filelock import FileLock, Timeout

from samcl_core.config import Params
from samcl_core.errors import DataError, SamclError
from samcl_core.files import digest_files, digest_json, sha256_file
from samcl_core.parquet import read_frame

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Experiment, Metric, Run
    from pandas import DataFrame

__all__ = [
    "Record",
    "RegistryUnavailable",
    "Tracker",
    "find_or_log",
    "log_evaluation",
    "log_training",
    "metrics_at",
    "open_tracker",
    "prepare",
    "run_url",
    "test_digests",
    "tracking_uri",
]

DEFAULT_EXPERIMENT = "samcl"
DIGEST_CHARS = 36  # MLflow refuses longer data set digests
PARAM_CHARS = 6000
LOCK_TIMEOUT_S = 600.0
_TEST_DIGEST = "test_digest/"  # how the stages name it in a step file's metadata

# Read by MLflow when it is imported or used; a value of the user's own wins.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # With a server it prints where each run is, in the middle of what --json prints.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "GIT_PYTHON_REFRESH": "quiet",
}


class RegistryUnavailable(SamclError):
    """MLflow cannot be reached or refuses to answer. Nothing on this machine's disk was changed."""


@dataclass(frozen=True)
class Tracker:
    """An open MLflow with its experiment.

    Attributes:
        client: talks to the tracking and the registry server.
        experiment_id: where the runs of this workspace go.
        uri: address of the server or database file; may hold a password, so print ``shown_uri``.
    """

    client: MlflowClient
    experiment_id: str
    uri: str

    @property
    def shown_uri(self) -> str:
        """``uri`` without user and password."""
        return _without_secrets(self.uri)


@dataclass(frozen=True)
class Record:
    """Everything one run holds, read from files before MLflow is touched."""

    kind: str
    digest: str
    name: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: list[Metric]
    inputs: list[DatasetInput]
    artifacts: list[tuple[Path, str]] = field(default_factory=list)


def tracking_uri(root: Path) -> str:
    """``MLFLOW_TRACKING_URI`` when it is set, else the workspace's own ``mlflow.db``."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def run_url(root: Path, fragment: str) -> str:
    """Where a person looks at ``fragment`` (``models/<name>/versions/<n>``): a page, or the command that opens one."""
    uri = tracking_uri(root)
    if uri.startswith("http"):
        return f"{_without_secrets(uri).rstrip('/')}/#/{fragment}"
    return f"mlflow ui --backend-store-uri {_without_secrets(uri)}  (then open #/{fragment})"


@contextlib.contextmanager
def open_tracker(root: Path) -> Iterator[Tracker]:
    """MLflow for the workspace ``root``; everything inside the block is alone with it on this machine.

    A new SQLite file is migrated here, once: several processes doing that side by side break each other.

    Raises:
        RegistryUnavailable: MLflow cannot be reached, or answers with an error inside the block.
    """
    prepare()
    uri = tracking_uri(root)
    lock = FileLock(_lock_path(root))
    try:
        lock.acquire(timeout=LOCK_TIMEOUT_S)
    except Timeout as exc:
        raise RegistryUnavailable(
            f"{lock.lock_file} is held by another process for more than {LOCK_TIMEOUT_S:.0f} s",
            hint="wait for the other samcl command or end it, then samcl register",
        ) from exc
    try:
        with _mlflow_errors(uri):
            from mlflow import MlflowClient

            client = MlflowClient(tracking_uri=uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or uri)
            yield Tracker(client, _experiment(client, root, uri).experiment_id, uri)
    finally:
        lock.release()


def log_training(root: Path, params: Params, domain: str, *, flow_run_id: str | None = None) -> str:
    """The run of the module in ``modules/<domain>``: parameters, curve, module, data digest.

    Returns:
        The run's id; an earlier finished run of the same module is found again.

    Raises:
        DataError: the module or its curve is not there.
        RegistryUnavailable: MLflow cannot be reached.
    """
    prepare()
    record = _training_record(root, params, domain, flow_run_id)
    with open_tracker(root) as tracker:
        return find_or_log(tracker, record)


def log_evaluation(root: Path, params: Params, step: str, *, flow_run_id: str | None = None) -> str:
    """The run of one row of the R matrix (``step``: ``base`` or a domain): scores, pictures, test data digests.

    The newest step's run also holds the whole R matrix and its summary.

    Returns:
        The run's id; an earlier finished run of the same bank and the same scores is found again.

    Raises:
        DataError: the step was not evaluated.
        RegistryUnavailable: MLflow cannot be reached.
    """
    prepare()
    record = _evaluation_record(root, params, step, flow_run_id)
    with open_tracker(root) as tracker:
        return find_or_log(tracker, record)


def prepare() -> None:
    """Import MLflow quietly: it reads these settings then. Comes before anything that imports MLflow.

    Raises:
        RegistryUnavailable: MLflow is not installed.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import mlflow  # noqa: F401
    except ImportError as exc:
        raise RegistryUnavailable(f"MLflow is not installed: {exc}", hint='pip install "samcl[pipeline]"') from exc
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _lock_path(root: Path) -> Path:
    folder = root / ".samcl"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "mlflow.lock"


def _experiment(client: MlflowClient, root: Path, uri: str) -> Experiment:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
    found = client.get_experiment_by_name(name)
    if found is None:
        # A database file has no artifact store of its own; a server has.
        location = None if uri.startswith("http") else (root.resolve() / "mlartifacts").as_uri()
        found = client.get_experiment(client.create_experiment(name, artifact_location=location))
    if found.lifecycle_stage != "active":
        raise RegistryUnavailable(
            f"MLflow experiment {name!r} at {_without_secrets(uri)} is {found.lifecycle_stage}",
            hint=f"mlflow experiments restore --experiment-id {found.experiment_id}",
        )
    return found


@contextlib.contextmanager
def _mlflow_errors(uri: str) -> Iterator[None]:
    """Foreign errors of the block as ``RegistryUnavailable``."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as exc:  # requests' errors are OSErrors
        text = " ".join(str(exc).split())
        raise RegistryUnavailable(
            f"MLflow at {_without_secrets(uri)}: {text[:400]}",
            hint="start or repair it (MLFLOW_TRACKING_URI says where it is), then samcl register",
        ) from exc


def _without_secrets(uri: str) -> str:
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rsplit("@", 1)[1]))


def find_or_log(tracker: Tracker, record: Record) -> str:
    """The id of the finished run of exactly this result; written now when there is none."""
    found = _find(tracker, record.kind, record.digest)
    return found.info.run_id if found else _log(tracker, record)


def _find(tracker: Tracker, kind: str, digest: str) -> Run | None:
    wanted = f"tags.`samcl.kind` = '{kind}' and tags.`samcl.digest` = '{digest}' and attributes.status = 'FINISHED'"
    runs = tracker.client.search_runs([tracker.experiment_id], filter_string=wanted, max_results=1)
    return runs[0] if runs else None


def _log(tracker: Tracker, record: Record) -> str:
    from mlflow.entities import Param

    client = tracker.client
    tags = {"samcl.kind": record.kind, "samcl.digest": record.digest, **record.tags}
    run_id = str(client.create_run(tracker.experiment_id, run_name=record.name, tags=tags).info.run_id)
    try:
        client.log_batch(run_id, params=[Param(key, value[:PARAM_CHARS]) for key, value in record.params.items()])
        for start in range(0, len(record.metrics), 1000):
            client.log_batch(run_id, metrics=record.metrics[start : start + 1000])
        if record.inputs:
            client.log_inputs(run_id, record.inputs)
        for path, folder in record.artifacts:
            client.log_artifact(run_id, str(path), folder)
    except BaseException:
        # Only a finished run counts as the run of this result, so a broken one is never found again.
        with contextlib.suppress(Exception):
            client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")
    return run_id


def _training_record(root: Path, params: Params, domain: str, flow_run_id: str | None) -> Record:
    folder = root / "modules" / domain
    module = _read_json(folder / "module.json", f"samcl stream  # trains {domain}")
    curve = _read_json(root / "metrics" / "train" / f"{domain}.json", f"samcl stream  # trains {domain}")
    settings = {
        "seed": params.seed,
        "profile": params.profile,
        "backbone": params.backbone.model_dump(),
        "adapter": params.adapter_of(domain).model_dump(),
        "train": params.train_of(domain).model_dump(),
    }
    digest = digest_json(digest_files(folder))
    tags = {
        "domain": domain,
        "module_digest": digest,
        "backbone_sha256": str(module.get("backbone", {}).get("sha256", "")),
    }
    return Record(
        kind="training",
        digest=digest,
        name=f"train {domain}",
        tags=_with_flow(tags, flow_run_id),
        params=_flat_text(settings),
        metrics=_curve_metrics(curve) + metrics_at(_flat_numbers(module.get("metrics") or {}, "final"), step=0),
        inputs=[_dataset(domain, str(module.get("data_digest", "")), f"data/{domain}", "training")],
        artifacts=[
            (root / "metrics" / "train" / f"{domain}.json", "metrics"),
            *((folder / name, "module") for name in digest_files(folder)),
        ],
    )


def _evaluation_record(root: Path, params: Params, step: str, flow_run_id: str | None) -> Record:
    path = root / "metrics" / "steps" / f"{step}.parquet"
    bank = root / "banks" / step
    if not path.is_file() or not (bank / "bank.json").is_file():
        raise DataError(f"step {step!r} is not evaluated: {path} or {bank} is missing", hint="samcl evaluate")
    frame = read_frame(path)
    number = 0 if step == "base" else list(params.stream).index(step) + 1
    rows = frame[frame["step"] == number]
    settings = {
        "seed": params.seed,
        "profile": params.profile,
        "backbone": params.backbone.model_dump(),
        "selector": params.selector.model_dump(),
        "evaluate": params.evaluate.model_dump(),
        "step": number,
        "domains": ",".join(list(params.stream)[:number]),
    }
    # The step's file also holds the new domain's column in the rows before it: the metric's own history.
    present = sorted({int(row) for row in frame["step"]})
    scores = [metric for row in present for metric in metrics_at(_row_scores(frame[frame["step"] == row]), step=row)]
    is_newest = step == (list(params.stream) or ["base"])[-1]
    files = [
        (path, "metrics"),
        *((picture, "pictures") for picture in sorted((root / "pictures" / step).glob("*.png"))),
    ]
    if is_newest:
        scores += metrics_at(_summary_numbers(root), step=number)
        files += _report_files(root)
    digest = digest_json({"bank": digest_files(bank), "scores": sha256_file(path), "report": _digests(files)})
    return Record(
        kind="evaluation",
        digest=digest,
        name=f"evaluate {number} {step}",
        tags=_with_flow({"step": step, "step_number": str(number)}, flow_run_id),
        params=_flat_text(settings),
        metrics=scores,
        inputs=_test_inputs(path, set(rows["domain"])),
        artifacts=files,
    )


def _report_files(root: Path) -> list[tuple[Path, str]]:
    names = ("metrics/r_matrix.csv", "metrics/r_matrix.parquet", "metrics/summary.json", "pictures/r_matrix.png")
    return [(root / name, "report") for name in names if (root / name).is_file()]


def _summary_numbers(root: Path) -> dict[str, float]:
    path = root / "metrics" / "summary.json"
    return _flat_numbers(_read_json(path, "samcl evaluate"), "summary") if path.is_file() else {}


def _digests(files: Sequence[tuple[Path, str]]) -> list[list[str]]:
    return [[f"{folder}/{path.name}", sha256_file(path)] for path, folder in files]


def _row_scores(rows: DataFrame) -> dict[str, float]:
    columns = (rows["metric"], rows["domain"], rows["value"])
    return {f"{metric}/{domain}": float(value) for metric, domain, value in zip(*columns, strict=True)}


def test_digests(path: Path) -> dict[str, str]:
    """Domain to digest of the test data that a step's scores were measured on."""
    from samcl_core.evaluation.rmatrix import read_metadata

    stored = read_metadata(path)
    return {key.removeprefix(_TEST_DIGEST): text for key, text in stored.items() if key.startswith(_TEST_DIGEST)}


def _test_inputs(path: Path, names: set[str]) -> list[DatasetInput]:
    found = {name: digest for name, digest in test_digests(path).items() if name in names}
    return [_dataset(name, digest, f"data/{name}/test", "evaluation") for name, digest in sorted(found.items())]


def _dataset(name: str, digest: str, source: str, context: str) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = Dataset(
        name=name,
        digest=(digest or "unknown")[:DIGEST_CHARS],
        source_type="local",
        source=json.dumps({"uri": source}),
        profile=json.dumps({"sha256": digest}),
    )
    return DatasetInput(data, [InputTag("mlflow.data.context", context)])


def metrics_at(values: Mapping[str, float], *, step: int) -> list[Metric]:
    """Name to number as metrics of one step; characters that MLflow refuses become ``_``."""
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    return [Metric(_metric_name(key), value, now_ms, step) for key, value in values.items()]


def _curve_metrics(curve: Mapping[str, Any]) -> list[Metric]:
    """One point an epoch; every number of a point is one value, at the point's own epoch."""
    points = curve.get("epochs", [])
    found: list[Metric] = []
    for position, point in enumerate(points):
        step = int(point.get("epoch", position))
        numbers = {key: value for key, value in _flat_numbers(point, "train").items() if key != "train/epoch"}
        found += metrics_at(numbers, step=step)
    rest = {key: value for key, value in curve.items() if key != "epochs"}
    return found + metrics_at(_flat_numbers(rest, "training"), step=0)


def _metric_name(key: str) -> str:
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in key)


def _flat_numbers(value: Any, prefix: str) -> dict[str, float]:
    """Numbers of nested mappings by path; lists, texts and missing numbers are left out."""
    if isinstance(value, Mapping):
        found: dict[str, float] = {}
        for key, inner in value.items():
            found |= _flat_numbers(inner, f"{prefix}/{key}")
        return found
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return {prefix: float(value)} if is_number else {}


def _flat_text(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        found: dict[str, str] = {}
        for key, inner in value.items():
            found |= _flat_text(inner, f"{prefix}.{key}" if prefix else str(key))
        return found
    return {prefix: str(value)}


def _with_flow(tags: dict[str, str], flow_run_id: str | None) -> dict[str, str]:
    return {**tags, "prefect_flow_run_id": flow_run_id} if flow_run_id else tags


def _read_json(path: Path, hint: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise DataError(f"{path} is missing", hint=hint) from exc
    except ValueError as exc:
        raise DataError(f"{path} is not JSON: {exc}", hint=hint) from exc
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}, expected an object", hint=hint)
    return value
