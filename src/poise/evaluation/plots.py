"""Figures of an evaluation: who succeeds how surely, what a budget buys, how training went.

Flat, direct, in the palette of `poise.envs.drawing`. A figure's label is its caption.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from matplotlib.transforms import blended_transform_factory
from numpy.typing import NDArray

from poise.envs.drawing import FLOOR, GOAL, PLAN, ROBOT, SHADOW
from poise.envs.pictures import FAILURE, INK, MUTED, SKY, WIDTH

TRACK: Final = "#e8ecf2"  # what is left of a bar
ORCHID: Final = "#b0509f"
SERIES: Final = ((ROBOT, "o"), (PLAN, "s"), (GOAL, "D"), (ORCHID, "^"), (SKY, "v"), (MUTED, "P"))
TEXT: Final = 9.5  # points
LINE: Final = 1.9  # points
CONTROL: Final = (10, 30)  # Hz, of control loops that a plan may have to keep up with


class _Measure(NamedTuple):
    """One column of bars."""

    key: str
    title: str
    colour: str
    interval: tuple[str, str] | None
    text: Callable[[float], str]


_MEASURES = (
    _Measure("success", "Success", ROBOT, ("success_low", "success_high"), lambda v: f"{100 * v:.1f} %"),
    _Measure("collision", "Collisions", FAILURE, None, lambda v: f"{100 * v:.1f} %"),
    _Measure("mode_entropy", "Diversity of routes", GOAL, None, lambda v: f"{v:.2f}"),
)


def success_figure(policies: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Bars of success with its 95 % interval, of collisions, and of the diversity of routes.

    Args:
        policies: Name -> figures as `poise.evaluation.summary` gives them; None leaves a bar out.

    Raises:
        ValueError: No policy, or one that lacks a figure.
    """
    _complete("success_figure", list(policies.values()), ("success", "success_low", "success_high", "collision"))
    height = 0.72 + 0.52 * len(policies)
    left = min(0.35, 0.02 + 0.0085 * max(len(name) for name in policies))
    figure, columns = _figure(height, [2.35, 1.0, 1.0], {"left": left, "right": 1.0, "wspace": 0.09})
    figure.subplots_adjust(top=1 - 0.45 / height, bottom=0.1 / height)
    for axes, measure in zip(columns, _MEASURES, strict=True):
        _bars(axes, measure, list(policies.values()))
        axes.set(ylim=(len(policies) - 0.5, -0.5), yticks=[])
    margin = blended_transform_factory(figure.transFigure, columns[0].transData)
    for row, name in enumerate(policies):
        name = name[:1].upper() + name[1:]
        columns[0].text(0, row, name, color=INK, fontsize=TEXT + 1, va="center", transform=margin)
    figure.set_label(
        "Success with its 95 % interval (Wilson), share of episodes that end in a collision, and entropy of the routes "
        "of the successes; 1.00 is as diverse as the demonstrations."
    )
    return figure


def _bars(axes: Axes, measure: _Measure, policies: Sequence[Mapping[str, Any]]) -> None:
    axes.set_title(measure.title, loc="left", color=INK, fontsize=11, fontweight="bold", pad=9)
    rows, wide = range(len(policies)), measure.interval is not None
    axes.barh(rows, np.ones(len(rows)), height=0.44, color=TRACK, label="track")
    known = [(row, float(p[measure.key])) for row, p in zip(rows, policies, strict=True) if p[measure.key] is not None]
    axes.barh([row for row, _ in known], [v for _, v in known], height=0.44, color=measure.colour, label=measure.title)
    for row in set(rows) - {row for row, _ in known}:
        axes.text(1.05, row, "–", color=MUTED, fontsize=TEXT, va="center")
    for row, value in known:
        place = max(1.0, value) + (0.03 if wide else 0.06)
        axes.text(place, row, measure.text(value), color=INK, fontsize=TEXT, fontweight="bold", va="center")
        if measure.interval is not None:
            low, high = (float(policies[row][key]) for key in measure.interval)
            note = f"{100 * low:.1f} – {100 * high:.1f}"
            axes.text(1.64, row, note, color=MUTED, fontsize=TEXT - 0.5, va="center", ha="right")
            error = [[max(0.0, value - low)], [max(0.0, high - value)]]
            axes.errorbar([value], [row], xerr=error, color=INK, linewidth=1.4, capsize=3, capthick=1.4, fmt="none")
    axes.set(xlim=(0, 1.7 if wide else 1.5))
    _bare(axes)
    axes.set_xticks([])


