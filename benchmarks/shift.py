"""Novelty on Push-T: does the score of an observation tell that a policy is about to fail?

    python benchmarks/shift.py out/benchmarks/pusht/mlp-flow --data pusht_cchi_v7_replay.zarr
    python benchmarks/shift.py out/benchmarks/pusht/mlp-flow --data pusht_cchi_v7_replay.zarr --surprise

Runs one checkpoint where it was trained and then under growing perturbations, and scores every observation that it
planned from with `Novelty`, fitted on the training windows and calibrated on the held-out ones. Perturbations: `start`
(block and agent further from the middle than any reset puts them), `noise` (white, on all positions), `bias` (the block
seen elsewhere than it is), `light` (pictures: colours rotated towards another channel). For every cell: success with
Wilson's interval, mean scores, the share of plans with p < 0.01, and over all cells the AUROC of the mean score of an
episode's first five plans as a predictor of its failure. With `--surprise` the likelihood of the plan is a third score,
and since it takes long, the first five plans alone are scored. The last line is JSON.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from poise import DiffusionPolicy, Policy, Recipe, Task, load, load_recipe, rollout
from poise.cli.machine import machine
from poise.evaluation import Episode, bootstrap, wilson
from poise.policies.novelty import Novelty, PlanSurprise
from poise.sampling import Heun

ROOT = Path(__file__).parents[1]
ENVIRONMENT = "poise-benchmarks/PushTShifted-v0"
CENTRE, REACH = 256.0, 200.0  # px: the middle of the table, and how far from it a block still lies on the table
EARLY, ALARM = 5, 0.01
STRENGTHS = {
    "start": (0.25, 0.5, 1.0),  # share by which places are further from the middle
    "noise": (2.0, 5.0, 10.0, 20.0),  # px
    "bias": (5.0, 10.0, 20.0, 40.0),  # px
    "light": (0.25, 0.5, 1.0),  # share of the next channel
}


class Shifted(gymnasium.Wrapper):
    """Push-T with the starts of its own resets moved away from the middle of the table.

    Args:
        env: Push-T.
        strength: Share by which they are moved.
    """

    def __init__(self, env: gymnasium.Env, strength: float) -> None:
        super().__init__(env)
        self.strength = strength

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The state that the seed gives, moved."""
        random = np.random.default_rng(seed)
        places = np.concatenate([random.integers(50, 450, 2), random.integers(100, 400, 2)]).astype(float)
        moved = CENTRE + (places - CENTRE) * (1 + self.strength)
        state = [*np.clip(moved, CENTRE - REACH, CENTRE + REACH), random.uniform(-np.pi, np.pi)]
        return self.env.reset(seed=seed, options={"reset_to_state": state})


def shifted(strength: float = 0.0, **arguments: Any) -> gymnasium.Env:
    """The environment of that name."""
    return Shifted(gymnasium.make("gym_pusht:gym_pusht/PushT-v0", disable_env_checker=True, **arguments), strength)


def perturbed(recipe: Recipe, kind: str, strength: float, seed: int = 0) -> Task:
    """The task of the recipe under one perturbation."""
    task = recipe.task
    if kind == "start":
        arguments = {**task.arguments, "strength": strength}
        return dataclasses.replace(task, environment=ENVIRONMENT, arguments=arguments)
    random = np.random.default_rng(seed)
    change = {
        "noise": lambda places: places + strength * random.normal(size=places.shape),
        "bias": lambda places: places + strength * np.resize([0, 0, 1, 1], places.shape[-1]),
    }

    def observe(raw: Any) -> dict[str, NDArray]:
        if kind == "light":
            return task.observe({**raw, "pixels": lit(raw["pixels"], strength)})
        if isinstance(raw, Mapping):
            return task.observe({**raw, "agent_pos": change[kind](raw["agent_pos"])})
        return task.observe(np.concatenate([change[kind](raw[:, :4]), raw[:, 4:]], axis=1))

    return dataclasses.replace(task, observe=observe)


def lit(pictures: NDArray, strength: float) -> NDArray:
    """Pictures whose channels are mixed with their neighbours."""
    mixed = (1 - strength) * pictures + strength * np.roll(pictures, 1, axis=-1)
    return mixed.round().astype(np.uint8)


def planned_from(policy: Policy, episode: Episode, plans: int | None) -> dict[str, torch.Tensor]:
    """The observation histories that an episode's first plans, or all, were made from."""
    steps = np.flatnonzero(episode.fresh)[:plans]
    past = np.maximum(steps[:, None] + np.arange(1 - policy.spec.history, 1), 0)
    return {name: _as_data(rows[past]) for name, rows in episode.observations.items()}


def _as_data(rows: NDArray) -> torch.Tensor:
    return torch.as_tensor(rows if rows.dtype == np.uint8 else rows.astype(np.float32))


def auroc(scores: NDArray, positive: NDArray) -> float | None:
    """The chance that a positive has the larger score, ties half (Mann, Whitney 1947); None without both kinds."""
    yes, no = scores[positive], scores[~positive]
    if not len(yes) or not len(no):
        return None
    return float((np.sign(yes[:, None] - no).mean() + 1) / 2)


