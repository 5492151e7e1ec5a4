"""Samples a second of the whole training loop, beside LeRobot's, and the memory that a training takes.

    python benchmarks/training.py                                  # ours alone
    python benchmarks/training.py --peers VENV --kit DIRECTORY     # in turns with LeRobot installed in VENV
    python benchmarks/training.py --memory                         # peak memory of the published U-Net

Both sides train the same U-Net (its parameters are counted) on windows of two observations and sixteen actions of
LeRobot's random trajectories, in processes that take turns. Ours is `poise.train` with all it does: order, gather,
normalisation, noise, loss, clipping, AdamW, average. LeRobot's `step` is its forward, backward and AdamW on one batch
that lies in memory; its `loop` takes batches from its dataset through a DataLoader with two workers. Ours runs under
bfloat16 autocast, as our recipes do, where the processor has instructions for it, and in float32. A ratio is the median
over the rounds. The last line is JSON.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from latency import HERE, SAME_AS_LEROBOT, machine

from poise import DiffusionPolicy, Episodes, Learner, TrainingSpec, UNet1D, Windows, train
from poise.cli.memory import resident
from poise.precision import has_bfloat16

NETS = {"small": (64, 128, 256), "medium": (256, 512, 1024)}
ROWS = [("small", 64), ("small", 256), ("medium", 64), ("medium", 256)]
SECONDS = 8.0


def windows() -> Windows:
    """Random trajectories like those that LeRobot records."""
    draw = np.random.default_rng(0)
    features = {"state": draw.normal(size=(25_000, 2)), "environment": draw.normal(size=(25_000, 16))}
    features["action"] = draw.normal(size=(25_000, 2))
    return Windows(Episodes(features, np.arange(125, 25_001, 125)), ("state", "environment"), 2, 16, 7)


def learner(net: str, size: int, bfloat16: bool, data: Windows) -> Learner:
    """Ours, with a U-Net of that name."""
    torch.manual_seed(0)
    policy = DiffusionPolicy(dataclasses.replace(SAME_AS_LEROBOT, network=UNet1D(channels=NETS[net])))
    policy.fit(data)
    return Learner(policy, TrainingSpec(steps=10**6, batch=size, bfloat16=bfloat16))


def rate(found: Learner, data: Windows) -> tuple[float, dict[str, float]]:
    """Samples a second after three steps that do not count, and where the time went."""
    steps = train(found, data)
    for _ in range(3):
        next(steps)
    begin = time.perf_counter()
    for done, now in enumerate(steps, 1):
        seconds = time.perf_counter() - begin
        if done > 3 and seconds > SECONDS:
            return done * found.spec.batch / seconds, now.shares
    raise RuntimeError("the training ended before its time was up")


@contextmanager
def lerobot(python: Path, kit: Path, threads: int) -> Iterator[tuple[Any, dict]]:
    """A process of LeRobot: a function that asks it for a row, and its versions."""
    with tempfile.TemporaryDirectory() as folder:
        command = [python, HERE / "training_driver.py", folder, "--kit", kit.resolve(), "--threads", str(threads)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            questions, answers = process.stdin, process.stdout

            def ask(kind: str, net: str, size: int) -> tuple[float, int]:
                print(kind, net, size, file=questions)
                return tuple(json.loads(answers.readline()))

            yield ask, json.loads(answers.readline())


def measured(arguments: argparse.Namespace) -> dict:
    """All rounds of all rows."""
    data, report = windows(), dict[str, Any]()
    rows: dict[str, dict[str, Any]] = {}
    with peer_of(arguments) as peer:
        if peer is not None:
            report["versions"] = peer[1]
        kinds = ("bfloat16", "float32") if has_bfloat16(torch.device("cpu")) else ("float32",)
        for net, size in ROWS:
            if net not in arguments.nets:
                continue
            row = rows[f"{net} {size}"] = {"bfloat16": [], "float32": [], "step": [], "loop": []}
            ours = {name: learner(net, size, name == "bfloat16", data) for name in kinds}
            row["parameters"] = [sum(p.numel() for p in ours["float32"].policy.parameters())]
            for _ in range(arguments.rounds):
                if peer is not None:
                    for kind in ("step", "loop"):
                        value, count = peer[0](kind, net, size)
                        row[kind].append(value)
                        row["parameters"] = [row["parameters"][0], count]
                for name, found in ours.items():
                    value, row[f"shares {name}"] = rate(found, data)
                    row[name].append(value)
    return report | {"rows": {name: summary(row) for name, row in rows.items()}}


@contextmanager
def peer_of(arguments: argparse.Namespace) -> Iterator[tuple[Any, dict] | None]:
    """LeRobot's process where one is asked for."""
    if arguments.peers is None:
        yield None
        return
    with lerobot(arguments.peers / "bin" / "python", arguments.kit, arguments.threads) as peer:
        yield peer


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """Medians over the rounds, and ratios of ours to LeRobot's with their range."""
    found = {name: statistics.median(row[name]) for name in ("bfloat16", "float32", "step", "loop") if row[name]}
    for ours in ("bfloat16", "float32"):
        for theirs in ("step", "loop"):
            ratios = [a / b for a, b in zip(row[ours], row[theirs], strict=False)]
            if ratios:
                found[f"{ours} / {theirs}"] = [statistics.median(ratios), min(ratios), max(ratios)]
    return found | {name: row[name] for name in row if name.startswith(("shares", "parameters"))}


def memory() -> None:
    """Train the published U-Net for a few steps, validate and save, and compare the peak with its parameters."""
    from poise.training import Checkpoints

    data = windows()
    network = UNet1D(channels=NETS["medium"], embedding=256)
    torch.manual_seed(0)
    policy = DiffusionPolicy(dataclasses.replace(SAME_AS_LEROBOT, network=network))
    policy.fit(data)
    found = Learner(policy, TrainingSpec(steps=4, batch=256, bfloat16=True))
    with tempfile.TemporaryDirectory() as folder:
        *_, last = train(found, data, data)  # which ends with a validation
        assert last.validation is not None
        Checkpoints(Path(folder)).save(found, {})
    parameters = 4 * sum(p.numel() for p in policy.parameters())
    peak = round(2**20 * resident("VmHWM"))
    limit = 6 * parameters + 500 * 10**6
    print(json.dumps({"machine": machine(), "parameters_bytes": parameters, "peak_bytes": peak, "limit_bytes": limit}))
    print(f"peak {peak / 2**20:.0f} MiB, {peak / parameters:.2f} x the parameters; limit {limit / 2**20:.0f} MiB")
    sys.exit(peak > limit)


def main() -> None:
    """Take turns, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="virtual environment with LeRobot")
    parser.add_argument("--kit", type=Path, default=HERE.parent.parent / "shared" / "peers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--memory", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        memory()
        return
    report: dict = {"machine": machine(), "date": date.today().isoformat(), "threads": arguments.threads}
    report |= measured(arguments)
    print(f"{report['machine']}, {arguments.threads} threads; samples a second")
    names, ours = (
        ("bfloat16", "float32", "step", "loop"),
        "bfloat16" if has_bfloat16(torch.device("cpu")) else "float32",
    )
    print(f"{'network, batch':16}" + "".join(f"{name:>10}" for name in names) + f"   ratios of {ours}")
    for name, row in report["rows"].items():
        line = f"{name:16}" + "".join(f"{row[n]:>10.0f}" if n in row else f"{'':10}" for n in names)
        line += "".join(f"   {row[k][0]:.2f} ({row[k][1]:.2f} to {row[k][2]:.2f})" for k in row if f"{ours} /" in k)
        print(line)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
