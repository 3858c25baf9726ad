"""What a bank was made of and by: one record, the same on the MLflow version, the flow run and in tests."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from samcl_core import __version__
from samcl_core.config import Params, parse_params
from samcl_core.errors import SamclError
from samcl_core.files import digest_json, sha256_file
from tasks.dvc import raw_digests
from tasks.git import changed_files, file_at, git
from tasks.tracking import test_digests

if TYPE_CHECKING:
    from samcl_core.bank import Bank

__all__ = ["NONE", "Lineage", "git_state", "lineage_of"]

NONE = "none"
"""Stands for something that is not there (no commit yet, no flow run): a missing tag could also be a lost one."""

_BY_DOMAIN = ("data", "raw_data", "test_data")


@dataclass(frozen=True)
class Lineage:
    """Everything needed to find again what made a bank.

    Attributes:
        bank_digest: content digest of the bank.
        domains: its modules in order.
        step: number of modules.
        backbone: name of the frozen model.
        backbone_sha256: digest of its weights.
        data: domain to digest of the training data its module was made from.
        raw_data: domain to DVC's digest of the data set as it arrived, natural and unseen ones included.
        test_data: domain to digest of the test data of the last evaluation.
        params_sha256: digest of the validated parameters (comments and order do not count).
        code_sha256: digest of ``code.yaml``, the digests of the code of every stage.
        dvc_lock_sha256: digest of ``dvc.lock``.
        git_commit: commit of the workspace's repository.
        git_dirty: that commit lacks settings, pipeline or ``.dvc`` files as they were: it cannot make the bank.
        run_id: MLflow run of the bank's evaluation.
        flow_run_id: Prefect flow run that made it.
        samcl_version: version of this package.
    """

    bank_digest: str
    domains: tuple[str, ...]
    step: int
    backbone: str
    backbone_sha256: str
    data: dict[str, str]
    raw_data: dict[str, str]
    test_data: dict[str, str]
    params_sha256: str
    code_sha256: str
    dvc_lock_sha256: str
    git_commit: str
    git_dirty: bool
    run_id: str
    flow_run_id: str
    samcl_version: str = __version__

    def tags(self) -> dict[str, str]:
        """The record as MLflow tags: one a value; ``data.``, ``raw_data.`` and ``test_data.<domain>`` one a domain."""
        tags = {
            name: str(value)
            for name, value in self.values().items()
            if name not in (*_BY_DOMAIN, "domains", "git_dirty")
        }
        tags |= {"domains": ",".join(self.domains), "git_dirty": str(self.git_dirty).lower()}
        for kind in _BY_DOMAIN:
            tags |= {f"{kind}.{name}": digest for name, digest in getattr(self, kind).items()}
        return tags

    def values(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {**vars(self), "domains": list(self.domains)}


def lineage_of(
    root: Path,
    params: Params,
    bank: Bank,
    *,
    run_id: str,
    flow_run_id: str | None = None,
    step: str,
    commit: str | None = None,
) -> Lineage:
    """The record of ``bank``, which is the loaded folder ``banks/<step>`` of the workspace ``root``.

    ``commit`` is one that was made for this bank; left out, the present state of the repository is looked at.
    """
    git_commit, is_dirty = git_state(root) if commit is None else (commit, False)
    scores = root / "metrics" / "steps" / f"{step}.parquet"
    known = raw_digests(root)
    return Lineage(
        bank_digest=bank.digest,
        domains=tuple(bank.names),
        step=len(bank.names),
        backbone=bank.backbone,
        backbone_sha256=bank.backbone_sha256,
        data={module.domain: module.data_digest for module in bank.modules},
        raw_data={name: known[name] for name in _involved(params, bank) if name in known},
        test_data=test_digests(scores) if scores.is_file() else {},
        params_sha256=digest_json(_params_at(root, params, commit).model_dump(mode="json")),
        code_sha256=_file_digest(root, "code.yaml", commit),
        dvc_lock_sha256=_file_digest(root, "dvc.lock", commit),
        git_commit=git_commit,
        git_dirty=is_dirty,
        run_id=run_id,
        flow_run_id=flow_run_id or NONE,
    )


def git_state(root: Path) -> tuple[str, bool]:
    """Commit of the repository around ``root`` (``none`` without one) and whether it lacks what makes the banks."""
    try:
        head = git(root, "rev-parse", "--verify", "--quiet", "HEAD")
        commit = head.stdout.strip() if head.returncode == 0 else ""
        return (commit, bool(changed_files(root))) if commit else (NONE, True)
    except SamclError:
        return NONE, True


def _involved(params: Params, bank: Bank) -> list[str]:
    """Domains that the bank was made from: natural and unseen ones are in the bank before the first step."""
    return [*params.names("natural"), *params.names("unseen"), *bank.names]


def _params_at(root: Path, params: Params, commit: str | None) -> Params:
    """The settings of the commit: while a bank is published, other domains may be declared already."""
    held = None if commit is None else file_at(root, commit, "params.yaml")
    return params if held is None else parse_params(YAML(typ="safe", pure=True).load(held))


def _file_digest(root: Path, name: str, commit: str | None) -> str:
    held = None if commit is None else file_at(root, commit, name)
    if held is not None:
        return hashlib.sha256(held).hexdigest()
    path = root / name
    return sha256_file(path) if path.is_file() else NONE
