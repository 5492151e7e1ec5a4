"""Ways of sampling one checkpoint against each other, on the same starts: success, speed, diversity, repeatability."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from poise.evaluation.diversity import Probe, repeatable, sensitivity, spread, to_demonstrations
from poise.evaluation.rollout import rollout
from poise.evaluation.statistics import Interval, bootstrap, entropy, finite_mean, jerk, seam_jump, wilson
from poise.evaluation.task import Task
from poise.policies import DiffusionPolicy, RecedingHorizon
from poise.policies.control import Controller
from poise.policies.warm import WarmStart
from poise.sampling import Sampler, per_sample
from poise.typing import Actions, Noise, Observation


def afresh(policy: DiffusionPolicy, observation: Observation, noise: Noise) -> Actions:
    """A plan from pure noise."""
    return policy.plan(observation, noise)


@dataclass(frozen=True)
class Cell:
    """One way of sampling.

    Attributes:
        name: Of the sampler, for people.
        family: ODE, SDE, hybrid, or another word: what figures colour by.
        sampler: Any of `poise.sampling`.
        evaluations: Network evaluations a plan; None where a tolerance decides.
        control: `(policy, robots)` -> the controller that runs it.
        plan: `(policy, observation, noise)` -> plans, for what is measured on single plans.
        code: How a program asks for it; by default made of the sampler and the evaluations.
        later: Whether the evaluations are those of later plans alone, and the first of an episode spends the policy's.
    """

    name: str
    family: str
    sampler: Sampler
    evaluations: int | None
    control: Callable[[DiffusionPolicy, int], Controller] = RecedingHorizon
    plan: Callable[[DiffusionPolicy, Observation, Noise], Actions] = afresh
    code: str = ""
    later: bool = False

    def of(self, policy: DiffusionPolicy) -> DiffusionPolicy:
        """The policy under this sampler."""
        return policy.using(sampler=self.sampler, evaluations=None if self.later else self.evaluations)

    @property
    def label(self) -> str:
        """Name and evaluations."""
        return _label(self.name, self.evaluations)


def warm_start(sampler: Sampler, evaluations: int, begin: float = 0.8, name: str = "warm start") -> Cell:
    """The cell that begins each plan at the previous one, re-noised to the time `begin`.

    Single plans begin at a plan from pure noise for the same observation, as for a robot that has stood still.
    """

    def plan(policy: DiffusionPolicy, observation: Observation, noise: Noise) -> Actions:
        before = policy.plan(observation, noise)
        return policy.using(evaluations=evaluations).replan(observation, before, begin, noise)

    control = partial(WarmStart, begin=begin, evaluations=evaluations)
    code = f"WarmStart(policy.using(sampler={sampler!r}), robots, begin={begin}, evaluations={evaluations})"
    return Cell(name, "warm start", sampler, evaluations, control, plan, code, later=True)


@dataclass(frozen=True)
class Row:
    """What a cell was measured to be; plain enough for JSON. A figure that does not apply is None.

    Attributes:
        name: Of the cell, as its family, budget and code.
        family: ODE, SDE, hybrid, or another word.
        budget: Evaluations that were asked for; None where a tolerance decides.
        code: How a program asks for it.
        won: Success of every seed, in ascending order: rows pair by position.
        rewards: Largest reward of every seed.
        evaluations: Calls of the network a plan, counted; a mean where a tolerance decides.
        plan_ms_median: Milliseconds of a plan for one robot.
        plan_ms_p95: Their 95 % quantile.
        execute: Actions run before the next plan.
        ahead: Control steps that a plan may take while the last one runs: not more than `execute`, nor so many that
            fewer than `execute` of its own actions are left for the future. 1 where none may, and the robot waits.
        deterministic: Whether no noise is drawn after the start, so that start and observation decide the plan.
        repeatable: Whether the same seed twice gives the same bits.
        spread: Mean distance of plans for one observation under different noise, in normalised units.
        sensitivity: Change of a plan for one of the observation, both in normalised units.
        mode_entropy: Entropy of the successes' modes in nats, where the environment tells modes.
        energy: Energy distance to the demonstrations, where they are given.
        jerk: Mean third difference of executed actions.
        seam_jump: Change of action where a new plan begins, relative to that within plans.
    """

    name: str
    family: str
    budget: int | None
    code: str
    won: tuple[bool, ...]
    rewards: tuple[float, ...]
    evaluations: float
    plan_ms_median: float
    plan_ms_p95: float
    execute: int
    ahead: int
    deterministic: bool
    repeatable: bool
    spread: float
    sensitivity: float | None
    mode_entropy: float | None
    energy: float | None
    jerk: float | None
    seam_jump: float | None

    @property
    def label(self) -> str:
        """Name and evaluations."""
        return _label(self.name, self.budget)

    @property
    def success(self) -> Interval:
        """Success rate with Wilson's interval."""
        return wilson(sum(self.won), len(self.won))

    @property
    def reward(self) -> Interval:
        """Mean of the largest reward of an episode, with its bootstrap interval."""
        return bootstrap(self.rewards)

    @property
    def rate_hz(self) -> float:
        """Control steps a second that plans keep up with when the next is made while one runs: ahead / p95."""
        return 1e3 * self.ahead / self.plan_ms_p95

    @property
    def replan_hz(self) -> float:
        """Steps a second when each waits for a plan of its own: 1 / p95."""
        return 1e3 / self.plan_ms_p95

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Row":
        """The row that `dataclasses.asdict` and JSON made plain."""
        return cls(**{**plain, "won": tuple(plain["won"]), "rewards": tuple(plain["rewards"])})


