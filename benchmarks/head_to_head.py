"""The same minutes on the same cores and the same Push-T demonstrations: LeRobot's DiffusionPolicy, and our recipe.

    python benchmarks/head_to_head.py --data pusht_cchi_v7_replay.zarr --peers VENV --out out/head_to_head

One after the other, each with all threads, before any is tried. LeRobot trains its small U-Net (4.5 M parameters) on
what it calls `pusht_keypoints`, the agent and the corners of the block, with its own loss and optimiser, on batches
from memory. Ours is `recipes/pusht.py`, which ends by itself when its steps are done. Both are saved at every quarter
of what they train, and tried by one evaluator on the same starts; LeRobot's are imported for that (see the benchmark of
policies from elsewhere: plans agree within 1e-5) and plan by DDIM with 10 evaluations, at the end also by their own
scheduler with 100. Writes results.json and head_to_head.png.
"""

import argparse
import dataclasses
import json
import subprocess
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import numpy as np
import torch
from latency import HERE, machine
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from safetensors.torch import save_file
from tqdm import tqdm

from poise import (
    DDIM,
    DiffusionPolicy,
    Episodes,
    Learner,
    Policy,
    Recipe,
    Task,
    Windows,
    load,
    load_recipe,
    rollout,
    summary,
    train,
)
from poise.evaluation import latency
from poise.interop import import_lerobot

CORNERS = np.array(  # of the two boxes of the block about the point that is its position, in pixels
    [[-60, 30], [60, 30], [60, 0], [-60, 0], [-15, 30], [-15, 120], [15, 120], [15, 30]], float
)
STATE, ENVIRONMENT = "observation.state", "observation.environment_state"
BATCH = 64


def keypoints(state: NDArray) -> dict[str, NDArray]:
    """Agent, and corners of the block, of states (agent x, agent y, block x, block y, angle)."""
    cosine, sine = np.cos(state[..., 4:5]), np.sin(state[..., 4:5])
    x, y = CORNERS.T
    corners = np.stack([cosine * x - sine * y, sine * x + cosine * y], -1) + state[..., None, 2:4]
    return {
        STATE: state[..., :2].astype(np.float32),
        ENVIRONMENT: corners.reshape(*state.shape[:-1], 16).astype(np.float32),
    }


def observe(observation: Any) -> dict[str, NDArray]:
    """The environment's observation as LeRobot's policy sees it."""
    return keypoints(np.asarray(observation))


def write_windows(recipe: Recipe, data: Path, file: Path) -> None:
    """All of LeRobot's training windows, of the demonstrations that ours trains on, without their mirror images."""
    plain = dataclasses.replace(recipe, enlarge=lambda episodes: episodes)
    episodes, _ = plain.demonstrations(data)
    rows = {**keypoints(episodes.features["state"]), "action": episodes.features["action"]}
    windows = Windows(Episodes(rows, episodes.ends), (STATE, ENVIRONMENT), 2, 16, 7, lead=1)
    batch = windows[torch.arange(len(windows))]
    arrays = {**batch.observation, "action": batch.actions, "action_is_pad": ~batch.real}
    save_file({name: values.contiguous() for name, values in arrays.items()}, file)


def lerobot(arguments: argparse.Namespace, recipe: Recipe) -> list[dict[str, Any]]:
    """Train LeRobot's; a row a checkpoint."""
    file, out = arguments.out / "windows.safetensors", arguments.out / "lerobot"
    write_windows(recipe, arguments.data, file)
    options = {"minutes": arguments.minutes, "parts": arguments.parts, "batch": BATCH, "threads": arguments.threads}
    command = [arguments.peers / "bin" / "python", HERE / "head_to_head_driver.py", file, out]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = tqdm(process.stdout, total=arguments.parts, desc="LeRobot")
        return [json.loads(line) for line in lines]


