"""The server of `serving.py` and `wire_fuzz.py`, in a process of its own: a policy with random weights.

It prints `serving at URI` when it is ready, and ends at SIGTERM.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

STATE, ACTION = 20, 7


def memory(process: int) -> float:
    """Resident MiB of a process."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


@contextmanager
def server(*options: str) -> Iterator[tuple[str, int]]:
    """Start the server; yields its address and the number of its process."""
    command = [sys.executable, __file__, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        try:
            assert child.stdout is not None
            yield child.stdout.readline().removeprefix("serving at ").strip(), child.pid
            if child.poll() is not None:
                raise RuntimeError(f"the server ended by itself with status {child.returncode}")
        finally:
            child.terminate()


def main() -> None:
    """Serve until told to end."""
    import torch

    from poise import DiffusionPolicy, PolicySpec
    from poise.serving import Limits, Planner, Server, run

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--evaluations", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    policy = DiffusionPolicy(PolicySpec({"state": (STATE,)}, ACTION, evaluations=arguments.evaluations))
    for name in ("state", "action"):
        scale, offset = policy.constants(name)
        policy.set_constants(name, torch.ones_like(scale), torch.zeros_like(offset))
    robots = Server(Planner(policy, seed=0), Limits(batch=arguments.batch, rate=1e6))
    run(robots, "127.0.0.1", 0, ready=partial(print, flush=True))


if __name__ == "__main__":
    main()
