"""The suite of applications as one page: a row a task, against regression and the expert, with pictures."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure
from matplotlib.image import imread

from poise.envs.pictures import INK, WIDTH
from poise.evaluation.report import Section, Table, write_report

FILM: Final = "film.mp4"
STRIP: Final = "strip.png"
"""Files of a task in the folder of its name."""

_TITLE = 0.32  # inches above a strip
_SAME = 0.9  # of the entropy of the other: fewer ways than that are said

Row = Mapping[str, Any]
"""Results of one application; see `write_applications`."""


def write_applications(
    path: Path,
    rows: Sequence[Row],
    folders: Mapping[str, Path],
    missing: Mapping[str, str],
    footer: str,
    studies: Sequence[Section] = (),
) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        rows: Of each application: `name`, `area`, `about`, number of `demonstrations`, `policies` (diffusion and
            regression: `poise.evaluation.summary` and `minutes`, `rate_hz`), the `expert` and its `rivals` by name
            (success with its interval, mode_entropy, collision, jerk, measures), the `difference` of diffusion to
            regression (value, low, high) and the `note` where there is no film.
        folders: Name -> where its film and its strip of pictures are.
        missing: Name -> why there are no results.
        footer: Small print.
        studies: Sections below the tasks.
    """
    sections = [Section("All tasks", _TABLE, table=overview(rows))] if rows else []
    sections += [_section(row, folders[row["name"]]) for row in rows]
    sections += studies
    if missing:
        sections.append(Section("Not run", "\n\n".join(f"{name}: {reason}" for name, reason in missing.items())))
    write_report(path, "Applications", _lead(rows), sections, footer)


def overview(rows: Sequence[Row]) -> Table:
    """A row a task."""
    columns = ("task", "success", "95 %", "regression", "95 %", "expert", "demonstrations", "minutes", "Hz", "modes")
    return Table(columns, [_cells(row) for row in rows])


def _cells(row: Row) -> tuple[str, ...]:
    diffusion, regression = row["policies"]["diffusion"], row["policies"]["regression"]
    modes = diffusion["mode_entropy"]
    return (
        row["name"],
        _percent(diffusion["success"]),
        _interval(diffusion),
        _percent(regression["success"]),
        _interval(regression),
        _percent(row["expert"]["success"]),
        str(row["demonstrations"]),
        f"{diffusion['minutes']:.1f}",
        f"{diffusion['rate_hz']:.0f}",
        "–" if modes is None else f"{modes:.2f}",
    )


def verdict(row: Row) -> str:
    """Whether diffusion was worth it against regression, in words."""
    value, low, high = (100 * row["difference"][name] for name in ("value", "low", "high"))
    points = f"{value:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}, paired by seed".replace("-", "−")
    if low > 0:
        return f"Diffusion succeeds more often than regression on the same network ({points})."
    if high < 0:
        return f"Regression on the same network succeeds more often than diffusion ({points})."
    found, other = (row["policies"][name]["mode_entropy"] for name in ("diffusion", "regression"))
    fewer = found is not None and other is not None and other < _SAME * found
    ways = f" It takes fewer ways: mode entropy {other:.2f} against {found:.2f}." if fewer else ""
    return f"Regression on the same network is as good as these episodes can tell ({points}).{ways}"


def _lead(rows: Sequence[Row]) -> str:
    alike = [row["name"] for row in rows if row["difference"]["low"] <= 0]
    told = f"Regression is as good or better on {', '.join(alike)}." if alike else ""
    return f"{_LEAD}\n\n{told if alike or not rows else 'On every task it beats regression on the same network.'}"


def _section(row: Row, folder: Path) -> Section:
    text = f"{row['about']}\n\n{verdict(row)}"
    if row["note"]:
        return Section(row["name"], f"{text}\n\n{row['note']}", table=_measured(row))
    return Section(row["name"], text, [_strip(folder / STRIP)], _measured(row), folder / FILM)


def strips_figure(strips: Mapping[str, Path]) -> Figure:
    """The film strips of several tasks, one below the other.

    Args:
        strips: Name of the task -> its strip.
    """
    pictures = {name: imread(file) for name, file in strips.items()}
    heights = [_TITLE + WIDTH * picture.shape[0] / picture.shape[1] for picture in pictures.values()]
    figure, top, whole = Figure(figsize=(WIDTH, sum(heights)), facecolor="white"), 1.0, sum(heights)
    for (name, picture), height in zip(pictures.items(), heights, strict=True):
        axes = figure.add_axes((0, top - height / whole, 1, (height - _TITLE) / whole))
        axes.imshow(picture)
        axes.set_axis_off()
        axes.set_title(name, loc="left", color=INK, fontsize=11, fontweight="bold", pad=4)
        top -= height / whole
    return figure


def _strip(file: Path) -> Figure:
    picture = imread(file)
    figure = Figure(figsize=(WIDTH, WIDTH * picture.shape[0] / picture.shape[1]))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(picture)
    axes.set_axis_off()
    figure.set_label("One episode of the diffusion policy, from its beginning to its end.")
    return figure


def _measured(row: Row) -> Table:
    """Everything that was measured of the two policies, the expert and its rivals."""
    who = {**row["policies"], "expert": row["expert"], **row["rivals"]}
    names = dict.fromkeys(name for figures in who.values() for name in figures["measures"])
    lines = [
        ("success", *(_percent(figures["success"]) for figures in who.values())),
        *((name, *(_number(figures.get(key)) for figures in who.values())) for key, name in _FIGURES.items()),
        *((name, *(_number(figures["measures"].get(name)) for figures in who.values())) for name in names),
    ]
    return Table(("", *who), [line for line in lines if set(line[1:]) != {"–"}])


_FIGURES = {
    "collision": "collisions",
    "mode_entropy": "mode entropy",
    "jerk": "jerk",
    "plan_ms_median": "plan, ms",
    "evaluations": "evaluations",
}


def notes(rows: Sequence[Row]) -> Iterator[str]:
    """What a table cannot say, a line each."""
    for row in rows:
        yield f"{row['name']}: {verdict(row)}"
        if row["note"]:
            yield f"{row['name']}: {row['note']}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _interval(figures: Mapping[str, Any]) -> str:
    return f"{100 * figures['success_low']:.1f} to {100 * figures['success_high']:.1f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


_LEAD = """The tasks that diffusion policies are known for, each learned from demonstrations of a scripted expert."""
_TABLE = """Diffusion and regression have the same network, demonstrations and minutes, and are tried on the same \
unseen starts, as the expert is, who is not disturbed here. Intervals are Wilson's with 95 %. Hz is the control rate \
that plans keep up with when the next is made while one runs: executed steps by the 95 % quantile of a plan's time. \
Modes is the entropy of the ways in which episodes succeeded, divided by the demonstrators': 1 is as diverse as they \
were."""


__all__ = ["FILM", "STRIP", "Row", "notes", "overview", "strips_figure", "verdict", "write_applications"]
