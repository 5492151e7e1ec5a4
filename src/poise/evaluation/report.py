"""A report as one HTML file that needs nothing else: figures, videos and style are inside.

Figures go in as vector graphics whose text and neutral colours follow the page, light or dark; one that would be large
goes in as an image on a light ground.
"""

import base64
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from poise.envs.drawing import FLOOR, OBSTACLE, ROBOT, SHADOW, WALL
from poise.envs.pictures import INK, MUTED
from poise.evaluation.plots import TRACK
from poise.files import replace_text

Cell = str | int | float | None

_LARGE = 900_000  # characters, beyond which a figure goes in as an image
_DPI = 208  # twice the pixels of the page
_LONG = 16  # rows, beyond which a table is folded
_NUMBER = re.compile(r"[<>≤≥≈±+−-]?\s?\d")
_THEME = {  # neutral colour -> its name in the style sheet, and what it is on dark ground
    INK: ("ink", "#edf0f5"),
    MUTED: ("muted", "#8e99ab"),
    SHADOW: ("rule", "#2a3240"),
    TRACK: ("track", "#222937"),
    FLOOR: ("floor", "#171c26"),
    WALL: ("wall", "#2b3342"),
    OBSTACLE: ("disc", "#55627a"),
    ROBOT: ("accent", "#5b8cff"),
}


@dataclass(frozen=True)
class Table:
    """Results in rows.

    Attributes:
        columns: Headings.
        rows: Cells, as many a row as there are columns. Numbers of a column are written with the same decimals; text is
            written as it is, and aligned as numbers where a column's all begins with digits; None is a dash.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def __post_init__(self) -> None:
        for k, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"Table got {len(row)} cells in row {k}, expected {len(self.columns)}: "
                    f"one for each of {list(self.columns)}"
                )


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        title: Heading.
        text: Paragraphs, between blank lines; plain text.
        figures: A figure's label is its caption.
        table: Below the figures.
        video: An MP4 file, below the text.
    """

    title: str
    text: str
    figures: Sequence[Figure] = ()
    table: Table | None = None
    video: Path | None = None


def markdown(table: Table) -> Iterator[str]:
    """The lines of a table for a Markdown page, with its cells as `str` gives them."""
    for cells in (table.columns, ["---"] * len(table.columns), *table.rows):
        yield f"| {' | '.join(map(str, cells))} |"


