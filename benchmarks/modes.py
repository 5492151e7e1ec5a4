"""Two ways around the T: closed loop from a start that is its own mirror image, many times.

    python benchmarks/modes.py out/pusht --recipe recipes/pusht.py --figure ways.png

On Push-T the diagonal x + y = 512 mirrors table, goal and the block at 45 degrees onto themselves. The agent starts on
it, on the wrong side of the block, so that left and right are equally good. (Of such starts, one was chosen whose plans
under seeds from 0 took both sides.) Prints, for every checkpoint, how many of the runs took either side and their
entropy over log 2; draws their paths.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import gymnasium
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Polygon
from numpy.typing import NDArray

from poise import DiffusionPolicy, Policy, RecedingHorizon, Recipe, load, load_recipe
from poise.cli.machine import machine
from poise.envs.drawing import GOAL, PLAN, ROBOT, SHADOW
from poise.evaluation import entropy

# Block and agent on the diagonal, the agent on the side that the block has to be pushed to.
START = (256.0, 256.0, 326.7, 185.3, 5 * np.pi / 4)  # px and rad: agent, block, angle of the block
STEPS = 60
SCALE = 30.0  # px, half the width of a bar of the T
SHAPE = [(-2, 0), (2, 0), (2, 1), (0.5, 1), (0.5, 4), (-0.5, 4), (-0.5, 1), (-2, 1)]


def paths(policy: Policy, recipe: Recipe, seeds: range) -> NDArray[np.float64]:
    """Where the agent went, `(runs, steps + 1, 2)` in pixels."""
    envs = [gymnasium.make(recipe.task.environment, **recipe.task.arguments) for _ in seeds]
    state = [placed(env) for env in envs]
    control = RecedingHorizon(policy, len(envs))
    control.reset(seeds)
    went = [[observation[:2] for observation in state]]
    for _ in range(STEPS):
        actions = control.act(recipe.task.observe(np.stack(state)))
        state = [env.step(np.clip(action, 0, 512))[0] for env, action in zip(envs, actions, strict=True)]
        went.append([observation[:2] for observation in state])
    return np.array(went).transpose(1, 0, 2)


def placed(env: gymnasium.Env) -> NDArray[np.float64]:
    """The observation at the start; the environment turns the block about its centre of mass, which moves its place."""
    asked = np.array(START)
    moved, _ = env.reset(seed=0, options={"reset_to_state": asked})
    asked[2:4] += asked[2:4] - moved[2:4]
    return env.reset(seed=0, options={"reset_to_state": asked})[0]


def sides(went: NDArray[np.float64]) -> NDArray[np.int64]:
    """1 or 0: the side of the diagonal where a run was, on the average of its first half."""
    beyond = went[..., 0] + went[..., 1] - 512
    return (beyond[:, : STEPS // 2].mean(1) > 0).astype(int)


def tee(state: NDArray[np.float64] | tuple[float, ...], colour: str) -> Polygon:
    """The block at a pose (x, y, angle)."""
    x, y, angle = state
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return Polygon(SCALE * np.array(SHAPE) @ turn.T + [x, y], closed=True, color=colour, linewidth=0)


def draw(axes: Axes, went: NDArray[np.float64], title: str) -> None:
    """Goal, block and all paths, coloured by side."""
    axes.add_patch(tee((256.0, 256.0, np.pi / 4), GOAL))
    axes.add_patch(tee(START[2:], SHADOW))
    for path, side in zip(went, sides(went), strict=True):
        axes.plot(*path.T, color=(ROBOT, PLAN)[side], linewidth=0.8, alpha=0.5)
    axes.plot(*START[:2], "o", color="black", markersize=5)
    axes.plot([0, 512], [512, 0], color=SHADOW, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set(xlim=(0, 512), ylim=(512, 0), aspect="equal", xticks=[], yticks=[], title=title)


def main() -> None:
    """Run, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--temperatures", type=float, nargs="+", default=(0.5, 1.0))
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=100_000)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    recipe, seeds = load_recipe(arguments.recipe), range(arguments.seed, arguments.seed + arguments.runs)
    went: dict[str, NDArray[np.float64]] = {}
    for checkpoint in arguments.checkpoints:
        policy = load(checkpoint)
        if isinstance(policy, DiffusionPolicy):
            for temperature in arguments.temperatures:
                name = f"{checkpoint.name}, temperature {temperature:g}"
                went[name] = paths(policy.using(temperature=temperature), recipe, seeds)
        else:
            went[f"{checkpoint.name} ({type(policy).__name__})"] = paths(policy, recipe, seeds)
    rows: list[dict[str, Any]] = []
    for name, one in went.items():
        share, balance = float(sides(one).mean()), entropy(sides(one)) / np.log(2)
        rows.append({"policy": name, "one_side": share, "entropy": balance, "runs": len(one)})
        print(f"{name:<36}{share:>7.1%} on one side, entropy {balance:.3f} of log 2, {len(one)} runs")
    if arguments.figure:
        figure, axes = plt.subplots(1, len(went), figsize=(4 * len(went), 4.2), squeeze=False, layout="constrained")
        for one, (name, path) in zip(axes[0], went.items(), strict=True):
            draw(one, path, name)
        figure.savefig(arguments.figure, dpi=120)
    print(json.dumps({"rows": rows, "machine": machine()}))


if __name__ == "__main__":
    main()
