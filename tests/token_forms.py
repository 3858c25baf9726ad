"""Write the table of docs/selectors.md again: ``python tests/token_forms.py [SEED ...]``."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch

from samcl_core.backbones import load_nano
from samcl_core.benchmarks.token_forms import FORMS, compare_forms

PAGE = Path(__file__).parents[1] / "docs" / "selectors.md"
TITLES = {
    "two_pass": "two passes (the paper)",
    "one_pass": "one pass, blocks of the prefix (ours)",
    "one_pass_all_blocks": "one pass, all blocks",
    "two_pass_frozen": "two passes, random tokens (the released code)",
    "one_pass_frozen": "one pass, random tokens",
    "gaussian": "gaussian selector on embeddings of the same images",
}
HEADS = {
    "accuracy": "accuracy, %",
    "agreement": "same as two passes, %",
    "right": "learnt, %",
    "natural": "natural, %",
    "unseen": "unseen, %",
    "fit_s": "fit, s",
    "query_ms": "prefix and query, ms",
}


def table(frame: pd.DataFrame) -> str:
    """Mean and standard deviation over seeds, one row a form."""
    lines = [f"| selector | {' | '.join(HEADS.values())} |", "| --- |" + " --- |" * len(HEADS)]
    for form in (*FORMS, "gaussian"):
        own = frame[frame["form"] == form]
        cells = []
        for column in HEADS:
            values = own[column] * (100 if HEADS[column].endswith("%") else 1)
            cells.append(f"{values.mean():.1f} ± {values.std():.1f}")
        lines.append(f"| {TITLES[form]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(seeds: list[int]) -> None:
    torch.set_num_threads(1)
    parts = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            parts.append(compare_forms(load_nano(), Path(folder), seeds=[seed]))
        print(parts[-1].to_csv(index=False), flush=True)
    text = table(pd.concat(parts))
    page = PAGE.read_text(encoding="utf-8")
    page, count = re.subn(r"(?s)(<!-- forms -->\n).*?(\n<!-- end -->)", lambda m: m[1] + text + m[2], page)
    assert count == 1, "the page has no place for the table"
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or [0, 1, 2])
