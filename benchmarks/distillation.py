r"""How much of a teacher's reward a distilled student keeps with one, two and three evaluations, by closed loop.

    python benchmarks/distillation.py --teacher out/benchmarks/pusht/mlp-velocity --recipe recipes/pusht.py \
        --data pusht_cchi_v7_replay.zarr --minutes 15 --episodes 500 --seed 100000

Trains the student in --out, unless it is there already, and prints a Markdown table (95 % intervals: Wilson's for
success, bootstrapped for the mean of the largest reward and for its share of the teacher's, over the same seeds), then
JSON. The training prints how far its plans are from the teacher's.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from poise import DiffusionPolicy, Task, load, load_recipe, rollout
from poise.cli.distill import Effort, distill
from poise.cli.machine import machine
from poise.evaluation import bootstrap, wilson
from poise.policies.saving import FILE

RESAMPLES = 2000
HEAD = (
    "| policy | evaluations | success | 95 % | reward | 95 % | share of the teacher's | 95 % |\n"
    "|---|---:|---:|---|---:|---|---:|---|"
)


def diffusion(path: Path) -> DiffusionPolicy:
    """The policy of a checkpoint."""
    policy = load(path)
    if not isinstance(policy, DiffusionPolicy):
        raise ValueError(f"{path} is a {type(policy).__name__}, expected a DiffusionPolicy")
    return policy


def share(mine: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Ratio of the means over the same seeds, with its 95 % bootstrap interval."""
    rewards = np.array([mine, theirs])
    rows = np.random.default_rng(0).integers(len(mine), size=(RESAMPLES, len(mine)))
    ratios = rewards[0][rows].mean(1) / rewards[1][rows].mean(1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return rewards[0].mean() / rewards[1].mean(), float(low), float(high)


def measured(name: str, policy: DiffusionPolicy, task: Task, seeds: range) -> dict[str, Any]:
    """Rewards and successes of a policy, in the order of the seeds."""
    label = f"{name} with {policy.spec.evaluations}"
    found = sorted(tqdm(rollout(policy, task, seeds), total=len(seeds), desc=label), key=lambda e: e.seed)
    rewards = [e.reward_max for e in found]
    return {
        "policy": name,
        "evaluations": policy.spec.evaluations,
        "success": wilson(sum(e.success for e in found), len(found)),
        "reward": bootstrap(rewards),
        "rewards": rewards,
    }


def line(row: dict[str, Any]) -> str:
    """One line of the table."""
    success, reward, kept = row["success"], row["reward"], row["share"]
    return (
        f"| {row['policy']} | {row['evaluations']} | {success[0]:.1%} | {success[1]:.1%} to {success[2]:.1%} | "
        f"{reward[0]:.3f} | {reward[1]:.3f} to {reward[2]:.3f} | {kept[0]:.1%} | {kept[1]:.1%} to {kept[2]:.1%} |"
    )


def main() -> None:
    """Distil, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/distillation"))
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--learning-rate", type=float, default=Effort.learning_rate)
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    begin = time.perf_counter()
    torch.set_num_threads(arguments.threads)
    if not (arguments.out / FILE).exists():
        effort = Effort(minutes=arguments.minutes, learning_rate=arguments.learning_rate)
        distill(arguments.teacher, arguments.recipe, arguments.out, arguments.data, effort=effort)
    teacher, student = diffusion(arguments.teacher), diffusion(arguments.out)
    task, seeds = load_recipe(arguments.recipe).task, range(arguments.seed, arguments.seed + arguments.episodes)
    runs = [("teacher", teacher, teacher.spec.evaluations), ("teacher", teacher, 1)]
    runs += [("student", student, evaluations) for evaluations in (1, 2, 3)]
    rows: list[dict[str, Any]] = []
    print(HEAD)
    for name, policy, evaluations in runs:
        row = measured(name, policy.using(evaluations=evaluations), task, seeds)
        row["share"] = share(row["rewards"], rows[0]["rewards"] if rows else row["rewards"])
        rows.append(row)
        print(line(row), flush=True)
    print(json.dumps({"rows": rows, "seconds": time.perf_counter() - begin, "machine": machine()}))


if __name__ == "__main__":
    main()
