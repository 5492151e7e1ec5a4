"""Runs that keep their results in folders: a finished one is not run again, and a failure is that of one run alone."""

import contextlib
import hashlib
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from poise.cli.engines import Engine
from poise.cli.evaluate import write_json


class Run(Protocol):
    """Something to be run once."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def folder(self) -> Path:
        """Where its log and results are."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """What a finished run must have been made from to count for this one, as JSON data."""
        ...


AnyRun = TypeVar("AnyRun", bound=Run)


def figures(run: Run) -> dict[str, Any] | None:
    """The results of a run that is finished and was made from the same, else None."""
    file = run.folder / "run.json"
    if not file.exists():
        return None
    held = json.loads(file.read_text())
    same = held["made from"] == json.loads(json.dumps(run.identity))  # JSON has no tuples
    return held["figures"] if same else None


def stamp(data: Path) -> str:
    """A digest of names, sizes and times of change of a file, or of all in a folder: a cheap one of what they hold."""
    files = sorted(data.rglob("*")) if data.is_dir() else [data]
    held = [(str(f.relative_to(data)), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
    return hashlib.sha256(repr(held).encode()).hexdigest()


def keep(run: Run, found: Mapping[str, Any], **more: Any) -> None:
    """Write the results of a run, by which it is finished."""
    write_json(run.folder / "run.json", {"made from": run.identity, **more, "figures": found})


@contextlib.contextmanager
def logged(folder: Path) -> Iterator[None]:
    """Where what is printed, and an exception that passes, goes to a log in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            yield
        except Exception:  # whatever a recipe or an environment raises, it belongs into the log too
            log.write(traceback.format_exc())
            raise


def run_missing(engine: Engine, function: Callable[[AnyRun], None], runs: Sequence[AnyRun]) -> dict[str, str]:
    """Run those that are not finished, with a bar; the error of every one that failed, by its name.

    Args:
        engine: Where.
        function: Ends by `keep`.
        runs: All of them.

    Raises:
        SystemExit: Ctrl-C, with the status 130.
    """
    missing = [run for run in runs if figures(run) is None]
    failures: dict[str, str] = {}
    with (
        contextlib.closing(engine.map(function, missing)) as outcomes,
        tqdm(total=len(runs), initial=len(runs) - len(missing), desc="runs", unit="run") as bar,
    ):
        try:
            for outcome in outcomes:
                run = missing[outcome.number]
                if outcome.error is not None:
                    failures[run.name] = outcome.error
                elif figures(run) is None:
                    failures[run.name] = f"its results are not in {run.folder}: share its file system with the workers"
                bar.update()
        except KeyboardInterrupt:
            print("interrupted: the same command goes on from here", file=sys.stderr)
            raise SystemExit(130) from None
    return failures


__all__ = ["Run", "figures", "keep", "logged", "run_missing", "stamp"]
