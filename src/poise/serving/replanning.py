"""Plans made again from the record of a served run: does a policy still plan what was sent?"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from poise.data import Rows, Source
from poise.policies import Policy
from poise.sampling import per_sample
from poise.serving.recording import PREFIX, column, features


@dataclass(frozen=True, eq=False)
class Replanned:
    """One episode of a record, planned for again.

    Attributes:
        task: Connection, robot and episode.
        plans: `(plans,)`, their numbers within the episode of the robot.
        recorded: `(plans, planned, action)`, as they were sent.
        again: `(plans, planned, action)`.
        changed: `(plans,)`, whether a filter changed what was sent.
    """

    task: str
    plans: NDArray[np.int64]
    recorded: NDArray[np.float32]
    again: NDArray[np.float32]
    changed: NDArray[np.bool_]


def replan(policy: Policy, source: Source) -> Iterator[Replanned]:
    """Plan again, from what the policy saw and the noise that it drew, one plan at a time.

    With the policy that was served, plans are the same but for the rounding of batches, which depends on their size.
    Plans that were rejected are left out. Where plans are missing, those too, their noise is drawn nevertheless. A
    batch that was planned again without the observation that broke it drew twice, so its robots differ from there to
    the end of their episode.

    Args:
        policy: Any with the same features, history and plans.
        source: What `Recording` wrote.

    Raises:
        ValueError: A record of other features.
    """
    expected, found = features(policy.spec), source.contents.features
    if expected != found:
        wrong = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        raise ValueError(
            f"got {source.path} and a policy that do not agree in {wrong}, expected a record of poise serve --record, "
            "and a policy of the same observations, history, horizon and action"
        )
    policy.ready()
    policy.eval()
    noise: dict[str, tuple[int, int, torch.Generator]] = {}  # task -> next plan that draws, seed, and source
    for number, task in enumerate(source.contents.tasks):
        rows = source.rows(number, list(found))
        if column(rows, "rejected").any():  # they are episodes of their own
            continue
        plans, seed = column(rows, "plan"), int(column(rows, "seed")[0])
        begun, seeded, generator = noise.get(task, (0, seed, torch.Generator().manual_seed(seed)))
        if plans[0] < begun or seed != seeded:  # another run, whose server counted anew
            begun, generator = 0, torch.Generator().manual_seed(seed)
        again = []
        for row, plan in enumerate(plans):
            for _ in range(begun, plan):  # they are missing, and drew noise
                _planned(policy, rows, row, generator)
            again.append(_planned(policy, rows, row, generator))
            begun = int(plan) + 1
        noise[task] = begun, seed, generator
        changed = column(rows, "changed") > 0
        yield Replanned(task, plans, rows[f"{PREFIX}actions"], np.stack(again), changed)


def _planned(policy: Policy, rows: Rows, row: int, generator: torch.Generator) -> NDArray[np.float32]:
    spec, device = policy.spec, policy.action_normaliser.scale.device
    flags = dict(zip(spec.optional, rows[f"{PREFIX}given"][row], strict=True)) if spec.optional else {}
    given = [name for name in spec.observations if flags.get(name, True)]
    seen = {name: torch.tensor(rows[name][row : row + 1], device=device) for name in given}
    return policy.plan(seen, per_sample([generator]))[0].cpu().numpy()


__all__ = ["Replanned", "replan"]