def tradeoff_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Success and time of a plan against its network evaluations, a line a sampler.

    Args:
        rows: Each with sampler (a name), evaluations, success, success_low, success_high, plan_ms_median and
            plan_ms_p95 (milliseconds).

    Raises:
        ValueError: No row, or one that lacks a figure.
    """
    keys = "sampler", "evaluations", "success", "success_low", "success_high", "plan_ms_median", "plan_ms_p95"
    _complete("tradeoff_figure", rows, keys)
    figure, (success, cost) = _figure(3.9, [1, 1], {"left": 0.055, "right": 0.99, "wspace": 0.16})
    figure.subplots_adjust(top=0.8, bottom=0.125)
    for k, name in enumerate(dict.fromkeys(row["sampler"] for row in rows)):
        mine = sorted((row for row in rows if row["sampler"] == name), key=lambda row: row["evaluations"])
        _curve(success, mine, ("success", "success_low", "success_high"), k)
        _curve(cost, mine, ("plan_ms_median", "plan_ms_median", "plan_ms_p95"), k)
    styled(success, "Success")
    styled(cost, "Milliseconds a plan")
    floor = min(row["success_low"] for row in rows)
    success.set(ylim=(max(0.0, np.floor(10 * floor - 0.2) / 10), 1.01))
    percentages(success)
    _milliseconds(cost, rows)
    for axes in (success, cost):
        _evaluations(axes, sorted({int(row["evaluations"]) for row in rows}))
    lines = success.get_lines()
    figure.legend(
        handles=lines,
        loc="upper left",
        bbox_to_anchor=(0.055, 0.98),
        borderpad=0,
        borderaxespad=0,
        ncols=len(lines) if len(lines) < 6 else -(-len(lines) // 2),
        frameon=False,
        labelcolor=INK,
        fontsize=TEXT + 0.5,
        handletextpad=0.6,
        columnspacing=2.0,
    )
    figure.set_label(
        "Left: success with its 95 % interval. Right: median time of one plan for one robot, shaded to its 95th "
        "percentile, and the periods of 10 Hz and 30 Hz control. Evaluations of the network are counted, not declared."
    )
    return figure


def _curve(axes: Axes, rows: Sequence[Mapping[str, Any]], keys: tuple[str, str, str], k: int) -> None:
    """Draw the k-th sampler: a line through the first of the keys, a band between the others."""
    x, line, low, high = (np.array([row[key] for row in rows], float) for key in ("evaluations", *keys))
    (colour, marker), name = SERIES[k % len(SERIES)], rows[0]["sampler"]
    axes.fill_between(x, low, high, color=colour, alpha=0.1, linewidth=0)
    edge = {"markersize": 6, "markeredgecolor": FLOOR, "markeredgewidth": 0.8}
    axes.plot(x, line, color=colour, marker=marker, linewidth=LINE, label=name, **edge)


def _milliseconds(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    fastest, slowest = min(row["plan_ms_median"] for row in rows), max(row["plan_ms_p95"] for row in rows)
    axes.set_yscale("log")
    axes.set_ylim(fastest / 1.4, max(1e3 / min(CONTROL), slowest) * 1.7)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    for rate in CONTROL:
        period = 1e3 / rate
        axes.axhline(period, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1, label=f"{rate} Hz")
        axes.text(
            0.008,
            period * 1.06,
            f"{rate} Hz control, {period:.0f} ms",
            color=MUTED,
            fontsize=TEXT - 1,
            transform=axes.get_yaxis_transform(),
            va="bottom",
        )


def _evaluations(axes: Axes, values: Sequence[int]) -> None:
    """A logarithmic axis with ticks where something was measured, as far as their labels have room."""
    axes.set_xscale("log")
    plain_ticks(axes, spaced(values, 1.2), "g")
    axes.set_xlim(values[0] / 1.15, values[-1] * 1.15)
    axes.set_xlabel("evaluations a plan", color=MUTED, fontsize=TEXT, labelpad=6)


def spaced(values: Sequence[float], ratio: float) -> list[float]:
    """Of ascending values those that are at least so many times the one kept before."""
    shown: list[float] = []
    for value in values:
        if not shown or value >= ratio * shown[-1]:
            shown.append(value)
    return shown


def plain_ticks(axes: Axes, places: Sequence[float], form: str = ".3g") -> None:
    """Ticks of the abscissa at these places alone, as plain numbers."""
    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:{form}}"))
    axes.xaxis.set_minor_locator(NullLocator())


def percentages(axes: Axes) -> None:
    """Label shares on the ordinate as per cent."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.0f} %"))


