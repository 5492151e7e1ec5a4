"""`poise sweep RECIPE --vary FIELD=A,B,...`: train and evaluate every combination, and compare them in one table."""

import contextlib
import csv
import hashlib
import io
import itertools
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from poise.cli.engines import Pinned, Workers
from poise.cli.evaluate import Output, Trial, evaluate, write_json
from poise.cli.fields import fields, nearest
from poise.cli.machine import machine
from poise.cli.resumable import figures, keep, logged, run_missing, stamp
from poise.cli.running import Hardware, Machine
from poise.cli.train import parse_run, train_recipe
from poise.evaluation import wilson
from poise.evaluation.influence import influences
from poise.evaluation.report import Section, Table, markdown, write_report
from poise.evaluation.sweep_plot import sweep_figure
from poise.plain import concrete
from poise.policies import DiffusionPolicy, Policy
from poise.recipe import Recipe, load_recipe

SEED = "training.seed"
"""The field over which results are pooled."""

_METHOD = "method"
_LONGEST = 150  # letters of the name of a folder


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation.

    Attributes:
        setting: Varied field -> its value as on the command line.
        folder: Where checkpoint, log and results are.
        train: Arguments of `poise train`.
        episodes: Episodes to evaluate on.
        seed: Of the first episode.
        source: Digest of the recipe file.
        data: Stamp of the demonstrations, where the command names them.
    """

    setting: dict[str, str]
    folder: Path
    train: tuple[str, ...]
    episodes: int
    seed: int
    source: str
    data: str | None

    @property
    def identity(self) -> dict[str, Any]:
        """What a finished run must have been made from to count for this one."""
        tried = {"episodes": self.episodes, "seed": self.seed}
        return {"train": list(self.train), **tried, "recipe": self.source, "data": self.data}

    @property
    def name(self) -> str:
        """The setting on one line."""
        return " ".join(f"{field}={value}" for field, value in self.setting.items())


def sweep(
    recipe: Annotated[Path, tyro.conf.Positional],
    vary: Annotated[tuple[str, ...], tyro.conf.UseAppendAction],
    out: Path,
    data: Path | None = None,
    methods: tuple[str, ...] = (DiffusionPolicy.__name__,),
    workers: Annotated[Workers, tyro.conf.arg(name="")] = Workers(),  # noqa: B008 (frozen)
    episodes: int = 100,
    seed: int = 50_000,
) -> None:
    """Train every combination of some fields of a recipe, try each policy in closed loop, and compare them.

    Runs with different training seeds (--vary training.seed=0,1,2) are pooled. Interrupted, the same command goes on
    where it stopped. The table is printed and written, with a plot and a report, to the directory of --out.

    Args:
        recipe: Python file that ends in 'recipe = Recipe(...)'.
        vary: A field and its values, as in policy.network.width=128,256, episodes=25,50 or policy.sampler=DDIM,Heun;
            once for every field. The first one is the abscissa of the plot.
        out: Where the runs, sweep.json, sweep.csv, sweep.md, sweep.png and report.html are written.
        data: Demonstrations, in the format that the recipe reads.
        methods: Classes of policies: DiffusionPolicy and baselines.
        workers: Where runs take place.
        episodes: Episodes that every policy is tried on.
        seed: Seed of the first one; seeds from 100000 on are for the final evaluation.
    """
    axes, common = _axes(vary), (data, methods[0])
    if len(methods) > 1:
        axes[_METHOD] = list(methods)
    begin, cells = time.perf_counter(), _cells(recipe, axes, common, out, (episodes, seed))
    failures = run_missing(workers.start(), _run, cells)
    runs = [{"setting": cell.setting, "figures": found} for cell in cells if (found := figures(cell)) is not None]
    others = [name for name in axes if name != SEED] or [SEED]
    varied = [name for name in others if len(axes[name]) > 1] or others
    if runs:
        _written(out, pooled(runs, varied), runs, varied, time.perf_counter() - begin)
    for name, line in failures.items():
        print(f"poise: {name}: {line}", file=sys.stderr)
    if failures:
        print(
            f"poise: {len(failures)} of {len(cells)} runs failed; their logs are under {out / 'runs'}", file=sys.stderr
        )
        sys.exit(1)


def _axes(vary: Sequence[str]) -> dict[str, list[str]]:
    axes: dict[str, list[str]] = {}
    for text in vary:
        name, given, values = text.partition("=")
        name = name.strip().replace("-", "_")
        axis = [value.strip() for value in values.split(",")]
        if not given or not all(axis) or len(set(axis)) < len(axis) or name in axes:
            raise ValueError(f"got --vary {text!r}, expected FIELD=A,B,... with every field and value once")
        axes[name] = axis
    return axes


def _named(setting: Mapping[str, str]) -> str:
    """The name of a cell's folder; file systems take 255 bytes, so the end of a long one is a digest."""
    name = re.sub(r"[^\w.=,+-]+", "_", ",".join(f"{n}={v}" for n, v in setting.items()))
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _cells(
    recipe: Path, axes: Mapping[str, list[str]], run: tuple[Path | None, str], out: Path, tried: tuple[int, int]
) -> list[Cell]:
    """Every combination, checked before anything is trained."""
    loaded, source = load_recipe(recipe), hashlib.sha256(recipe.read_bytes()).hexdigest()
    known = {name for name, _, _ in fields(loaded)} | {_METHOD}
    for name in axes:
        if name not in known:
            raise ValueError(
                f"got --vary {name}, expected a field of the recipe: did you mean {nearest(name, known)!r}?"
            )
    data, method = run
    held, cells = stamp(data) if data else None, []
    for values in itertools.product(*axes.values()):
        setting = dict(zip(axes, values, strict=True))
        folder = out / "runs" / _named(setting)
        chosen = {_METHOD: method, **setting}
        options = [word for name, value in chosen.items() for word in (f"--{name}", *value.split())]
        options += ["--data", str(data)] if data else []
        train = (str(recipe), *options, "--out", str(folder), "--threads", "1")
        cells.append(Cell(setting, folder, train, *tried, source, held))
        _check(cells[-1], recipe, loaded)
    return cells


