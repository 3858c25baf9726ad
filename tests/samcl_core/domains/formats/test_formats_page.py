"""docs/formats.md lists every format, in the order in which they are tried, and every option of a source."""

from __future__ import annotations

import re
from pathlib import Path

from samcl_core.config import SourceParams
from samcl_core.domains.formats import format_names, get_format

PAGE = Path(__file__).parents[4] / "docs/formats.md"


def test_the_page_lists_every_format_and_where_it_is_described() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name, _ in rows] == list(format_names())
    for name, described_at in rows:
        addresses = re.findall(r"https?://[^\s,)]+", get_format(name).described_at)
        assert [address for address in addresses if address not in described_at] == [], name


def test_the_page_lists_every_option() -> None:
    options = PAGE.read_text(encoding="utf-8").partition("| option | |")[2].partition("##")[0]
    first = [line.split("|")[1] for line in options.splitlines() if line.startswith("| `")]
    assert re.findall(r"`(\w+)`", " ".join(first)) == list(SourceParams.model_fields)
