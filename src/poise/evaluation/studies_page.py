"""Two sections of the page of applications: how many demonstrations a task takes, and what disturbs its policies."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from poise.envs.drawing import FLOOR
from poise.envs.pictures import INK, MUTED, WIDTH
from poise.evaluation.disturbances import STRENGTHS
from poise.evaluation.plots import LINE, SERIES, TEXT, percentages, styled
from poise.evaluation.report import Section, Table

_ABSCISSAE = {
    "start": "wrong steps at the start",
    "noise": "noise, deviations",
    "delay": "delay, steps",
    "lag": "lag, steps",
    "push": "push, deviations",
}

_COMPARED = "success", "95 %", "regression", "95 %", "difference", "95 %"

Row = Mapping[str, Any]
"""A policy of a task under one condition; see `sections`."""


def sections(demonstrations: Sequence[Row], disturbances: Sequence[Row]) -> Iterator[Section]:
    """The sections of the studies that have rows.

    Args:
        demonstrations: Rows with task, demonstrations, policy, success and difference.
        disturbances: Rows with task, kind (none, or one of `STRENGTHS`), strength, policy, success, recovery and
            difference. Intervals are mappings of value, low and high, and may be None.
    """
    if demonstrations:
        figures = [efficiency_figure(demonstrations)]
        yield Section("How many demonstrations?", _EFFICIENCY, figures, efficiency_table(demonstrations))
    if disturbances:
        tasks = dict.fromkeys(row["task"] for row in disturbances)
        figures = [disturbance_figure([row for row in disturbances if row["task"] == task]) for task in tasks]
        yield Section("What disturbs them?", _DISTURBANCES, figures, disturbance_table(disturbances))


def efficiency_table(rows: Sequence[Row]) -> Table:
    """A row a task and number of demonstrations."""
    columns = ("task", "demonstrations", *_COMPARED)
    return Table(
        columns, [(row["task"], str(row["demonstrations"]), *_cells(row, other)) for row, other in _pairs(rows)]
    )


def disturbance_table(rows: Sequence[Row]) -> Table:
    """A row a task and disturbance."""
    lines = []
    for row, other in _pairs(rows):
        left = [_share(one["recovery"])[0] for one in (row, other)]
        lines.append((row["task"], _condition(row), *_cells(row, other), *left))
    return Table(("task", "disturbance", *_COMPARED, "recovery", "of regression"), lines)


def efficiency_figure(rows: Sequence[Row]) -> Figure:
    """Success against demonstrations, a panel a task and a line a policy.

    Args:
        rows: As those of `sections`.
    """
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, panels = _panels(len(tasks), 3.6)
    for axes, task in zip(panels, tasks, strict=True):
        mine = [row for row in rows if row["task"] == task]
        _lines(axes, mine, "demonstrations")
        axes.set_xscale("log")
        _ticks(axes, sorted({row["demonstrations"] for row in mine}))
        styled(axes, task)
        axes.set_xlabel("demonstrations", color=MUTED, fontsize=TEXT, labelpad=6)
    _finished(figure, panels)
    figure.set_label("Success with its 95 % interval (Wilson) against the demonstrations that policies learned from.")
    return figure


def disturbance_figure(rows: Sequence[Row]) -> Figure:
    """Success against strength, a panel a kind of disturbance and a line a policy.

    Args:
        rows: As those of `sections`, of one task.
    """
    figure, panels = _panels(len(STRENGTHS), 3.2)
    for axes, kind in zip(panels, STRENGTHS, strict=True):
        mine = [row for row in rows if row["kind"] in ("none", kind)]
        _lines(axes, mine, "strength")
        _ticks(axes, sorted({row["strength"] for row in mine}))
        styled(axes, kind)
        axes.set_xlabel(_ABSCISSAE[kind], color=MUTED, fontsize=TEXT - 1, labelpad=6)
    _finished(figure, panels)
    figure.set_label(f"{rows[0]['task']}: success with its 95 % interval (Wilson) against how much disturbs the robot.")
    return figure


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height), dpi=100, facecolor="white")
    margins = {"left": 0.06, "right": 0.99, "top": 0.8, "bottom": 0.17, "wspace": 0.12}
    return figure, list(figure.subplots(1, count, squeeze=False, sharey=True, gridspec_kw=margins)[0])


def _lines(axes: Axes, rows: Sequence[Row], abscissa: str) -> None:
    for (colour, marker), policy in zip(SERIES, dict.fromkeys(row["policy"] for row in rows), strict=False):
        mine = sorted((row for row in rows if row["policy"] == policy), key=lambda row: row[abscissa])
        x = np.array([row[abscissa] for row in mine], float)
        value, low, high = (np.array([row["success"][key] for row in mine]) for key in ("value", "low", "high"))
        axes.fill_between(x, low, high, color=colour, alpha=0.1, linewidth=0)
        axes.plot(x, value, color=colour, marker=marker, linewidth=LINE, markeredgecolor=FLOOR, label=policy)


def _ticks(axes: Axes, places: Sequence[float]) -> None:
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.xaxis.set_minor_locator(NullLocator())


def _finished(figure: Figure, panels: Sequence[Axes]) -> None:
    percentages(panels[0])
    for axes in panels:
        axes.set_ylim(-0.02, 1.02)
    figure.legend(
        handles=panels[0].get_lines(), loc="upper right", ncols=2, frameon=False, labelcolor=INK, fontsize=TEXT
    )


def _pairs(rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """Diffusion and regression under the same condition."""
    for row in rows:
        if row["policy"] == "diffusion":
            alike = ("task", "demonstrations", "kind", "strength")
            others = (one for one in rows if one["policy"] != "diffusion")
            yield row, next(one for one in others if all(one.get(name) == row.get(name) for name in alike))


def _cells(row: Row, other: Row) -> tuple[str, ...]:
    return (*_share(row["success"]), *_share(other["success"]), *_share(row["difference"]))


def _share(interval: Mapping[str, float] | None) -> tuple[str, str]:
    if interval is None:
        return "–", "–"
    value, low, high = (f"{100 * interval[key]:.1f}".replace("-", "−") for key in ("value", "low", "high"))
    return f"{value} %", f"{low} to {high}"


def _condition(row: Row) -> str:
    return "none" if row["kind"] == "none" else f"{row['kind']} {row['strength']:g}"


_EFFICIENCY = """Both policies learned from some of the demonstrations, where fewer are among more, for equally long, \
and were tried on the same unseen starts. The difference is diffusion less regression in points, paired by seed."""
_DISTURBANCES = """The policies of the table above, which never saw a disturbance in training. Start: for the first \
control steps the robot repeats an action of the demonstrations. Noise: on every observed number, in deviations of the \
demonstrations. Delay: observations come late, which the controller knows. Lag: actions come late, which it does not \
know. Push: for five control steps the executed action is off, in deviations of the demonstrated ones. The recovery is \
the success under a disturbance over that without."""


__all__ = ["disturbance_figure", "disturbance_table", "efficiency_figure", "efficiency_table", "sections"]
