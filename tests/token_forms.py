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
}


def table(frame: pd.DataFrame) -> str:
    """Percent, one row a form; of several seeds mean and standard deviation."""
    lines = [f"| selector | {' | '.join(HEADS.values())} |", "| --- |" + " --- |" * len(HEADS)]
    for form in (*FORMS, "gaussian"):
        own = 100 * frame[frame["form"] == form][list(HEADS)]
        spread = [f" ± {value:.1f}" if len(own) > 1 else "" for value in own.std()]
        cells = [f"{value:.1f}{more}" for value, more in zip(own.mean(), spread, strict=True)]
        lines.append(f"| {TITLES[form]} | {' | '.join(cells)} |")
    seeds = ", ".join(str(seed) for seed in sorted(frame["seed"].unique()))
    return "\n".join([*lines, "", f"Seeds: {seeds}."])


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
