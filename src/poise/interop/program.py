"""A whole policy as one program: observations and noise in, a plan out.

Everything that does not depend on them is a constant of the program: the times of the grid and all coefficients of the
sampler, whose steps stand one after the other. So it is deterministic, and runs without poise.
"""

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from poise.limits import ActionLimits
from poise.policies import Absolute, DiffusionPolicy, Policy, PolicySpec
from poise.policies.saving import digest
from poise.sampling import Grid, Sampler
from poise.schedules import Schedule
from poise.typing import Noise

NOISE = "noise", "step_noise"
FACTS = "poise.json"

_TOLERANCE = 1e-5  # share of the range of plans
_BATCHES = 1, 3

Inputs = tuple[dict[str, Tensor], list[Tensor]]
"""Observation histories `(B, history, ...)`, and noise: none, that of the start, or also that of stochastic steps."""


class Program(NamedTuple):
    """A policy that was traced.

    Attributes:
        policy: The policy in float32 on the CPU, with its own code: what the program is compared with.
        exported: The program, `(observation, *noise) -> plan`, for any batch.
        draws: How often a plan asks for noise, counted.
        safety: Limits of what may be sent, which whoever runs the program must keep.
    """

    policy: Policy
    exported: torch.export.ExportedProgram
    draws: int
    safety: ActionLimits | None = None

    def facts(self) -> dict[str, Any]:
        """What there is to know beside the program, as JSON data.

        `limits` are the least and the largest action of every dimension, where the policy clamps to them.
        """
        spec = self.policy.spec
        return {
            "observations": {name: list(shape) for name, shape in spec.observations.items()},
            "history": spec.history,
            "horizon": spec.horizon,
            "planned": spec.planned,
            "execute": spec.execute,
            "action": spec.action,
            "limits": _limits(self.policy),
            "safety": None if self.safety is None else asdict(self.safety),
            "draws": self.draws,
            "noise": list(NOISE[: self.draws]),
            "type": type(self.policy).__name__,
            "sampling": f"{spec.sampler}, {spec.grid}, {spec.evaluations} evaluations, temperature {spec.temperature}",
            "tensors": digest(self.policy.state_dict()),
        }


class Exported(NamedTuple):
    """What was written.

    Attributes:
        path: The file.
        draws: How often a plan asks for noise.
        difference: Largest difference between its plans and those of the policy, as a share of their range.
    """

    path: Path
    draws: int
    difference: float


