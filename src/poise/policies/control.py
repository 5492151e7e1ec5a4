"""Controllers: run-time state around a stateless policy, for any number of robots at once."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from poise.policies.memory import Age, Mask, Memory, Robots, Seeds, Seen
from poise.policies.policy import Policy

Planner = Callable[[Memory, Robots], NDArray[np.float32]]
"""`(memory, robots) -> plans (len(robots), planned, action)`: how a controller plans for some of its robots."""


class Controller(Protocol):
    """What turns the observation of every control step into the action of that step.

    Robots need not be in step, and what one of them does depends on its own seed and observations alone, up to the
    rounding of batched arithmetic.
    """

    @property
    def robots(self) -> int:
        """Leading size of observations and actions."""
        ...

    @property
    def fresh(self) -> NDArray[np.bool_]:
        """Whether the last action returned was the first of a new plan, `(robots,)`."""
        ...

    def reset(self, seeds: Seeds, which: Mask = None) -> None:
        """Forget history and plan, and seed the noise, of all robots or of those of the mask `which`.

        Args:
            seeds: One seed a robot that is reset, in the order of the robots.
            which: `(robots,)`; None means all.
        """
        ...

    def act(self, observation: Seen, which: Mask = None, age: Age = None) -> NDArray[np.float32]:
        """The action of every robot for now, `(robots, action)`, in the units of the data: one control step.

        Args:
            observation: Name -> `(robots, ...)`, images as uint8; the first one after a reset also fills the history.
                An optional feature may be missing, for all of the robots; when it comes back its history begins anew.
            which: Robots to act for; the others keep their state and get their last action.
            age: Control steps since the observation was taken, one number or `(robots,)`; None means that it is of now.
                A plan begins at the moment of its observation, so with age d its first d actions are in the past and
                are left out. The history holds one observation a control step by the times at which they were taken.

        Raises:
            ValueError: A feature that is missing, of a wrong shape or type, or not finite; an age that is negative,
                leaves no action of a plan, or makes an observation older than the newest one that was used.
        """
        ...


Control = Callable[[Any, int], Controller]
"""`(policy, robots) -> controller`, such as `RecedingHorizon`; some take policies of one kind only."""


class RecedingHorizon:
    """Plan, execute the first `execute` actions, plan again (Chi et al. 2023, arXiv 2303.04137); a `Controller`.

    Each robot plans when its own plan is used up, and those that plan at the same time share one batch. Of a plan from
    an observation of age d, the actions d to d + execute - 1 are executed, or fewer where it ends before.

    Args:
        policy: Any policy.
        robots: Their number.
        planner: How plans are made, by default from pure noise.

    Attributes:
        fresh: `(robots,)`, whether the last action returned was the first of a new plan.
    """

    def __init__(self, policy: Policy, robots: int = 1, planner: Planner = Memory.plan) -> None:
        self.robots, self.fresh = robots, np.zeros(robots, bool)
        self._memory, self._planner, self._spec = Memory(policy, robots), planner, policy.spec
        self._plan = np.zeros((robots, policy.spec.planned, policy.spec.action), np.float32)
        self._next, self._end = np.zeros(robots, int), np.zeros(robots, int)

    def reset(self, seeds: Seeds, which: Mask = None) -> None:
        """Forget history and plan, and seed the noise; see `Controller.reset`."""
        chosen = self._memory.reset(seeds, which)
        self._next[chosen] = self._end[chosen] = 0

    def act(self, observation: Seen, which: Mask = None, age: Age = None) -> NDArray[np.float32]:
        """The action of every robot for now; see `Controller.act`."""
        memory = self._memory
        active = memory.observe(observation, which, age)
        self.fresh = active & (self._next >= self._end)
        robots = np.flatnonzero(self.fresh)
        if len(robots):
            self._plan[robots] = self._planner(memory, robots)
            self._next[robots] = (memory.now - memory.seen)[robots]
            self._end[robots] = np.minimum(self._next[robots] + self._spec.execute, self._spec.planned)
        self._next[active] += 1
        return self._plan[np.arange(self.robots), self._next.clip(1) - 1]


__all__ = ["Control", "Controller", "Planner", "RecedingHorizon"]
