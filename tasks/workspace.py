"""A workspace: the folder that holds the pipeline, its settings and everything that was learnt."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from filelock import FileLock
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from samcl_core.config import Params, load_params, parse_params
from samcl_core.errors import ConfigError, SamclError, UsageError
from samcl_core.files import write_atomic
from samcl_core.stages.places import BASE, Places
from tasks.code import CODE_FILE, write_code
from tasks.dvc import forget_stages
from tasks.git import OWN_GIT, git, identity
from tasks.names import check_name
from tasks.processes import clean_environment

__all__ = ["Workspace", "find_workspace", "init_workspace"]

STORE = ".dvcstore"
_ROLES = ("learn", "natural", "unseen")
_IGNORED = ("/.samcl/", f"/{STORE}/", "/mlflow.db*", "/mlartifacts/", "/data/inbox/", "/data/rejected/", ".*.tmp")
_TEMPLATES = ("dvc.yaml", "params.yaml", "prefect.toml", "prefect.yaml")

Edit = Callable[[CommentedMap], None]


@dataclass(frozen=True)
class Workspace:
    """One workspace.

    Attributes:
        root: absolute path of the folder with ``params.yaml``.
    """

    root: Path

    @property
    def state(self) -> Path:
        """The machine-local folder: caches, logs, locks, the embedded server."""
        return self.root / ".samcl"

    @property
    def places(self) -> Places:
        """Paths of data, modules, banks and metrics."""
        return Places(self.root)

    def params(self) -> Params:
        """The validated settings.

        Raises:
            ConfigError: ``params.yaml`` is missing or wrong; every problem is listed.
        """
        return load_params(self.root / "params.yaml")

    def declare(
        self,
        domain: str,
        role: str = "learn",
        format: str = "auto",
        label: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> bool:
        """Write a domain into ``params.yaml``: under ``domains`` and, when it is learnt, under ``modules``.

        Declaring it again changes nothing; ``auto``, ``None`` and options that are not given keep what was declared.

        Args:
            domain: its name.
            role: ``learn``, ``natural`` or ``unseen``.
            format: name of its layout.
            label: a text for people.
            options: what its files do not say (see ``SourceParams``).

        Returns:
            Whether the file changed.

        Raises:
            UsageError: the name or role cannot be, or the domain is there with another role.
            ConfigError: the changed file would be wrong; it stays as it was.
        """
        check_name(domain)
        if role not in _ROLES:
            raise UsageError(f"role is {role!r}, expected one of {list(_ROLES)}")

        def edit(values: CommentedMap) -> None:
            entry = _section(values, "domains").setdefault(domain, CommentedMap(role=role))
            if entry.get("role", "learn") != role:
                found = entry.get("role", "learn")
                raise UsageError(
                    f"domain {domain!r} is declared with role {found!r}, not {role!r}",
                    hint=f"choose another name, or remove {domain} from the workspace first",
                )
            entry["role"] = role
            if format != "auto":
                entry["format"] = format
            if label is not None:
                entry["label"] = label
            entry.update(options or {})
            if role == "learn":
                _section(values, "modules").setdefault(domain, CommentedMap())

        return self._edit_params(edit)

    def append_to_stream(self, *domains: str) -> str:
        """Make learnt domains the next steps of the stream; a domain that is in it stays as it is.

        Several new ones are a back-fill: only the last of them fits the selector.

        Returns:
            The step before the first of them: a domain or ``base``.

        Raises:
            ConfigError: a domain is not declared with role ``learn``.
        """

        def edit(values: CommentedMap) -> None:
            stream = _section(values, "stream")
            new = [domain for domain in dict.fromkeys(domains) if domain not in stream]
            for domain in new:
                stream[domain] = CommentedMap(previous=next(reversed(stream), BASE))
                if domain != new[-1]:
                    stream[domain]["fit"] = False

        self._edit_params(edit)
        return self.params().stream[domains[0]].previous

    def remove_domain(self, domain: str) -> tuple[str, ...]:
        """Take a domain out: its entries and its files. The steps after it are linked to the one before it.

        The end of a back-fill hands its fit on to the step before it.

        The arrived data is deleted only where DVC's cache holds it, too. An interrupted removal can be repeated.

        Returns:
            The steps that came after it: their banks must be made again.

        Raises:
            UsageError: nothing of this name is in the workspace.
        """
        check_name(domain)
        before = self.params()
        steps = before.steps()
        place = steps.index(domain) if domain in steps else 0
        after = steps[place + 1 :] if domain in steps else ()

        def edit(values: CommentedMap) -> None:
            stream = _section(values, "stream")
            if place > 0 and before.stream[domain].fit:
                stream[steps[place - 1]].pop("fit", None)
            for section in ("domains", "modules", "stream"):
                _section(values, section).pop(domain, None)
            previous = BASE
            for name, step in stream.items():
                step["previous"] = previous
                previous = name

        changed = self._edit_params(edit)
        changed |= forget_stages(self.root, domain)
        for path in self._files_of(domain):
            changed = True
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            _forget_ignored(path)
        if not changed:
            known = sorted(before.domains) or "none"
            raise UsageError(f"domain {domain!r} is not in this workspace; declared are {known}")
        return after

    def refresh_code(self) -> bool:
        """Bring ``code.yaml`` up to the installed code; True when it changed (stages whose code changed are stale)."""
        with self.lock("code"):
            return write_code(self.root)

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold a named lock of this workspace against other processes of this machine."""
        folder = self.state / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            yield

    def _edit_params(self, edit: Edit) -> bool:
        path = self.root / "params.yaml"
        with self.lock("params"):
            values = _round_trip(path)
            edit(values)
            text = _dump(values)
            parse_params(YAML(typ="safe", pure=True).load(text), path.name)
            if text == path.read_text(encoding="utf-8"):
                return False
            write_atomic(path, text.encode())
            return True

    def _files_of(self, domain: str) -> list[Path]:
        places = self.places
        tracked = places.raw(domain).with_name(f"{domain}.dvc")
        found = [places.domain(domain), places.module(domain), places.curve(domain), places.bank(domain)]
        found += [places.embeddings(role, domain) for role in _ROLES]
        found += [places.scores(domain), places.images(domain), places.pictures(domain)]
        found += sorted(places.checkpoint(domain).parent.glob(f"{domain}.*"))
        # Without its .dvc file the arrived data may exist nowhere else.
        found += [places.raw(domain), tracked] if tracked.is_file() else []
        return [path for path in found if path.exists() or path.is_symlink()]


