"""Plans that arrive late: plain switching, ensembling and real-time chunking, from one checkpoint, on a recipe's task.

    python benchmarks/realtime.py out/pusht --recipe recipes/pusht.py --episodes 500 --seed 100000

A plan is asked for every `execute` control steps, and arrives the given number of steps later; until then the robot
goes on along the plan before. The ensemble asks as often as the delay allows. Nothing waits for a clock, so the figures
do not depend on the machine, apart from the milliseconds of a plan for one robot.

Prints a Markdown table (95 % intervals: Wilson's for success, bootstrapped for the means of the rest), then JSON
(intervals as value, low, high). All rows have the same seeds, so what a controller costs is told by its success less
that of plain switching, seed by seed, in points with its 95 % interval; jump and seam stand beside it as multiples of
plain switching's. The break is how far a new plan, where it is entered,
is from what the plan before said for the same step; the jump is the change of action there, which holds the robot's
own motion too; the seam is the jump relative to the change within plans, the jerk that of `poise.evaluation.jerk`.
"""

import argparse
import json
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from poise import DiffusionPolicy, Recipe, load, load_recipe, rollout
from poise.cli.machine import machine
from poise.cli.running import SAMPLERS
from poise.evaluation import Episode, Interval, bootstrap, jerk, seam_jump, wilson
from poise.evaluation.paired import rate_difference
from poise.guidance import identity, vjp
from poise.policies import Asynchronous, Chunking, ExponentialMask, Request, Way, afresh, simulated
from poise.watchdog import repeated

MASK = ExponentialMask()
TIMED = 30  # plans
COLUMNS = {
    "success": ".1%",
    "reward": ".3f",
    "break": ".3g",
    "jump": ".3g",
    "seam": ".2f",
    "jerk": ".3g",
}  # and their formats
PLAIN = "plain switching"
RATIOS = "jump", "seam"
HEAD = (
    f"| delay | controller | {' | 95 % | '.join(COLUMNS)} | 95 % | held | ms a plan "
    f"| success less plain | 95 % | {' | '.join(f'{name} over plain' for name in RATIOS)} |\n"
    f"|---:|---|{'---:|---|' * len(COLUMNS)}---:|---:|---:|---|{'---:|' * len(RATIOS)}"
)


class Row(NamedTuple):
    """One controller."""

    name: str
    way: Way
    execute: int | None = None
    decay: float | None = None
    sampler: str = ""  # that of the checkpoint


def rows(beta: float, decay: float) -> Iterator[Row]:
    """The controllers."""
    yield Row(PLAIN, afresh)
    yield Row(f"ensemble, decay {decay:g}", afresh, execute=1, decay=decay)
    yield Row("chunking, vjp", Chunking(MASK, beta, vjp))
    yield Row("chunking, identity", Chunking(MASK, beta, identity))
    yield Row("chunking, vjp, beta 10, fade 4", Chunking(MASK, 10.0, vjp, 4))


def milliseconds(policy: DiffusionPolicy, row: Row, delay: int, episode: Episode) -> float:
    """Median time of a plan of one robot that sees an episode again; its first plan is left out."""
    seconds, spec = [], policy.spec

    def timed(policy: DiffusionPolicy, request: Request) -> NDArray[np.float32]:
        begin = time.perf_counter()
        plans = row.way(policy, request)
        seconds.append(time.perf_counter() - begin)
        return plans

    controller = simulated(policy, hold=repeated, delays=(delay,), way=timed, execute=row.execute, decay=row.decay)
    black = {name: np.zeros((1, *spec.observations[name]), np.uint8) for name in spec.cameras}
    for t in range(TIMED * spec.execute):
        step = t % len(episode.actions)
        controller.act({**{name: values[step : step + 1] for name, values in episode.observations.items()}, **black})
    return 1e3 * float(np.median(seconds[1:]))


def jump(episode: Episode) -> float:
    """Mean change of action where a plan is entered, in the units of actions."""
    change, seam = np.linalg.norm(np.diff(episode.actions, axis=0), axis=1), episode.fresh[1:]
    return float(change[seam].mean()) if seam.any() else math.nan


def mean(values: Iterable[float]) -> Interval | None:
    """Over the episodes that have one."""
    finite = [value for value in values if math.isfinite(value)]
    return bootstrap(finite) if finite else None


