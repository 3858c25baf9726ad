"""The report as one HTML page: no script, no other file, nothing from the network; every text is escaped."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence

from samcl_core.domains.datareport.pictures import Picture, jpeg
from samcl_core.domains.datareport.summary import FOREGROUND_BINS, DataSummary
from samcl_core.domains.findings import SEVERITIES, Finding, printable

__all__ = ["MEANINGS", "page"]

MEANINGS = {
    "image.missing": "A mask without an image. Add the image, or remove the mask.",
    "mask.missing": "An image without a mask. Draw the mask, or remove the image.",
    "image.unreadable": "The file is damaged, cut short or no image. Copy it again from its source.",
    "mask.unreadable": "The file is damaged, cut short or cannot be drawn. Copy or export it again.",
    "image.too_large": "The header claims more pixels than are ever decoded. Shrink the image or cut it into tiles.",
    "mask.too_large": "The header claims more pixels than are ever decoded. Shrink the mask or cut it into tiles.",
    "mask.swapped_axes": "Width and height of the mask are those of the image the other way round. Transpose it, and"
    " look whether it then fits: it may also have to be mirrored.",
    "mask.size": "Mask and image are of different sizes. Export the mask again at the size of the image.",
    "mask.empty": "Nothing is marked. Say that the image is a negative, or give the values of your classes (`codes`).",
    "mask.full": "Everything is marked. The mask may be inverted, or its values may have been read wrongly.",
    "leak.exact": "The same image is for training and for testing: the scores would be too good.",
    "leak.near": "Nearly the same image is for training and for testing: the scores may be too good. Split by group.",
    "mask.not_binary": "Grey values away from the edges: a soft mask, or values that stand for classes.",
    "mask.thin": "Thinner than the model can resolve. Cut the images into tiles, or draw the masks wider.",
    "mask.shared": "One mask file is used for several images. Look whether the names were paired wrongly.",
    "mask.repeated": "Different images have the same mask. Look whether masks were copied by mistake.",
    "image.flat": "The image has hardly any contrast. Look whether the camera or an export failed.",
    "image.odd_size": "A very small or very long image. Look whether it is what you wanted to hand in.",
    "image.duplicate": "The same image several times in one split counts several times. Remove the copies.",
    "points.unreadable": "An entry of points.json cannot be read. Correct or remove it.",
    "points.outside": "Points do not lie where their labels say. They may be in pixels: the frame is 1024 x 1024.",
    "classes.imbalance": "Rare classes are learnt badly. Add samples of them, or leave them out (`classes`).",
    "foreground.large": "Most masks cover most of their images. They may be inverted.",
    "foreground.small": "Most masks cover next to nothing of their images.",
    "image.near_duplicate": "Nearly the same image several times in one split: frames of a video, or a copy.",
}
"""What each check's findings mean, and what to do about them."""

# Should a text ever slip through unescaped, the browser still runs nothing and fetches nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_MAX_ROWS = 200
_MAX_FILES = 6
_MAX_CLASSES = 40
_COLOURS = ("#2563eb", "#d97706", "#059669")
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #5b6773; --line: #d5dbe1; --back: #fff; --card: #f5f7f9;
  --error: #b42318; --warning: #8a5a00; --info: #175cd3 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa5b1; --line: #3b444d; --back: #14181c;
  --card: #1d2329; --error: #ff8a7a; --warning: #f0b429; --info: #84b6ff } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 66rem;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin: 2rem 0 .6rem }
p.lead { color: var(--soft); margin-top: 0 }
table { border-collapse: collapse } th, td { text-align: left; padding: .25rem .9rem .25rem 0; vertical-align: top }
th { color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--line) } td.n, th.n { text-align: right }
.wide { overflow-x: auto } code { font-size: .9em; overflow-wrap: anywhere }
.error { color: var(--error) } .warning { color: var(--warning) } .info { color: var(--info) }
.sign { font-weight: 700 } details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0;
  padding: .4rem .8rem; background: var(--card) } summary { cursor: pointer }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem }
