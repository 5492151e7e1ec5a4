"""How long people wait: for `import poise`, for `poise --help`, and for the first progress of a training.

    python benchmarks/startup.py --data pusht_cchi_v7_replay.zarr

Each is started several times in a process of its own, with warm files, and the median is taken. Progress is the first
bar that estimates what is left, so that steps have been taken. The last line is JSON.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from poise.cli.machine import machine

_RECIPE = Path(__file__).parents[1] / "recipes" / "pusht.py"
_PROGRESS = re.compile(rb"%.*\d+:\d+, \d+:\d+ left")


def ended(*arguments: str) -> float:
    """Seconds until a command of Python ends."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def progressed(data: Path) -> float:
    """Seconds until a training shows progress; then it is killed."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "poise", "train", str(_RECIPE), "--data", str(data), "--out", out]
        begin, said = time.perf_counter(), b""
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as training:
            assert training.stderr is not None
            while not _PROGRESS.search(said):
                more = os.read(training.stderr.fileno(), 4096)
                if not more:
                    raise RuntimeError(f"the training ended without progress: {said.decode()}")
                said += more
            seconds = time.perf_counter() - begin
            training.kill()
    return seconds


def main() -> None:
    """Start everything again and again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Push-T demonstrations; without them no training is started")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    waits = {
        "import poise": lambda: ended("-c", "import poise"),
        "import torch": lambda: ended("-c", "import torch"),
        "poise --help": lambda: ended("-m", "poise", "--help"),
    }
    if arguments.data:
        waits["poise train"] = lambda: progressed(arguments.data)
    found = {}
    for name, wait in waits.items():
        wait()
        found[name] = round(median(wait() for _ in range(arguments.runs)), 3)
        print(f"{name:<14}{found[name]:8.3f} s")
    print(json.dumps({"seconds": found, "runs": arguments.runs, "machine": machine()}))


if __name__ == "__main__":
    main()