def tried(policy: DiffusionPolicy, recipe: Recipe, seeds: range, row: Row, delay: int) -> dict[str, Any]:
    """One row of the table."""
    if row.sampler:
        policy = policy.using(sampler=SAMPLERS[row.sampler])
    made: list[Asynchronous] = []
    breaks: list[float] = []

    def way(policy: DiffusionPolicy, request: Request) -> NDArray[np.float32]:
        plans = row.way(policy, request)
        both = request.left > delay
        breaks.extend(np.linalg.norm(plans[both, delay] - request.previous[both, delay], axis=1).tolist())
        return plans

    def control(policy: DiffusionPolicy, robots: int) -> Asynchronous:
        more = {"way": way, "execute": row.execute, "decay": row.decay}
        made.append(simulated(policy, robots, hold=repeated, delays=(delay,), **more))
        return made[0]

    episodes = sorted(rollout(policy, recipe.task, seeds, control), key=lambda episode: episode.seed)
    return {
        "delay": delay,
        "controller": row.name,
        "sampler": row.sampler,
        "success": wilson(sum(e.success for e in episodes), len(episodes)),
        "reward": bootstrap([e.reward_max for e in episodes]),
        "break": mean(breaks),
        "jump": mean(jump(e) for e in episodes),
        "seam": mean(seam_jump(e.actions, e.fresh) for e in episodes),
        "jerk": mean(jerk(e.actions) for e in episodes),
        "held": made[0].record.held / sum(len(e.actions) for e in episodes),
        "ms": milliseconds(policy, row, delay, episodes[0]),
        "episodes": len(episodes),
        "won": [int(episode.success) for episode in episodes],
    }


def against(result: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """What a row gains and loses beside plain switching with the same delay and seeds."""
    ratios = {
        name: result[name].value / plain[name].value
        for name in RATIOS
        if result[name] is not None and plain[name] is not None and plain[name].value
    }
    return {"success": rate_difference(result["won"], plain["won"]), **ratios}


def compared(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The newest row, beside plain switching with its delay and sampler where that is another row."""
    newest, alike = results[-1], ("controller", "delay", "sampler")
    plain = newest | {"controller": PLAIN}
    same = [result for result in results[:-1] if all(result[name] == plain[name] for name in alike)]
    return newest | {"against_plain": against(newest, same[0])} if same else newest


def line(result: dict[str, Any]) -> str:
    """A line of the Markdown table."""

    def cells(found: Interval | None, form: str) -> str:
        return f"{found.value:{form}} | {found.low:{form}} to {found.high:{form}}" if found else "- | -"

    middle = " | ".join(cells(result[name], form) for name, form in COLUMNS.items())
    beside, named = result.get("against_plain", {}), ", ".join(filter(None, (result["controller"], result["sampler"])))
    ratios = " | ".join(f"{beside[name]:.2f}" if name in beside else "-" for name in RATIOS)
    return (
        f"| {result['delay']} | {named} | {middle} | {result['held']:.1%} | {result['ms']:.1f} "
        f"| {cells(beside.get('success'), '+.1%')} | {ratios} |"
    )


def main() -> None:
    """Try every controller under every delay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=50_000)
    parser.add_argument("--delays", type=int, nargs="+", default=range(6), help="control steps")
    parser.add_argument("--beta", type=float, default=5.0)
    parser.add_argument("--decay", type=float, default=0.01)
    parser.add_argument("--controllers", nargs="+", default=[""], help="only those whose name holds one of these words")
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=[""], help="(default: its own)")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    policy, recipe = load(arguments.checkpoint), load_recipe(arguments.recipe)
    assert isinstance(policy, DiffusionPolicy)
    seeds = range(arguments.seed, arguments.seed + arguments.episodes)
    known = [row for row in rows(arguments.beta, arguments.decay) if any(w in row.name for w in arguments.controllers)]
    chosen = [row._replace(sampler=sampler) for sampler in arguments.samplers for row in known]
    results = []
    print(HEAD)
    for delay, row in tqdm([(delay, row) for delay in arguments.delays for row in chosen], leave=False):
        results.append(tried(policy, recipe, seeds, row, delay))
        results[-1] = compared(results)
        tqdm.write(line(results[-1]))
    print(json.dumps({"machine": machine(), "episodes": arguments.episodes, "seed": arguments.seed, "rows": results}))


if __name__ == "__main__":
    main()