def training_figure(metrics: Sequence[Mapping[str, float]]) -> Figure:
    """Loss of training, as it came and smoothed, and loss of validation, against the step.

    Args:
        metrics: Each with step, loss and validation, which may be None.

    Raises:
        ValueError: No metrics, or some that lack step or loss.
    """
    _complete("training_figure", metrics, ("step", "loss"))
    figure, (axes,) = _figure(3.1, [1], {"left": 0.055, "right": 0.99, "top": 0.87, "bottom": 0.16})
    step, loss = (np.array([row[key] for row in metrics], float) for key in ("step", "loss"))
    held = [(row["step"], row["validation"]) for row in metrics if row.get("validation") is not None]
    axes.plot(step, loss, color=ROBOT, alpha=0.22, linewidth=0.8, label="each step")
    axes.plot(step, _smoothed(loss), color=ROBOT, linewidth=LINE, label="training, smoothed")
    if held:
        axes.plot(*np.array(held, float).T, "o-", color=PLAN, linewidth=LINE, markersize=5, label="validation")
    styled(axes, "Loss")
    axes.set_yscale("log")
    low, high = min([*_smoothed(loss), *(value for _, value in held)]), _smoothed(loss).max()
    digits = "25" if high > 4 * low else "23456789"
    axes.set_ylim(0.8 * low, 1.1 * high)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda y, _: f"{y:g}" if f"{y:.0e}"[0] in digits else ""))
    axes.tick_params(which="minor", length=0, labelsize=TEXT, labelcolor=MUTED)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}"))
    axes.set_xlabel("step", color=MUTED, fontsize=TEXT, labelpad=6)
    axes.set_xlim(step.min(), step.max() + 0.01 * (np.ptp(step) or 1.0))
    axes.legend(loc="upper right", frameon=False, labelcolor=INK, fontsize=TEXT, ncols=3)
    figure.set_label("Loss of training, smoothed over a fiftieth of the run, and of demonstrations held out.")
    return figure


def rewards_figure(rewards: Sequence[float]) -> Figure:
    """The largest reward of every episode, in ascending order, with its mean.

    Args:
        rewards: One an episode.
    """
    values = np.sort(np.asarray(rewards, float))
    figure, (axes,) = _figure(3.1, [1], {"left": 0.055, "right": 0.99, "top": 0.87, "bottom": 0.16})
    share = 100 * (np.arange(len(values)) + 0.5) / len(values)
    axes.fill_between(share, values, color=ROBOT, alpha=0.15, linewidth=0)
    axes.plot(share, values, color=ROBOT, linewidth=LINE)
    axes.axhline(values.mean(), color=PLAN, linewidth=LINE, label=f"mean {values.mean():.3f}")
    styled(axes, "Largest reward of an episode")
    axes.set_xlabel("share of episodes, %", color=MUTED, fontsize=TEXT, labelpad=6)
    axes.set(xlim=(0, 100), ylim=(min(0.0, values[0]), None))
    axes.legend(loc="lower right", frameon=False, labelcolor=INK, fontsize=TEXT)
    figure.set_label("The largest reward of every episode, sorted.")
    return figure


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred mean over a fiftieth of the values; at the ends, over those that there are."""
    window = np.ones(max(1, len(values) // 50))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _figure(height: float, widths: Sequence[float], margins: Mapping[str, float]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height), dpi=100, facecolor="white")
    axes = figure.subplots(1, len(widths), squeeze=False, width_ratios=list(widths), gridspec_kw=dict(margins))
    return figure, list(axes[0])


def _bare(axes: Axes) -> None:
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=TEXT, labelcolor=MUTED, pad=6)
    axes.set_axisbelow(True)


def styled(axes: Axes, title: str) -> None:
    """Give axes a title and horizontal rules, and nothing else."""
    _bare(axes)
    axes.grid(axis="y", color=SHADOW, linewidth=0.8)
    axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold", pad=9)


def _complete(name: str, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    if not rows:
        raise ValueError(f"{name} got nothing to draw, expected at least one row: evaluate or train something first")
    for row in rows:
        missing = [key for key in keys if key not in row]
        if missing:
            raise ValueError(f"{name} got a row with {sorted(row)}, expected also {missing}: see its docstring")


__all__ = [
    "CONTROL",
    "LINE",
    "ORCHID",
    "SERIES",
    "TEXT",
    "TRACK",
    "percentages",
    "plain_ticks",
    "rewards_figure",
    "spaced",
    "styled",
    "success_figure",
    "tradeoff_figure",
    "training_figure",
]
