"""The ledger: appended by many at once, torn by crashes, changed by hand; and who was champion, read from it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from samcl_core.errors import SamclError
from tasks.ledger import FILE, Entry, append_entry, read_ledger

pytestmark = pytest.mark.pipeline

MODEL = "samcl-bank"


def write(root: Path, action: str, version: str | None, before: str | None = None, **more: Any) -> Entry:
    return append_entry(
        root,
        actor="me@here",
        action=action,
        model=MODEL,
        version=version,
        bank=None if version is None else f"bank {version}",
        before=None if before is None else {"version": before, "bank": f"bank {before}"},
        **more,
    )


def test_lines_are_written_in_a_chain_and_read_again(tmp_path: Path) -> None:
    assert read_ledger(tmp_path).entries == ()
    gates = [{"name": "max_drop", "passed": True, "found": None, "expected": "drop <= 0.01", "reason": "ä | b"}]
    first = write(tmp_path, "promote", "1", reason="every gate passed", gates=gates)
    second = write(tmp_path, "refuse", "2", "1")
    found = read_ledger(tmp_path)
    assert found.entries == (first, second)
    assert (found.problems, found.unfinished) == ((), b"")
    assert [entry.number for entry in found.entries] == [1, 2]
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [line["previous"] for line in lines] == ["0" * 64, first.digest]
    assert first.time.endswith("Z")
    assert found.entries[0].gates == gates


def test_processes_side_by_side_lose_nothing(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tasks.ledger import append_entry\n"
        "for n in range(10):\n"
        "    append_entry(Path(sys.argv[1]), actor=sys.argv[2], action='refuse', model='m', version=str(n), bank='b')\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), f"p{n}"]) for n in range(4)]
    assert [process.wait(120) for process in running] == [0, 0, 0, 0]
    found = read_ledger(tmp_path)
    assert found.problems == ()
    assert sorted((entry.actor, entry.version) for entry in found.entries) == [
        (f"p{p}", str(n)) for p in range(4) for n in range(10)
    ]


def test_what_a_crash_left_of_a_line_is_set_aside(tmp_path: Path) -> None:
    kept = [write(tmp_path, "promote", "1"), write(tmp_path, "promote", "2", "1")]
    whole = (tmp_path / FILE).read_bytes()
    with (tmp_path / FILE).open("ab") as stream:
        stream.write(b'{"action":"promote","acto')
    found = read_ledger(tmp_path)
    assert list(found.entries) == kept
    assert found.problems == ()
    assert found.unfinished == b'{"action":"promote","acto'
    write(tmp_path, "promote", "3", "2")
    found = read_ledger(tmp_path)
    assert (tmp_path / FILE).read_bytes().startswith(whole)
    assert (found.problems, found.unfinished) == ((), b"")
    assert [entry.action for entry in found.entries] == ["promote", "promote", "repair", "promote"]
    (aside,) = tmp_path.glob(f"{FILE}.unfinished-*")
    assert aside.read_bytes() == b'{"action":"promote","acto'
    assert found.entries[2].reason == f"25 bytes of a line that was never finished were set aside in {aside.name}"


def test_a_line_that_lacks_only_its_end_is_kept(tmp_path: Path) -> None:
    kept = [write(tmp_path, "promote", "1"), write(tmp_path, "promote", "2", "1")]
    data = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(data[:-1])
    assert list(read_ledger(tmp_path).entries) == kept
    kept.append(write(tmp_path, "refuse", "3", "2"))
    found = read_ledger(tmp_path)
    assert (list(found.entries), found.problems) == (kept, ())
    assert list(tmp_path.glob("*unfinished*")) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: [lines[0], lines[1].replace(b"bank 2", b"bank 9"), lines[2]], "line 3"),
        (lambda lines: [lines[0], lines[2]], "line 2"),
        (lambda lines: [lines[1], lines[0], lines[2]], "line 1"),
        (lambda lines: [lines[0], b"<<<<<<< HEAD", *lines[1:]], "line 2"),
        (lambda lines: [lines[0], b"{}", *lines[1:]], "line 2"),
        (lambda lines: lines[1:], "line 1"),
    ],
    ids=["changed", "removed", "exchanged", "conflict", "empty", "beheaded"],
)
def test_a_changed_ledger_is_found(tmp_path: Path, change: Any, line: str) -> None:
    for number in (1, 2, 3):
        write(tmp_path, "promote", str(number))
    lines = (tmp_path / FILE).read_bytes().splitlines()
    (tmp_path / FILE).write_bytes(b"\n".join(change(lines)) + b"\n")
    found = read_ledger(tmp_path)
    assert found.problems[0].startswith(f"{FILE} {line}: ")
    write(tmp_path, "refuse", "4")
    after = read_ledger(tmp_path)
    assert after.problems == found.problems, "a new line neither hides nor adds a problem"
    assert after.entries[-1].version == "4"


def test_a_ledger_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(SamclError, match=rf"{FILE} cannot be read: Is a directory"):
        write(tmp_path, "promote", "1")


def test_who_was_champion_when(tmp_path: Path) -> None:
    write(tmp_path, "promote", "1")
    write(tmp_path, "refuse", "2", "1")
    write(tmp_path, "promote", "3", "1")
    write(tmp_path, "promote", "4", "3", forced=True)
    found = read_ledger(tmp_path)
    champion = found.champion(MODEL)
    assert champion is not None and champion.version == "4"
    assert [entry.version for entry in found.predecessors(MODEL)] == ["1", "3"]
    reigns = found.reigns(MODEL)
    assert [(reign["version"], reign["forced"]) for reign in reigns] == [("1", False), ("3", False), ("4", True)]
    assert [reign["until"] for reign in reigns] == [*(reign["since"] for reign in reigns[1:]), None]
    assert found.champion("another-model") is None


def test_without_a_champion_nobody_reigned(tmp_path: Path) -> None:
    append_entry(tmp_path, actor="me", action="refuse", model=MODEL, version="1", bank="b1", reason="worse")
    assert read_ledger(tmp_path).reigns(MODEL) == []


def test_rollbacks_go_further_and_further_back(tmp_path: Path) -> None:
    for version, before in (("1", None), ("2", "1"), ("3", "2")):
        write(tmp_path, "promote", version, before)
    write(tmp_path, "rollback", "2", "3")
    found = read_ledger(tmp_path)
    assert [entry.version for entry in found.predecessors(MODEL)] == ["1"]
    assert found.rollback_of(MODEL, "bank 3") is not None
    assert found.rollback_of(MODEL, "bank 2") is None
    write(tmp_path, "rollback", "1", "2")
    found = read_ledger(tmp_path)
    assert found.predecessors(MODEL) == []
    assert found.rollback_of(MODEL, "bank 2") is not None
    write(tmp_path, "promote", "3", "1")
    found = read_ledger(tmp_path)
    assert found.rollback_of(MODEL, "bank 3") is None
    assert [entry.version for entry in found.predecessors(MODEL)] == ["1"]
    write(tmp_path, "observe", None, "3")
    found = read_ledger(tmp_path)
    assert found.champion(MODEL) is None
    assert [reign["version"] for reign in found.reigns(MODEL)] == ["1", "2", "3", "2", "1", "3"]
