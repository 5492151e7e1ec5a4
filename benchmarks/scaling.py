"""Training by several processes: what this machine does, and what 64 GPUs and 100 M steps of data ask for on paper.

    python benchmarks/scaling.py            # 1 process with 1 and with 2 threads, 2 with 1 each, in turns
    python benchmarks/scaling.py --paper    # the arithmetic alone

Every process trains the compact 1-D U-Net on rows of Push-T's shapes, through the same loop as `poise train`; its
samples are those of the whole batch, over the steps after the first five. The last line is JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from latency import machine
from torch.utils.flop_counter import FlopCounterMode

from poise import Batch, DiffusionPolicy, Episodes, PolicySpec, TrainingSpec, Transformer, UNet1D, Windows
from poise.nn import NetworkSpec
from poise.training import Learner, train
from poise.training.scale import joined

WARM = 5
STEPS, FLOATS = 100e6, 10 + 32  # of data
SIZES = {"4.5 M": 4.5e6, "65 M": 65e6, "250 M": 250e6}
NVLINK, ETHERNET, DISK, HASH = 450e9, 12.5e9, 1e9, 1.5e9  # bytes a second
READ = 7e9  # bytes a second of a fast disk, which the 8 GPUs of a machine share
FLOPS = 100e12  # a second and GPU, reached in bfloat16


def driver(batch: int, steps: int) -> None:
    """One of the processes: the first one prints the samples a second of all."""
    draw = np.random.default_rng(0)
    features = {
        name: draw.normal(size=(20_000, size)).astype(np.float32) for name, size in (("state", 5), ("action", 2))
    }
    windows = Windows(Episodes(features, np.arange(200, 20_001, 200)), ("state",), 2, 16, 7)
    with joined("cpu") as (processes, _):
        trained = policy(UNet1D())
        trained.fit(windows)
        spec = TrainingSpec(steps=steps + WARM, batch=batch)
        progress = train(Learner(trained, spec, processes), windows)
        for _ in range(WARM):
            next(progress)
        begin = time.perf_counter()
        *_, last = progress
        rate = steps * batch / (time.perf_counter() - begin)
        if processes.rank == 0:
            parameters = sum(p.numel() for p in trained.parameters())
            print(json.dumps({"rate": rate, "parameters": parameters, "shares": last.shares}))


def measured(processes: int, threads: int, batch: int, steps: int) -> dict:
    """What so many processes of so many threads reach."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *torchrun, __file__, "--driver", "--batch", str(batch), "--steps", str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def ring(size: float, count: int, bandwidth: float) -> float:
    """Seconds of a ring all-reduce: every byte but its own share passes every process twice."""
    return 2 * (count - 1) / count * size / bandwidth


def saturates(count: int, bandwidth: float, used: float) -> float:
    """Windows a GPU at which the backward pass, of 4 FLOPs a use of a parameter, hides the ring."""
    return ring(4, count, bandwidth) / (4 * used / FLOPS)


def policy(network: NetworkSpec) -> DiffusionPolicy:
    """A policy of Push-T's shapes."""
    torch.manual_seed(0)
    return DiffusionPolicy(PolicySpec({"state": (5,)}, 2, history=2, horizon=16, execute=8, network=network))


def uses(network: NetworkSpec) -> float:
    """How often a window uses a parameter, at 2 FLOPs each: a convolution at every step, an embedding once."""
    tried = policy(network)
    batch = Batch({"state": torch.zeros(1, 2, 5)}, torch.zeros(1, 16, 2), torch.ones(1, 16, dtype=torch.bool))
    for name in ("state", "action"):
        tried.set_constants(name, *(torch.ones(5 if name == "state" else 2) for _ in range(2)))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tried.loss(batch)
    return counter.get_total_flops() / (2 * sum(p.numel() for p in tried.parameters()))


def paper() -> dict:
    """The arithmetic, as tables."""
    data = {
        "state": STEPS * FLOATS * 4,
        "index of windows": STEPS * 8,
        "order of an epoch": STEPS * 8,
        "camera of 96 x 96": STEPS * 96 * 96 * 3,
        "camera of 224 x 224": STEPS * 224 * 224 * 3,
    }
    print("| data of 100 M steps | bytes |\n|---|---|")
    for name, size in data.items():
        print(f"| {name} | {size / 1e9:,.1f} GB |")
    print("\n| parameters | gradient | ring of 8, NVLink | ring of 64, 100 Gbit/s | checkpoint | writing it |")
    print("|---|---|---|---|---|---|")
    rows = {}
    for name, count in SIZES.items():
        gradient, whole = 4 * count, 16 * count
        near, far, write = ring(gradient, 8, NVLINK), ring(gradient, 64, ETHERNET), whole / DISK + whole / HASH
        rows[name] = [gradient, near, far, whole, write]
        sizes = f"{gradient / 1e6:,.0f} MB | {near * 1e3:.2f} ms | {far * 1e3:.1f} ms | {whole / 1e9:.2f} GB"
        print(f"| {name} | {sizes} | {write:.1f} s |")
    print("\n| network | uses of a parameter | windows a GPU, NVLink | windows a GPU, 100 Gbit/s |\n|---|---|---|---|")
    batches = {}
    for name, network in (("transformer", Transformer()), ("U-Net", UNet1D())):
        used = uses(network)
        batches[name] = [used, saturates(8, NVLINK, used), saturates(64, ETHERNET, used)]
        print(f"| {name} | {used:.1f} | {batches[name][1]:,.0f} | {batches[name][2]:,.0f} |")
    print("\n| window of two frames | bytes | windows a second and GPU from a disk | it sets the pace below |")
    print("|---|---|---|---|")
    reading = {}
    for side in (96, 224):
        size = 2 * side * side * 3
        reading[side] = [size, READ / 8 / size, FLOPS / (READ / 8 / size)]
        print(
            f"| {side} x {side} | {size / 1e3:.1f} kB | {reading[side][1]:,.0f} | {reading[side][2] / 1e9:.1f} GFLOP |"
        )
    return {"data": data, "sizes": rows, "batches": batches, "reading": reading}


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paper", action="store_true", help="the arithmetic alone")
    parser.add_argument("--driver", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=256, help="windows a step, over all processes")
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median is taken")
    given = parser.parse_args()
    if given.driver:
        driver(given.batch, given.steps)
        return
    found: dict = {"paper": paper()}
    if not given.paper:
        found["measured"] = {}
        print(f"\n{machine()}\n\n| processes x threads | samples a second, median (range) | to 1 x 2 |\n|---|---|---|")
        rates: dict[tuple[int, int], list[float]] = {(1, 1): [], (1, 2): [], (2, 1): []}
        for _ in range(given.rounds):
            for (processes, threads), seen in rates.items():
                seen.append(measured(processes, threads, given.batch, given.steps)["rate"])
        alone = statistics.median(rates[1, 2])
        for (processes, threads), seen in rates.items():
            middle = statistics.median(seen)
            found["measured"][f"{processes}x{threads}"] = seen
            row = f"{middle:,.0f} ({min(seen):,.0f} to {max(seen):,.0f}) | {middle / alone:.2f}"
            print(f"| {processes} x {threads} | {row} |")
    print(json.dumps({**found, "date": date.today().isoformat(), "script": Path(__file__).name}))


if __name__ == "__main__":
    main()