def _label(name: str, evaluations: int | None) -> str:
    return name if evaluations is None else f"{name} with {evaluations} evaluation{'s' if evaluations != 1 else ''}"


def spendable(cells: Iterable[Cell]) -> tuple[list[Cell], list[str]]:
    """The cells whose sampler can spend its evaluations, and a note for each of the others."""
    kept, notes = [], []
    for cell in cells:
        try:
            if cell.evaluations is not None:
                cell.sampler.budget(cell.evaluations)
            kept.append(cell)
        except ValueError as error:
            notes.append(f"{cell.label} is left out: {error}")
    return kept, notes


def compare(
    policy: DiffusionPolicy,
    task: Task,
    cells: Iterable[Cell],
    seeds: Sequence[int],
    probe: Probe,
    repeats: int = 30,
) -> Iterator[Row]:
    """Yield a row a cell, all of them on the same seeds and the same probe.

    Args:
        policy: One checkpoint.
        task: Where it is tried.
        cells: Ways of sampling; see `spendable`.
        seeds: Of the episodes; environment and noise of an episode follow from its seed, whatever the cell.
        probe: Observations on which diversity and repeatability are measured.
        repeats: Plans that are timed.

    Raises:
        ValueError: A policy without a diffusion, no seed, or a budget that a sampler cannot spend.
    """
    if not isinstance(policy, DiffusionPolicy):
        raise ValueError(
            f"compare got a {type(policy).__name__}, expected a DiffusionPolicy: "
            "only a diffusion has samplers to compare"
        )
    if not seeds:
        raise ValueError("compare got no seeds, expected at least one: every cell is tried on the same ones")
    for cell in cells:
        yield _row(policy, task, cell, seeds, probe, repeats)


def _row(policy: DiffusionPolicy, task: Task, cell: Cell, seeds: Sequence[int], probe: Probe, repeats: int) -> Row:
    chosen = cell.of(policy)
    plan = partial(cell.plan, chosen)
    ran = sorted(rollout(chosen, task, seeds, cell.control), key=lambda episode: episode.seed)
    calls, ms = timed(chosen, cell.control(chosen, 1), probe, repeats)
    modes = [e.mode for e in ran if e.mode is not None]
    won = [e.mode for e in ran if e.success and e.mode is not None]
    return Row(
        name=cell.name,
        family=cell.family,
        budget=cell.evaluations,
        code=cell.code or _code(cell),
        won=tuple(e.success for e in ran),
        rewards=tuple(float(e.reward_max) for e in ran),
        evaluations=float(calls.mean()),
        plan_ms_median=float(np.median(ms)),
        plan_ms_p95=float(np.quantile(ms, 0.95)),
        execute=policy.spec.execute,
        ahead=max(1, min(policy.spec.execute, policy.spec.planned - policy.spec.execute)),
        deterministic=not draws_noise(chosen, probe),
        repeatable=repeatable(plan, probe),
        spread=spread(chosen, plan, probe),
        sensitivity=sensitivity(chosen, plan, probe),
        mode_entropy=entropy(won) if modes else None,
        energy=None if probe.actions is None else to_demonstrations(chosen, plan, probe),
        jerk=finite_mean([jerk(e.actions) for e in ran]),
        seam_jump=finite_mean([seam_jump(e.actions, e.fresh) for e in ran]),
    )


def _code(cell: Cell) -> str:
    spent = "" if cell.evaluations is None else f", evaluations={cell.evaluations}"
    return f"policy.using(sampler={cell.sampler!r}{spent})"


def timed(
    policy: DiffusionPolicy, control: Controller, probe: Probe, repeats: int = 30
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Plans for one robot that sees the newest observations of a probe, over and over; the first three do not count.

    Returns:
        Network calls and milliseconds of every plan, `(repeats,)` each.
    """
    seen = {name: values[:, -1].cpu().numpy() for name, values in probe.observation.items()}
    calls, found = 0, []

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    control.reset([0])
    hook = policy.diffusion.get_submodule("network").register_forward_hook(count)
    try:
        for step in itertools.cycle(range(len(probe))):
            now, calls, begin = {name: values[step][None] for name, values in seen.items()}, 0, time.perf_counter()
            control.act(now)
            seconds = time.perf_counter() - begin
            if control.fresh[0]:
                found.append((calls, 1e3 * seconds))
            if len(found) == repeats + 3:
                break
    finally:
        hook.remove()
    counted, ms = zip(*found[3:], strict=True)
    return np.array(counted), np.array(ms)


def draws_noise(policy: DiffusionPolicy, probe: Probe) -> bool:
    """Whether the policy's sampler draws noise after that of the start."""
    steps: list[bool] = []
    source = per_sample([0])

    def spy(x: Tensor, t: float, s: float) -> Tensor:
        steps.append(t != s)
        return source(x, t, s)

    policy.plan({name: values[:1] for name, values in probe.observation.items()}, spy)
    return any(steps)


__all__ = ["Cell", "Row", "afresh", "compare", "draws_noise", "spendable", "timed", "warm_start"]
