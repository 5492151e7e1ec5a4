"""Training on data larger than should be in memory: how much a process holds, and how fast windows are gathered.

    python benchmarks/large_data.py                       # 10 million steps, then 100,000 images of 96 x 96
    python benchmarks/large_data.py --only rows --count 1000000

Writes a recording episode by episode, and in a fresh process reads it, fits a policy's normalisers, takes a few steps
of training and gathers an epoch of random windows. Memory is the peak of resident memory as the kernel counts it
(VmHWM), pages of mapped files and the libraries included; on Linux. A gather is compared with plain copies of as many
bytes, from memory too large for any cache. The last line is JSON.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from latency import machine

from poise import CNN, DiffusionPolicy, Joint, PolicySpec, SmallCNN, UNet1D, Windows, read
from poise.cli.memory import resident
from poise.data import Contents, Episodes, Facts, Feature, Role
from poise.data.formats.recording import Recording

LENGTH = 125  # steps an episode
LOW, ACTION, IMAGE = 20, 7, (96, 96, 3)
CASES = {"rows": (10_000_000, 4096), "images": (100_000, 256)}  # name -> steps, windows a batch


def write(path: Path, case: str, count: int) -> float:
    """Write a recording of so many steps; seconds."""
    looks = {"state": Feature(np.dtype("f4"), (LOW,)), "action": Feature(np.dtype("f4"), (ACTION,))}
    if case == "images":
        looks["image"] = Feature(np.dtype("u1"), IMAGE)
    facts, draw = Facts(10.0, roles={"action": Role.ACTION}), np.random.default_rng(0)
    noise = draw.integers(0, 256, (2 * LENGTH, *IMAGE), np.uint8)
    begin = time.perf_counter()
    with Recording().create(path, Contents(looks, np.zeros(0, np.int64), facts)) as sink:
        for episode in range(count // LENGTH):
            rows = {n: draw.normal(size=(LENGTH, *looks[n].shape)).astype(np.float32) for n in ("state", "action")}
            if case == "images":
                rows["image"] = noise[episode % LENGTH :][:LENGTH]
            sink.append(rows)
    return time.perf_counter() - begin


def memory(field: str) -> float:
    """A figure of this process's memory, in GiB."""
    return resident(field) / 2**10


def policy_of(case: str) -> DiffusionPolicy:
    """A policy for the data."""
    observations, network = {"state": (LOW,)}, UNet1D(channels=(64, 128))
    if case == "rows":
        return DiffusionPolicy(PolicySpec(observations, action=ACTION, network=network))
    encoder = Joint(images=CNN(backbone=SmallCNN((16, 32, 64, 128))))
    return DiffusionPolicy(
        PolicySpec({**observations, "image": IMAGE}, action=ACTION, encoder=encoder, network=network)
    )


def speed(run: Callable[[], object], size: int, calls: int = 40) -> float:
    """Median GB/s of something that yields so many bytes."""
    seconds = []
    for _ in range(calls):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return size / 1e9 / statistics.median(seconds)


