"""`poise train RECIPE`: learn a policy from demonstrations; `poise train --resume RUN`: go on after an interruption."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from poise.cli.devices import check_device
from poise.cli.dry_run import rehearse
from poise.cli.fields import choose_classes
from poise.cli.fitting import BEGUN, Job, fit
from poise.cli.machine import machine
from poise.data import Windows
from poise.plain import concrete, to_plain
from poise.policies import DiffusionPolicy, Policy
from poise.recipe import Recipe, load_recipe
from poise.training.scale import is_first, joined
from poise.training.trackers import Tracker

_USAGE = """usage: poise train RECIPE [--data PATH] [--out DIR] [OPTIONS]
       poise train --resume RUN [--device DEVICE] [--threads N]

Learn a policy from demonstrations. RECIPE is a Python file that ends in 'recipe = Recipe(...)'; its fields are the
options: poise train RECIPE --help lists them. A field that holds an object also takes the name of another class.

    poise train recipes/pusht.py --data pusht_cchi_v7_replay.zarr --training.minutes 5
    poise train recipes/pusht.py --data pusht_cchi_v7_replay.zarr --policy.network UNet1D

With --dry-run it says what it would see and take, and ends.

    poise train recipes/pusht.py --data pusht_cchi_v7_replay.zarr --dry-run

A run that was stopped, or killed at any moment, goes on from its newest checkpoint to the weights that it would have
had; RUN is its --out. Only where it is computed may change.

    poise train --resume out/pusht
"""


@dataclass(frozen=True)
class Run:
    """Learn a policy from demonstrations; every field of the recipe is an option.

    Attributes:
        recipe: The recipe file's.
        data: Demonstrations, in the format that the recipe reads.
        out: Where the checkpoints and the metrics are written.
        method: Class of the policy: DiffusionPolicy, or a baseline.
        weights: Safetensors of published weights that the backbones of the encoder begin with; see `load_backbone`.
        track: Tools that get the figures besides metrics.jsonl.
        overwrite: Begin anew where --out holds a run.
        device: Where to train, such as cpu or cuda.
        threads: CPU threads; None leaves PyTorch's choice.
        dry_run: Print shapes, the first batch, parameters, memory, time and disk, from a few steps, and write nothing.
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path
    data: Path | None = None
    method: str = DiffusionPolicy.__name__
    weights: Path | None = None
    track: tuple[str, ...] = ()
    overwrite: bool = False
    device: str = "cpu"
    threads: int | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class _Where:
    """What a run that goes on may have otherwise; None is as it was begun."""

    device: str | None = None
    threads: int | None = None

    def arguments(self) -> list[str]:
        """As a command line."""
        return [word for name, value in asdict(self).items() if value is not None for word in (f"--{name}", str(value))]


