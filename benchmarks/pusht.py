"""Push-T from human demonstrations: success and reward by network, prediction, sampler and evaluations.

    python benchmarks/pusht.py --data pusht_cchi_v7_replay.zarr --jobs 2

Trains each of --networks x --predictions by the recipe, unless its checkpoint is in --out already, then runs every
sampler at every number of evaluations from the one checkpoint, on the same seeds. --begin and --temperature try others
than the recipe's: epsilon, whose errors near t = 1 are magnified, may want --begin 0.95 --temperature 1. Trainings and
cells run in --jobs processes of one thread. Every cell is kept in --out/cells.jsonl, so that an interrupted run goes on
where it was.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from poise import (
    Clean,
    DiffusionPolicy,
    Epsilon,
    Flow,
    Recipe,
    Rectified,
    UNet1D,
    Velocity,
    VPCosine,
    load,
    load_recipe,
    rollout,
)
from poise.cli.fitting import Job, fit
from poise.cli.machine import machine
from poise.cli.running import SAMPLERS
from poise.evaluation import bootstrap, wilson
from poise.predictions import Prediction

ROOT = Path(__file__).parents[1]
NETWORKS = ("mlp", "unet")
PREDICTIONS: dict[str, Prediction] = {
    "flow": Flow(),
    "epsilon": Epsilon(),
    "clean": Clean(),
    "velocity": Velocity(),
}
BOUND = 3.0  # standard deviations of an action; chosen on seeds from 50000
EVALUATIONS = (1, 2, 3, 4, 5, 8, 10, 20, 50, 100)
CELLS = "cells.jsonl"


class Cell(NamedTuple):
    """One entry of a table; where begin or temperature is None it is the recipe's."""

    policy: str
    sampler: str
    evaluations: int
    begin: float | None = None
    temperature: float | None = None


class Study(NamedTuple):
    """What a worker process needs to know."""

    recipe: Path
    data: Path
    out: Path
    steps: int | None
    seeds: range


def variant(recipe: Recipe, name: str, steps: int | None) -> Recipe:
    """The recipe with the network and prediction of a name such as `mlp-epsilon`.

    A flow has the straight schedule, what is none the cosine, as is usual. Near t = 1 an error of epsilon is magnified
    by sigma / alpha = 1000 in x0, so there predictions are clamped.
    """
    network, prediction = name.split("-")
    schedule, bound = (Rectified(), None) if prediction == "flow" else (VPCosine(), BOUND)
    policy = dataclasses.replace(recipe.policy, prediction=PREDICTIONS[prediction], schedule=schedule, bound=bound)
    if network == "unet":
        policy = dataclasses.replace(policy, network=UNet1D())
    limits = {"steps": steps, "minutes": None} if steps else {}
    return dataclasses.replace(recipe, policy=policy, training=dataclasses.replace(recipe.training, **limits))


def train_one(study: Study, name: str) -> str:
    """Make the checkpoint of a name, in a process of its own."""
    torch.set_num_threads(1)
    recipe = variant(load_recipe(study.recipe), name, study.steps)
    job = Job(DiffusionPolicy, recipe.policy, recipe.training, study.out / name, {"machine": machine()})
    fit(job, recipe.parts(study.data))
    return name


def run_one(study: Study, cell: Cell) -> dict[str, Any]:
    """The figures of a cell, in a process of its own."""
    torch.set_num_threads(1)
    recipe = variant(load_recipe(study.recipe), cell.policy, study.steps)
    policy = load(study.out / cell.policy)
    if not isinstance(policy, DiffusionPolicy):
        raise ValueError(f"{cell.policy} is a {type(policy).__name__}, expected a DiffusionPolicy")
    changes = {name: value for name in ("begin", "temperature") if (value := getattr(cell, name)) is not None}
    # What the benchmark runs, whatever bound or sampler was saved.
    policy.spec = dataclasses.replace(recipe.policy, **changes)
    chosen = policy.using(SAMPLERS[cell.sampler], evaluations=cell.evaluations)
    episodes = list(rollout(chosen, recipe.task, study.seeds))
    return {
        **cell._asdict(),
        "success": wilson(sum(e.success for e in episodes), len(episodes)),
        "reward": bootstrap([e.reward_max for e in episodes]),
        "checkpoint": fingerprint(study, cell.policy),
        "first": study.seeds.start,
        "episodes": len(episodes),
    }