figure { margin: 0; padding: .6rem; border: 1px solid var(--line); border-radius: 6px; background: var(--card) }
figure img { max-width: 100%; border-radius: 3px; margin: 0 .2rem .2rem 0 } figcaption { font-size: .85rem }
svg text { fill: var(--ink); font: 11px system-ui, sans-serif }
"""


def page(summary: DataSummary, findings: Sequence[Finding], pictures: Sequence[Picture]) -> str:
    """The whole page.

    Args:
        summary: the numbers of the domain.
        findings: sorted.
        pictures: what to show of them.
    """
    name = _text(summary.domain)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Data report: {name}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Data report: {name}</h1>",
        f'<p class="lead">format <code>{_text(summary.format)}</code>, {_verdict(summary)}</p>',
        _splits(summary),
        _histogram(summary),
        _classes(summary),
        _gallery(pictures),
        _findings(findings),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _text(text: str) -> str:
    return html.escape(printable(text), quote=True)


def _verdict(summary: DataSummary) -> str:
    counts = summary.num_findings
    if not any(counts.values()):
        return "nothing was found wrong"
    words = {"error": "errors", "warning": "warnings", "info": "remarks"}
    said = [f'<span class="{severity}">{counts[severity]:,} {words[severity]}</span>' for severity in SEVERITIES]
    return f"{', '.join(said)}; {summary.num_quarantined:,} samples put aside"


def _splits(summary: DataSummary) -> str:
    header = (
        "split",
        "samples",
        "images",
        "width (min, median, max)",
        "height (min, median, max)",
        "median foreground",
    )
    rows = [
        (
            _text(name),
            f"{split.num_samples:,}",
            f"{split.num_images:,}",
            " / ".join(map(str, split.width)),
            " / ".join(map(str, split.height)),
            f"{split.median_foreground_frac:.2%}",
        )
        for name, split in summary.splits.items()
    ]
    rows.append(("put aside", f"{summary.num_quarantined:,}", "", "", "", ""))
    return f"<h2>Splits</h2>{_table(header, rows)}"


def _classes(summary: DataSummary) -> str:
    totals: dict[str, int] = {}
    for split in summary.splits.values():
        for label, count in split.classes.items():
            totals[label] = totals.get(label, 0) + count
    if not totals:
        return ""
    labels = sorted(totals, key=lambda label: (-totals[label], label))
    rows = [
        (_text(label), *(f"{split.classes.get(label, 0):,}" for split in summary.splits.values()))
        for label in labels[:_MAX_CLASSES]
    ]
    if len(labels) > _MAX_CLASSES:
        rows.append((f"and {len(labels) - _MAX_CLASSES:,} more", *("" for _ in summary.splits)))
    return f"<h2>Classes</h2>{_table(('class', *map(_text, summary.splits)), rows)}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are escaped already; all columns but the first are numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}{' class=n' if position else ''}>{cell}</{tag}>" for position, cell in enumerate(cells))

    body = "".join(f"<tr>{line(row, 'td')}</tr>\n" for row in rows)
    return f'<div class="wide"><table><tr>{line(header, "th")}</tr>\n{body}</table></div>'


def _histogram(summary: DataSummary) -> str:
    """Bars: samples by share of foreground, side by side for each split, as shares of the split."""
    if not summary.splits:
        return ""
    width, height, left, group = 760, 150, 40, 70
    bar = (group - 14) / len(summary.splits)
    highest = max(max(split.foreground) / split.num_samples for split in summary.splits.values())
    marks = []
    for number, (name, split) in enumerate(summary.splits.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        for at, count in enumerate(split.foreground):
            tall = round(height * count / split.num_samples / highest, 1)
            marks.append(
                f'<rect x="{left + at * group + number * bar:.1f}" y="{20 + height - tall:.1f}" width="{bar - 1:.1f}"'
                f' height="{tall:.1f}" fill="{colour}"><title>{_text(name)}, foreground'
                f" {_text(FOREGROUND_BINS[at])}: {count:,}</title></rect>"
            )
        marks.append(
            f'<rect x="{left + number * 90}" y="2" width="10" height="10" fill="{colour}"/>'
            f'<text x="{left + 14 + number * 90}" y="11">{_text(name)}</text>'
        )
    for at, label in enumerate(FOREGROUND_BINS):
        middle = left + at * group + (group - 14) / 2
        marks.append(f'<text x="{middle:.1f}" y="{height + 36}" text-anchor="middle">{_text(label)}</text>')
    line = f'<line x1="{left}" x2="{width}" y1="{height + 20}" y2="{height + 20}" stroke="currentColor"/>'
    top = f'<text x="{left - 6}" y="28" text-anchor="end">{highest:.0%}</text>'
    return (
        "<h2>How much of an image is foreground</h2>"
        f'<div class="wide"><svg viewBox="0 0 {width} {height + 44}" width="{width}" role="img"'
        f' aria-label="share of samples by share of foreground">{"".join(marks)}{line}{top}</svg></div>'
    )


def _gallery(pictures: Sequence[Picture]) -> str:
    if not pictures:
        return ""
    return f'<h2>The worst</h2><div class="gallery">{"".join(map(_figure, pictures))}</div>'


def _figure(picture: Picture) -> str:
    found = picture.finding
    images = ""
    for view in picture.views:
        data = base64.b64encode(jpeg(view.image)).decode("ascii")
        images += f'<img alt="{_text(view.file)}" src="data:image/jpeg;base64,{data}">'
    caption = f"{_sign(found)}<br>{_files(found)}<br>{_text(found.message)}"
    return f"<figure>{images}<figcaption>{caption}</figcaption></figure>\n"


def _sign(found: Finding) -> str:
    return f'<span class="sign {found.severity}">{found.severity}</span> <code>{_text(found.check)}</code>'


def _files(found: Finding) -> str:
    shown = "<br>".join(f"<code>{_text(name)}</code>" for name in found.files[:_MAX_FILES])
    more = len(found.files) - _MAX_FILES
    return f"{shown}<br>and {more:,} more" if more > 0 else shown or "the whole domain"


def _findings(findings: Sequence[Finding]) -> str:
    groups: dict[str, list[Finding]] = {}
    for found in findings:
        groups.setdefault(found.check, []).append(found)
    if not groups:
        return ""
    return "<h2>Everything found</h2>" + "\n".join(_group(members, MEANINGS) for members in groups.values())


def _group(members: Sequence[Finding], meanings: Mapping[str, str]) -> str:
    first = members[0]
    rows = "".join(
        f"<tr><td>{_files(found)}</td><td>{_text(found.message)}</td></tr>\n" for found in members[:_MAX_ROWS]
    )
    more = len(members) - _MAX_ROWS
    rest = f"<p>and {more:,} more in <code>report.json</code></p>" if more > 0 else ""
    is_open = " open" if first.severity == "error" else ""
    return (
        f"<details{is_open}><summary>{_sign(first)}: {len(members):,}</summary>"
        f"<p>{_text(meanings.get(first.check, ''))}</p>"
        f'<div class="wide"><table><tr><th>files</th><th>found</th></tr>\n{rows}</table></div>{rest}</details>'
    )