def speeds(windows: Windows, batch: int) -> dict[str, float]:
    """GB/s of gathers and of copies of as many bytes: in one piece, and in as many pieces as a batch has windows."""
    torch.empty(2**24, dtype=torch.uint8)  # freed: from now on the allocator keeps as much
    shuffle = torch.Generator().manual_seed(1)
    some = windows[torch.randint(len(windows), (batch,), generator=shuffle)]
    parts = [*some.observation.values(), some.actions]
    size = sum(part.nbytes for part in parts)
    field = torch.ones(max(512 * 2**20, 2 * size), dtype=torch.uint8)
    piece = size // batch
    rows, where = field[: len(field) // piece * piece].view(-1, piece), iter(range(10**9))

    def copied() -> torch.Tensor:
        first = next(where) * size % (len(field) - size)
        return field[first : first + size].clone()

    def scattered() -> torch.Tensor:
        return rows.index_select(0, torch.randint(len(rows), (batch,), generator=shuffle))

    def gathered() -> object:
        return windows[torch.randint(len(windows), (batch,), generator=shuffle)]

    return {
        "batch_mb": size / 1e6,
        "gather": speed(gathered, size),
        "copy": speed(copied, size),
        "copy_scattered": speed(scattered, size),
    }


def measured(path: Path, case: str, batch: int) -> dict:
    """Read, fit, train a little and gather an epoch."""
    report: dict = {"imports_gib": memory("VmHWM")}
    begin = time.perf_counter()
    episodes = read(path)
    report |= {"steps": episodes.steps, "read_s": time.perf_counter() - begin}
    policy = policy_of(case)
    begin = time.perf_counter()
    windows = Windows(episodes, tuple(policy.spec.observations), history=2, horizon=16, padded=8)
    report |= {"windows_s": time.perf_counter() - begin, "windows_gib": memory("VmHWM")}
    begin = time.perf_counter()
    policy.fit(windows)
    report |= {"fit_s": time.perf_counter() - begin, "fit_gib": memory("VmHWM")}
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    for chosen in order[: 64 * 10].split(64):
        policy.loss(windows[chosen]).mean().backward()
    torch.empty(2**24, dtype=torch.uint8)  # see `speeds`
    begin = time.perf_counter()
    for chosen in order.split(batch):
        windows[chosen]
    seconds = time.perf_counter() - begin
    report |= {"epoch_s": seconds, "windows_per_s": len(order) / seconds, "peak_gib": memory("VmHWM")}
    report["mapped"] = speeds(windows, batch)
    share = int(episodes.ends[min(len(episodes), 2_000_000 // LENGTH if case == "rows" else 160) - 1])
    part = {name: np.array(rows[:share]) for name, rows in episodes.features.items()}
    part = Episodes(part, episodes.ends[episodes.ends <= share])
    report["in_memory"] = speeds(Windows(part, tuple(policy.spec.observations), 2, 16, 8), batch)
    return report


def main() -> None:
    """Write and measure each case, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*CASES], help="one case")
    parser.add_argument("--count", type=int, help="steps instead of those of the case")
    parser.add_argument("--folder", type=Path, help="where the data are written for the time; about 4 GB")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", type=Path, help="an existing recording: measure it in this process and print")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.measure:
        print(json.dumps(measured(arguments.measure, arguments.only, CASES[arguments.only][1])))
        return
    report: dict = {"machine": machine(), "threads": arguments.threads}
    print(report["machine"])
    for case in [arguments.only] if arguments.only else CASES:
        folder = Path(tempfile.mkdtemp(dir=arguments.folder))
        try:
            path, count = folder / "large.recording", arguments.count or CASES[case][0]
            seconds = write(path, case, count)
            command = [sys.executable, __file__, "--measure", path, "--only", case, "--threads", str(arguments.threads)]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            report[case] = {"write_s": seconds, **json.loads(told.splitlines()[-1])}
        finally:
            shutil.rmtree(folder)
        show(case, report[case])
    print(json.dumps(report))


def show(case: str, row: dict) -> None:
    """The figures for people."""
    print(f"{case}: {row['steps']} steps, written in {row['write_s']:.0f} s, read in {row['read_s']:.1f} s")
    print(f"  peak memory {row['peak_gib']:.2f} GiB: imports {row['imports_gib']:.2f}, fitted {row['fit_gib']:.2f}")
    print(f"  fit {row['fit_s']:.1f} s; an epoch in {row['epoch_s']:.1f} s, {row['windows_per_s']:.0f} windows/s")
    for name in ("mapped", "in_memory"):
        speed = row[name]
        print(
            f"  {name:10} gather {speed['gather']:6.2f} GB/s of {speed['batch_mb']:.1f} MB; copy {speed['copy']:6.2f}, "
            f"in as many pieces {speed['copy_scattered']:6.2f}"
        )


if __name__ == "__main__":
    main()
