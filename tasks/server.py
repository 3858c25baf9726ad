"""The Prefect server of a command: the configured one, or one of the workspace's own, started and stopped as needed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from filelock import FileLock

from samcl_core.errors import SamclError, UsageError
from samcl_core.files import write_json
from tasks.database import keep_empty, start_from_empty
from tasks.processes import Record, clean_environment, end_group, read_record, same_process, this_process, write_record

__all__ = ["Server", "prefect_server", "running_server", "stop_server"]

_START_TIMEOUT_S = 180.0
_ATTEMPTS = 3
_DRAIN_TIMEOUT_S = 5.0
_LOCAL = "127.0.0.1"
# A server may outlive the command that started it; Python complains about a child that nobody holds.
_CHILDREN: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Server:
    """A Prefect server that answers.

    Attributes:
        url: address of its API.
        page: address of its page for people.
        is_own: it belongs to the workspace; False for a configured one.
        is_new: this command started it.
    """

    url: str
    page: str
    is_own: bool
    is_new: bool


@contextmanager
def prefect_server(
    root: Path, *, keep: bool = False, on_ready: Callable[[Server], None] | None = None
) -> Iterator[Server]:
    """Flows inside the block reach a server.

    In this order: the one named by ``PREFECT_API_URL``, the Prefect profile or ``prefect.toml``; the workspace's own
    that lives already; a new one on embedded SQLite and a free local port. The last command that uses the workspace's
    own server stops it. Inside the block a termination signal is an exception, so that steps and server are ended, too.

    Args:
        root: the workspace.
        keep: leave the workspace's own server running.
        on_ready: told which server it is.

    Raises:
        SamclError: the configured server does not answer, or a new one does not start.
        UsageError: Prefect is not installed.
    """
    configured = _configured(root)
    with _ending_on_signals():
        if configured is not None:
            with _used(root, Server(configured, _page(configured), False, False), on_ready) as server:
                yield server
            return
        server = _join(root, keep)
        try:
            with _used(root, server, on_ready):
                yield server
        finally:
            _leave(root)


def running_server(root: Path) -> Server | None:
    """The workspace's own server, when it lives."""
    record = _live(root)
    return None if record is None else Server(record["url"], _page(record["url"]), True, False)


def stop_server(root: Path) -> bool:
    """Stop the workspace's own server whoever uses it; False when none lives."""
    with _lock(root):
        record = _live(root)
        _record_path(root).unlink(missing_ok=True)
        return record is not None and end_group(record["pid"]) > 0


@contextmanager
def _used(root: Path, server: Server, on_ready: Callable[[Server], None] | None) -> Iterator[Server]:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tasks.limits import ensure_limits, repair_after_kill

    before = {name: os.environ.get(name) for name in ("PREFECT_API_URL", "NO_PROXY", "no_proxy")}
    os.environ["PREFECT_API_URL"] = server.url
    if server.is_own:
        # A proxy of the environment must not be asked for this machine's own server.
        for name in ("NO_PROXY", "no_proxy"):
            os.environ[name] = ",".join(filter(None, [before[name], _LOCAL, "localhost"]))
    try:
        with temporary_settings(updates={PREFECT_API_URL: server.url}):
            if server.is_own and _num_users(root) <= 1:
                repair_after_kill(_folder(root) / "concurrency_leases")
            ensure_limits(root)
            if on_ready is not None:
                on_ready(server)
            try:
                yield server
            finally:
                _send_the_rest()
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def _send_the_rest() -> None:
    """Logs and events wait in this process for a moment; a server that is stopped would not get them."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for service in (APILogWorker, EventsWorker):
        with contextlib.suppress(Exception):
            service.drain_all(timeout=_DRAIN_TIMEOUT_S)


def _configured(root: Path) -> str | None:
    """The address that settings name, once it answers."""
    with _inside(root):
        try:
            from prefect.settings import get_current_settings
        except ModuleNotFoundError as exc:
            raise UsageError("Prefect is not installed", hint='pip install "samcl[pipeline]"') from exc
    url = get_current_settings().api.url
    if url is None:
        return None
    is_cloud = get_current_settings().api.key is not None
    if not is_cloud and not _answers(url, timeout_s=10.0):
        raise SamclError(
            f"the Prefect server at {url} does not answer",
            hint="start it, or unset PREFECT_API_URL: samcl then starts one of its own",
        )
    return str(url)


@contextmanager
def _inside(root: Path) -> Iterator[None]:
    """Prefect reads ``prefect.toml`` of the current folder once, when it is imported."""
    if "prefect" in sys.modules or not root.is_dir():
        yield
        return
    before = Path.cwd()
    os.chdir(root)
    try:
        yield
    finally:
        os.chdir(before)


def _join(root: Path, keep: bool) -> Server:
    """Use the workspace's own server, starting it when none lives, and be written down as a user."""
    with _lock(root):
        record = _live(root)
        is_new = record is None
        if record is None:
            record = _start(root)
        users = [user for user in record.get("users", []) if same_process(user)]
        record |= {"users": [*users, this_process()], "keep": bool(record.get("keep")) or keep}
        write_json(_record_path(root), record)
    return Server(record["url"], _page(record["url"]), True, is_new)