def _check(cell: Cell, path: Path, recipe: Recipe) -> None:
    """Raise a ValueError unless the command line of `poise train` takes the setting."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            run = parse_run(path, recipe, list(cell.train[1:]))
    except SystemExit as error:
        parts = re.split(r"[-─]{10,}", said.getvalue())
        reason = re.sub(r"[\s│|]+", " ", parts[1] if len(parts) > 1 else parts[0]).strip()
        raise ValueError(f"got the setting {cell.name}, which the recipe does not take: {reason}") from error
    if run.method not in concrete(Policy):
        raise ValueError(f"got the method {run.method!r}, expected one of {sorted(concrete(Policy))}")


def _run(cell: Cell) -> None:
    """Train and evaluate in this process, with what is printed in a log."""
    recipe = Pinned(Path(cell.train[0]), cell.source).checked()
    file = cell.folder / "evaluation.json"
    with logged(cell.folder):
        train_recipe([*cell.train, "--overwrite"])
        trial = Trial(recipe, episodes=cell.episodes, seed=cell.seed)
        evaluate(cell.folder, trial, output=Output(json=file), running=Machine(Hardware(threads=1)))
    (found,) = json.loads(file.read_text())["policies"].values()
    keep(cell, found, setting=cell.setting)


def pooled(runs: Sequence[Mapping[str, Any]], varied: Sequence[str]) -> list[dict[str, Any]]:
    """One row a setting, over its training seeds.

    Args:
        runs: The `setting` of every run and its `figures`, as `poise.evaluation.summary` gives them.
        varied: The fields that tell settings apart.

    Returns:
        Rows with the varied fields; success with its Wilson interval over the episodes of all seeds; seeds, the success
        of every run; means of reward_max_mean and plan_ms_median; and trials, the number of closed-loop episodes.
    """
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(tuple(run["setting"][name] for name in varied), []).append(run["figures"])
    rows = []
    for key, mine in groups.items():
        trials = sum(run["episodes"] for run in mine)
        success = wilson(round(sum(run["success"] * run["episodes"] for run in mine)), trials)
        means = {name: float(np.mean([run[name] for run in mine])) for name in ("reward_max_mean", "plan_ms_median")}
        interval = {"success": success.value, "success_low": success.low, "success_high": success.high}
        seeds = [run["success"] for run in mine]
        rows.append({**dict(zip(varied, key, strict=True)), **interval, "seeds": seeds, **means, "trials": trials})
    return rows


def _written(
    out: Path, rows: list[dict[str, Any]], runs: Sequence[Mapping[str, Any]], varied: Sequence[str], seconds: float
) -> None:
    shown = [{**row, **{name: row[name].replace(f"--{name}.", "") for name in varied}} for row in rows]
    table, matters = _table(shown, varied), _matters(shown, varied)
    text = "\n".join((*markdown(table), "", *markdown(matters)))
    print(f"\n{text}\n")
    write_json(out / "sweep.json", {"rows": rows, "runs": runs, "seconds": seconds, "machine": machine()})
    (out / "sweep.md").write_text(text + "\n")
    with (out / "sweep.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "seeds": " ".join(map(str, row["seeds"]))} for row in rows)
    figure = sweep_figure(shown, varied)
    figure.savefig(out / "sweep.png", dpi=150)
    best = max(shown, key=lambda row: row["success"])
    lead = f"Best: {', '.join(f'{n} {best[n]}' for n in varied)}, with a success of {best['success']:.1%}."
    sections = [Section("Success", _TEXT, [figure], table), Section("What matters", _MATTERS, [], matters)]
    write_report(out / "report.html", "Sweep", lead, sections, machine())
    print(f"wrote {out / 'report.html'}")


_TEXT = """One row a setting. The interval is Wilson's over the episodes of all training seeds, which have the same \
starts; it does not hold the spread of trainings, which the range over seeds shows."""


_MATTERS = """The mean success of every value of a field over all settings of the others, the field that moves it \
most first. The share is that of the variance between settings; what is left are interactions and chance."""


def _matters(rows: Sequence[Mapping[str, Any]], varied: Sequence[str]) -> Table:
    cells = [
        (
            found.field,
            ", ".join(f"{value} {mean:.1%}" for value, mean in found.means.items()),
            f"{found.range:.1%}",
            f"{found.share:.0%}",
            found.best,
        )
        for found in influences(rows, varied, "success")
    ]
    return Table(("field", "mean success", "range", "share", "best"), cells)


def _table(rows: Sequence[Mapping[str, Any]], varied: Sequence[str]) -> Table:
    columns = (*varied, "success", "95 % interval", "seeds", "range", "reward", "plan, ms", "tried")
    cells = [
        (
            *(row[name] for name in varied),
            f"{row['success']:.1%}",
            f"{row['success_low']:.1%} to {row['success_high']:.1%}",
            str(len(row["seeds"])),
            f"{min(row['seeds']):.1%} to {max(row['seeds']):.1%}",
            f"{row['reward_max_mean']:.3f}",
            f"{row['plan_ms_median']:.1f}",
            str(row["trials"]),
        )
        for row in rows
    ]
    return Table(columns, cells)


__all__ = ["SEED", "Cell", "pooled", "sweep"]
