"""Kills trainings at random moments: does each resume to the bits of one that was not interrupted?

    python benchmarks/training_kill.py --kills 100

Each round forks a process that trains a small policy, with dropout, and saves often. It gets SIGKILL at a random moment
of the training or, every second time, of a save; another process then resumes to the end. Averaged policy, parameters
and moments are compared bit by bit with those of an uninterrupted training. A kill counts as inside a save where it
left a folder that was being written or removed. The last line is JSON; the exit status is 1 if anything differs, or if
fewer than a fifth of the kills were inside a save.
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

from poise import DiffusionPolicy, Episodes, PolicySpec, TrainingSpec, Transformer, Windows
from poise.cli.fitting import Job, fit
from poise.cli.machine import machine
from poise.policies.saving import FILE
from poise.training import Checkpoints

SPEC = PolicySpec({"state": (4,)}, 2, network=Transformer(width=64, heads=2, depth=2, dropout=0.1))
TRAINING = TrainingSpec(steps=48, batch=32, warmup=5, save_every=6, validate_every=24)


def windows() -> tuple[Windows, Windows]:
    """Random walks, for training and for validation."""
    draw = np.random.default_rng(0)
    rows = {"state": draw.normal(size=(600, 4)), "action": draw.normal(size=(600, 2))}
    ends = np.array([200, 400, 600])
    episodes = Episodes({name: values.cumsum(0).astype(np.float32) for name, values in rows.items()}, ends)
    whole = Windows(episodes, ("state",), SPEC.history, SPEC.horizon, SPEC.horizon - 1)
    return whole, whole


def begun(data: tuple[Windows, Windows], out: Path, resume: bool) -> int:
    """The number of a process that trains: a fork, since an interpreter of its own would take seconds to start."""
    child = os.fork()
    if not child:
        status = 1
        try:
            with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):
                fit(Job(DiffusionPolicy, SPEC, TRAINING, out, {}), data, resume)
            status = 0
        finally:
            os._exit(status)
    return child


def trained(data: tuple[Windows, Windows], out: Path, resume: bool) -> float:
    """Train to the end; the seconds that it took."""
    begin = time.perf_counter()
    _, status = os.waitpid(begun(data, out, resume), 0)
    if status:
        raise RuntimeError(f"a training in {out} ended with status {status}")
    return time.perf_counter() - begin


def killed(data: tuple[Windows, Windows], out: Path, wait: float, saves: int, into: float) -> bool:
    """Begin a training and kill it; whether it was inside a save.

    Args:
        data: What to train on.
        out: Folder of the run.
        wait: Seconds until the kill, where it is not to wait for a save.
        saves: Which save to wait for, from 1; 0 for none.
        into: Seconds after that save has begun.
    """
    child, folder = begun(data, out, resume=False), Checkpoints(out).folder
    if saves:
        begins = f".aside-step-{TRAINING.save_every * saves:08d}", f".aside-{TRAINING.save_every * saves:08d}"
        while not any((folder / name).exists() for name in begins) and not os.waitid(
            os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ):
            pass
        wait = into
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
    data, draw, inside, different = windows(), np.random.default_rng(arguments.seed), 0, 0
    folder = Path(tempfile.mkdtemp())
    try:
        seconds = trained(data, folder / "whole", resume=False)
        expected = bits(folder / "whole")
        for kill in tqdm(range(arguments.kills), desc="kills"):
            out = folder / str(kill)
            saves = int(draw.integers(1, 1 + TRAINING.steps // TRAINING.save_every)) if kill % 2 else 0
            inside += killed(data, out, draw.uniform(0, seconds), saves, draw.uniform(0, 0.02))
            trained(data, out, resume=True)
            found = bits(out)
            different += found.keys() != expected.keys() or any(not found[k].equal(v) for k, v in expected.items())
            shutil.rmtree(out)
    finally:
        shutil.rmtree(folder)
    print(f"{arguments.kills} kills, {inside} of them inside a save: {different} different from the uninterrupted run")
    report = {"kills": arguments.kills, "inside": inside, "different": different, "machine": machine()}
    print(json.dumps(report))
    sys.exit(1 if different or 5 * inside < arguments.kills else 0)


if __name__ == "__main__":
    main()
