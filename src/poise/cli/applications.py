"""`poise applications`: the tasks that diffusion policies are known for, each from demonstrations to closed loop."""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from poise.applications import Application, applications, find
from poise.applications.application import demonstrations
from poise.applications.driving import joined
from poise.cli.collect import gathered
from poise.cli.engines import Pinned, Workers
from poise.cli.evaluate import write_json
from poise.cli.machine import machine
from poise.cli.resumable import figures, run_missing
from poise.cli.studies import Findings, Studies
from poise.cli.suite import Case, Effort, run
from poise.data import write
from poise.evaluation.applications_page import STRIP, notes, overview, strips_figure, write_applications
from poise.evaluation.report import markdown
from poise.evaluation.studies_page import sections

_SMOKE_DEMONSTRATIONS = 12


def applications_suite(
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    list: bool = False,
    smoke: bool = False,
    out: Path = Path("out/applications"),
    effort: Annotated[Effort, tyro.conf.arg(name="")] = Effort(),  # noqa: B008 (frozen)
    workers: Annotated[Workers, tyro.conf.arg(name="")] = Workers(),  # noqa: B008 (frozen)
    studies: Annotated[Studies, tyro.conf.arg(name="")] = Studies(),  # noqa: B008 (frozen)
) -> None:
    """Run applications: collect demonstrations, train diffusion and regression, try both in closed loop, write a page.

        poise applications --list
        poise applications navigate --minutes 5
        poise applications --minutes 15 --jobs 2
        poise applications navigate pick-place --studies     # how many demonstrations it takes, and what disturbs

    Demonstrations that poise collect has written are used as they are. Interrupted, the same command goes on: what is
    finished is run again only if its settings or demonstrations have changed. A task whose extra is not installed, or
    whose pictures cannot be drawn here, is skipped.

    Args:
        names: Of the applications; without them all.
        list: Print the names and what they are, and end.
        smoke: Do everything with tiny settings, in seconds a task, in the folder smoke of --out: no policy gets good.
        out: Where report.html, results.json and results.md are written, strips.png with a film strip of every task,
            pictures of studies, and a folder a task.
        effort: How long policies learn, and what they are tried on.
        workers: Where tasks run; expert and training have --threads each.
        studies: What is asked beside.
    """
    chosen = [find(name) for name in names] or [*applications().values()]
    if list:
        for one in chosen:
            ready = f"demonstrations in {one.file}" if one.file.exists() else f"poise collect {one.name}"
            print(f"{one.name:<18}{one.area:<20}{one.about} [{ready}]")
        return
    if smoke:
        out, effort = out / "smoke", replace(effort, steps=5, batch=32, episodes=2, pictures=8)
    begin, (cases, missing, failures) = time.perf_counter(), _cases(chosen, out, smoke, effort, workers)
    engine = workers.start(effort.threads)
    failures |= run_missing(engine, run, cases)
    found, failed = studies.run(engine, [case for case in cases if case.name not in failures])
    failures |= failed
    _written(out, cases, {**missing, **failures}, found, time.perf_counter() - begin)
    if failures:
        print(f"poise: failed: {', '.join(failures)}; logs are under {out}", file=sys.stderr)
        sys.exit(1)


def _cases(
    chosen: Sequence[Application], out: Path, smoke: bool, effort: Effort, workers: Workers
) -> tuple[list[Case], dict[str, str], dict[str, str]]:
    """What can be run, with its demonstrations; why the others are skipped; and the errors of those that failed."""
    cases, missing, failures = list[Case](), dict[str, str](), dict[str, str]()
    for application in chosen:
        if (why := _absent(application)) is not None:
            missing[application.name] = f"skipped, for {why}"
            continue
        try:
            data = _data(application, out / application.name if smoke else None, workers)
            cases.append(Case(application.name, data, out / application.name, effort))
        except (ValueError, OSError) as error:
            failures[application.name] = str(error)
    return cases, missing, failures


def _absent(application: Application) -> str | None:
    """Why the task cannot run here: its extra is not installed, or its pictures cannot be drawn."""
    try:
        application.task.make(1).close()
    except (ImportError, OSError) as error:
        return str(error)
    return None


def _data(application: Application, folder: Path | None, workers: Workers) -> Pinned:
    """The demonstrations, which are collected where there are none: few, in the folder, if one is given."""
    file = application.file if folder is None else folder / "demonstrations.npz"
    if not file.exists():
        count = application.episodes if folder is None else _SMOKE_DEMONSTRATIONS
        collected = gathered(application, count, workers=Workers() if folder else workers)
        print("\n".join(collected.lines))
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file, joined(application, collected.kept))
    demonstrations(application, file)  # of this task, or an error before hours of others
    return Pinned.of(file)


def _written(
    out: Path,
    cases: Sequence[Case],
    missing: dict[str, str],
    studies: Findings,
    seconds: float,
) -> None:
    """Table, results and page of what is finished."""
    rows = [found for case in cases if (found := figures(case)) is not None]
    asked = [*sections(**studies)]
    lines = [*markdown(overview(rows)), "", *notes(rows), *(f"{name}: {why}" for name, why in missing.items())]
    for section in asked:
        lines += ["", section.title, "", *(markdown(section.table) if section.table else ())]
    print("\n" + "\n".join(lines))
    write_json(
        out / "results.json",
        {"applications": rows, "missing": missing, "studies": studies, "seconds": seconds, "machine": machine()},
    )
    (out / "results.md").write_text("\n".join(lines) + "\n")
    folders = {case.name: case.folder for case in cases}
    strips = {name: folder / STRIP for name, folder in folders.items() if (folder / STRIP).exists()}
    if strips:
        strips_figure(strips).savefig(out / "strips.png", dpi=100)
    for number, figure in enumerate((figure for section in asked for figure in section.figures), 1):
        figure.savefig(out / f"study-{number}.png", dpi=150)
    write_applications(out / "report.html", rows, folders, missing, machine(), asked)
    print(f"wrote {out / 'report.html'}")


__all__ = ["applications_suite"]
