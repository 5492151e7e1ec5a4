"""The peers' side of `latency.py`: runs with the peers' Python and times what it is asked for.

Every line of standard input is the name of a row, every answer a line of JSON. The models load once; the first line
says what was loaded.
"""

import argparse
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def median_time(run: Callable[[], object], calls: int, before: Callable[[], object] | None = None) -> float:
    """Median wall-clock seconds of a call, after three that do not count; `before` runs untimed ahead of each.

    Takes so many timings, or at least five within three seconds.
    """
    seconds: list[float] = []
    while len(seconds) < calls + 3 and (len(seconds) < 8 or sum(seconds) < 3):
        if before is not None:
            before()
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[3:])


def lerobot_rows(kit: Any, net: str) -> tuple[dict[str, Callable[[], float]], int]:
    """LeRobot's diffusion policy: milliseconds a chunk and a call of its U-Net; and the U-Net's parameters."""
    policy = kit.lerobot_policy(kit.NETS[net], scheduler="DDIM", steps=10).eval()
    unet = policy.diffusion.unet
    observation = {
        "observation.state": torch.rand(1, kit.STATE_DIM) * 2 - 1,
        "observation.environment_state": torch.rand(1, kit.ENV_DIM) * 2 - 1,
    }
    policy.select_action(observation)  # fills the queues of observations
    x, step = torch.randn(1, kit.HORIZON, kit.ACTION_DIM), torch.full((1,), 50, dtype=torch.long)
    condition = torch.randn(1, kit.N_OBS * (kit.STATE_DIM + kit.ENV_DIM))
    rows = {
        "plan": lambda: 1e3 * median_time(lambda: policy.predict_action_chunk(observation), 15),
        "network": lambda: 1e3 * median_time(lambda: unet(x, step, global_cond=condition), 100),
    }
    return rows, kit.parameter_count(unet)


def diffusers_row(scheduler: Any, steps: int = 10) -> Callable[[], float]:
    """Microseconds a step of a scheduler, with a network that costs nothing; `set_timesteps` is not timed."""
    noise, output = torch.randn(1, 16, 2), torch.randn(1, 16, 2)

    def loop() -> None:
        x = noise
        for t in scheduler.timesteps:
            x = scheduler.step(output, t, x).prev_sample

    return lambda: 1e6 / steps * median_time(loop, 200, before=lambda: scheduler.set_timesteps(steps))


def main() -> None:
    """Load the peers, then answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--net", choices=["small", "medium"], default="small")
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the peers print goes to standard error
    sys.path.insert(0, str(arguments.kit))
    kit = importlib.import_module("bench_common")
    kit.set_threads(arguments.threads)
    rows, parameters = lerobot_rows(kit, arguments.net)
    schedulers, config = importlib.import_module("diffusers"), {"beta_schedule": "squaredcos_cap_v2"}
    rows["ddim"] = diffusers_row(schedulers.DDIMScheduler(num_train_timesteps=100, **config))
    rows["dpm_solver"] = diffusers_row(schedulers.DPMSolverMultistepScheduler(num_train_timesteps=100, **config))
    versions = kit.environment(("lerobot", "diffusers"))["versions"]
    print(json.dumps({"parameters": parameters, "versions": versions}), file=answers)
    with torch.inference_mode():
        for line in sys.stdin:
            print(json.dumps(rows[line.strip()]()), file=answers)


if __name__ == "__main__":
    main()
