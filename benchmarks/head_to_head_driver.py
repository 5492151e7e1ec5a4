"""LeRobot's side of `head_to_head.py`: runs with the peers' Python and trains LeRobot's DiffusionPolicy.

It takes its batches from arrays in memory, so that its loader does not count, and uses LeRobot's own loss, optimiser,
schedule of the learning rate (its preset, over as many steps as fit into the time) and clipping. A line of JSON a
checkpoint goes to standard output.
"""

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

CLIP = 10.0  # LeRobot's own
TIMED = 20  # steps that tell how many fit into the time


def lerobot(module: str) -> Any:
    """A module of the peer, which only the peers' Python has."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    return importlib.import_module(f"lerobot.{module}")


def normalised(data: dict[str, torch.Tensor], stats: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Limits to -1 and 1, LeRobot's default for states and actions."""
    found = dict(data)
    for name, limits in stats.items():
        found[name] = 2 * (data[name] - limits["min"]) / (limits["max"] - limits["min"]) - 1
    return found


def main() -> None:
    """Train for so many minutes, and save at every part of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--parts", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)  # what the libraries print goes to standard error
    os.dup2(2, 1)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    data = load_file(arguments.data)
    types = lerobot("configs.types")
    kinds = {"observation.state": "STATE", "observation.environment_state": "ENV", "action": "ACTION"}
    outputs = {n: types.PolicyFeature(types.FeatureType[k], (data[n].shape[-1],)) for n, k in kinds.items()}
    inputs = {n: outputs.pop(n) for n in kinds if n != "action"}
    limits = dict.fromkeys(("STATE", "ENV", "ACTION"), types.NormalizationMode.MIN_MAX)  # its default has none for ENV
    config = lerobot("policies.diffusion.configuration_diffusion").DiffusionConfig(
        input_features=inputs,
        output_features=outputs,
        normalization_mapping=limits,
        down_dims=(64, 128, 256),
        device="cpu",
        horizon=16,
    )
    stats = {
        name: {"min": data[name].flatten(0, 1).amin(0), "max": data[name].flatten(0, 1).amax(0)}
        for name in (*inputs, "action")
    }
    rows = normalised(data, stats)
    policy = lerobot("policies.diffusion.modeling_diffusion").DiffusionPolicy(config).train()
    optimiser = torch.optim.AdamW(policy.get_optim_params(), **preset(config))
    processors = lerobot("policies.diffusion.processor_diffusion").make_diffusion_pre_post_processors(config, stats)
    step, schedule, begin, saved = 0, None, time.perf_counter(), 0
    while saved < arguments.parts:
        chosen = torch.randint(len(rows["action"]), (arguments.batch,))
        loss, _ = policy.forward({name: values[chosen] for name, values in rows.items()})
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), CLIP)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        seconds = time.perf_counter() - begin
        if step == TIMED:
            schedule = config.get_scheduler_preset().build(optimiser, int(60 * arguments.minutes / seconds * step))
        elif schedule is not None:
            schedule.step()
        if seconds >= 60 * arguments.minutes * (saved + 1) / arguments.parts:
            saved += 1
            into = arguments.out / str(saved)
            policy.eval()
            policy.save_pretrained(into)
            for processor in processors:
                processor.save_pretrained(into)
            policy.train()
            line = {"minutes": seconds / 60, "steps": step, "folder": str(into), "loss": loss.item()}
            print(json.dumps(line), file=answers)


def preset(config: Any) -> dict:
    """LeRobot's settings of AdamW."""
    return {
        "lr": config.optimizer_lr,
        "betas": config.optimizer_betas,
        "eps": config.optimizer_eps,
        "weight_decay": config.optimizer_weight_decay,
    }


if __name__ == "__main__":
    sys.exit(main())