def train_recipe(arguments: list[str]) -> None:
    """Parse the command line after `poise train` and run it.

    Raises:
        ValueError: An unknown class, a folder that holds another run, or a run resumed with another recipe.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return
    if arguments[0] == "--resume":
        _resume(arguments[1:])
        return
    path = Path(arguments[0])
    run = parse_run(path, load_recipe(path), arguments[1:])
    if run.dry_run:
        _rehearse(_job(path, run), run)
        return
    if is_first() and (run.out / BEGUN).is_file() and not run.overwrite:
        raise ValueError(
            f"{run.out} holds a run already: go on with it by poise train --resume {run.out}, name another --out, or "
            "begin anew with --overwrite"
        )
    _train(replace(_job(path, run), begun=_begun(path, run, arguments[1:])), path, run, resume=False)


def _resume(arguments: list[str]) -> None:
    """Go on with the run in the folder that is named."""
    name, *rest = arguments or [""]
    if not name or not (Path(name) / BEGUN).is_file():
        raise ValueError(
            f"got --resume {name}, expected one folder that poise train has written, with its {BEGUN}: "
            "what was stopped before that was there is begun by poise train RECIPE"
        )
    out = Path(name)
    where, others = tyro.cli(_Where, args=rest, prog="poise train --resume RUN", return_unknown_args=True)
    if others:
        raise ValueError(
            f"got {' '.join(others)!r} after --resume {out}, expected nothing but --device and --threads: a run goes "
            "on as it was begun; for other options begin a new one"
        )
    described = json.loads((out / BEGUN).read_text())
    path = Path(described["arguments"][0])
    run = parse_run(path, load_recipe(path), [*described["arguments"][1:], "--out", str(out), *where.arguments()])
    now, before = dict(_flat(_specs(run))), dict(_flat(described["specs"]))
    changed = [f"{k}: {before.get(k)} became {now.get(k)}" for k in sorted(now | before) if now.get(k) != before.get(k)]
    if changed:
        raise ValueError(
            f"{path} differs from what {out} was begun with ({'; '.join(changed)}), expected the same: restore it, or "
            "begin a new run"
        )
    _train(_job(path, run), path, run, resume=True)


def _rehearse(job: Job, run: Run) -> None:
    windows = run.recipe.parts(run.data, run.device)
    print(f"{run.method} on {run.device}, {_counted(windows)}")
    for line in rehearse(job, windows):
        print(line)


def _counted(windows: tuple[Windows, Windows]) -> str:
    (training, validation), samples = (part.episodes for part in windows), [len(part) for part in windows]
    return f"{training} + {validation} episodes, {samples[0]} training and {samples[1]} validation windows"


def _job(path: Path, run: Run) -> Job:
    check_device(run.device)
    kinds, trackers = concrete(Policy), concrete(Tracker)
    for name, known, what in ((run.method, kinds, "method"), *((name, trackers, "tracker") for name in run.track)):
        if name not in known:
            raise ValueError(f"got the {what} {name!r}, expected one of {sorted(known)}")
    if run.threads:
        torch.set_num_threads(run.threads)
    notes = {"recipe": str(path), "data": str(run.data), "machine": machine(), "training": run.recipe.training}
    return Job(
        kind=kinds[run.method],
        spec=run.recipe.policy,
        training=run.recipe.training,
        out=run.out,
        notes=to_plain(notes),
        task=run.recipe.task,
        weights=run.weights,
        trackers=tuple(trackers[name]() for name in run.track),
    )


def _train(job: Job, path: Path, run: Run, resume: bool) -> None:
    with joined(run.device) as (processes, device):
        windows = run.recipe.parts(run.data, device)
        if is_first():
            print(_counted(windows))
        (training, validation), samples = (part.episodes for part in windows), len(windows[0])
        counts = {"training": training, "validation": validation, "windows": samples}
        job = replace(job, notes={**job.notes, "demonstrations": counts})
        file = fit(job, windows, resume, processes)
    if is_first():
        print(f"wrote {file}\nnext: poise evaluate {run.out} --recipe {path}")


def _begun(path: Path, run: Run, arguments: list[str]) -> dict[str, Any]:
    """What a run is resumed by, from whatever folder: its command line with whole paths, and what that comes to."""
    given = {"--data": run.data, "--weights": run.weights}
    places = [word for name, place in given.items() if place for word in (name, _whole(place))]
    return {"arguments": [str(path.resolve()), *arguments, *places], "specs": _specs(run)}


def _specs(run: Run) -> dict[str, Any]:
    """What must be the same when the run goes on, as JSON data."""
    recipe = run.recipe
    found = {name: getattr(recipe, name) for name in ("policy", "training", "episodes", "validation", "padded")}
    places = {"data": run.data and _whole(run.data), "weights": run.weights and _whole(run.weights)}
    return to_plain({**found, "method": run.method, **places})


def _whole(place: Path) -> str:
    """A path from the root, or what names no file here as it is."""
    return str(place.resolve() if place.exists() else place)


def _flat(plain: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and word of nested JSON data, by its dotted name."""
    if isinstance(plain, dict):
        for name, value in plain.items():
            yield from _flat(value, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, plain


def parse_run(path: Path, recipe: Recipe, arguments: list[str]) -> Run:
    """The run that the arguments after the recipe ask for.

    Raises:
        ValueError: The name of a class that does not fit its field.
        SystemExit: What else is wrong, which is printed, or --help.
    """
    chosen, rest = choose_classes(recipe, arguments)
    default = Run(chosen, Path("out") / path.stem)
    return tyro.cli(Run, default=default, args=rest, prog=f"poise train {path}", config=(tyro.conf.SuppressFixed,))


__all__ = ["Run", "parse_run", "train_recipe"]
