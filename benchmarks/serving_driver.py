"""The server of `serving.py`, `serving_kill.py` and `wire_fuzz.py`: a policy with random weights, in its own process.

It prints `serving at URI` when it is ready, and ends at SIGTERM.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

STATE, ACTION, PICTURE = 20, 7, (96, 96, 3)


def started(*options: str) -> tuple[subprocess.Popen[str], str]:
    """Start the server; its process and its address, once it is ready."""
    command = [sys.executable, __file__, *options]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None
    line = child.stdout.readline()
    if "serving at" not in line:
        raise RuntimeError(f"the server did not start: run {' '.join(command)} to see why")
    return child, line.removeprefix("serving at ").strip()


@contextmanager
def server(*options: str) -> Iterator[tuple[str, int]]:
    """Start the server; yields its address and the number of its process."""
    child, uri = started(*options)
    with child:
        try:
            yield uri, child.pid
            if child.poll() is not None:
                raise RuntimeError(f"the server ended by itself with status {child.returncode}")
        finally:
            child.terminate()


def main() -> None:
    """Serve until told to end."""
    import torch

    from poise import CNN, DiffusionPolicy, Joint, PolicySpec, SmallCNN
    from poise.serving import Limits, Planner, Server, run

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--evaluations", type=int, default=10)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--image", action="store_true", help="the policy sees a camera besides")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    spec = PolicySpec({"state": (STATE,)}, ACTION, evaluations=arguments.evaluations)
    if arguments.image:
        spec = replace(
            spec, observations={**spec.observations, "camera": PICTURE}, encoder=Joint(CNN(SmallCNN((16, 32))))
        )
    policy = DiffusionPolicy(spec)
    for name in (*spec.observations, "action"):
        scale, offset = policy.constants(name)
        policy.set_constants(name, torch.ones_like(scale), torch.zeros_like(offset))
    robots = Server(Planner(policy, seed=0), Limits(batch=arguments.batch, rate=1e6))
    run(robots, "127.0.0.1", arguments.port, ready=partial(print, flush=True))


if __name__ == "__main__":
    main()