def known(study: Study) -> dict[Cell, dict[str, Any]]:
    """Cells of the same episodes and checkpoints that were measured before."""
    file = study.out / CELLS
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    prints = {row["policy"]: fingerprint(study, row["policy"]) for row in rows}
    return {
        Cell(**{name: r.get(name) for name in Cell._fields}): r  # earlier ones have neither begin nor temperature
        for r in rows
        if (r["first"], r["episodes"], r["checkpoint"]) == (study.seeds.start, len(study.seeds), prints[r["policy"]])
    }


def fingerprint(study: Study, policy: str) -> str:
    """What tells a checkpoint from one that was trained anew."""
    file = study.out / policy / "policy.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12] if file.exists() else ""


def missing_cells(study: Study, cells: Iterable[Cell]) -> list[Cell]:
    """Those not measured yet, whose sampler can spend the evaluations; the longest first."""
    left = []
    for cell in set(cells) - set(known(study)):
        try:
            SAMPLERS[cell.sampler].budget(cell.evaluations)
            left.append(cell)
        except ValueError as error:
            print(f"{cell.sampler} with {cell.evaluations} is left out: {error}")
    return sorted(left, key=lambda cell: (-cell.evaluations, str(cell)))


def measured(study: Study, cells: list[Cell], jobs: int) -> Iterator[dict[str, Any]]:
    """Run cells in so many processes, and keep each as it ends."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context) as pool, (study.out / CELLS).open("a") as file:
        futures = [pool.submit(run_one, study, cell) for cell in cells]
        for future in tqdm(as_completed(futures), total=len(futures), desc="cells"):
            row = future.result()
            file.write(json.dumps(row) + "\n")
            file.flush()
            yield row


def title(cell: Cell) -> str:
    """Of the table that a cell stands in."""
    begin = "" if cell.begin is None else f" from t = {cell.begin:g}"
    return f"{cell.policy}{begin}" + ("" if cell.temperature is None else f" at temperature {cell.temperature:g}")


def table(rows: Mapping[Cell, dict[str, Any]], head: str, samplers: Sequence[str]) -> str:
    """Success and reward of one title in Markdown: a row a number of evaluations, a column a sampler."""
    found = {(cell.evaluations, cell.sampler): row for cell, row in rows.items() if title(cell) == head}
    lines = [f"| {head} | " + " | ".join(samplers) + " |", "|---|" + "---|" * len(samplers)]
    for evaluations in sorted({e for e, _ in found}):
        cells = [found.get((evaluations, sampler)) for sampler in samplers]
        lines.append(f"| {evaluations} | " + " | ".join(_entry(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _entry(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    value, low, high = row["success"]
    return f"{100 * value:.0f} % ({100 * low:.0f} to {100 * high:.0f}), {row['reward'][0]:.3f}"


def main() -> None:
    """Train, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/pusht"))
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "pusht.py")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--predictions", nargs="+", choices=list(PREDICTIONS), default=list(PREDICTIONS))
    parser.add_argument(
        "--samplers", nargs="+", choices=list(SAMPLERS), default=["DDPM", "DDIM", "DPMSolverPP", "Heun"]
    )
    parser.add_argument("--evaluations", nargs="+", type=int, default=EVALUATIONS)
    parser.add_argument("--steps", type=int, help="of each training (default: the recipe's)")
    parser.add_argument("--begin", nargs="+", type=float, default=[None], help="in (0, 1] (default: the recipe's)")
    parser.add_argument("--temperature", nargs="+", type=float, default=[None], help="(default: the recipe's)")
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=100_000)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    begin = time.perf_counter()
    seeds = range(arguments.seed, arguments.seed + arguments.episodes)
    study = Study(arguments.recipe, arguments.data, arguments.out, arguments.steps, seeds)
    names = [f"{network}-{prediction}" for network in arguments.networks for prediction in arguments.predictions]
    untrained = [name for name in names if not (study.out / name / "policy.safetensors").exists()]
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(train_one, study, name) for name in untrained]):
            print(f"trained {future.result()}", flush=True)
    ways = itertools.product(arguments.samplers, arguments.evaluations, arguments.begin, arguments.temperature)
    cells = [Cell(name, *way) for name, way in itertools.product(names, ways)]
    for _ in measured(study, missing_cells(study, cells), arguments.jobs):
        pass
    rows = {cell: row for cell, row in known(study).items() if cell in set(cells)}
    heads = dict.fromkeys(map(title, cells))
    print("\n\n".join(table(rows, head, arguments.samplers) for head in heads))
    print(json.dumps({"rows": [*rows.values()], "seconds": time.perf_counter() - begin, "machine": machine()}))


if __name__ == "__main__":
    main()
