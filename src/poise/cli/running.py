"""How the policy of a checkpoint is run: options that several verbs share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

import torch
import tyro

from poise.cli.devices import check_device
from poise.plain import concrete
from poise.policies import DiffusionPolicy, Policy, compiled
from poise.precision import has_bfloat16
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


@dataclass(frozen=True)
class Machine:
    """What runs the policy, and how fast.

    Attributes:
        hardware: What runs it.
        compile: Compile it for batches of 1, 2, 4 and so on up to this many robots, which on a CPU takes a minute or
            more each; larger batches are planned as without (see `poise.compiled`).
        bfloat16: Round its weights to 16 bits, for every batch; with --compile.
    """

    hardware: Annotated[Hardware, tyro.conf.arg(name="")] = Hardware()  # noqa: RUF009 (frozen)
    compile: int | None = None
    bfloat16: bool = False

    def sizes(self) -> tuple[int, ...]:
        """The batches that it is compiled for.

        Raises:
            ValueError: A batch of nobody.
        """
        if self.compile is not None and self.compile < 1:
            raise ValueError(f"got --compile {self.compile}, expected the robots of the largest batch, 1 or more")
        return () if self.compile is None else tuple(1 << k for k in range((self.compile - 1).bit_length() + 1))

    def take(self, policy: Policy, sampling: Sampling) -> Policy:
        """The policy on the device, as it samples, and compiled where that is asked for.

        Raises:
            ValueError: A batch of nobody, a policy that cannot be compiled, or bfloat16 that is not compiled, or where
                there are no instructions for it.
        """
        sizes, policy = self.sizes(), sampling.of(self.hardware.take(policy))
        if self.bfloat16 and not sizes:
            raise ValueError("got --bfloat16 without --compile, expected both, such as --compile 1 --bfloat16")
        if not sizes:
            return policy
        if not isinstance(policy, DiffusionPolicy):
            raise ValueError(f"got --compile for a {type(policy).__name__}, expected a DiffusionPolicy: leave it out")
        if self.bfloat16 and not has_bfloat16(torch.device(self.hardware.device)):
            raise ValueError(f"got --bfloat16 for a {self.hardware.device} without instructions for it: leave it out")
        return compiled(policy, sizes, torch.bfloat16 if self.bfloat16 else torch.float32)


def _named(kind: str, name: str | None, known: Mapping[str, T]) -> T | None:
    if name is not None and name not in known:
        raise ValueError(f"got the {kind} {name!r}, expected one of {sorted(known)}")
    return None if name is None else known[name]


__all__ = ["GRIDS", "SAMPLERS", "Hardware", "Machine", "Sampling"]
