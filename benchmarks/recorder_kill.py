"""Kills a recording process at random moments: is every episode whose `save_episode` returned still there?

    python benchmarks/recorder_kill.py --kills 100

Each round forks a process that goes on with the same recording (low-dimensional rows and images) as fast as it can and
tells through a pipe which episode it has just saved; after a random time it gets SIGKILL. Then the episodes are read
and compared bit by bit with what they must be, which follows from their number, and all digests are verified. The last
line is JSON; the exit status is 1 if anything is lost.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poise.data import open_dataset
from poise.data.recorder import Recorder


def rows_of(episode: int) -> dict[str, NDArray]:
    """What an episode holds."""
    draw = np.random.default_rng(episode)
    steps = int(draw.integers(1, 20))
    return {
        "state": draw.normal(size=(steps, 20)).astype(np.float32),
        "action": draw.normal(size=(steps, 7)),
        "image": draw.integers(0, 256, (steps, 32, 32, 3), np.uint8),
    }


def record(path: Path, told: int) -> None:
    """Record without end, and write the number of every saved episode into a pipe."""
    with Recorder(path) as recorder:
        while True:
            rows = rows_of(recorder.episodes)
            for number in range(len(rows["state"])):
                recorder.add({name: values[number] for name, values in rows.items()})
            recorder.save_episode(str(recorder.episodes))
            os.write(told, recorder.episodes.to_bytes(8))


def killed(path: Path, seconds: float) -> int:
    """The number of saved episodes that a process told before it was killed, so many seconds after it began."""
    reading, writing = os.pipe()
    child = os.fork()  # an interpreter of its own would take seconds to start
    if not child:
        os.close(reading)
        try:
            record(path, writing)
        finally:
            os._exit(1)  # never reached unless recording fails
    os.close(writing)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as file:
        told = file.read()
    if os.WIFEXITED(status):
        raise RuntimeError("the recording process ended by itself; its error stands above")
    return int.from_bytes(told[-8:]) if told else 0


def different(path: Path, known: int) -> tuple[int, int]:
    """Episodes from the known one on that are not as they must be, and how many there are in all."""
    if not (path / "episodes.jsonl").exists() or not (path / "episodes.jsonl").read_bytes().count(b"\n"):
        return 0, 0
    with open_dataset(path) as source:
        wrong = 0
        for episode in range(known, len(source)):
            rows, expected = source.rows(episode, ["state", "action", "image"]), rows_of(episode)
            wrong += not all(np.array_equal(rows[name], expected[name]) for name in expected)
        wrong += sum(finding.code == "digest" for finding in source.findings())
        return wrong, len(source)


def main() -> None:
    """Kill and look, again and again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--path", type=Path, help="of the recording; a temporary one otherwise")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp()) if arguments.path is None else None
    path = arguments.path or (folder or Path()) / "recording"
    draw, saved, lost, wrong, present = np.random.default_rng(arguments.seed), 0, 0, 0, 0
    for _ in range(arguments.kills):
        saved = max(saved, killed(path, draw.uniform(0, 0.2)))
        bad, now = different(path, present)
        lost, wrong, present = lost + max(0, saved - now), wrong + bad, now
    if folder is not None:
        shutil.rmtree(folder)
    print(f"{saved} episodes told to be saved by {arguments.kills} killed processes: {lost} lost, {wrong} different")
    print(json.dumps({"kills": arguments.kills, "saved": saved, "present": present, "lost": lost, "different": wrong}))
    sys.exit(1 if lost or wrong else 0)


if __name__ == "__main__":
    main()
