"""The figure of a sweep: success against the first field that was varied, a line for every setting of the others."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from poise.envs.drawing import FLOOR
from poise.envs.pictures import INK, MUTED, WIDTH
from poise.evaluation.plots import LINE, SERIES, TEXT, percentages, styled

_DODGE = 0.06  # between lines, so that their intervals do not cover each other


def sweep_figure(rows: Sequence[Mapping[str, Any]], varied: Sequence[str]) -> Figure:
    """Success with its interval against the first varied field, at even distances; a line a setting of the others.

    Args:
        rows: Each with the varied fields, success, success_low, success_high, and seeds, the rates of its runs.
        varied: Names of the fields; the first one is the abscissa.

    Raises:
        ValueError: No row, or no field.
    """
    if not rows or not varied:
        raise ValueError(f"sweep_figure got {len(rows)} rows and the fields {list(varied)}, expected some of both")
    figure = Figure(figsize=(WIDTH, 4.2), dpi=100, facecolor="white")
    axes = figure.subplots(gridspec_kw={"left": 0.07, "right": 0.98, "top": 0.83, "bottom": 0.14})
    ticks = list(dict.fromkeys(str(row[varied[0]]) for row in rows))
    names = list(dict.fromkeys(_line(row, varied) for row in rows))
    for k, name in enumerate(names):
        colour, marker = SERIES[k % len(SERIES)]
        mine = [row for row in rows if _line(row, varied) == name]
        place = np.array([ticks.index(str(row[varied[0]])) for row in mine]) + _DODGE * (k - (len(names) - 1) / 2)
        value, low, high = (np.array([row[key] for row in mine]) for key in ("success", "success_low", "success_high"))
        error = np.clip([value - low, high - value], 0, None)
        axes.errorbar(
            place, value, yerr=error, color=colour, marker=marker, capsize=3, linewidth=LINE, label=name, zorder=2
        )
        for x, row in zip(place, mine, strict=True):
            axes.plot(
                [x] * len(row["seeds"]), row["seeds"], ".", color=colour, alpha=0.45, markeredgecolor=FLOOR, zorder=1
            )
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlabel(varied[0], color=MUTED, fontsize=TEXT, labelpad=6)
    styled(axes, "Success")
    percentages(axes)
    axes.set(xlim=(-0.4, len(ticks) - 0.6), ylim=(-0.02, 1.02))
    if len(names) > 1:
        figure.legend(
            loc="upper right", ncols=min(4, len(names)), frameon=False, labelcolor=INK, fontsize=TEXT, borderaxespad=0.2
        )
    figure.set_label(
        "Success over the episodes of all training seeds with its 95 % interval (Wilson); the dots are single seeds."
    )
    return figure


def _line(row: Mapping[str, Any], varied: Sequence[str]) -> str:
    return ", ".join(f"{name.rsplit('.', 1)[-1]} {row[name]}" for name in varied[1:])


__all__ = ["sweep_figure"]
