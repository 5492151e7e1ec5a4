"""Warm starts: the last plan, moved on and made noisy again, is where the next one begins."""

import numpy as np
import torch
from numpy.typing import NDArray

from poise.policies.control import RecedingHorizon
from poise.policies.diffusion import DiffusionPolicy
from poise.policies.memory import Age, Mask, Memory, Robots, Seeds, Seen


class WarmStart:
    r"""A receding horizon whose plans start from the one before, noisy up to the time `begin`.

    $$ x_t = \alpha_t \hat x_0 + \sigma_t \epsilon, \qquad t = \text{begin}, $$

    where $\hat x_0$ is the last plan without the steps that have passed, its last action repeated at the end. What
    is left of the way from noise is shorter, so fewer evaluations go the same strides; and a plan keeps to the way that
    the last one took, unless begin is near 1 (compare Janner et al. 2022, arXiv 2205.09991). The first plan after a
    reset starts from pure noise with the evaluations of the policy's spec.

    Args:
        policy: A diffusion policy.
        robots: Their number.
        begin: Time between 0 and 1, both exclusive: how noisy. Nearer 0 a plan cannot leave the last one, of which
            `execute` near the horizon leaves little but its repeated last action: then stay near 1.
        evaluations: Network evaluations a warm plan; by default the share `begin` of the policy's, at least 1.

    Attributes:
        fresh: `(robots,)`, whether the last action returned was the first of a new plan.

    Raises:
        ValueError: A policy without a diffusion, a time outside (0, 1), or evaluations that the sampler or the grid
            cannot spend from there.
    """

    def __init__(
        self, policy: DiffusionPolicy, robots: int = 1, begin: float = 0.8, evaluations: int | None = None
    ) -> None:
        if not isinstance(policy, DiffusionPolicy):
            raise ValueError(
                f"WarmStart got a {type(policy).__name__}, expected a DiffusionPolicy: only a diffusion can begin at "
                "an earlier plan; run another policy by RecedingHorizon"
            )
        if not 0 < begin < 1:
            raise ValueError(
                f"WarmStart got begin={begin}, expected 0 < begin < 1: a time between data and noise; for plans from "
                "pure noise use RecedingHorizon"
            )
        spec = policy.spec
        count = max(1, round(begin * spec.evaluations)) if evaluations is None else evaluations
        # Whatever cannot be planned is refused here, not when the robot moves.
        spec.grid.times(spec.schedule, len(spec.sampler.budget(count)), begin)
        self.robots, self.begin, self._warm = robots, begin, policy.eval().using(evaluations=count)
        self._control = RecedingHorizon(policy, robots, self._plan)
        self._previous = np.zeros((robots, spec.planned, spec.action), np.float32)
        self._taken, self._known = np.zeros(robots, int), np.zeros(robots, bool)

    @property
    def fresh(self) -> NDArray[np.bool_]:
        """Whether the last action returned was the first of a new plan, `(robots,)`."""
        return self._control.fresh

    def reset(self, seeds: Seeds, which: Mask = None) -> None:
        """Forget history and plan, and seed the noise; see `Controller.reset`."""
        self._control.reset(seeds, which)
        self._known[slice(None) if which is None else which] = False

    def act(self, observation: Seen, which: Mask = None, age: Age = None) -> NDArray[np.float32]:
        """The action of every robot for now; see `Controller.act`."""
        return self._control.act(observation, which, age)

    def _plan(self, memory: Memory, robots: Robots) -> NDArray[np.float32]:
        cold, warm = robots[~self._known[robots]], robots[self._known[robots]]
        if len(cold):
            self._previous[cold] = memory.plan(cold)
        if len(warm):
            self._previous[warm] = self._replan(memory, warm)
        self._taken[robots], self._known[robots] = memory.seen[robots], True
        return self._previous[robots]

    def _replan(self, memory: Memory, robots: Robots) -> NDArray[np.float32]:
        window, horizon = memory.window(robots), self._previous.shape[1]
        index = np.arange(horizon) + (memory.seen - self._taken)[robots, None]
        shifted = self._previous[robots[:, None], index.clip(max=horizon - 1)]
        previous = torch.as_tensor(shifted).to(next(iter(window.values())).device)
        return self._warm.replan(window, previous, self.begin, memory.noise(robots)).cpu().numpy()


__all__ = ["WarmStart"]
