"""A dataset as pictures and one page: trajectories, distributions, lengths of episodes, and strips of film.

In the style of the reports of evaluations, light and dark. A figure's label is its caption.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from poise.data import Source
from poise.data.doctor import About
from poise.data.statistics import Column, Statistics, as_levels, columns, statistics, white_of
from poise.envs.drawing import PLAN, ROBOT
from poise.envs.pictures import INK, MUTED, WIDTH
from poise.evaluation.plots import LINE, SERIES, TEXT, styled
from poise.evaluation.report import Section, Table, write_report

_SHOWN: Final = 12  # dimensions of a feature
_POINTS: Final = 500  # of a line; more are thinned out
_BINS: Final = 60
_FRAMES: Final = 8  # of a strip


def write_page(source: Source, out: Path, count: int = 5) -> Path:
    """Write a picture a figure and `index.html`, which holds all of them and needs nothing else.

    Args:
        source: An opened dataset.
        out: Folder to write to; it may exist.
        count: Episodes whose trajectories are drawn, evenly spread over the dataset.

    Returns:
        The page.

    Raises:
        DataError: The file is broken.
        ValueError: No episode asked for.
    """
    if count < 1:
        raise ValueError(f"got {count} episodes to draw, expected at least 1")
    contents, about = source.contents, About(source.contents, 1)
    chosen = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int)).tolist()
    drawn = [name for name in about.numbers if name in about.recorded and math.prod(contents.features[name].shape)]
    figures = {"lengths": _lengths_figure(contents.lengths, contents.facts.rate)}
    sections = [Section("Episodes", _EPISODES, [figures["lengths"]], _features(source))]
    found = statistics(source, drawn)
    for name in drawn:
        pair = _of_feature(source, about, name, chosen)
        figures |= {f"trajectories-{name}": pair[0], f"distributions-{name}": pair[1]}
        sections.append(Section(name, _more(name, source), pair, _table(about.labels(name), found[name])))
    for name in about.cameras:
        figures[f"film-{name}"] = _film_figure(name, _strips(source, name, chosen[:3]))
        sections.append(Section(name, _FILM, [figures[f"film-{name}"]]))
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(out / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.png", dpi=150)
    write_report(out / "index.html", source.path.name, _lead(source), sections, str(source.path))
    return out / "index.html"


def _lengths_figure(lengths: NDArray[np.int64], rate: float | None) -> Figure:
    """How long episodes are."""
    figure, (axes,) = _grid(1, 2.7)
    bins = min(_BINS, int(np.ptp(lengths)) + 1, 2 * math.isqrt(len(lengths)) + 1)
    axes.hist(lengths, bins=bins, color=ROBOT)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    middle = float(np.median(lengths))
    axes.axvline(middle, color=PLAN, linewidth=LINE, label=f"median {middle:g}")
    styled(axes, "Episodes by their length")
    axes.legend(loc="upper right", frameon=False, labelcolor=INK, fontsize=TEXT)
    axes.set_xlabel("steps" if rate is None else f"steps of {1 / rate:.3g} s", color=MUTED, fontsize=TEXT)
    figure.set_label("Number of episodes by their length.")
    return figure


def _trajectories_figure(labels: Sequence[str], rows: Mapping[int, NDArray], rate: float | None) -> Figure:
    """Every dimension over time, a line an episode; `rows` are `(steps, dimensions)` by the number of the episode."""
    figure, grid = _grid(len(labels), 2.0, head=0.35)
    for (number, values), (colour, _) in zip(rows.items(), SERIES * len(rows), strict=False):
        kept = np.unique(np.linspace(0, len(values) - 1, _POINTS).round().astype(int))
        for axes, dimension in zip(grid, values[kept].T, strict=True):
            axes.plot(kept / (rate or 1), dimension, color=colour, linewidth=1.3, alpha=0.9, label=f"episode {number}")
    for axes, label in zip(grid, labels, strict=True):
        styled(axes, label)
    for axes in grid[-3:]:
        axes.set_xlabel("steps" if rate is None else "seconds", color=MUTED, fontsize=TEXT)
    figure.legend(
        handles=grid[0].get_lines()[: len(SERIES)],
        loc="upper left",
        bbox_to_anchor=(0.05, 1.0),
        ncols=len(SERIES),
        frameon=False,
        labelcolor=INK,
        fontsize=TEXT,
    )
    figure.set_label(f"Over time, in the units of the data, of {len(rows)} episodes spread over the dataset.")
    return figure


def _distributions_figure(labels: Sequence[str], found: Sequence[Column]) -> Figure:
    """Histograms of all rows, a panel a dimension."""
    figure, grid = _grid(len(labels), 1.7)
    for axes, label, column in zip(grid, labels, found, strict=True):
        values = column.values[np.isfinite(column.values)].astype(np.float64)
        if len(values):
            counts, edges = np.histogram(values, bins=_BINS)
            axes.bar(edges[:-1], counts / len(values), width=np.diff(edges), align="edge", color=ROBOT)
            for share in (0.01, 0.99):
                axes.axvline(float(np.quantile(values, share)), color=PLAN, linewidth=1.2)
        styled(axes, label)
        axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.3g} %")
    figure.set_label("Share of all rows by value; lines at the 1st and the 99th percentile.")
    return figure


def _film_figure(name: str, strips: Mapping[int, Sequence[NDArray]]) -> Figure:
    """Frames of some episodes; `strips` are as many `(height, width, channels)` of each, by its number."""
    first = next(iter(strips.values()))
    height, width = first[0].shape[:2]
    tall = 0.3 + WIDTH / len(first) * height / width
    figure = Figure(figsize=(WIDTH, tall * len(strips)), dpi=100, facecolor="white")
    grid = figure.subplots(len(strips), len(first), squeeze=False)
    figure.subplots_adjust(
        left=0, right=1, bottom=0, top=1 - 0.3 / (tall * len(strips)), wspace=0.03, hspace=0.3 / tall
    )
    for row, (number, frames) in zip(grid, strips.items(), strict=True):
        row[0].set_title(f"Episode {number}", loc="left", color=INK, fontsize=TEXT, fontweight="bold", pad=4)
        for axes, frame in zip(row, frames, strict=True):
            axes.imshow(frame if frame.shape[2] == 3 else frame[..., 0], cmap="gray", vmin=0, vmax=255)
            axes.set_axis_off()
    figure.set_label(f"Frames of {name}, evenly spaced from the first to the last of an episode.")
    return figure


def _of_feature(source: Source, about: About, name: str, chosen: Sequence[int]) -> tuple[Figure, Figure]:
    labels = about.labels(name)[:_SHOWN]
    rows = {k: source.rows(k, [name])[name] for k in chosen}
    flat = {k: values.reshape(len(values), -1)[:, : len(labels)].astype(np.float64) for k, values in rows.items()}
    found = [column for column, _ in zip(columns(source, [name]), labels, strict=False)]
    trajectories = _trajectories_figure(labels, flat, about.contents.facts.rate)
    return trajectories, _distributions_figure(labels, found)


def _strips(source: Source, name: str, chosen: Sequence[int]) -> dict[int, list[NDArray]]:
    strips = {}
    for k in chosen:
        rows = source.rows(k, [name])[name]
        shown = rows[np.linspace(0, len(rows) - 1, _FRAMES).round().astype(int)]
        strips[k] = list(as_levels(shown, white_of(shown)))
    return strips


def _grid(count: int, height: float, head: float = 0.0) -> tuple[Figure, list[Axes]]:
    """Panels of a figure, at most three beside each other, with room above them for a legend."""
    wide = min(3, count)
    tall = -(-count // wide)
    size = (height + 0.75) * tall + head
    figure = Figure(figsize=(WIDTH, size), dpi=100, facecolor="white")
    axes = list(figure.subplots(tall, wide, squeeze=False).flat)
    figure.subplots_adjust(
        left=0.06, right=0.99, top=1 - (0.38 + head) / size, bottom=0.48 / size, wspace=0.22, hspace=0.85 / height
    )
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def _lead(source: Source) -> str:
    contents = source.contents
    steps, rate = int(contents.lengths.sum()), contents.facts.rate
    lasts = "" if rate is None else f", {steps / rate / 60:,.1f} minutes at {rate:g} Hz"
    return f"{len(source):,} episodes of {steps:,} steps{lasts}."


def _features(source: Source) -> Table:
    facts = source.contents.facts
    return Table(
        ("feature", "type", "shape", "for", "dimensions"),
        [
            (
                name,
                str(look.dtype),
                " × ".join(map(str, look.shape)),
                facts.roles[name].value if name in facts.roles else None,
                ", ".join(facts.names.get(name, ())) or None,
            )
            for name, look in source.contents.features.items()
        ],
    )


def _more(name: str, source: Source) -> str:
    count = math.prod(source.contents.features[name].shape)
    return f"The first {_SHOWN} of {count} dimensions are drawn." if count > _SHOWN else ""


def _table(labels: Sequence[str], found: Statistics) -> Table:
    names = {"smallest": "min", "1 %": "q01", "median": "q50", "99 %": "q99", "largest": "max", "mean": "mean"}
    every = found.named()
    picked = [map(_digits, every[name].tolist()) for name in (*names.values(), "std")]
    return Table(("dimension", *names, "deviation"), list(zip(labels, *picked, strict=True)))


def _digits(value: float) -> str | None:
    """Dimensions differ in their units, so that no number of decimals suits all of a column."""
    return None if math.isnan(value) else f"{value:.4g}".replace("-", "−")


_EPISODES = "What is in the dataset, and how long its episodes are."
_FILM = "What the camera saw."

__all__ = ["write_page"]
