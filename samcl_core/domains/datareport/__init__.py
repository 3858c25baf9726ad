"""The report on a data set: its numbers, every finding, pictures of the worst; as JSON and as one HTML file."""

from __future__ import annotations

from samcl_core.domains.datareport.build import REPORT_HTML, REPORT_JSON, read_report, write_report
from samcl_core.domains.datareport.page import MEANINGS, page
from samcl_core.domains.datareport.pictures import Picture, View, jpeg, view_loader, worst_pictures
from samcl_core.domains.datareport.summary import (
    FOREGROUND_BINS,
    CheckCount,
    DataSummary,
    SplitSummary,
    summarize,
)

__all__ = [
    "FOREGROUND_BINS",
    "MEANINGS",
    "REPORT_HTML",
    "REPORT_JSON",
    "CheckCount",
    "DataSummary",
    "Picture",
    "SplitSummary",
    "View",
    "jpeg",
    "page",
    "read_report",
    "summarize",
    "view_loader",
    "worst_pictures",
    "write_report",
]
