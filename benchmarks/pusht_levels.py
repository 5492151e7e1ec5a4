"""A recipe for a sweep over what diffusion policies are said to be sensitive to: schedule, levels, prediction.

    poise sweep benchmarks/pusht_levels.py --data pusht_cchi_v7_replay.zarr --out out/sensitivity --jobs 2 \
        --vary policy.schedule=VPCosine,VPLinear,Rectified --vary policy.density.levels=10,100,1000000 \
        --vary policy.prediction=Epsilon,Clean,Velocity,Flow

The recipe of Push-T from state with a smaller network, for 3000 steps of half the batch, on so many discrete levels of
noise (a million are as good as all), with predictions clamped at 3 standard deviations, since near t = 1 an error of
epsilon is magnified a thousand times.
"""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from poise import MLP, TrainingSpec, load_recipe
from poise.objectives import Density

PUSHT = load_recipe(Path(__file__).parents[1] / "recipes" / "pusht.py")


@dataclasses.dataclass(frozen=True)
class Levels(Density):
    """The times n / N, n = 1 ... N, of a chain of N steps.

    Attributes:
        levels: N.
    """

    levels: int = 100

    def quantile(self, u: Tensor) -> Tensor:
        """The next of these times."""
        return (torch.floor(u * self.levels) + 1) / self.levels


recipe = dataclasses.replace(
    PUSHT,
    policy=dataclasses.replace(
        PUSHT.policy, density=Levels(), bound=3.0, network=MLP(width=256, depth=2, condition=128)
    ),
    training=TrainingSpec(steps=3000, batch=256),
)
