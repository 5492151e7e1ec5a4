"""`poise compare CHECKPOINT`: which sampler, with how many evaluations, for this robot."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from tqdm import tqdm

from poise.cli.evaluate import task_of, write_json
from poise.cli.machine import machine, processor
from poise.cli.running import Hardware
from poise.evaluation import Interval, Task, rollout
from poise.evaluation.advice import Advice, Constraints, advise
from poise.evaluation.compare import Cell, Row, compare, spendable, warm_start
from poise.evaluation.comparison_report import write_comparison
from poise.evaluation.diversity import Probe, demonstrated_floor, held_out, likelihood, visited
from poise.evaluation.paired import noise_effect
from poise.policies import DiffusionPolicy, load
from poise.recipe import Recipe, load_recipe
from poise.sampling import (
    DDIM,
    DDPM,
    BogackiShampine,
    DPMSolver,
    DPMSolverPP,
    Euler,
    EulerMaruyama,
    Heun,
    Sampler,
    Switch,
    UniPC,
)

LINEUP: dict[str, tuple[str, Sampler]] = {
    "DDIM": ("ODE", DDIM()),
    "Euler": ("ODE", Euler()),
    "Heun": ("ODE", Heun()),
    "DPM-Solver": ("ODE", DPMSolver()),
    "DPM-Solver++": ("ODE", DPMSolverPP()),
    "UniPC": ("ODE", UniPC()),
    "DDPM": ("SDE", DDPM()),
    "Euler-Maruyama": ("SDE", EulerMaruyama()),
    "SDE-DPM-Solver++": ("SDE", DPMSolverPP(eta=1.0)),
    "ODE-then-SDE": ("hybrid", Switch()),
    "SDE-then-ODE": ("hybrid", Switch(DPMSolverPP(eta=1.0), DPMSolverPP())),
}
"""Family and sampler by the names of the command line."""

ADAPTIVE, WARM = "adaptive", "warm-start"
TWINS = {"DDPM": "DDIM", "Euler-Maruyama": "Euler", "SDE-DPM-Solver++": "DPM-Solver++"}
"""Stochastic samplers and the deterministic ones that differ from them by nothing but the noise."""


@dataclass(frozen=True)
class Tried:
    """What is tried.

    Attributes:
        samplers: Any of DDIM, Euler, Heun, DPM-Solver, DPM-Solver++, UniPC and adaptive (all of the ODE); DDPM,
            Euler-Maruyama and SDE-DPM-Solver++ (of the SDE); ODE-then-SDE, SDE-then-ODE and warm-start.
        evaluations: Network evaluations a plan; each sampler is tried with each that it can spend.
        tolerances: Of the adaptive sampler, which chooses its evaluations by them.
        begin: Time at which warm starts begin, between 0 (data) and 1 (noise).
        episodes: Episodes of every way of sampling, all on the same seeds.
        seed: Seed of the first; seeds from 100000 on are for evaluation and never for training.
    """

    samplers: tuple[str, ...] = (*LINEUP, ADAPTIVE, WARM)
    evaluations: tuple[int, ...] = (1, 2, 3, 5, 10)
    tolerances: tuple[float, ...] = (0.1, 0.01)
    begin: float = 0.8
    episodes: int = 100
    seed: int = 100_000

    @property
    def seeds(self) -> range:
        """Of the episodes."""
        return range(self.seed, self.seed + self.episodes)

    def cells(self) -> list[Cell]:
        """The ways of sampling.

        Raises:
            ValueError: An unknown sampler.
        """
        known = (*LINEUP, ADAPTIVE, WARM)
        unknown = [name for name in self.samplers if name not in known]
        if unknown:
            raise ValueError(f"got the samplers {unknown}, expected some of {list(known)}")
        return [cell for name in self.samplers for cell in self._of(name)]

    def _of(self, name: str) -> list[Cell]:
        if name == ADAPTIVE:
            return [Cell(f"{name} to {r:g}", "ODE", BogackiShampine(r, r / 10), None) for r in self.tolerances]
        if name == WARM:
            return [warm_start(DPMSolverPP(), n, self.begin, name) for n in self.evaluations]
        return [Cell(name, *LINEUP[name], n) for n in self.evaluations]


@dataclass(frozen=True)
class Files:
    """What is written beside the lines on the terminal.

    Attributes:
        json: File for all results. What it already holds of the same checkpoint and settings is not measured again, so
            an interrupted run goes on, and other constraints cost nothing.
        html: File for the report.
    """

    json: Path | None = None
    html: Path | None = None


def compare_samplers(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    tried: Annotated[Tried, tyro.conf.arg(name="")] = Tried(),  # noqa: B008 (frozen)
    constraints: Annotated[Constraints, tyro.conf.arg(name="")] = Constraints(),  # noqa: B008 (frozen)
    files: Annotated[Files, tyro.conf.arg(name="")] = Files(),  # noqa: B008 (frozen)
    hardware: Annotated[Hardware, tyro.conf.arg(name="")] = Hardware(),  # noqa: B008 (frozen)
    recipe: Path | None = None,
    environment: str | None = None,
    data: Path | None = None,
) -> None:
    """Find out how to sample a policy: ODE or SDE, which solver, how many evaluations. Ends in a recommendation.

    Every way of sampling runs the same weights on the same starts, so that differences are of the sampler alone:

        poise compare out/pusht --recipe recipes/pusht.py --data pusht.zarr --rate-hz 20 --html report.html

    Args:
        checkpoint: A file or directory of `poise train`, of a DiffusionPolicy.
        tried: What is tried.
        constraints: What the robot asks for.
        files: What is written.
        hardware: What runs the policy.
        recipe: Recipe file whose task, adapters and reader are used; it is run as a program.
        environment: Gymnasium id to try instead, as `id` or `module:id`.
        data: Demonstrations, which the recipe reads: for the distance of plans to them, and their likelihood.
    """
    begin, policy = time.perf_counter(), hardware.take(_diffusion(checkpoint))
    loaded = load_recipe(recipe) if recipe else None
    task = task_of(loaded, environment)
    cells, notes = spendable(tried.cells())
    print("\n".join(notes), end="\n" if notes else "")
    sources = {"recipe": recipe, "environment": environment, "data": data}
    results, known = _known(files.json, _settings(checkpoint, tried, sources, hardware))
    missing = [cell for cell in cells if cell.label not in known]
    if missing:
        probe = _probe(policy, task, tried, loaded, data).to(hardware.device)
        results |= {"facts": _facts(policy, probe), "machine": machine()}
        for row in _shown(compare(policy, task, missing, tried.seeds, probe), len(missing)):
            known[row.label] = row
            _keep(files.json, results, known)
    rows = [known[cell.label] for cell in cells]
    advice, effect = advise(rows, constraints), noise_effect(rows, TWINS)
    print(f"\n{advice.text}")
    results |= {**_outcome(advice, effect, constraints), "notes": notes, "seconds": time.perf_counter() - begin}
    _keep(files.json, results, known)
    if files.html:
        footer = "\n\n".join([*notes, f"{tried.episodes} episodes from seed {tried.seed}. {results['machine']}."])
        write_comparison(
            files.html, f"How to sample {checkpoint.stem}", rows, advice, effect, results["facts"], constraints, footer
        )


def _keep(file: Path | None, results: Mapping[str, Any], rows: Mapping[str, Row]) -> None:
    if file:
        write_json(file, {**results, "rows": [asdict(row) for row in rows.values()]})


def _shown(rows: Iterator[Row], count: int) -> Iterator[Row]:
    """Pass rows on, through a bar on the terminal and a line each."""
    for row in (bar := tqdm(rows, total=count, desc="ways of sampling")):
        bar.write(described(row))
        yield row


def _diffusion(checkpoint: Path) -> DiffusionPolicy:
    policy = load(checkpoint)
    if not isinstance(policy, DiffusionPolicy):
        raise ValueError(
            f"{checkpoint} holds a {type(policy).__name__}, expected a DiffusionPolicy: only a diffusion has samplers "
            "to compare; try it with poise evaluate"
        )
    return policy


def _probe(policy: DiffusionPolicy, task: Task, tried: Tried, recipe: Recipe | None, data: Path | None) -> Probe:
    """Held-out demonstrations where there are some, and else what the policy itself comes to see."""
    if data is not None:
        if recipe is None:
            raise ValueError("got --data without a recipe, expected --recipe RECIPE, which reads it")
        return held_out(recipe.windows(recipe.read(data).split(recipe.validation)[1]))
    return visited(policy.spec, rollout(policy, task, tried.seeds[:8]))


def _facts(policy: DiffusionPolicy, probe: Probe) -> dict[str, Any]:
    """What belongs to the checkpoint and not to a sampler."""
    facts: dict[str, Any] = {"observations": len(probe), "demonstrations": probe.actions is not None}
    if probe.actions is not None:
        facts["log_likelihood"] = likelihood(policy, probe)._asdict()
        facts["energy_floor"] = demonstrated_floor(policy, probe)
    return facts


def _settings(
    checkpoint: Path, tried: Tried, sources: Mapping[str, Path | str | None], hardware: Hardware
) -> dict[str, Any]:
    """What results depend on, beside the ways of sampling, which have names."""
    recipe = sources["recipe"]
    weights = checkpoint / "policy.safetensors" if checkpoint.is_dir() else checkpoint
    digests = {"checkpoint": _digest(weights), "program": _digest(Path(recipe)) if recipe else None}
    kept = {name: str(value) for name, value in sources.items()}
    numbers = {"episodes": tried.episodes, "seed": tried.seed, "begin": tried.begin}
    clock = {"processor": processor(), "device": hardware.device, "threads": torch.get_num_threads()}
    return {**digests, **kept, **numbers, **clock, "figures": [field.name for field in dataclasses.fields(Row)]}


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _known(file: Path | None, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Row]]:
    """What a file holds of the same settings: all of it, and its rows by label."""
    if file is None or not file.exists():
        return {"settings": settings}, {}
    held = json.loads(file.read_text())
    if held.get("settings") != settings:
        print(f"{file} holds a comparison under other settings, which is written over")
        return {"settings": settings}, {}
    return held, {row.label: row for row in map(Row.of, held["rows"])}


def _outcome(advice: Advice, effect: dict[int, Interval], constraints: Constraints) -> dict[str, Any]:
    return {
        "constraints": dataclasses.asdict(constraints),
        "advice": {
            "text": advice.text,
            "chosen": advice.chosen.label if advice.chosen else None,
            "rejected": dict(advice.rejected),
        },
        "noise_effect": {n: interval._asdict() for n, interval in effect.items()},
    }


def described(row: Row) -> str:
    """A row as a line for people."""
    success = row.success
    return (
        f"{row.label:<34} success {success.value:6.1%} ({success.low:.1%} to {success.high:.1%})   "
        f"reward {row.reward.value:.3f}   plan {row.plan_ms_median:6.1f} ms (p95 {row.plan_ms_p95:.1f})   "
        f"spread {row.spread:.2f}"
    )


__all__ = ["ADAPTIVE", "LINEUP", "TWINS", "WARM", "Files", "Tried", "compare_samplers", "described"]
