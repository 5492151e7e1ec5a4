"""LeRobot's side of `training.py`: runs with the peers' Python and trains LeRobot's DiffusionPolicy.

Every line of standard input is `step` or `loop`, the name of a network and a size of batches; every answer a line of
JSON, samples a second. A `step` is forward, backward, AdamW and `zero_grad` on a batch in memory; a `loop` takes its
batches from LeRobot's dataset through a DataLoader with two workers. The first line says what was loaded.
"""

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

SECONDS = 8.0


class LeRobot:
    """Policies and optimisers by the name of their network, and LeRobot's recording of random trajectories."""

    def __init__(self, kit: Any, folder: Path) -> None:
        self._kit, self._trained = kit, dict[str, tuple[Any, torch.optim.Optimizer]]()
        loader = importlib.import_module("lerobot_loader")
        loader.write_dataset(folder / "recording", 200, 125)
        self._dataset = loader.load_dataset(folder / "recording")
        self.parameters: dict[str, int] = {}

    def trained(self, net: str) -> tuple[Any, torch.optim.Optimizer]:
        """The policy with LeRobot's optimiser."""
        if net not in self._trained:
            self._trained.clear()  # one at a time in memory
            policy = self._kit.lerobot_policy(self._kit.NETS[net], scheduler="DDPM", steps=100).train()
            config = policy.config
            optimiser = torch.optim.AdamW(
                policy.parameters(),
                lr=config.optimizer_lr,
                betas=config.optimizer_betas,
                eps=config.optimizer_eps,
                weight_decay=config.optimizer_weight_decay,
            )
            self.parameters[net] = self._kit.parameter_count(policy)
            self._trained[net] = policy, optimiser
        return self._trained[net]

    def batches(self, kind: str, size: int) -> Iterator[dict[str, torch.Tensor]]:
        """One batch again and again, or those of a loader."""
        if kind == "step":
            kit = self._kit
            return cycle(
                [
                    {
                        "observation.state": torch.randn(size, kit.N_OBS, kit.STATE_DIM),
                        "observation.environment_state": torch.randn(size, kit.N_OBS, kit.ENV_DIM),
                        "action": torch.rand(size, kit.HORIZON, kit.ACTION_DIM) * 2 - 1,
                        "action_is_pad": torch.zeros(size, kit.HORIZON, dtype=torch.bool),
                    }
                ]
            )
        options = {"batch_size": size, "shuffle": True, "num_workers": 2, "drop_last": True}
        return iter(torch.utils.data.DataLoader(self._dataset, **options))

    def rate(self, kind: str, net: str, size: int) -> float:
        """Samples a second after three steps that do not count."""
        policy, optimiser = self.trained(net)
        done, begin = -3, 0.0
        for batch in self.batches(kind, size):
            loss, _ = policy.forward(batch)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            done += 1
            if done == 0:
                begin = time.perf_counter()
            if done > 3 and time.perf_counter() > begin + SECONDS:
                break
        return done * size / (time.perf_counter() - begin)


def main() -> None:
    """Record, then answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kit", type=Path, required=True, help="folder with the peers' scripts")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)  # what the libraries print goes to standard error
    os.dup2(2, 1)
    sys.path.insert(0, str(arguments.kit))
    kit = importlib.import_module("bench_common")
    kit.set_threads(arguments.threads)
    peer = LeRobot(kit, arguments.folder)
    answer: Callable[[Any], None] = lambda value: print(json.dumps(value), file=answers)  # noqa: E731
    answer(kit.environment(("lerobot", "diffusers"))["versions"])
    for line in sys.stdin:
        kind, net, size = line.split()
        answer([peer.rate(kind, net, int(size)), peer.parameters[net]])


if __name__ == "__main__":
    main()
