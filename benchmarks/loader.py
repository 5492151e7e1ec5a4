"""Random training windows a second, beside LeRobot's loader: low-dimensional rows, and images of 96 x 96.

    python benchmarks/loader.py                                  # ours alone
    python benchmarks/loader.py --peers VENV --kit DIRECTORY     # in turns with LeRobot installed in VENV

LeRobot records both datasets with its own writer, images as a film, and reads them by its dataset and PyTorch's
DataLoader with 0 and 2 workers. We pack the same rows and frames and gather from the mapped file in one process. Both
give shuffled batches of 64 windows: two observations, sixteen actions from the oldest observation on, and the mask,
which are first compared with each other. Our images are 8-bit, as they go to the device; the row `float` adds what
LeRobot does on the host, float32 from 0 to 1 with channels first. A ratio is ours over the better of LeRobot's two in
the same round, and its median over the rounds. LeRobot 0.4.4 decodes films with PyAV only where torchvision is 0.25 or
older. The last line is JSON.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import numpy as np
import torch
from latency import HERE, machine
from numpy.typing import NDArray

from poise import Batch, Episodes, Windows, read, write

BATCH, HISTORY, HORIZON, ACTION = 64, 2, 16, "action"
ROWS = {  # name -> (what is timed, LeRobot's row)
    "rows": ("low-dimensional windows", "rows"),
    "images": ("images of 96 x 96, 8-bit", "images"),
    "float": ("images of 96 x 96, float32", "images"),
}
Plain = Mapping[str, NDArray]


def made() -> dict[str, dict[str, NDArray]]:
    """Data of the shapes that LeRobot records, where it does not."""
    draw, shapes = np.random.default_rng(0), {"observation.state": 2, "observation.environment_state": 16, ACTION: 2}
    found = {}
    for name, ends in (("rows", np.arange(125, 12_501, 125)), ("images", np.arange(100, 2001, 100))):
        found[name] = {key: draw.normal(size=(ends[-1], size)).astype(np.float32) for key, size in shapes.items()}
        found[name]["ends"] = ends
    found["images"]["observation.image"] = draw.integers(0, 256, (2000, 96, 96, 3), np.uint8)
    return found


def packed(folder: Path, name: str, data: Plain) -> Windows:
    """The data as a recording, and windows over it."""
    features = {key: data[key] for key in data if key.startswith("observation.") or key == ACTION}
    path = folder / f"{name}.recording"
    write(path, Episodes(features, data["ends"]))
    observed = tuple(key for key in features if key != ACTION)
    return Windows(read(path), observed, HISTORY, HORIZON, HORIZON - 1, lead=HISTORY - 1)


def check_same(windows: Windows, data: Plain) -> None:
    """Our windows are LeRobot's.

    Raises:
        ValueError: They are not.
    """
    batch = windows[torch.as_tensor(data["chosen"])]
    ours = {**batch.observation, ACTION: batch.actions, "action_is_pad": ~batch.real}
    for key in data:
        if key.startswith("item/") and not np.array_equal(ours[key.removeprefix("item/")].numpy(), data[key]):
            raise ValueError(f"windows of {key!r} differ from LeRobot's: the two sides are not comparable")


def rate(windows: Windows, finish: Callable[[Batch], object], seconds: float = 1.0) -> float:
    """Samples a second of shuffled batches."""
    shuffle, count, begin = torch.Generator().manual_seed(0), 0, 0.0
    for chosen in torch.randperm(len(windows), generator=shuffle).split(BATCH)[:10]:
        finish(windows[chosen])
    begin = time.perf_counter()
    while time.perf_counter() < begin + seconds:
        for chosen in torch.randperm(len(windows), generator=shuffle).split(BATCH):
            finish(windows[chosen])
            count += len(chosen)
    return count / (time.perf_counter() - begin)


def as_floats(batch: Batch) -> torch.Tensor:
    """Images as LeRobot gives them."""
    return batch.observation["observation.image"].float().div_(255).movedim(-1, -3)


@contextmanager
def lerobot(python: Path, folder: Path, kit: Path, threads: int) -> Iterator[tuple[Callable[[str, int], float], dict]]:
    """A process of LeRobot: a function that asks it for a row with so many workers, and its versions."""
    command = [python, HERE / "loader_driver.py", folder, "--kit", kit.resolve(), "--threads", str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        questions, answers = process.stdin, process.stdout

        def ask(row: str, workers: int) -> float:
            print(row, workers, file=questions)
            return json.loads(answers.readline())

        yield ask, json.loads(answers.readline())


def measured(folder: Path, arguments: argparse.Namespace) -> dict:
    """All rounds: rates of ours, and of LeRobot with 0 and 2 workers."""
    ours: dict[str, list[float]] = {name: [] for name in ROWS}
    theirs: dict[str, dict[int, list[float]]] = {name: {0: [], 2: []} for name in ("rows", "images")}
    report: dict = {}

    def own(windows: Mapping[str, Windows]) -> None:
        for name, (_, data) in ROWS.items():
            ours[name].append(rate(windows[data], as_floats if name == "float" else lambda batch: batch))

    if arguments.peers is None:
        windows = {name: packed(folder, name, data) for name, data in made().items()}
        for _ in range(arguments.rounds):
            own(windows)
    else:
        with lerobot(arguments.peers / "bin" / "python", folder, arguments.kit, arguments.threads) as (ask, versions):
            report["versions"] = versions
            data = {name: dict(np.load(folder / f"{name}.npz")) for name in theirs}
            windows = {name: packed(folder, name, data[name]) for name in theirs}
            for name in theirs:
                check_same(windows[name], data[name])
            for _ in range(arguments.rounds):
                for name, rates in theirs.items():
                    for workers, found in rates.items():
                        found.append(ask(name, workers))
                own(windows)
    report["rows"] = {name: summary(ours[name], theirs[data]) for name, (_, data) in ROWS.items()}
    return report


def summary(ours: list[float], theirs: Mapping[int, list[float]]) -> dict:
    """Medians over the rounds, and the ratio of ours to the better of theirs with its range."""
    result: dict = {"ours": statistics.median(ours)}
    if theirs[0]:
        ratios = [a / max(b) for a, *b in zip(ours, *theirs.values(), strict=True)]
        result |= {f"lerobot_{workers}": statistics.median(rates) for workers, rates in theirs.items()}
        result |= {"ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)]}
    return result


def main() -> None:
    """Take turns, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="virtual environment with LeRobot")
    parser.add_argument("--kit", type=Path, default=HERE.parent.parent / "shared" / "peers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report: dict = {"machine": machine(), "date": date.today().isoformat(), "threads": arguments.threads}
    with tempfile.TemporaryDirectory() as folder:
        report |= measured(Path(folder), arguments)
    print(f"{report['machine']}, {arguments.threads} threads; samples a second in batches of {BATCH}")
    print(f"{'':30}{'ours':>12}{'LeRobot, 0':>12}{'2 workers':>12}{'ratio':>8}  range")
    for name, row in report["rows"].items():
        line = f"{ROWS[name][0]:30}{row['ours']:>12.0f}"
        if "ratio" in row:
            low, high = row["ratio_range"]
            line += f"{row['lerobot_0']:>12.0f}{row['lerobot_2']:>12.0f}{row['ratio']:>8.0f}  {low:.0f} to {high:.0f}"
        print(line)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
