"""Closed-loop evaluation: many seeds through a few environments side by side, each episode independent of the rest."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from poise.evaluation.statistics import bootstrap, entropy, finite_mean, jerk, seam_jump, wilson
from poise.evaluation.task import Task
from poise.policies import Policy
from poise.policies.control import Control, RecedingHorizon


@dataclass(frozen=True)
class Episode:
    """One closed-loop episode.

    Attributes:
        seed: Of the environment and of the policy's noise.
        success: What the environment's `is_success` said at the end, or else whether it terminated.
        reward_max: Largest reward of a step.
        reward_sum: Sum of rewards.
        collision: Where the environment tells, else None.
        mode: Which of several ways it was solved, where the environment tells, else None.
        measures: What else the environment measured, by the end: the numbers of `infos["measures"]`.
        actions: `(steps, action)`, as the policy gave them.
        fresh: `(steps,)`, whether a step began a new plan.
        observations: Feature -> `(steps, ...)`, what was observed at each step; images only if `rollout` was asked to.
    """

    seed: int
    success: bool
    reward_max: float
    reward_sum: float
    collision: bool | None
    mode: int | None
    measures: dict[str, float]
    actions: NDArray[np.float32]
    fresh: NDArray[np.bool_]
    observations: dict[str, NDArray]


def rollout(
    policy: Policy, task: Task, seeds: Sequence[int], control: Control = RecedingHorizon, images: bool = False
) -> Iterator[Episode]:
    """Yield every episode as it ends, in no particular order.

    A slot that ends its episode starts the next seed at once. An episode depends on its seed alone, up to the rounding
    of batched arithmetic.

    Args:
        policy: Any policy.
        task: Where to try it.
        seeds: One an episode.
        control: `(policy, robots) -> controller`, what turns its plans into actions.
        images: Keep the images of episodes; hundreds of episodes do not fit into memory.

    Raises:
        ValueError: An environment that resets by itself or has no box of actions, or observations that do not fit the
            policy.
    """
    slots = Slots(policy, task, seeds, min(task.slots, len(seeds)), control=control, images=images)
    try:
        while slots.active.any():
            yield from slots.step()
    finally:
        slots.envs.close()


class Slots:
    """Environments side by side, each at its own seed, and what has been recorded of their episodes.

    Args:
        policy: Any policy.
        task: Where to try it.
        seeds: One an episode.
        count: Number of environments.
        render: Whether the environments render.
        control: `(policy, robots) -> controller`.
        images: Whether episodes keep their images.

    Attributes:
        envs: The vector environment.
        active: `(count,)`, False where a slot has run out of seeds.
    """

    def __init__(
        self,
        policy: Policy,
        task: Task,
        seeds: Sequence[int],
        count: int,
        render: bool = False,
        control: Control = RecedingHorizon,
        images: bool = False,
    ) -> None:
        self.policy, self.task, self.waiting = policy, task, list(seeds[count:])
        left_out = () if images else policy.spec.cameras
        self.kept = [name for name in policy.spec.observations if name not in left_out]
        self.control = control(policy, count)  # before there are environments to close
        self.envs = task.make(count, render)
        limits, mode = self.envs.single_action_space, self.envs.metadata.get("autoreset_mode")
        if mode != AutoresetMode.DISABLED or not isinstance(limits, Box):
            self.envs.close()
            raise ValueError(
                f"rollout got {task.environment!r} with {mode} and actions {limits}, "
                "expected autoreset_mode DISABLED and a Box"
            )
        self.low, self.high = limits.low, limits.high
        self.current = np.array(seeds[:count])
        self.records: list[list[_Step]] = [[] for _ in range(count)]
        self.active, self._fit = np.ones(count, bool), False
        self.control.reset(self.current)
        self.raw, _ = self.envs.reset(seed=self.current.tolist())

    def step(self) -> Iterator[Episode]:
        """One control step of every active slot, and the episodes that it ends."""
        features = self.task.observe(self.raw)
        if not self._fit:
            _fits(self.policy, features)
            self._fit = True
        actions = self.control.act(features, self.active)
        bounded = np.clip(self.task.act(actions), self.low, self.high)
        self.raw, rewards, terminated, truncated, infos = self.envs.step(bounded)
        for i in np.flatnonzero(self.active):
            seen = {name: features[name][i] for name in self.kept if name in features}
            self.records[i].append(_Step(seen, actions[i], self.control.fresh[i], float(rewards[i])))
        done = terminated | truncated
        for i in np.flatnonzero(self.active & done):
            told = {name: infos[name][i] for name in ("is_success", "collision", "mode") if name in infos}
            measured = {name: values for name, values in infos.get("measures", {}).items() if name[0] != "_"}
            told["measures"] = {name: float(values[i]) for name, values in measured.items()}
            yield _episode(int(self.current[i]), self.records[i], bool(terminated[i]), told)
            self.records[i] = []
        self._refill(done)

    def _refill(self, done: NDArray[np.bool_]) -> None:
        """Start waiting seeds in the slots that are done; slots without one run on idly: they cannot stand still."""
        if not done.any():
            return
        free = np.flatnonzero(done)
        self.active[free[len(self.waiting) :]] = False
        begun = free[: len(self.waiting)]
        self.current[begun], self.waiting = self.waiting[: len(begun)], self.waiting[len(begun) :]
        self.raw, _ = self.envs.reset(seed=self.current.tolist(), options={"reset_mask": done})
        self.control.reset(self.current[done], done)


class _Step(NamedTuple):
    seen: dict[str, NDArray]
    action: NDArray[np.float32]
    fresh: bool
    reward: float


def _fits(policy: Policy, features: dict[str, NDArray]) -> None:
    for name, shape in policy.spec.observations.items():
        got = features[name].shape[1:] if name in features else None
        if got != tuple(shape) and not (got is None and name in policy.spec.optional):
            found = {name: values.shape[1:] for name, values in features.items()}
            raise ValueError(
                f"The environment gives the features {found}, but the policy expects {dict(policy.spec.observations)}: "
                "name the recipe that adapts them, poise evaluate CHECKPOINT --recipe RECIPE"
            )


def _episode(seed: int, record: list[_Step], terminated: bool, told: dict[str, Any]) -> Episode:
    rewards = [step.reward for step in record]
    return Episode(
        seed=seed,
        success=bool(told.get("is_success", terminated)),
        reward_max=max(rewards),
        reward_sum=sum(rewards),
        collision=bool(told["collision"]) if "collision" in told else None,
        mode=int(told["mode"]) if "mode" in told else None,
        measures=told["measures"],
        actions=np.stack([step.action for step in record]),
        fresh=np.array([step.fresh for step in record]),
        observations={name: np.stack([step.seen[name] for step in record]) for name in _common(record)},
    )


def _common(record: list[_Step]) -> list[str]:
    """The features of every step: an optional one may come and go."""
    return [name for name in record[0].seen if all(name in step.seen for step in record)]


@dataclass(frozen=True)
class Latency:
    """Time of one plan for one robot.

    Attributes:
        median: Milliseconds.
        p95: Milliseconds.
        evaluations: Network evaluations, counted.
    """

    median: float
    p95: float
    evaluations: int


def latency(policy: Policy, repeats: int = 30) -> Latency:
    """Time plans of batch 1 on a zero observation, after a few to warm up."""
    observation = policy.blank(1)
    with torch.inference_mode():
        *_, last = policy.trace(observation)
    seconds = []
    for _ in range(repeats + 3):
        begin = time.perf_counter()
        policy.plan(observation).cpu()
        seconds.append(time.perf_counter() - begin)
    timed = 1e3 * np.array(seconds[3:])
    return Latency(float(np.median(timed)), float(np.quantile(timed, 0.95)), last.evaluations)


def summary(episodes: Sequence[Episode], timing: Latency, demonstrated_entropy: float | None = None) -> dict[str, Any]:
    """The figures of one policy, ready for JSON; a figure that does not apply is None.

    Args:
        episodes: Of the policy.
        timing: Of its plans.
        demonstrated_entropy: Entropy of the demonstrators' modes, which that of the successes is divided by.
    """
    success = wilson(sum(e.success for e in episodes), len(episodes))
    reward = bootstrap([e.reward_max for e in episodes])
    collisions = [e.collision for e in episodes if e.collision is not None]
    modes = [e.mode for e in episodes if e.success and e.mode is not None]
    return {
        "success": success.value,
        "success_low": success.low,
        "success_high": success.high,
        "reward_max_mean": reward.value,
        "reward_max_low": reward.low,
        "reward_max_high": reward.high,
        "collision": float(np.mean(collisions)) if collisions else None,
        "mode_entropy": entropy(modes) / demonstrated_entropy if demonstrated_entropy else None,
        "measures": {name: finite_mean([e.measures[name] for e in episodes]) for name in episodes[0].measures},
        "plan_ms_median": timing.median,
        "plan_ms_p95": timing.p95,
        "evaluations": timing.evaluations,
        "jerk": finite_mean([jerk(e.actions) for e in episodes]),
        "seam_jump": finite_mean([seam_jump(e.actions, e.fresh) for e in episodes]),
        "episodes": len(episodes),
    }


__all__ = ["Episode", "Latency", "Slots", "latency", "rollout", "summary"]