def find_workspace(start: Path) -> Path:
    """The nearest folder, from ``start`` upwards, that holds ``params.yaml`` and ``dvc.yaml``.

    Raises:
        UsageError: there is none.
    """
    here = start.resolve()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder
    raise UsageError(f"no workspace at {here} or above it (no params.yaml with dvc.yaml)", hint="samcl init")


def init_workspace(
    root: Path, *, backbone: str | None = None, profile: str | None = None, device: str | None = None
) -> Workspace:
    """Make ``root`` a workspace, or bring an existing one up to the installed code. What is there stays as it is.

    A git repository is made only outside of any other (or where that one ignores the folder), and only then is there a
    first commit. DVC gets a default remote inside the workspace; its analytics are off.

    Args:
        root: the folder; made when absent.
        backbone: name for ``params.yaml``; ``None`` keeps what is there (``sam_nano`` in a new one).
        profile: ``default`` or ``reference``; ``None`` keeps what is there.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ``None`` keeps what is there.

    Raises:
        UsageError: ``root`` is a file, or git or DVC is missing.
        ConfigError: the settings would be wrong.
    """
    root = _made(root)
    workspace = Workspace(root)
    with workspace.lock("init"):
        owns_git = _ensure_git(root)
        _write_templates(workspace, {"profile": profile, "device": device}, backbone)
        _ensure_lines(root / ".gitignore", _IGNORED)
        for role in _ROLES:
            _ensure_file(root / "embeddings" / role / ".gitkeep")
        _ensure_file(root / "data" / "raw" / ".gitkeep")
        _ensure_dvc(root)
        _ensure_lines(root / ".dvcignore", _IGNORED)
        workspace.refresh_code()
        if owns_git:
            _first_commit(root)
    return workspace


def _made(root: Path) -> Path:
    root = root.expanduser().resolve()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as exc:
        raise UsageError(f"{root} cannot be a workspace: a file is in the way", hint="give another folder") from exc
    except OSError as exc:
        raise UsageError(f"{root} cannot be made: {exc.strerror}", hint="give another folder") from exc
    return root


def _write_templates(workspace: Workspace, options: dict[str, str | None], backbone: str | None) -> None:
    root = workspace.root
    is_new = not (root / "params.yaml").exists()
    for name in _TEMPLATES:
        if not (root / name).exists() and name != "params.yaml":
            write_atomic(root / name, template(name).encode())
    if is_new:
        values = _parse(template("params.yaml"), "params.yaml")
        _set_options(values, options, backbone)
        text = _dump(values)
        parse_params(YAML(typ="safe", pure=True).load(text))
        write_atomic(root / "params.yaml", text.encode())
    elif backbone is not None or any(value is not None for value in options.values()):
        workspace._edit_params(lambda values: _set_options(values, options, backbone))
    else:
        workspace.params()


