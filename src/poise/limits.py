r"""Limits of what leaves for the robot: range, change, acceleration and jerk of every dimension of an action.

With the differences $v_k = a_k - a_{k-1}$ of what was sent, a robot that begins at rest at its first action, and the
units of the data a control step, every action holds to

$$ l \le a_k \le h, \qquad |v_k| \le c, \qquad |v_k - v_{k-1}| \le b, \qquad |v_k - 2 v_{k-1} + v_{k-2}| \le j $$

as far as they allow each other; where they do not, range goes before change before acceleration before jerk, and to
brake goes before jerk. For a robot that is commanded by velocities the change of an action is its acceleration, and so
on.

An action within all limits is sent as it is. Any other is approached, and so are those after it until one is reached,
by no more than lets the robot brake in time:

$$ v = \max \{ u : u + (u - b)^+ + (u - 2 b)^+ + \dots \le d \}, $$

d being the way to it. Without that, the steps that a limit on acceleration allows would carry a robot past an action
that stays, back, and past it again without end.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from poise.watchdog import Hold

Which = NDArray[np.bool_]
"""`(robots,)`: which of them."""


@dataclass(frozen=True)
class ActionLimits:
    """Limits of every dimension of an action, in the units of the data.

    Attributes:
        low: Smallest action.
        high: Largest action.
        change: Largest difference to the action before; None is no limit.
        acceleration: Largest change of that difference; None is no limit.
        jerk: Largest change of the acceleration; None is no limit.

    Raises:
        ValueError: Limits of unequal numbers, not finite, not positive, or a range that is empty.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    change: tuple[float, ...] | None = None
    acceleration: tuple[float, ...] | None = None
    jerk: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        rates = [limit for limit in (self.change, self.acceleration, self.jerk) if limit is not None]
        same = len({len(limit) for limit in (self.low, self.high, *rates)}) == 1
        positive = all(0 < bound < np.inf for limit in rates for bound in limit)
        if not (same and positive and all(-np.inf < a <= b < np.inf for a, b in zip(self.low, self.high, strict=True))):
            raise ValueError(
                f"got {self}, expected finite numbers, one a dimension of the action in every limit: low <= high, and "
                "the others above 0"
            )

    def limit(
        self, wanted: NDArray, past: NDArray, behind: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], dict[str, NDArray[np.bool_]]]:
        """The actions to send in place of those that are wanted.

        Args:
            wanted: `(robots, action)`, finite.
            past: The last three actions that were sent, oldest first, `(robots, 3, action)`.
            behind: Where the last one was not what was wanted, `(robots, action)`; see `behind`.

        Returns:
            The actions, and by name of each limit which robots it changed the action of, `(robots,)`.
        """
        wanted, past = np.asarray(wanted, np.float64), np.asarray(past, np.float64)
        last, before = past[:, 2], np.diff(past, axis=1)
        v, v1, held = wanted - last, before[:, 1], 2 * before[:, 1] - before[:, 0]
        c, b, j = (
            np.inf if limit is None else np.array(limit) for limit in (self.change, self.acceleration, self.jerk)
        )
        broken: dict[str, NDArray[np.bool_]] = {
            "range": (wanted < self.low) | (wanted > self.high),
            "change": np.abs(v) > c,
            "acceleration": np.abs(v - v1) > b,
            "jerk": np.abs(v - held) > j,
        }
        way = wanted.clip(self.low, self.high) - last
        towards = np.sign(way)
        # Of jerk only what speeds a robot up is limited: it must be free to brake.
        step = towards * np.minimum(_braking(np.abs(way), b), (towards * held + j).clip(0))
        sent = (last + step.clip(v1 - b, v1 + b).clip(-c, c)).clip(self.low, self.high)
        over = np.logical_or.reduce(list(broken.values()))
        sent = np.where(over | behind, sent, wanted)
        broken["acceleration"] |= ~over & (sent != wanted)  # to brake in time
        return sent, {name: np.asarray(where.any(1)) for name, where in broken.items()}

    def behind(self, sent: NDArray, wanted: NDArray) -> NDArray[np.bool_]:
        """Where what was sent is not what was wanted, but for rounding, `(robots, action)`."""
        rounding = 1e-12 * np.subtract(self.high, self.low)
        return np.asarray(np.abs(sent - wanted) > 1e-6 * np.abs(wanted) + rounding)


def _braking(way: NDArray, b: NDArray | float) -> NDArray:
    """The largest step from which a robot can brake within the way: n b + r with the most whole n that fit."""
    finite = np.where(np.isfinite(b), b, 1.0)
    n = np.where(np.isfinite(b), np.floor((np.sqrt(1 + 8 * way / finite) - 1) / 2), 0)
    return (way + finite * n * (n + 1) / 2) / (n + 1)


class Guard:
    """What robots were sent, and what they may be sent next; their first action is held to the range alone.

    What holds is sent as it is, since it must work when nothing else does.

    Args:
        limits: Of the actions.
        robots: Their number.
        hold: What an action becomes while a robot holds: `repeated`, or `zeroed` for velocities.

    Attributes:
        begun: `(robots,)`, whether anything was sent since the last reset.
        interventions: What was done so far, in steps of one robot: `steps` that were sent, and those that wanted to
            break the `range`, `change`, `acceleration` or `jerk`. A step may count under several.
    """

    def __init__(self, limits: ActionLimits, robots: int, hold: Hold) -> None:
        self.limits, self._hold = limits, hold
        self._past = np.zeros((robots, 3, len(limits.low)), np.float32)
        self._behind = np.zeros(self._past[:, 0].shape, bool)
        self.begun = np.zeros(robots, bool)
        self.interventions: Counter[str] = Counter()

    @property
    def last(self) -> NDArray[np.float32]:
        """What was sent last, `(robots, action)`; zeros before anything was."""
        return self._past[:, 2].copy()

    def reset(self, which: Which | slice = slice(None)) -> None:
        """Forget what was sent."""
        self.begun[which] = self._behind[which] = False

    def send(self, wanted: NDArray, which: Which) -> None:
        """Send what is wanted, `(robots, action)`, as near as the limits allow; it is `last` then."""
        begins = which & ~self.begun
        self._past[begins] = wanted[begins, None].clip(self.limits.low, self.limits.high)
        sent, broken = self.limits.limit(wanted[which], self._past[which], self._behind[which])
        self._behind[which] = self.limits.behind(sent, wanted[which])
        self._sent(sent, which)
        self.interventions.update(counted({"steps": which, **broken}))

    def hold(self, which: Which) -> None:
        """Hold robots that were sent something; the next action goes on from there."""
        self._behind[which] = False
        self._sent(self._hold(self._past[which, 2]), which)

    def _sent(self, actions: NDArray, which: Which) -> None:
        self._past[which] = np.concatenate([self._past[which, 1:], actions[:, None]], axis=1)
        self.begun |= which


def counted(where: Mapping[str, NDArray[np.bool_]]) -> dict[str, int]:
    """How many robots, by name, without those that are none."""
    return {name: int(robots.sum()) for name, robots in where.items() if robots.any()}


__all__ = ["ActionLimits", "Guard", "counted"]
