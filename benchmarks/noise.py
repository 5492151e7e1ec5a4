"""What the noise of a plan is worth: one checkpoint with it, without it, and averaged over it.

    python benchmarks/noise.py out/demo/diffusion --recipe recipes/applications/navigate.py

Tries plans as they are sampled, plans from z = 0 (the sampler's path without noise, temperature 0), and the mean of
--mean samples. Where several ways are good, the mean of plans lies between them. Prints success, collisions and the
entropy of the ways taken by the successes, over that of --ways taken equally often, with 95 % intervals of success.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from poise import DiffusionPolicy, RecedingHorizon, load, load_recipe, rollout
from poise.cli.machine import machine
from poise.evaluation import entropy, wilson
from poise.policies.control import Control, Planner
from poise.policies.memory import Memory, Robots


def averaged(count: int) -> Planner:
    """The mean of so many plans."""

    def planner(memory: Memory, robots: Robots) -> NDArray[np.float32]:
        return np.stack([memory.plan(robots) for _ in range(count)]).mean(0)

    return planner


def main() -> None:
    """Try the three, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--mean", type=int, default=16, help="samples")
    parser.add_argument("--ways", type=int, default=4, help="equally good ones")
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    policy, recipe = load(arguments.checkpoint), load_recipe(arguments.recipe)
    if not isinstance(policy, DiffusionPolicy):
        raise ValueError(f"{arguments.checkpoint} is a {type(policy).__name__}, expected a DiffusionPolicy")
    seeds = range(arguments.seed, arguments.seed + arguments.episodes)
    ways: dict[str, tuple[DiffusionPolicy, Control]] = {
        "samples": (policy, RecedingHorizon),
        "z = 0": (policy.using(temperature=0.0), RecedingHorizon),
        f"mean of {arguments.mean} samples": (policy, partial(RecedingHorizon, planner=averaged(arguments.mean))),
    }
    rows: list[dict[str, Any]] = []
    print("| plans | success | 95 % | collisions | entropy of ways |\n|---|---:|---|---:|---:|")
    for name, (tried, control) in ways.items():
        episodes = list(rollout(tried, recipe.task, seeds, control))
        success = wilson(sum(e.success for e in episodes), len(episodes))
        collisions = float(np.mean([bool(e.collision) for e in episodes]))
        modes = [e.mode for e in episodes if e.success and e.mode is not None]
        share = entropy(modes) / np.log(arguments.ways)
        rows.append({"plans": name, "success": success, "collisions": collisions, "entropy": share})
        print(
            f"| {name} | {success.value:.1%} | {success.low:.1%} to {success.high:.1%} "
            f"| {collisions:.1%} | {share:.3f} |",
            flush=True,
        )
    print(json.dumps({"rows": rows, "episodes": len(seeds), "machine": machine()}))


if __name__ == "__main__":
    main()