def write_report(path: str | Path, title: str, lead: str, sections: Sequence[Section], footer: str) -> None:
    """Write a report; the file is complete or it is not there.

    Args:
        path: The HTML file.
        title: Of the page.
        lead: Paragraphs that say what was found, set large under the title.
        sections: In order.
        footer: Paragraphs in small print: how, where and when the figures were made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = iter(range(1, 1 + sum(len(section.figures) for section in sections)))
    body = "\n".join(_section(section, [next(count) for _ in section.figures]) for section in sections)
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{escape(title)}</h1>\n"
        f'<div class="lead">{_paragraphs(lead)}</div>\n</header>\n<main>\n{body}\n</main>\n'
        f"<footer>{_paragraphs(footer)}</footer>\n</body>\n</html>\n"
    )
    replace_text(path, page)


def _paragraphs(text: str) -> str:
    parts = (part.strip() for part in re.split(r"\n\s*\n", text))
    return "".join(f"<p>{escape(part)}</p>" for part in parts if part)


def _section(section: Section, numbers: Sequence[int]) -> str:
    parts = [f'<section>\n<h2>{escape(section.title)}</h2>\n<div class="text">{_paragraphs(section.text)}</div>']
    if section.video is not None:
        data = base64.b64encode(section.video.read_bytes()).decode()
        source = f'<source type="video/mp4" src="data:video/mp4;base64,{data}">'
        parts.append(f'<figure class="video"><video controls autoplay muted loop playsinline>{source}</video></figure>')
    parts += [_figure(figure, number) for figure, number in zip(section.figures, numbers, strict=True)]
    if section.table is not None:
        parts.append(_table(section.table))
    return "\n".join([*parts, "</section>"])


def _figure(figure: Figure, number: int) -> str:
    caption = escape(str(figure.get_label()))
    content, kind = _vector(figure, caption, number), "vector"
    if len(content) > _LARGE:
        content, kind = _image(figure, caption), "image"
    return (
        f'<figure class="{kind}"><div class="plate">{content}</div>'
        f"<figcaption><b>Figure {number}</b> {caption}</figcaption></figure>"
    )


def _vector(figure: Figure, caption: str, number: int) -> str:
    """SVG for the inside of a page: ids of its own, no address, the page's colours and fonts."""
    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "poise"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", facecolor="none", dpi=_DPI, metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'\s(xmlns(:xlink)?|version|width|height)="[^"]*"', "", svg[: svg.index(">")]) + svg[svg.index(">") :]
    svg = re.sub(r'(\sid="|xlink:href="#|href="#|url\(#)', rf"\g<1>f{number}-", svg).replace("xlink:href=", "href=")
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{caption}"', 1)
    colours = re.compile("|".join(_THEME))
    return colours.sub(lambda found: f"var(--{_THEME[found[0]][0]})", svg).strip()


def _image(figure: Figure, caption: str) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{caption}" src="data:image/png;base64,{data}">'


def _table(table: Table) -> str:
    columns = [_column([row[k] for row in table.rows]) for k in range(len(table.columns))]
    kinds = [' class="number"' if number else "" for _, number in columns]
    head = "".join(
        f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(table.columns, kinds, strict=True)
    )
    lines = []
    for k in range(len(table.rows)):
        cells = [f"<td{kind}>{escape(texts[k])}</td>" for (texts, _), kind in zip(columns, kinds, strict=True)]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    whole = f'<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
    if len(table.rows) <= _LONG:
        return whole
    return f"<details><summary>All {len(table.rows)} rows</summary>\n{whole}</details>"


def _column(cells: Sequence[Cell]) -> tuple[list[str], bool]:
    """Texts of a column, and whether it holds numbers."""
    numbers = [abs(cell) for cell in cells if not isinstance(cell, str) and cell is not None and math.isfinite(cell)]
    decimals = 0
    if any(number != round(number) for number in numbers):
        decimals = min(4, max(0, 2 - math.floor(math.log10(max(numbers)))))
    texts = [_text(cell, decimals) for cell in cells]
    return texts, any(text != "–" for text in texts) and all(text == "–" or _NUMBER.match(text) for text in texts)


def _text(cell: Cell, decimals: int) -> str:
    if isinstance(cell, str):
        return cell
    if cell is None or not math.isfinite(cell):
        return "–"
    return f"{cell:,.{decimals}f}".replace("-", "−").replace(",", "\u202f")


_LIGHT = "; ".join(f"--{name}: {light}" for light, (name, _) in _THEME.items())
_DARK = "; ".join(f"--{name}: {dark}" for name, dark in _THEME.values())

_STYLE = f"""
:root {{ color-scheme: light dark; {_LIGHT}; --paper: #fff; --body: #2b3446;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif;
  --serif: Charter, "Bitstream Charter", "Sitka Text", "Iowan Old Style", Cambria, "Source Serif 4", Georgia, serif; }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_DARK}; --paper: #10141c; --body: #c6cdd9; }} }}
* {{ box-sizing: border-box; }}
html {{ -webkit-text-size-adjust: 100%; }}
body {{ margin: 0; padding: clamp(2.5rem, 7vw, 6rem) clamp(1.25rem, 5vw, 4rem); background: var(--paper);
  color: var(--body); font: 1.125rem/1.62 var(--serif); font-kerning: normal; }}
header, main, footer {{ max-width: 68rem; margin: 0 auto; }}
h1, h2, p {{ margin: 0; text-wrap: pretty; }}
h1 {{ max-width: 18em; color: var(--ink); font-size: clamp(2.3rem, 5.4vw, 3.9rem); font-weight: 600; line-height: 1.06;
  letter-spacing: -0.022em; text-wrap: balance; }}
h1::before {{ content: ""; display: block; width: 3.5rem; height: 4px; margin-bottom: 1.8rem;
  background: var(--accent); }}
.lead {{ max-width: 34em; margin-top: 1.6rem; color: var(--muted); font-size: clamp(1.2rem, 2vw, 1.45rem);
  line-height: 1.5; }}
.lead p + p, footer p + p {{ margin-top: 0.7em; }}
section {{ display: grid; grid-template-columns: minmax(0, 1fr); gap: 1.2rem 3rem; margin-top: clamp(3rem, 6vw, 5rem);
  padding-top: 1.5rem; border-top: 1px solid var(--rule); }}
section > * {{ grid-column: 1 / -1; min-width: 0; }}
h2 {{ color: var(--ink); font-size: 1.5rem; font-weight: 600; line-height: 1.2; letter-spacing: -0.012em; }}
.text {{ max-width: 40rem; hyphens: auto; }}
.text p + p {{ margin-top: 0.85em; }}
@media (min-width: 62rem) {{
  section {{ grid-template-columns: 15rem minmax(0, 1fr); row-gap: 2.4rem; }}
  section > h2 {{ grid-column: 1; padding-top: 0.1rem; }}
  section > .text, section > .video {{ grid-column: 2; }}
}}
figure {{ margin: 0; }}
.plate {{ overflow-x: auto; }}
.plate svg, .plate img {{ display: block; width: 100%; min-width: 40rem; height: auto; }}
.plate svg * {{ stroke-linejoin: round; stroke-linecap: butt; }}
.plate svg text {{ font-family: var(--sans) !important; font-variant-numeric: tabular-nums; }}
.image .plate {{ padding: 1rem; border-radius: 0.5rem; background: #fff; }}
figcaption {{ max-width: 46rem; margin-top: 1.1rem; color: var(--muted); font: 0.875rem/1.5 var(--sans); }}
figcaption b {{ margin-right: 0.5em; color: var(--ink); font-weight: 600; }}
video {{ display: block; width: 100%; border-radius: 0.5rem; background: var(--floor); }}
.table {{ overflow-x: auto; }}
summary {{ width: max-content; color: var(--accent); font: 0.9375rem/1.35 var(--sans); cursor: pointer; }}
table {{ width: 100%; border-collapse: collapse; color: var(--body); font: 0.9375rem/1.35 var(--sans);
  font-variant-numeric: tabular-nums lining-nums; }}
th, td {{ padding: 0.62em 0 0.62em 1.6em; text-align: left; vertical-align: baseline; }}
th:first-child, td:first-child {{ padding-left: 0; }}
th {{ color: var(--muted); font-size: 0.8125rem; font-weight: 500; vertical-align: bottom; }}
td {{ border-top: 1px solid var(--rule); white-space: nowrap; }}
thead {{ border-bottom: 1.5px solid var(--ink); }}
tbody {{ border-bottom: 1.5px solid var(--ink); }}
tbody tr:first-child td {{ border-top: 0; }}
td:first-child {{ color: var(--ink); font-weight: 600; }}
.number {{ text-align: right; }}
footer {{ margin-top: clamp(3rem, 6vw, 5rem); padding-top: 1.5rem; border-top: 1px solid var(--rule);
  color: var(--muted);  font: 0.875rem/1.55 var(--sans); overflow-wrap: anywhere; }}
footer p {{ max-width: 46rem; }}
@media print {{
  @page {{ margin: 18mm 16mm; }}
  body {{ padding: 0; font-size: 10.5pt; }}
  h1 {{ font-size: 28pt; }} .lead {{ font-size: 13pt; }}
  .plate svg, .plate img {{ min-width: 0; }}
  figure, tr, h2 {{ break-inside: avoid; }} h2 {{ break-after: avoid; }}
  .video {{ display: none; }}
  * {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
}}
"""

__all__ = ["Cell", "Section", "Table", "markdown", "write_report"]
