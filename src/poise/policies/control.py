"""Run-time state around a stateless policy: histories, what is left of each plan, and sources of noise."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from poise.policies.policy import Policy
from poise.sampling import per_sample


class RecedingHorizon:
    """Plan, execute the first `execute` actions, plan again; for any number of robots at once.

    Robots need not be in step: each plans when its own plan is used up, and those that plan at the same time share one
    batch. Noise comes from a generator a robot, so a robot's actions do not depend on the others.

    Args:
        policy: Any policy.
        robots: Leading size of observations and actions.

    Attributes:
        fresh: `(robots,)`, whether the last action returned was the first of a new plan.
    """

    def __init__(self, policy: Policy, robots: int = 1) -> None:
        policy.ready()
        self.policy, self.robots = policy.eval(), robots
        spec = policy.spec
        self._history = {
            name: np.zeros((robots, spec.history, *shape), np.float32) for name, shape in spec.observations.items()
        }
        self._plan = np.zeros((robots, spec.horizon, spec.action), np.float32)
        self._noise = [torch.Generator() for _ in range(robots)]
        self._cursor = np.full(robots, spec.execute)
        self._started = np.zeros(robots, bool)
        self.fresh = np.zeros(robots, bool)
        self.reset(range(robots))

    def reset(self, seeds: Sequence[int] | NDArray[np.integer], which: NDArray[np.bool_] | None = None) -> None:
        """Forget history and plan, and seed the noise, of all robots or of those of the mask `which`.

        Args:
            seeds: One seed a robot that is reset, in the order of the robots.
            which: `(robots,)`; None means all.
        """
        chosen = np.arange(self.robots) if which is None else np.flatnonzero(which)
        for robot, seed in zip(chosen, seeds, strict=True):
            self._noise[robot].manual_seed(int(seed))
        self._started[chosen] = False
        self._cursor[chosen] = self.policy.spec.execute

    def act(self, observation: Mapping[str, NDArray], which: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """The next action of every robot, `(robots, action)`, in the units of the data.

        Args:
            observation: Name -> `(robots, ...)`, the current observation; the first one after a reset also fills the
                history.
            which: Robots to act for; the others keep their state and get their last action.

        Raises:
            ValueError: A feature that is missing, of a wrong shape, or not finite.
        """
        active = np.ones(self.robots, bool) if which is None else which
        self._observe(observation, active)
        self.fresh = active & (self._cursor >= self.policy.spec.execute)
        if self.fresh.any():
            self._replan()
        self._cursor[active] += 1
        return self._plan[np.arange(self.robots), self._cursor.clip(1) - 1]

    def _observe(self, observation: Mapping[str, NDArray], active: NDArray[np.bool_]) -> None:
        first, later = active & ~self._started, active & self._started
        for name, history in self._history.items():
            got = np.asarray(observation[name]) if name in observation else None
            expected = (self.robots, *history.shape[2:])
            if got is None or got.shape != expected:
                raise ValueError(
                    f"RecedingHorizon got feature {name!r} of shape {None if got is None else got.shape}, "
                    f"expected {expected}: one current observation a robot"
                )
            history[later, :-1] = history[later, 1:]
            history[later, -1] = got[later]
            history[first] = got[first][:, None]
        self._started |= active

    def _replan(self) -> None:
        robots = np.flatnonzero(self.fresh)
        device = self.policy.action_normaliser.scale.device
        window = {name: torch.as_tensor(history[robots]).to(device) for name, history in self._history.items()}
        plan = self.policy.plan(window, per_sample([self._noise[robot] for robot in robots]))
        self._plan[robots] = plan.cpu().numpy()
        self._cursor[robots] = 0


__all__ = ["RecedingHorizon"]
