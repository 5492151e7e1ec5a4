"""`poise replan RUN CHECKPOINT`: plans made again from the record of a served run."""

from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tqdm import tqdm

from poise.cli.evaluate import write_json
from poise.cli.running import Hardware, Sampling
from poise.data import open_dataset
from poise.policies import load
from poise.serving.replanning import Replanned, replan


def replan_run(
    run: Annotated[Path, tyro.conf.Positional],
    checkpoint: Annotated[Path, tyro.conf.Positional],
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling(),  # noqa: B008 (frozen)
    hardware: Annotated[Hardware, tyro.conf.arg(name="")] = Hardware(),  # noqa: B008 (frozen)
    json: Path | None = None,
) -> None:
    """Plan again from what `poise serve --record` kept, and say how far the plans are from those that were sent.

        poise replan out/run out/pusht --evaluations 5

    With the policy and the options that were served the difference is of the order of rounding. Another policy is
    compared on what the robots saw. Plans that a filter changed are left out.

    Args:
        run: What --record wrote.
        checkpoint: A file or directory of `poise train`.
        sampling: How plans are sampled.
        hardware: What runs the policy.
        json: File for the figures, with those of every episode.
    """
    policy = sampling.of(hardware.take(load(checkpoint)))
    with open_dataset(run) as source:
        made = list(tqdm(replan(policy, source), "planning again", len(source), disable=None))
    same = [~one.changed for one in made]
    recorded, again = (
        np.concatenate([plans[keep] for plans, keep in zip(all_plans, same, strict=True)]).astype(np.float64)
        for all_plans in ([one.recorded for one in made], [one.again for one in made])
    )
    changed = sum(int(one.changed.sum()) for one in made)
    if not len(recorded):
        raise ValueError(f"got {run} without a plan that no filter changed, expected one or more to compare")
    print(f"{len(recorded):,} plans; {changed:,} more, which filters changed, are left out")
    print("\naction  rms difference  largest  spread of the plans")
    rms, largest = np.sqrt(np.square(again - recorded).mean((0, 1))), np.abs(again - recorded).max((0, 1))
    spread = recorded.std((0, 1))
    for number, row in enumerate(zip(rms, largest, spread, strict=True)):
        print(f"{number:<8}{row[0]:<16.3g}{row[1]:<9.3g}{row[2]:.3g}")
    if json:
        total = {"rms": rms.tolist(), "largest": largest.tolist(), "spread": spread.tolist()}
        write_json(json, {"plans": len(recorded), "changed": changed, **total, "episodes": [_plain(o) for o in made]})


def _plain(one: Replanned) -> dict[str, object]:
    """One number a plan: its largest difference."""
    gaps = np.abs(one.again - one.recorded).max((1, 2))
    return {"task": one.task, "plan": one.plans.tolist(), "changed": one.changed.tolist(), "largest": gaps.tolist()}


__all__ = ["replan_run"]
