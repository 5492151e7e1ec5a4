"""One default recipe, unchanged but for shapes, on Push-T, Navigate and two tasks of Meta-World.

    poise collect navigate && poise collect pick-place && poise collect assembly
    python benchmarks/default_recipe.py --data pusht_cchi_v7_replay.zarr --minutes 20

Needs the extras `pusht`, `zarr` and `manipulation`. Every policy is `PolicySpec(observations, action)`, trained by
`TrainingSpec()`, with the limit of --minutes if there is one; the recipes only say where data and task come from.
Trained policies stay in --out and are not trained again.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from poise import DiffusionPolicy, PolicySpec, Recipe, TrainingSpec, load_checkpoint, load_recipe, rollout, summary
from poise.applications import find
from poise.cli.fitting import Job, fit
from poise.cli.machine import machine
from poise.evaluation import latency

RECIPES = Path(__file__).parents[1] / "recipes"
TASKS = ("pusht", "navigate", "pick-place", "assembly")
HEAD = f"{'task':<16}{'success':>9}{'95 % interval':>18}{'reward':>8}{'plan ms':>9}{'steps':>8}{'minutes':>9}"


def defaults(name: str, minutes: float | None) -> Recipe:
    """The recipe of a task with the default policy and training; only shapes are kept."""
    own = load_recipe(RECIPES / f"{name}.py") if (RECIPES / f"{name}.py").exists() else find(name).recipe()
    policy = PolicySpec(own.policy.observations, own.policy.action)
    return dataclasses.replace(own, policy=policy, training=TrainingSpec(minutes=minutes), padded=None)


def trained(recipe: Recipe, out: Path, data: Path | None) -> tuple[DiffusionPolicy, dict[str, Any]]:
    """The policy of the checkpoint in `out`, made if it is not there, and the end of its training."""
    if not (out / "policy.safetensors").exists():
        training, validation = recipe.parts(data)
        job = Job(DiffusionPolicy, recipe.policy, recipe.training, out, {"machine": machine()})
        fit(job, (training, validation))
    policy, notes = load_checkpoint(out)
    if not isinstance(policy, DiffusionPolicy):
        raise ValueError(f"{out} holds a {type(policy).__name__}, expected a DiffusionPolicy")
    return policy, notes["progress"]


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    interval = f"{row['success_low']:.1%} to {row['success_high']:.1%}"
    return (
        f"{row['task']:<16}{row['success']:>9.1%}{interval:>18}{row['reward_max_mean']:>8.3f}"
        f"{row['plan_ms_median']:>9.1f}{row['steps']:>8}{row['minutes']:>9.1f}"
    )


def main() -> None:
    """Train, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="demonstrations of Push-T; without them it is left out")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/default_recipe"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--minutes", type=float, help="limit of each training (default: none but the steps)")
    parser.add_argument("--temperature", type=float, help="factor of the noise (default: the default recipe's)")
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    begin, rows = time.perf_counter(), []
    print(HEAD)
    for name in arguments.tasks:
        if name == "pusht" and arguments.data is None:
            continue
        recipe = defaults(name, arguments.minutes)
        policy, progress = trained(recipe, arguments.out / name, arguments.data if name == "pusht" else None)
        policy = policy.using(temperature=arguments.temperature)
        seeds = range(arguments.seed, arguments.seed + arguments.episodes)
        ran = list(tqdm(rollout(policy, recipe.task, seeds), total=len(seeds), desc=name, leave=False))
        figures = summary(ran, latency(policy))
        rows.append({"task": name, "steps": progress["step"], "minutes": progress["seconds"] / 60, **figures})
        print(line(rows[-1]), flush=True)
    print(json.dumps({"rows": rows, "seconds": time.perf_counter() - begin, "machine": machine()}))


if __name__ == "__main__":
    main()