def scored(policy: Policy, novelty: Novelty, episode: Episode, plans: int | None) -> dict[str, Any]:
    """What an episode looked like: means of its first five plans, and the alarms of as many plans as are asked for."""
    verdict = novelty(planned_from(policy, episode, plans))
    early = {f"early_{name}": float(values[:EARLY].mean()) for name, values in verdict.scores.items()}
    alarms = {f"alarm_{name}": float((p < ALARM).double().mean()) for name, p in verdict.p_values.items()}
    return {
        "success": episode.success,
        "reward": episode.reward_max,
        **early,
        **alarms,
        "alarm": float((verdict.p < ALARM).double().mean()),
        "early_p": float(verdict.p[:EARLY].log().mean()),
    }


def cell(kind: str, strength: float, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the table."""
    success, reward = wilson(sum(r["success"] for r in rows), len(rows)), bootstrap([r["reward"] for r in rows])
    means = {name: float(np.mean([r[name] for r in rows])) for name in rows[0] if name.startswith(("early", "alarm"))}
    return {"kind": kind, "strength": strength, "success": success, "reward": reward, **means, "episodes": len(rows)}


def line(row: dict[str, Any], names: Iterable[str]) -> str:
    """For the terminal."""
    value, low, high = row["success"]
    scores = "".join(f"{row[f'early_{name}']:>9.3f}" for name in names)
    return (
        f"{row['kind']:<8}{row['strength']:>9.2f}{value:>9.0%}{f'{low:.0%} to {high:.0%}':>14}"
        f"{row['reward'].value:>8.3f}{scores}{row['alarm']:>9.1%}"
    )


def main() -> None:
    """Fit, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "pusht.py")
    parser.add_argument("--kinds", nargs="+", choices=list(STRENGTHS), default=["start", "noise", "bias"])
    parser.add_argument("--surprise", action="store_true", help="score the likelihood of the first five plans too")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    gymnasium.register(ENVIRONMENT, entry_point=shifted, max_episode_steps=300)
    begin, recipe = time.perf_counter(), load_recipe(arguments.recipe)
    policy = load(arguments.checkpoint)
    training, held_out = recipe.parts(arguments.data)
    novelty, plans = Novelty.fit(policy, training, held_out), None
    if arguments.surprise:
        if not isinstance(policy, DiffusionPolicy):
            parser.error(f"--surprise asks for the likelihoods of a DiffusionPolicy, got a {type(policy).__name__}")
        surprise = PlanSurprise(policy, Heun(), steps=8)
        novelty, plans = Novelty.fit(policy, training, held_out, {**novelty.scores, "surprise": surprise}), EARLY
    names = "".join(f"{name:>9}" for name in novelty.scores)
    print(f"{'shift':<8}{'strength':>9}{'success':>9}{'95 %':>14}{'reward':>8}{names}{'p < 0.01':>9}")
    seeds = range(arguments.seed, arguments.seed + arguments.episodes)
    cells: list[dict[str, Any]] = []
    episodes: list[dict[str, Any]] = []
    # A start moved by nothing is the task as it is, but for the random numbers.
    for kind, strength in [("start", 0.0), *((k, s) for k in arguments.kinds for s in STRENGTHS[k])]:
        run = rollout(policy, perturbed(recipe, kind, strength), seeds, images=True)
        shown = tqdm(run, total=len(seeds), desc=f"{kind} {strength}", leave=False)
        rows = [scored(policy, novelty, episode, plans) for episode in shown]
        cells.append(cell(kind, strength, rows))
        episodes += [{"kind": kind, "strength": strength, **row} for row in rows]
        print(line(cells[-1], novelty.scores), flush=True)
    found = aurocs(episodes, arguments.kinds, novelty.scores)
    for kind, values in found.items():
        print(f"AUROC for failure, {kind}: " + ", ".join(f"{k} {v:.2f}" for k, v in values.items() if v is not None))
    seconds = time.perf_counter() - begin
    print(json.dumps({"rows": cells, "auroc": found, "seconds": seconds, "machine": machine()}))


def aurocs(
    episodes: list[dict[str, Any]], kinds: list[str], names: Iterable[str]
) -> dict[str, dict[str, float | None]]:
    """Over the unperturbed episodes with those of each kind, and over all, by score and by p of all scores."""
    signs = {f"early_{name}": 1 for name in names} | {"early_p": -1}
    found = {}
    for kind in ("unperturbed", *kinds, "all"):
        chosen = [e for e in episodes if kind == "all" or e["kind"] == kind or e["strength"] == 0]
        chosen = [e for e in chosen if kind != "unperturbed" or e["strength"] == 0]
        failed = np.array([not e["success"] for e in chosen])
        found[kind] = {
            name.removeprefix("early_"): auroc(np.array([sign * e[name] for e in chosen]), failed)
            for name, sign in signs.items()
        }
    return found


if __name__ == "__main__":
    main()
