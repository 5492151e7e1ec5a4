"""Temporal ensembling: a plan at every step, and the average of what all of them say about now."""

import numpy as np
from numpy.typing import NDArray

from poise.policies.memory import Age, Mask, Memory, Seeds, Seen
from poise.policies.policy import Policy


class TemporalEnsemble:
    r"""Plan at every control step and average what all plans say about now (Zhao et al. 2023, arXiv 2304.13705).

    $$ a = \frac{\sum_i e^{-m i}\, a^{(i)}}{\sum_i e^{-m i}}, $$

    over the plans that reach to now, i = 0 the oldest; m is the decay. It smooths, at a plan a step.

    An average is a good action only where the plans agree. Where demonstrations took several ways, plans from other
    noise may take other ones, and their mean is none of them: left and right of an obstacle average to straight into
    it. For such policies use `RecedingHorizon` or `WarmStart`, or a low temperature, or a large negative decay, which
    follows the newest plan.

    Args:
        policy: Any policy; `execute` of its spec does not matter.
        robots: Their number.
        decay: m; 0 weighs all plans alike, above it the oldest count most, below it the newest.

    Attributes:
        fresh: `(robots,)`, True for the robots that acted: every step makes a plan.
    """

    def __init__(self, policy: Policy, robots: int = 1, decay: float = 0.01) -> None:
        self.robots, self.decay, self.fresh = robots, decay, np.zeros(robots, bool)
        self._memory, horizon = Memory(policy, robots), policy.spec.planned
        # No plan lives longer than its steps, so the plan of step t takes the place t modulo their number.
        self._plans = np.zeros((robots, horizon, horizon, policy.spec.action), np.float32)
        self._made, self._begin = np.full((robots, horizon), -1), np.zeros((robots, horizon), int)
        self._action = np.zeros((robots, policy.spec.action), np.float32)

    def reset(self, seeds: Seeds, which: Mask = None) -> None:
        """Forget history and plans, and seed the noise; see `Controller.reset`."""
        self._made[self._memory.reset(seeds, which)] = -1

    def act(self, observation: Seen, which: Mask = None, age: Age = None) -> NDArray[np.float32]:
        """The action of every robot for now; see `Controller.act`."""
        memory = self._memory
        self.fresh = memory.observe(observation, which, age)
        robots = np.flatnonzero(self.fresh)
        if len(robots):
            place = memory.now[robots] % self._plans.shape[1]
            self._plans[robots, place] = memory.plan(robots)
            self._made[robots, place], self._begin[robots, place] = memory.now[robots], memory.seen[robots]
            self._action[robots] = self._average()[robots]
        return self._action.copy()

    def _average(self) -> NDArray[np.float64]:
        robots, horizon = self._made.shape
        index = self._memory.now[:, None] - self._begin
        alive = (self._made >= 0) & (index < horizon)
        said = self._plans[np.arange(robots)[:, None], np.arange(horizon), index.clip(0, horizon - 1)]
        return ensembled(said, self._made, alive, self.decay)


def ensembled(
    said: NDArray[np.float32], made: NDArray[np.integer], alive: NDArray[np.bool_], decay: float
) -> NDArray[np.float64]:
    """What plans say about now, averaged with the weights of `TemporalEnsemble`.

    Args:
        said: `(robots, plans, action)`.
        made: When each plan was made, `(robots, plans)`.
        alive: Whether it says anything, `(robots, plans)`; a robot without any gets zeros.
        decay: m.
    """
    oldest = np.where(alive, made, np.iinfo(int).max).min(1, keepdims=True)
    exponent = np.where(alive, -decay * (made - oldest), -np.inf)
    # The largest weight is one, so that none overflows; a robot that never acted has none.
    weight = np.exp(exponent - exponent.max(1, keepdims=True, initial=-1e300))
    return (weight[..., None] * said).sum(1) / weight.sum(1, keepdims=True).clip(1e-300)


__all__ = ["TemporalEnsemble", "ensembled"]