def program(policy: Policy) -> Program:
    """Trace a policy with its sampler, grid, evaluations and temperature.

    A random crop becomes the one in the centre, and every optional feature is an input that must be given.

    Args:
        policy: A diffusion policy, or a baseline that asks for no noise.

    Raises:
        ValueError: An adaptive sampler, guidance, noise of another shape than plans, a feature named as the noise is,
            a policy without statistics, or one whose operations depend on values or on the size of the batch.
    """
    policy.ready()
    _check(policy)
    policy = copy.deepcopy(policy).cpu().float().eval()
    # With gradients layers of attention are traced as they are written, not as one fused operation.
    fixed = _fixed(policy).requires_grad_(True)
    draws = _count(fixed)
    observation, noise = inputs(policy.spec, 2, draws)
    batch = torch.export.Dim("batch", min=1)
    shapes = dict.fromkeys(observation, {0: batch}), tuple({axis: batch} for axis in range(len(noise)))
    shapes = shapes[: 1 + bool(noise)]
    try:
        with torch.enable_grad():
            exported = torch.export.export(_Whole(fixed), (observation, *noise), dynamic_shapes=shapes)
    except RuntimeError as error:
        problem = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{type(policy).__name__} cannot be traced for any batch ({problem}), expected operations that depend on "
            "no value and no size of its inputs: write torch.where for if, and x.shape[0] for len(x)"
        ) from error
    fixed.requires_grad_(False)
    graphs = [part.graph for part in exported.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    for node in (node for graph in graphs for node in graph.nodes):
        node.meta.pop("stack_trace", None)  # where the source lies on this machine is nobody's business
    return Program(policy, exported, draws)


def export_torch(policy: Policy, path: str | Path, safety: ActionLimits | None = None) -> Exported:
    """Write a policy as a program of `torch.export`, once its plans are found to be those of the policy.

    It runs without poise, in PyTorch; what `Program.facts` tells lies beside it:

        extra = {"poise.json": ""}
        plan = torch.export.load("policy.pt2", extra_files=extra).module()(observation, *noise)

    Args:
        policy: See `program`.
        path: A file that ends in `.pt2`; it is replaced.
        safety: Limits of what may be sent, which are told among the facts.

    Raises:
        ValueError: As `program`, another ending, or plans that differ by more than 1e-5 of their range.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ValueError(f"export_torch got {path}, expected a file that ends in .pt2, as torch.export asks")
    made = program(policy)._replace(safety=safety)
    difference = compared(made, lambda observation, noise: made.exported.module()(observation, *noise))
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        # The name of the file is part of what it holds.
        torch.export.save(made.exported, aside / path.name, extra_files={FACTS: json.dumps(made.facts())})
        (aside / path.name).replace(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Exported(path, made.draws, difference)


def inputs(spec: PolicySpec, batch: int, draws: int, seed: int = 0) -> Inputs:
    """Random inputs of a program: pixels of all values, other features and noise from N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    observation = {}
    for name, shape in spec.observations.items():
        size = batch, spec.history, *shape
        pixels = torch.randint(256, size, generator=generator, dtype=torch.uint8)
        observation[name] = pixels if name in spec.cameras else torch.randn(size, generator=generator)
    plan = batch, spec.horizon, spec.action
    noise = [torch.randn(size, generator=generator) for size in (plan, (draws - 1, *plan))[:draws]]
    return observation, noise


def compared(made: Program, run: Callable[[Mapping[str, Tensor], Sequence[Tensor]], Tensor]) -> float:
    """The largest difference between the plans of a program and of its policy, as a share of their range.

    It is over random observations and noise in batches of 1 and 3. The range is that of a dimension of the action, from
    its least to its largest value in these plans of the policy.

    Args:
        made: The program.
        run: How its plans are made.

    Raises:
        ValueError: A difference of more than 1e-5.
    """
    ours, theirs = list[Tensor](), list[Tensor]()
    for batch in _BATCHES:
        observation, noise = inputs(made.policy.spec, batch, made.draws, seed=batch)
        theirs.append(run(observation, noise))
        ours.append(made.policy.plan(observation, _handed(noise)))
    plans = torch.cat(ours).flatten(0, 1)
    gap = (torch.cat(theirs).flatten(0, 1) - plans).abs().amax(0)
    share = torch.where(gap > 0, gap / (plans.amax(0) - plans.amin(0)), gap).max().item()
    if not share <= _TOLERANCE:
        raise ValueError(
            f"the exported program plans what differs by {share:.3g} of the range of plans from the policy, expected "
            f"at most {_TOLERANCE:.0e}: take fewer evaluations, or report this policy"
        )
    return share


class _Whole(nn.Module):
    """`(observation, *noise) -> plan`."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: dict[str, Tensor], *noise: Tensor) -> Tensor:
        *_, last = self.policy.trace(observation, _handed(noise))
        return last.x


@dataclass(frozen=True)
class _Written(Grid):
    """Times that were computed before."""

    between: tuple[float, ...]

    def interior(self, schedule: Schedule, steps: int, begin: float) -> list[float]:
        """The times."""
        return list(self.between)


def _handed(noise: Sequence[Tensor]) -> Noise:
    """The noise of a program's inputs, one after the other."""
    parts: Iterator[Tensor] = iter([*noise[:1], *(z for steps in noise[1:] for z in steps.unbind(0))])
    return lambda x, t, s: next(parts)


def _fixed(policy: Policy) -> Policy:
    """A policy whose grid needs no computation."""
    if not isinstance(policy, DiffusionPolicy):
        return policy
    spec = policy.spec
    times = spec.grid.times(spec.schedule, len(spec.sampler.budget(spec.evaluations)), spec.begin)
    return policy.using(grid=_Written(tuple(times[1:-1])))


def _count(policy: Policy) -> int:
    """How often a plan asks for noise. Levels and coefficients are computed on the way, so that tracing finds them."""
    spec, shapes = policy.spec, list[tuple[int, ...]]()

    def noise(x: Tensor, t: float, s: float) -> Tensor:
        shapes.append(tuple(x.shape))
        return torch.zeros_like(x)

    with torch.no_grad():
        for _ in policy.trace(inputs(spec, 1, 0)[0], noise):
            pass
    if set(shapes) - {(1, spec.horizon, spec.action)}:
        raise ValueError(
            f"got a {type(policy).__name__}, which asks for noise of shapes {shapes}, expected that of plans "
            f"{(1, spec.horizon, spec.action)}: export a DiffusionPolicy, a Regression or a MinimalIterative"
        )
    return len(shapes)


def _check(policy: Policy) -> None:
    clash = sorted(set(policy.spec.observations) & set(NOISE))
    if clash:
        raise ValueError(f"got observations named {clash}, which are the inputs of noise, expected other names")
    if not isinstance(policy, DiffusionPolicy):
        return
    if policy.guide is not None:
        raise ValueError(
            "got a policy with guidance, which is Python code, expected none: export policy.using(...) of the policy "
            "before guide= was given, and guide in Python"
        )
    if _adaptive(policy.spec.sampler):
        raise ValueError(
            f"got the sampler {policy.spec.sampler}, whose strides depend on the data, expected one of a fixed number "
            "of evaluations: policy.using(sampler=DPMSolverPP(), evaluations=10), or --sampler DPMSolverPP"
        )


def _adaptive(sampler: Sampler) -> bool:
    parts = [part for part in vars(sampler).values() if isinstance(part, Sampler)]
    return not sampler.evaluations or any(map(_adaptive, parts))


def _limits(policy: Policy) -> list[list[float]] | None:
    spec = policy.spec
    if spec.bound is None or spec.space != Absolute():
        return None
    ends = policy.action_normaliser.inverse(spec.bound * torch.tensor([[-1.0], [1.0]]))
    return ends.sort(0).values.tolist()


__all__ = ["FACTS", "NOISE", "Exported", "Inputs", "Program", "compared", "export_torch", "inputs", "program"]