def ours(arguments: argparse.Namespace, recipe: Recipe) -> list[dict[str, Any]]:
    """Train ours; a row a checkpoint."""
    windows, _ = recipe.parts(arguments.data)
    torch.manual_seed(0)
    policy = DiffusionPolicy(recipe.policy)
    policy.fit(windows)
    learner, rows = Learner(policy, dataclasses.replace(recipe.training, minutes=arguments.minutes)), []
    with tqdm(total=arguments.parts, desc="poise") as bar:
        for now in train(learner, windows):
            if now.fraction * arguments.parts >= len(rows) + 1:
                folder = arguments.out / "poise" / str(len(rows) + 1)
                learner.average.policy.save(folder)
                rows.append({"minutes": now.seconds / 60, "steps": now.step, "folder": str(folder), "loss": now.loss})
                bar.update()
    return rows


def write(results: dict[str, Any], file: Path) -> None:
    """Keep what is there, so that an interrupted benchmark goes on."""
    file.write_text(json.dumps(results | {"date": date.today().isoformat()}, indent=1))


def tried(policy: Policy, task: Task, seed: int, episodes: int, what: str) -> dict[str, Any]:
    """Figures of a policy in closed loop."""
    seeds = range(seed, seed + episodes)
    found = list(tqdm(rollout(policy, task, seeds), total=len(seeds), desc=what))
    return summary(found, latency(policy, 10))


def plot(rows: Mapping[str, list[dict[str, Any]]], file: Path) -> None:
    """Reward and success over the minutes of training, with 95 % intervals."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, key, title in zip(axes, ("reward_max", "success"), ("mean maximum reward", "success"), strict=True):
        for name, points in rows.items():
            minutes, mean = [p["minutes"] for p in points], f"{key}_mean" if key == "reward_max" else key
            middle, low, high = ([p["figures"][k] for p in points] for k in (mean, f"{key}_low", f"{key}_high"))
            (line,) = axis.plot(minutes, middle, marker="o", label=name)
            axis.fill_between(minutes, low, high, color=line.get_color(), alpha=0.2)
        axis.set(xlabel="minutes of training", title=title, ylim=(0, 1))
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(file, dpi=150)


def main() -> None:
    """Train both, try all checkpoints, write results and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peers", type=Path, required=True, help="virtual environment with LeRobot")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=HERE.parent / "recipes" / "pusht.py")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--curve-episodes", type=int, default=500, help="of all checkpoints but the last of a side")
    parser.add_argument("--own-episodes", type=int, default=500, help="of LeRobot's own scheduler, which takes long")
    parser.add_argument("--seed", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    recipe, file = load_recipe(arguments.recipe), arguments.out / "results.json"
    theirs = dataclasses.replace(recipe.task, observe=observe)
    sides: dict[str, tuple[Callable[..., list[dict[str, Any]]], Task]] = {
        "LeRobot": (lerobot, theirs),
        "poise": (ours, recipe.task),
    }
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"machine": machine(), "rows": {}}
    for name, (learn, _) in sides.items():
        if name not in results["rows"]:
            results["rows"][name] = learn(arguments, recipe)
            write(results, file)
    for name, (_, task) in sides.items():
        for row in reversed(results["rows"][name]):
            if "figures" not in row:
                last, label = row is results["rows"][name][-1], f"{name}, {row['minutes']:.0f} minutes"
                episodes = arguments.episodes if last else arguments.curve_episodes
                policy = import_lerobot(row["folder"]).policy if name == "LeRobot" else load(row["folder"])
                assert isinstance(policy, DiffusionPolicy)
                chosen = policy
                if name == "LeRobot":
                    chosen = policy.using(DDIM(bound=policy.spec.sampler.bound), evaluations=10)
                row["figures"] = tried(chosen, task, arguments.seed, episodes, label)
                if last and name == "LeRobot":
                    row["own scheduler"] = tried(policy, task, arguments.seed, arguments.own_episodes, "own scheduler")
                write(results, file)
    plot(results["rows"], arguments.out / "head_to_head.png")
    for name, rows in results["rows"].items():
        for row in rows:
            found = row["figures"]
            print(f"{name:8} {row['minutes']:5.1f} min {row['steps']:7d} steps", end="  ")
            print(f"reward {found['reward_max_mean']:.3f}  success {found['success']:.1%}", end=" ")
            print(f"({found['success_low']:.1%} to {found['success_high']:.1%})")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
