"""`poise inspect CHECKPOINT`: what a checkpoint holds."""

import json
from pathlib import Path
from typing import Annotated

import tyro

from poise.plain import to_plain
from poise.policies import load_checkpoint


def inspect(checkpoint: Annotated[Path, tyro.conf.Positional]) -> None:
    """Print the spec of a policy, its inputs and outputs with their ranges, its size, and the notes of its training.

    Args:
        checkpoint: A file or directory of `poise train`.
    """
    policy, notes = load_checkpoint(checkpoint)
    spec = policy.spec
    parameters = sum(p.numel() for p in policy.parameters())
    print(f"{type(policy).__name__}, {parameters:,} parameters")
    print(f"history {spec.history}, horizon {spec.horizon}, execute {spec.execute}\n")
    for name, shape in spec.observations.items():
        print(f"observes  {name:<20} {shape}")
    print(f"plans     {'action':<20} ({spec.action},), {spec.space}\n")
    plain = to_plain(spec)
    for field in ("encoder", "network", "schedule", "prediction", "sampler", "grid", "evaluations"):
        print(f"{field:<12} {json.dumps(plain[field])[:100]}")
    print(f"\nnotes {json.dumps(notes, indent=2)}")


__all__ = ["inspect"]
