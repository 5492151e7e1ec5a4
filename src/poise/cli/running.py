"""How the policy of a checkpoint is run: options that several verbs share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

from poise.cli.devices import check_device
from poise.plain import concrete
from poise.policies import DiffusionPolicy, Policy
from poise.sampling import Grid, Sampler

T = TypeVar("T")
AnyPolicy = TypeVar("AnyPolicy", bound=Policy)

SAMPLERS: dict[str, Sampler] = {name: kind() for name, kind in concrete(Sampler).items()}
"""Samplers by the names of the command line."""

GRIDS: dict[str, Grid] = {name: kind() for name, kind in concrete(Grid).items()}
"""Time grids by the names of the command line."""


@dataclass(frozen=True)
class Sampling:
    """How plans are sampled; what is not given is the checkpoint's.

    Attributes:
        sampler: A class of `poise.sampling`, with its defaults: DDIM, DDPM, DPMSolverPP, UniPC, Heun, Restart, ...
        grid: UniformTime, UniformLogSNR, KarrasGrid, Quadratic or Trailing.
        evaluations: Network evaluations a plan; an adaptive sampler decides by itself.
        temperature: Factor of the noise.
    """

    sampler: str | None = None
    grid: str | None = None
    evaluations: int | None = None
    temperature: float | None = None

    def of(self, policy: Policy) -> Policy:
        """The policy under these choices.

        Raises:
            ValueError: An unknown name, or a policy that does not sample.
        """
        if self == Sampling():
            return policy
        if not isinstance(policy, DiffusionPolicy):
            raise ValueError(
                f"got options of sampling for a {type(policy).__name__}, expected a DiffusionPolicy: leave them out"
            )
        return policy.using(
            _named("sampler", self.sampler, SAMPLERS),
            _named("grid", self.grid, GRIDS),
            self.evaluations,
            self.temperature,
        )


@dataclass(frozen=True)
class Hardware:
    """What runs the policy.

    Attributes:
        device: Where the policy runs, such as cpu or cuda; what is timed is timed there.
        threads: CPU threads; by default PyTorch's choice.
    """

    device: str = "cpu"
    threads: int | None = None

    def take(self, policy: AnyPolicy) -> AnyPolicy:
        """Set the threads, and bring the policy to the device.

        Raises:
            ValueError: No such device on this machine.
        """
        check_device(self.device)
        if self.threads:
            torch.set_num_threads(self.threads)
        return policy.to(self.device)


def _named(kind: str, name: str | None, known: Mapping[str, T]) -> T | None:
    if name is not None and name not in known:
        raise ValueError(f"got the {kind} {name!r}, expected one of {sorted(known)}")
    return None if name is None else known[name]


__all__ = ["GRIDS", "SAMPLERS", "Hardware", "Sampling"]
