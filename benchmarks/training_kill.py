"""Kills trainings at random moments: does each resume to the bits of one that was not interrupted?

    python benchmarks/training_kill.py --kills 100

Each round forks a process that trains a small policy, with dropout, and saves often. It gets SIGKILL at a random moment
of the training or, every second time, of a save; another process then resumes to the end. Averaged policy, parameters
and moments are compared bit by bit with those of an uninterrupted training. A kill counts as inside a save where it
left a folder that was being written or removed. Every fifth training is begun and resumed by the command line, which
keeps how a run was begun; the others call what it calls. The last line is JSON; the exit status is 1 if anything
differs, or if fewer than a fifth of the kills were inside a save.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch._inductor.standalone_compile  # a training imports it at its first step: no fork has to
from safetensors.torch import load_file
from tqdm import tqdm

from poise import DiffusionPolicy, Windows, load_recipe
from poise.cli.fitting import BEGUN, Job, fit
from poise.cli.machine import machine
from poise.cli.train import train_recipe
from poise.policies.saving import FILE
from poise.recipe import Recipe
from poise.training import Checkpoints

RECIPE = """
import numpy as np
from poise import Episodes, PolicySpec, Recipe, Task, TrainingSpec, Transformer


def walks(path):
    draw = np.random.default_rng(0)
    rows = {"state": draw.normal(size=(900, 4)), "action": draw.normal(size=(900, 2))}
    features = {name: values.cumsum(0).astype(np.float32) for name, values in rows.items()}
    return Episodes(features, np.arange(300, 901, 300))


recipe = Recipe(
    policy=PolicySpec({"state": (4,)}, 2, network=Transformer(width=64, heads=2, depth=2, dropout=0.1)),
    training=TrainingSpec(steps=48, batch=32, warmup=5, save_every=6, validate_every=24),
    task=Task("none"),
    read=walks,
    validation=0.3,
)
"""


class Trained:
    """Trainings of one recipe in folders of their own.

    Args:
        path: Of the recipe.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.recipe = path, load_recipe(path)
        self.data = self.recipe.parts(None)

    def begin(self, out: Path, resume: bool, command: bool) -> int:
        """The number of a process that trains: a fork, since an interpreter of its own would take seconds to start."""
        child = os.fork()
        if not child:
            status = 1
            try:
                with open(os.devnull, "w") as null, contextlib.redirect_stderr(null), contextlib.redirect_stdout(null):
                    run_command(self.path, out, resume) if command else run_library(self.recipe, self.data, out, resume)
                status = 0
            finally:
                os._exit(status)
        return child

    def end(self, out: Path, resume: bool, command: bool = False) -> float:
        """Train to the end; the seconds that it took."""
        begin = time.perf_counter()
        _, status = os.waitpid(self.begin(out, resume, command), 0)
        if status:
            raise RuntimeError(f"a training in {out} ended with status {status}")
        return time.perf_counter() - begin


def run_library(recipe: Recipe, data: tuple[Windows, Windows], out: Path, resume: bool) -> None:
    """Train by what the command calls."""
    fit(Job(DiffusionPolicy, recipe.policy, recipe.training, out, {}), data, resume)


def run_command(path: Path, out: Path, resume: bool) -> None:
    """Train by the command, which is given anew where it died before it could be resumed."""
    goes_on = resume and (out / BEGUN).is_file()
    train_recipe(["--resume", str(out)] if goes_on else [str(path), "--out", str(out)])


def killed(child: int, out: Path, every: int, wait: float, saves: int) -> bool:
    """Kill a training; whether it was inside a save.

    Args:
        child: Number of its process.
        out: Folder of the run.
        every: Steps between saves.
        wait: Seconds until the kill, from now on or from the save on.
        saves: Which save to wait for, from 1; 0 for none.
    """
    folder = Checkpoints(out).folder
    if saves:
        begins = f".aside-step-{every * saves:08d}", f".aside-{every * saves:08d}"
        while not any((folder / name).exists() for name in begins) and not os.waitid(
            os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ):
            pass
    time.sleep(wait)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return any(folder.glob(".aside*"))


def bits(out: Path) -> dict[str, torch.Tensor]:
    """All that a training ends with."""
    files = [out / FILE, *sorted((Checkpoints(out).folder / "latest").glob("*.safetensors"))]
    return {f"{file.name} {name}": value for file in files for name, value in load_file(file).items()}


def main() -> None:
    """Kill, resume and compare, again and again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw, inside, different, commands = np.random.default_rng(arguments.seed), 0, 0, range(0, arguments.kills, 5)
    folder = Path(tempfile.mkdtemp())
    (folder / "recipe.py").write_text(RECIPE)
    try:
        trained = Trained(folder / "recipe.py")
        spec, seconds = trained.recipe.training, trained.end(folder / "whole", resume=False)
        expected = bits(folder / "whole")
        for kill in tqdm(range(arguments.kills), desc="kills"):
            out = folder / str(kill)
            saves = int(draw.integers(1, 1 + spec.steps // spec.save_every)) if kill % 2 else 0
            child = trained.begin(out, resume=False, command=kill in commands)
            inside += killed(child, out, spec.save_every, draw.uniform(0, 0.02 if saves else seconds), saves)
            trained.end(out, resume=True, command=kill in commands)
            found = bits(out)
            different += found.keys() != expected.keys() or any(not found[k].equal(v) for k, v in expected.items())
            shutil.rmtree(out)
    finally:
        shutil.rmtree(folder)
    print(
        f"{arguments.kills} kills, {inside} of them inside a save, {len(commands)} of the command line: "
        f"{different} different from the uninterrupted run"
    )
    counts = {"kills": arguments.kills, "inside": inside, "commands": len(commands), "different": different}
    report = {**counts, "machine": machine()}
    print(json.dumps(report))
    sys.exit(1 if different or 5 * inside < arguments.kills else 0)


if __name__ == "__main__":
    main()
