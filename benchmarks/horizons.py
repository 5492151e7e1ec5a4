"""How far ahead to execute, how late one may see, and which controller: from one checkpoint, on the task of a recipe.

    python benchmarks/horizons.py out/pusht --recipe recipes/pusht.py --episodes 500 --seed 100000

Prints a Markdown table (95 % intervals: Wilson's for success, bootstrapped for the mean of the largest reward), then
JSON (intervals as value, low, high). All rows have the same seeds. Milliseconds are those of one robot's control step.
"""

import argparse
import copy
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from poise import DiffusionPolicy, RecedingHorizon, Recipe, load, load_recipe, rollout
from poise.cli.machine import machine
from poise.evaluation import Episode, bootstrap, jerk, seam_jump, wilson
from poise.policies.control import Control
from poise.policies.ensemble import TemporalEnsemble
from poise.policies.recorded import Delayed
from poise.policies.warm import WarmStart

EXECUTES = (1, 2, 4, 8, 16)
DELAYS = range(8)
DECAYS = (0.01, -0.5)
BEGINS = (0.5, 0.8, 0.95)
WARM = (2, 3, 5)
TIMED = 64  # control steps
HEAD = (
    "| controller | execute | delay | success | 95 % | reward | 95 % | jerk | seam | ms a step | p95 |\n"
    "|---|---:|---:|---:|---|---:|---|---:|---:|---:|---:|"
)


class Row(NamedTuple):
    """What one row of the table runs."""

    name: str
    execute: int
    delay: int
    control: Control


def delayed(policy: DiffusionPolicy, robots: int, steps: int) -> Delayed:
    """A receding horizon that sees late."""
    return Delayed(RecedingHorizon(policy, robots), steps)


def cold(policy: DiffusionPolicy, robots: int, evaluations: int) -> RecedingHorizon:
    """A receding horizon whose plans come from pure noise by so many evaluations: the control of warm starts."""
    return RecedingHorizon(policy.using(evaluations=evaluations), robots)


def plan_of_rows(arguments: argparse.Namespace, horizon: int) -> Iterator[Row]:
    """The rows: execute, delay, ensemble, fewer evaluations from noise, warm start."""
    for execute in arguments.executes:
        if execute <= horizon:
            yield Row("receding", execute, 0, RecedingHorizon)
    for delay in sorted({*arguments.delays} - ({0} if arguments.execute in arguments.executes else set())):
        yield Row("receding", arguments.execute, delay, partial(delayed, steps=delay))
    for decay in arguments.decays:
        yield Row(f"ensemble, decay {decay:g}", 1, 0, partial(TemporalEnsemble, decay=decay))
    for count in arguments.evaluations:
        yield Row(f"cold, {count} evals", arguments.execute, 0, partial(cold, evaluations=count))
    for begin in arguments.begins:
        for count in arguments.warm:
            control = partial(WarmStart, begin=begin, evaluations=count)
            yield Row(f"warm, begin {begin:g}, {count} evals", arguments.execute, 0, control)


def milliseconds(policy: DiffusionPolicy, control: Control, episode: Episode) -> tuple[float, float]:
    """Mean and 95 % quantile of the time of a control step of one robot that sees an episode again."""
    controller, seconds, spec = control(policy, 1), [], policy.spec
    black = {name: np.zeros((1, *spec.observations[name]), np.uint8) for name in spec.cameras}
    for t in range(TIMED + spec.horizon):
        row = t % len(episode.actions)
        seen = {name: values[row : row + 1] for name, values in episode.observations.items()}
        begin = time.perf_counter()
        controller.act({**seen, **black})
        seconds.append(time.perf_counter() - begin)
    timed = 1e3 * np.array(seconds[spec.horizon :])
    return float(timed.mean()), float(np.quantile(timed, 0.95))


def figures(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Success, reward and smoothness."""
    jerks = [jerk(e.actions) for e in episodes]
    seams = np.array([seam_jump(e.actions, e.fresh) for e in episodes])
    return {
        "success": wilson(sum(e.success for e in episodes), len(episodes)),
        "reward_max": bootstrap([e.reward_max for e in episodes]),
        "jerk": float(np.nanmean(jerks)),
        "seam_jump": float(np.nanmean(seams)) if np.isfinite(seams).any() else None,
        "episodes": len(episodes),
    }


def measured(policy: DiffusionPolicy, recipe: Recipe, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The figures of every row."""
    seeds = range(arguments.seed, arguments.seed + arguments.episodes)
    for row in plan_of_rows(arguments, policy.spec.horizon):
        chosen = copy.copy(policy)
        chosen.spec = dataclasses.replace(policy.spec, execute=row.execute)
        ran = rollout(chosen, recipe.task, seeds, row.control)
        episodes = sorted(tqdm(ran, total=len(seeds), desc=row.name, leave=False), key=lambda e: e.seed)
        mean, p95 = milliseconds(chosen, row.control, episodes[0])
        named = {"name": row.name, "execute": row.execute, "delay": row.delay}
        yield {**named, **figures(episodes), "step_ms": mean, "step_ms_p95": p95}


def line(row: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    success, reward = row["success"], row["reward_max"]
    seam = "" if row["seam_jump"] is None else f"{row['seam_jump']:.2f}"
    return (
        f"| {row['name']} | {row['execute']} | {row['delay']} | {success.value:.1%} | "
        f"{success.low:.1%} to {success.high:.1%} | {reward.value:.3f} | {reward.low:.3f} to {reward.high:.3f} | "
        f"{row['jerk']:.3g} | {seam} | {row['step_ms']:.2f} | {row['step_ms_p95']:.2f} |"
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=100_000)
    parser.add_argument("--execute", type=int, default=8, help="of the rows of delays, evaluations and warm starts")
    parser.add_argument("--executes", nargs="*", type=int, default=EXECUTES)
    parser.add_argument("--delays", nargs="*", type=int, default=DELAYS)
    parser.add_argument("--decays", nargs="*", type=float, default=DECAYS)
    parser.add_argument("--evaluations", nargs="*", type=int, default=(), help="of further rows without a warm start")
    parser.add_argument("--begins", nargs="*", type=float, default=BEGINS)
    parser.add_argument("--warm", nargs="*", type=int, default=WARM, help="evaluations of a warm plan")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    begin, rows = time.perf_counter(), []
    policy, recipe = load(arguments.checkpoint), load_recipe(arguments.recipe)
    if not isinstance(policy, DiffusionPolicy):
        raise ValueError(f"{arguments.checkpoint} holds a {type(policy).__name__}, expected a DiffusionPolicy")
    print(HEAD)
    for row in measured(policy, recipe, arguments):
        rows.append(row)
        print(line(row), flush=True)
    print(json.dumps({"rows": rows, "seconds": time.perf_counter() - begin, "machine": machine()}))


if __name__ == "__main__":
    main()