def _leave(root: Path) -> None:
    with _lock(root):
        record = read_record(_record_path(root))
        if record is None:
            return
        others = [user for user in record.get("users", []) if user["pid"] != os.getpid() and same_process(user)]
        if others or record.get("keep"):
            write_json(_record_path(root), record | {"users": others})
            return
        _record_path(root).unlink(missing_ok=True)
        if same_process(record):
            end_group(record["pid"])


def _start(root: Path) -> Record:
    folder = _folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    log, database = folder / "server.log", folder / "prefect.db"
    is_first = not database.exists() and not start_from_empty(database)
    for _ in range(_ATTEMPTS):
        port = _free_port()
        url = f"http://{_LOCAL}:{port}/api"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                _command(port),
                cwd=folder,
                env=_environment(folder, url),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _CHILDREN.append(process)
        record = write_record(_record_path(root), process.pid, url=url, users=[this_process()], keep=False)
        try:
            if _wait_ready(process, url):
                if is_first and database.exists():
                    keep_empty(database)
                return record
        except BaseException:
            end_group(process.pid)
            process.wait()
            _record_path(root).unlink(missing_ok=True)
            raise
        end_group(process.pid)
        process.wait()
        _record_path(root).unlink(missing_ok=True)
        if "address already in use" not in log.read_text(encoding="utf-8", errors="replace"):
            break
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
    raise SamclError(f"the workspace's Prefect server did not start; {log} ends with:\n{tail}", hint=f"read {log}")


def _command(port: int) -> list[str]:
    """What ``prefect server start`` runs, without its wrapper of a second process."""
    import prefect

    app = ["--app-dir", str(Path(prefect.__file__).parent), "--factory", "prefect.server.api.server:create_app"]
    address = ["--host", _LOCAL, "--port", str(port), "--timeout-keep-alive", "5"]
    return [sys.executable, "-m", "uvicorn", *app, *address, "--log-level", "warning", "--lifespan", "on"]


def _environment(folder: Path, url: str) -> dict[str, str]:
    own = {
        "PREFECT_HOME": str(folder),
        "PREFECT_API_URL": url,
        "PREFECT_PROFILES_PATH": str(folder / "profiles.toml"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT__SERVER_FINAL": "1",
        "DO_NOT_TRACK": "1",
    }
    # A database of the user's own (PostgreSQL) is respected; else SQLite inside the workspace.
    if "PREFECT_SERVER_DATABASE_CONNECTION_URL" not in os.environ:
        own["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{folder / 'prefect.db'}"
    return clean_environment(own)


def _wait_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    end = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < end and process.poll() is None:
        if _answers(url, timeout_s=2.0):
            return True
        time.sleep(0.1)
    return False


def _answers(url: str, timeout_s: float) -> bool:
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if _LOCAL in url else []))
    try:
        with opener.open(f"{url.rstrip('/')}/health", timeout=timeout_s) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def _live(root: Path) -> Record | None:
    record = read_record(_record_path(root))
    if record is None or not same_process(record) or not _answers(str(record.get("url")), timeout_s=10.0):
        return None
    return record


def _num_users(root: Path) -> int:
    record = read_record(_record_path(root)) or {}
    return sum(same_process(user) for user in record.get("users", []))


def _page(url: str) -> str:
    return url.removesuffix("/").removesuffix("/api")


def _folder(root: Path) -> Path:
    return root / ".samcl" / "prefect"


def _record_path(root: Path) -> Path:
    return _folder(root) / "server.json"


def _lock(root: Path) -> FileLock:
    _folder(root).mkdir(parents=True, exist_ok=True)
    return FileLock(_folder(root) / "server.lock")


def _free_port() -> int:
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.bind((_LOCAL, 0))
        return int(probe.getsockname()[1])


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise ``SystemExit``, as SIGINT raises ``KeyboardInterrupt``: what was started is ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    names = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.signal(number, end) for number in names}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
