"""Push-T from human demonstrations: success and reward by network, prediction, sampler and evaluations.

    python benchmarks/pusht.py --data pusht_cchi_v7_replay.zarr

Trains each of {MLP, U-Net} x {flow, epsilon} by the recipe (20 minutes each) unless its checkpoint is
in --out already, then runs every sampler at every number of evaluations from the one checkpoint.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from poise import (
    DiffusionPolicy,
    Epsilon,
    Flow,
    Recipe,
    UNet1D,
    VPCosine,
    load_checkpoint,
    load_recipe,
    rollout,
    summary,
)
from poise.cli.evaluate import SAMPLERS
from poise.cli.train import fit, machine
from poise.evaluation import latency

ROOT = Path(__file__).parents[1]
NETWORKS = ("mlp", "unet")
PREDICTIONS = {"flow": Flow(), "epsilon": Epsilon()}
EPSILON_BOUND = 3.0  # standard deviations of an action; chosen on seeds from 50000
EVALUATIONS = (1, 2, 3, 5, 10, 20, 100)
HEAD = (
    f"{'policy':<14}{'sampler':<13}{'evals':>6}{'T':>6}{'success':>9}{'95 % interval':>18}{'reward':>8}{'plan ms':>9}"
)


def variant(recipe: Recipe, network: str, prediction: str, minutes: float | None) -> Recipe:
    """The recipe with another network and prediction; epsilon on the cosine schedule, as is usual.

    Near t = 1 an error of epsilon is magnified by sigma / alpha = 1000 in x0, so its predictions are clamped.
    """
    policy = dataclasses.replace(recipe.policy, prediction=PREDICTIONS[prediction])
    if prediction == "epsilon":
        policy = dataclasses.replace(policy, schedule=VPCosine(), bound=EPSILON_BOUND)
    if network == "unet":
        policy = dataclasses.replace(policy, network=UNet1D())
    training = dataclasses.replace(recipe.training, minutes=minutes or recipe.training.minutes)
    return dataclasses.replace(recipe, policy=policy, training=training)


def trained(recipe: Recipe, out: Path, data: Path) -> DiffusionPolicy:
    """The checkpoint in `out`, made if it is not there."""
    if not (out / "policy.safetensors").exists():
        training, validation = (recipe.windows(part) for part in recipe.demonstrations(data))
        fit(DiffusionPolicy, recipe.policy, recipe.training, (training, validation), out, {"machine": machine()})
    policy = load_checkpoint(out).policy
    if not isinstance(policy, DiffusionPolicy):
        raise ValueError(f"{out} holds a {type(policy).__name__}, expected a DiffusionPolicy")
    policy.spec = recipe.policy  # what the benchmark runs, whatever bound or sampler was saved
    return policy


def cells(policy: DiffusionPolicy, recipe: Recipe, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row a sampler and number of evaluations."""
    seeds = range(arguments.seed, arguments.seed + arguments.episodes)
    for sampler in arguments.samplers:
        for evaluations in arguments.evaluations:
            chosen = policy.using(SAMPLERS[sampler], evaluations=evaluations, temperature=arguments.temperature)
            bar = tqdm(
                rollout(chosen, recipe.task, seeds), total=len(seeds), desc=f"{sampler} {evaluations}", leave=False
            )
            yield {
                "sampler": sampler,
                "temperature": chosen.spec.temperature,
                **summary(list(bar), latency(chosen, 10)),
            }


def line(name: str, row: dict[str, Any]) -> str:
    """A row of the table."""
    interval = f"{row['success_low']:.1%} to {row['success_high']:.1%}"
    return (
        f"{name:<14}{row['sampler']:<13}{row['evaluations']:>6}{row['temperature']:>6.2f}{row['success']:>9.1%}"
        f"{interval:>18}{row['reward_max_mean']:>8.3f}{row['plan_ms_median']:>9.1f}"
    )


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
    parser.add_argument("--temperature", type=float, help="factor of the noise (default: the recipe's)")
    parser.add_argument("--minutes", type=float, help="limit of each training (default: the recipe's)")
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    begin, rows, recipe = time.perf_counter(), [], load_recipe(arguments.recipe)
    print(HEAD)
    for network in arguments.networks:
        for prediction in arguments.predictions:
            name = f"{network}-{prediction}"
            made = variant(recipe, network, prediction, arguments.minutes)
            policy = trained(made, arguments.out / name, arguments.data)
            for row in cells(policy, made, arguments):
                rows.append({"policy": name, **row})
                print(line(name, row), flush=True)
    print(json.dumps({"rows": rows, "seconds": time.perf_counter() - begin, "machine": machine()}))


if __name__ == "__main__":
    main()
