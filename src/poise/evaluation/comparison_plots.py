"""Figures of a comparison of samplers, in the style of `poise.evaluation.plots`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from poise.envs.drawing import FLOOR, GOAL, PLAN, ROBOT
from poise.envs.pictures import INK, MUTED, WIDTH
from poise.evaluation.compare import Row
from poise.evaluation.paired import pareto
from poise.evaluation.plots import LINE, ORCHID, TEXT, TRACK, percentages, plain_ticks, spaced, styled
from poise.evaluation.statistics import Interval

FAMILIES: Final = {
    "ODE": (ROBOT, "o"),
    "SDE": (PLAN, "s"),
    "hybrid": (ORCHID, "D"),
    "warm start": (GOAL, "^"),
}
"""Colour and marker of each family."""

_MARKERS = "osD^vPX*h<>"
_QUIET: dict[str, Any] = {"frameon": False, "labelcolor": INK, "fontsize": TEXT - 0.5, "borderaxespad": 0}
_EDGE = {"markeredgecolor": FLOOR, "markeredgewidth": 0.8}


def pareto_figure(rows: Sequence[Row], chosen: Row | None = None, latest: float | None = None) -> Figure:
    """Success against milliseconds of a plan, with the front of what nothing beats.

    Args:
        rows: Of one comparison.
        chosen: Row that is ringed.
        latest: Milliseconds beyond which the ground is shaded.
    """
    figure, axes = _one(4.4, "Success")
    costs = [row.plan_ms_median for row in rows]
    front = pareto(costs, [row.success.value for row in rows])
    _points(axes, rows, lambda row: row.plan_ms_median)
    for row in rows:
        colour, _ = _look(row.family)
        axes.plot([row.plan_ms_median, row.plan_ms_p95], [row.success.value] * 2, color=colour, alpha=0.35, linewidth=1)
    low, high = min(costs) / 1.25, max(row.plan_ms_p95 for row in rows) * 1.25
    _front(axes, [rows[k] for k in front], (low, high))
    if latest is not None and latest < 2 * high:
        high = max(high, 1.15 * latest)
        axes.axvspan(latest, high, color=TRACK, alpha=0.7, linewidth=0, zorder=0)
    _ring(axes, chosen, lambda row: row.plan_ms_median)
    axes.set_xscale("log")
    plain_ticks(axes, _nice(low, high))
    axes.set_xlim(low, high)
    axes.set_xlabel("milliseconds a plan, for one robot", color=MUTED, fontsize=TEXT, labelpad=6)
    _success_axis(axes, rows)
    _legend(figure, rows)
    beyond = " A shaded ground, if any, is later than what was asked for." if latest is not None else ""
    figure.set_label(
        "A point a way of sampling; vertical bars are 95 % intervals (Wilson), horizontal ones reach from the median "
        "to the 95th percentile. The line joins what nothing beats in both, its band their intervals; the ring is the "
        f"recommendation.{beyond}"
    )
    return figure


def diversity_figure(rows: Sequence[Row], chosen: Row | None = None) -> Figure:
    """Success against the spread of plans and, where the environment tells modes, against their entropy.

    Args:
        rows: Of one comparison.
        chosen: Row that is ringed.
    """
    columns: list[tuple[str, Callable[[Row], float | None]]] = [
        ("spread of plans for one observation, normalised units", lambda row: row.spread)
    ]
    if any(row.mode_entropy is not None for row in rows):
        columns.append(("mode entropy of the successes, nats", lambda row: row.mode_entropy))
    figure = _blank(4.0)
    for axes, (name, value) in zip(_columns(figure, len(columns)), columns, strict=True):
        shown = [row for row in rows if value(row) is not None]
        _points(axes, shown, lambda row, value=value: value(row) or 0.0)
        _ring(axes, chosen, lambda row, value=value: value(row) or 0.0)
        styled(axes, "Success")
        axes.set_xlabel(name, color=MUTED, fontsize=TEXT, labelpad=6)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.3g}"))
        _success_axis(axes, rows)
    _legend(figure, rows)
    figure.set_label(
        "Success against diversity. The spread is the mean distance of two plans for the same observation, to "
        "which the errors of a solver add; the ring is the recommendation."
    )
    return figure


def families_figure(rows: Sequence[Row]) -> Figure:
    """Success against evaluations, a panel a family, with the others behind in grey."""
    families = [name for name in dict.fromkeys([*FAMILIES, *(row.family for row in rows)]) if _any(rows, name)]
    most = max(sum(mine[0].family == family for mine in _lines(rows).values()) for family in families)
    height = 3.75 + 0.2 * most
    figure = _blank(height)
    panels = _columns(figure, len(families), 1 - 0.35 / height, (0.75 + 0.2 * most) / height, 0.08)
    for axes, family in zip(panels, families, strict=True):
        for name, mine in _lines(rows).items():
            x, y = [row.evaluations for row in mine], [row.success.value for row in mine]
            if mine[0].family != family:
                axes.plot(x, y, color=TRACK, linewidth=1.3, zorder=1, label=f"{name}, behind")
        colour, _ = _look(family)
        for k, (name, mine) in enumerate((n, m) for n, m in _lines(rows).items() if m[0].family == family):
            x, y, low, high = np.array([[r.evaluations, *r.success] for r in mine]).T
            axes.fill_between(x, low, high, color=colour, alpha=0.07, linewidth=0)
            shade = _mixed(colour, 0.16 * (k % 5))
            axes.plot(
                x,
                y,
                marker=_MARKERS[k % len(_MARKERS)],
                color=shade,
                linewidth=LINE,
                markersize=6,
                label=name,
                **_EDGE,
            )
        styled(axes, family)
        axes.set_xscale("log")
        plain_ticks(axes, spaced(sorted({row.evaluations for row in rows}), 1.35 if len(families) < 3 else 1.9))
        axes.set_xlabel("evaluations a plan", color=MUTED, fontsize=TEXT, labelpad=6)
        _success_axis(axes, rows)
        handles = [line for line in axes.get_lines() if not str(line.get_label()).endswith(", behind")]
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.02, -0.17), **_QUIET)
        axes.tick_params(labelleft=axes is panels[0])
    figure.set_label(
        "Success against the network evaluations of a plan, counted; bands are 95 % intervals (Wilson). The grey lines "
        "are the samplers of the other panels."
    )
    return figure


def noise_figure(effect: Mapping[int, Interval]) -> Figure:
    """What noise in every step does to success, by evaluations: `noise_effect` as a picture.

    Args:
        effect: Evaluations -> difference of the success rates, SDE less ODE.
    """
    figure, axes = _one(3.4, "Success with noise in every step, less without", top=0.87)
    places = range(len(effect))
    value, low, high = 100 * np.array(list(effect.values())).T
    axes.axhline(0, color=INK, linewidth=1.1, zorder=1, label="no difference")
    for k in places:
        sure = low[k] > 0 or high[k] < 0
        colour = FAMILIES["SDE" if value[k] > 0 else "ODE"][0] if sure else MUTED
        axes.plot([k, k], [low[k], high[k]], color=colour, linewidth=6, alpha=0.25, solid_capstyle="round")
        axes.plot(k, value[k], "o", color=colour, markersize=8, **_EDGE)
        axes.annotate(
            f"{value[k]:+.1f}".replace("-", "−"),
            (k, value[k]),
            (9, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            fontsize=TEXT,
        )
    reach = 1.15 * max(1.0, np.abs([low, high]).max())
    axes.set(ylim=(-reach, reach), xlim=(-0.5, len(effect) - 0.4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:+.0f}".replace("-", "−") if y else "0"))
    plain_ticks(axes, range(len(effect)))
    names = [str(n) for n in effect]
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: names[round(x)]))
    axes.set_xlabel("evaluations a plan", color=MUTED, fontsize=TEXT, labelpad=6)
    figure.set_label(
        "Percentage points of success that samplers of the SDE gain (above 0) or lose against their twins without "
        "noise, averaged over the pairs, on the same starts; bars are intervals that hold together with 95 %, grey "
        "where they hold zero."
    )
    return figure


def _any(rows: Sequence[Row], family: str) -> bool:
    return any(row.family == family for row in rows)


def _look(family: str) -> tuple[str, str]:
    return FAMILIES.get(family, (MUTED, "P"))


def _mixed(colour: str, share: float) -> tuple[float, ...]:
    """A colour mixed with white, so that lines of one family differ."""
    return tuple((1 - share) * a + share * b for a, b in zip(to_rgb(colour), to_rgb("#ffffff"), strict=True))


def _lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of one sampler, in ascending order of evaluations; those with tolerances make one line together."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.name if row.budget is not None else row.name.split()[0], []).append(row)
    return {name: sorted(mine, key=lambda row: row.evaluations) for name, mine in found.items()}


def _points(axes: Axes, rows: Sequence[Row], x: Callable[[Row], float]) -> None:
    for row in rows:
        (colour, marker), (value, low, high) = _look(row.family), row.success
        axes.plot([x(row)] * 2, [low, high], color=colour, alpha=0.22, linewidth=1.6, zorder=2)
        axes.plot(x(row), value, marker, color=colour, markersize=7, zorder=4, **_EDGE)


def _front(axes: Axes, front: Sequence[Row], ends: tuple[float, float]) -> None:
    """Steps through the rows, in ascending order of milliseconds, to the right end; a name at each."""
    x = np.array([row.plan_ms_median for row in front] + [ends[1]])
    y, low, high = np.array([[*row.success] for row in front] + [[*front[-1].success]]).T
    axes.fill_between(x, low, high, step="post", color=INK, alpha=0.05, linewidth=0, zorder=0)
    axes.step(x, y, where="post", color=INK, linewidth=1.3, zorder=3, label="nothing beats these")
    for k, row in enumerate(front):
        axes.annotate(
            row.name if row.budget is None else f"{row.name} {row.budget}",
            (row.plan_ms_median, row.success.value),
            (-5, 7 if k % 2 == 0 else 19),
            textcoords="offset points",
            ha="right" if k else "center",
            color=INK,
            fontsize=TEXT - 0.5,
        )


def _ring(axes: Axes, chosen: Row | None, x: Callable[[Row], float]) -> None:
    if chosen is not None:
        axes.plot(x(chosen), chosen.success.value, "o", markersize=15, fillstyle="none", color=INK, markeredgewidth=1.6)


def _blank(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), dpi=100, facecolor="white")


def _columns(figure: Figure, count: int, top: float = 0.8, bottom: float = 0.14, gap: float = 0.17) -> list[Axes]:
    margins = {"left": 0.055, "right": 0.99, "wspace": gap, "top": top, "bottom": bottom}
    return list(figure.subplots(1, count, squeeze=False, gridspec_kw=margins)[0])


def _one(height: float, title: str, top: float = 0.8) -> tuple[Figure, Axes]:
    figure = _blank(height)
    (axes,) = _columns(figure, 1, top)
    styled(axes, title)
    return figure, axes


def _success_axis(axes: Axes, rows: Sequence[Row]) -> None:
    floor = min(row.success.low for row in rows)
    ceiling = max(row.success.high for row in rows)
    axes.set_ylim(max(0.0, np.floor(10 * floor - 0.2) / 10), min(1.01, np.ceil(10 * ceiling + 0.6) / 10))
    percentages(axes)


def _legend(figure: Figure, rows: Sequence[Row]) -> None:
    names = [name for name in FAMILIES if _any(rows, name)]
    handles = [
        Line2D([], [], linestyle="none", marker=_look(n)[1], color=_look(n)[0], markersize=7, label=n, **_EDGE)
        for n in names
    ]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.05, 0.985),
        borderpad=0,
        borderaxespad=0,
        ncols=len(handles),
        frameon=False,
        labelcolor=INK,
        fontsize=TEXT + 0.5,
        handletextpad=0.3,
        columnspacing=2.0,
    )


def _nice(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within limits."""
    tens = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    return [float(f"{t * m:.6g}") for t in tens for m in (1, 2, 5) if low <= t * m <= high]


__all__ = ["FAMILIES", "diversity_figure", "families_figure", "noise_figure", "pareto_figure"]