def _set_options(values: CommentedMap, options: dict[str, str | None], backbone: str | None) -> None:
    for key, value in options.items():
        if value is not None and values.get(key) != value:
            values[key] = value
    section = values.setdefault("backbone", CommentedMap())
    if backbone is None or section.get("name") == backbone:
        return
    if values.get("stream") or values.get("modules"):
        raise UsageError(
            f"this workspace learns with backbone {section.get('name')!r}, not {backbone!r}",
            hint="samcl init OTHER_FOLDER, or change `backbone` in params.yaml and learn everything again",
        )
    section["name"] = backbone


def template(name: str) -> str:
    """Text of a file that ``samcl init`` writes."""
    return (files("tasks.templates") / name).read_text(encoding="utf-8")


def _ensure_git(root: Path) -> bool:
    """Make a repository where there is none; True when it was made here, now or by an interrupted run, and is empty."""
    marker = root / OWN_GIT
    inside = git(root, "rev-parse", "--show-toplevel")
    # A folder that the repository around it ignores (a demo in a clone) needs its own.
    is_foreign = inside.returncode == 0 and Path(inside.stdout.strip()).resolve() != root
    if inside.returncode != 0 or (is_foreign and git(root, "check-ignore", "-q", str(root)).returncode == 0):
        made = git(root, "init", "--quiet", "--initial-branch=main")
        if made.returncode != 0:
            raise SamclError(f"git init failed in {root}: {made.stderr.strip()}")
        marker.touch()
    return marker.exists() and git(root, "rev-parse", "--verify", "--quiet", "HEAD").returncode != 0


def _ensure_dvc(root: Path) -> None:
    if not (root / ".dvc" / "config").is_file():
        top = git(root, "rev-parse", "--show-toplevel").stdout.strip()
        _dvc(root, "init", "--quiet", *([] if Path(top).resolve() == root else ["--subdir"]))
    config = (root / ".dvc" / "config").read_text(encoding="utf-8")
    if "analytics" not in config:
        _dvc(root, "config", "core.analytics", "false")
    if "['remote" not in config:
        _dvc(root, "remote", "add", "--default", "local", STORE)


def _dvc(root: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=root, env=clean_environment(), capture_output=True, text=True, check=False)
    if "No module named dvc" in done.stderr:
        raise UsageError("DVC is not installed", hint='pip install "samcl[pipeline]"')
    if done.returncode != 0:
        raise SamclError(f"dvc {' '.join(arguments)} failed in {root}: {(done.stderr or done.stdout).strip()}")


def _first_commit(root: Path) -> None:
    paths = [*_TEMPLATES, CODE_FILE, ".gitignore", ".dvcignore", ".dvc", "embeddings", "data/raw/.gitkeep"]
    git(root, "add", "--", *(path for path in paths if (root / path).exists()))
    options = ("-c", "commit.gpgsign=false", "commit", "--quiet", "--no-verify", "-m", "Start the workspace")
    done = git(root, *identity(root), *options)
    if done.returncode != 0:
        raise SamclError(f"git commit failed in {root}: {(done.stderr or done.stdout).strip()}")


def _ensure_lines(path: Path, lines: tuple[str, ...]) -> None:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    missing = [line for line in lines if line not in text.splitlines()]
    if missing:
        gap = "" if not text or text.endswith("\n") else "\n"
        write_atomic(path, (text + gap + "\n".join(missing) + "\n").encode())


def _ensure_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def _section(values: CommentedMap, name: str) -> CommentedMap:
    section = values.get(name)
    if not isinstance(section, CommentedMap):
        section = CommentedMap()
        values[name] = section
    section.fa.set_block_style()
    return section


def _yaml() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.representer.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", ""))
    return yaml


def _parse(text: str, source: str) -> CommentedMap:
    try:
        values = _yaml().load(text)
    except YAMLError as exc:
        raise ConfigError(source, [f"is not YAML: {' '.join(str(exc).split())}"]) from exc
    if not isinstance(values, CommentedMap):
        raise ConfigError(source, [f"expected a mapping of sections, found {type(values).__name__}"])
    return values


def _round_trip(path: Path) -> CommentedMap:
    load_params(path)  # a file that is wrong before the edit is reported as such
    return _parse(path.read_text(encoding="utf-8"), path.name)


def _dump(values: CommentedMap) -> str:
    for name in ("domains", "modules", "stream"):
        section = values.get(name)
        if isinstance(section, CommentedMap) and not section:
            section.fa.set_flow_style()
    stream = io.StringIO()
    _yaml().dump(values, stream)
    return stream.getvalue()


def _forget_ignored(path: Path) -> None:
    """Take the line that DVC wrote for an output out of the ``.gitignore`` beside it."""
    ignore = path.parent / ".gitignore"
    if not ignore.is_file():
        return
    lines = ignore.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line != f"/{path.name}"]
    if kept and kept != lines:
        write_atomic(ignore, ("\n".join(kept) + "\n").encode())
    elif not kept:
        ignore.unlink()
