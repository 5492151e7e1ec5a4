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
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from poise.data.mapped import relieve
from poise.plain import from_plain, to_plain
from poise.policies.control import Controller
from poise.policies.memory import Age, Mask, Seeds, Seen
from poise.watchdog import Hold

_NEARLY_CONSTANT = 1e-4  # as in normalisers: a dimension that hardly moves is not held to its rounding
_NOTE = "safety"


@dataclass(frozen=True)
class Safety:
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

    @classmethod
    def fit(
        cls, actions: ArrayLike | Tensor, starts: ArrayLike | Tensor, quantile: float = 1.0, margin: float = 0.1
    ) -> "Safety":
        """The limits that demonstrations keep, widened by a margin.

        Args:
            actions: `(rows, action)`, such as `windows.actions` or `episodes.features["action"]`.
            starts: First row of every episode, such as `windows.starts` or `episodes.starts`.
            quantile: Share of the demonstrations within the limits before they are widened; 1 takes the extremes. Below
                1 it leaves out glitches of a recording.
            margin: The range is widened at both ends by this share of it, and the other limits by it too. With
                `quantile=1` demonstrations themselves are never touched.

        Raises:
            ValueError: A quantile outside (1/2, 1], a negative margin, or no actions.
        """
        rows, begin = (v.numpy(force=True) if isinstance(v, Tensor) else np.asarray(v) for v in (actions, starts))
        if not (0.5 < quantile <= 1 and margin >= 0 and rows.ndim == 2 and len(rows) and len(begin)):
            raise ValueError(
                f"Safety.fit got actions of shape {rows.shape} in {begin.shape} episodes, quantile={quantile} and "
                f"margin={margin}, expected (rows, action) in one episode or more, a quantile in (1/2, 1] and a margin "
                "of 0 or more"
            )
        low, high, rates = [], [], []
        for column in rows.T:
            difference = column.astype(np.float64)
            low.append(np.quantile(difference, 1 - quantile))
            high.append(np.quantile(difference, quantile))
            rates.append([])
            for _ in range(3):
                difference = np.diff(difference, prepend=0.0)
                difference[begin] = 0.0  # at rest
                rates[-1].append(np.quantile(np.abs(difference), quantile))
            relieve()  # where the actions are mapped
        wider = margin * np.maximum(np.subtract(high, low), _NEARLY_CONSTANT)
        limits = (np.subtract(low, wider), np.add(high, wider), *(1 + margin) * np.maximum(rates, _NEARLY_CONSTANT).T)
        return cls(*(tuple(limit.tolist()) for limit in limits))

    @classmethod
    def of(cls, notes: Mapping[str, Any]) -> "Safety":
        """The limits that `poise train` noted in a checkpoint, `Safety.of(load_checkpoint(path).notes)`.

        Raises:
            ValueError: There are none, or what is noted are no limits.
        """
        if _NOTE not in notes:
            raise ValueError(
                f"got a checkpoint whose notes hold {sorted(notes)}, expected the limits of its demonstrations under "
                f"{_NOTE!r}, which poise train writes: take them from the data by limits = Safety.fit(actions, starts) "
                f"and save the policy again by policy.save(path, {{**notes, {_NOTE!r}: to_plain(limits)}})"
            )
        try:
            limits = from_plain(notes[_NOTE], {cls.__name__: cls})
        except (TypeError, ValueError) as error:
            limits = error
        if not isinstance(limits, cls):
            raise ValueError(f"got the limits {notes[_NOTE]!r} ({limits}), expected those that poise train writes")
        return limits

    def noted(self) -> dict[str, Any]:
        """The note of a checkpoint that `of` reads."""
        return {_NOTE: to_plain(self)}

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


class Safe:
    """Any controller, whose actions leave within limits; a `Controller`.

    Where an action is not finite its whole plan is rejected: the robot holds until the first action of another one.
    What holds is sent as it is, since it must work when nothing else does.

    Args:
        controller: What acts.
        safety: The limits, such as `Safety.of(notes)` of a checkpoint.
        hold: What replaces actions that are not finite: `repeated`, or `zeroed` for velocities.

    Attributes:
        interventions: What was done so far, resets included, in steps of one robot: `steps` that it acted, those
            `rejected` for NaN or infinity, and those that wanted to break the `range`, `change`, `acceleration` or
            `jerk`. A step may count under several.
    """

    def __init__(self, controller: Controller, safety: Safety, hold: Hold) -> None:
        self._controller, self._safety, self._hold, self.robots = controller, safety, hold, controller.robots
        self._past = np.zeros((self.robots, 3, len(safety.low)), np.float32)
        self._behind = np.zeros(self._past[:, 0].shape, bool)
        self._begun, self._rejected = np.zeros(self.robots, bool), np.zeros(self.robots, bool)
        self.interventions: Counter[str] = Counter()

    @property
    def fresh(self) -> NDArray[np.bool_]:
        """Whether the last action returned was the first of a new plan, `(robots,)`."""
        return self._controller.fresh

    def reset(self, seeds: Seeds, which: Mask = None) -> None:
        """Reset the controller, and forget what was sent."""
        self._controller.reset(seeds, which)
        chosen = slice(None) if which is None else which
        self._begun[chosen] = self._rejected[chosen] = False
        self._behind[chosen] = False

    def act(self, observation: Seen, which: Mask = None, age: Age = None) -> NDArray[np.float32]:
        """The actions of the controller, within the limits; see `Controller.act`.

        Raises:
            ValueError: The first action after a reset is not finite, so that there is nothing to hold, or has another
                number of dimensions than the limits.
        """
        wanted = self._controller.act(observation, which, age)
        if wanted.shape != self._past[:, 0].shape:
            raise ValueError(
                f"Safe got actions of shape {wanted.shape} and limits of {self._past.shape[2]} dimensions, expected as "
                "many: take the limits of this policy's own demonstrations"
            )
        active = np.ones(self.robots, bool) if which is None else np.asarray(which, bool)
        finite = np.isfinite(wanted).all(1)
        self._rejected = np.where(active, ~finite | (self._rejected & ~self.fresh), self._rejected)
        begins = active & ~self._begun
        if (begins & ~finite).any():
            raise ValueError(
                f"the first action of robot {np.flatnonzero(begins & ~finite)[0]} holds NaN or infinity, expected "
                "finite numbers: there is no action before it to hold, so repair the policy before the robot moves"
            )
        self._past[begins] = wanted[begins, None].clip(self._safety.low, self._safety.high)
        self._begun |= active
        moves, holds = active & ~self._rejected, active & self._rejected
        sent = self._past[:, 2].copy()
        sent[moves], broken = self._safety.limit(wanted[moves], self._past[moves], self._behind[moves])
        sent[holds] = self._hold(sent[holds])
        self._behind[active] = self._safety.behind(sent[active], wanted[active])
        self._past[active] = np.concatenate([self._past[active, 1:], sent[active, None]], axis=1)
        self.interventions.update(_counted({"steps": active, "rejected": holds, **broken}))
        return sent


def limited(plans: NDArray, safety: Safety, past: NDArray | None = None) -> tuple[NDArray[np.float32], Counter[str]]:
    """Plans within limits, for a server that hands out whole ones.

    Args:
        plans: `(B, planned, action)`, or one `(planned, action)`.
        safety: The limits.
        past: The last three actions that were sent, oldest first, `(B, 3, action)` or `(3, action)`, where the robot
            goes on from them at index 0; None begins at rest at the first action of the plan.

    Returns:
        The plans, and counts of what was changed, as `Safe.interventions` has them.

    Raises:
        ValueError: A plan that holds NaN or infinity, whose robot must hold, or of other dimensions than the limits.
    """
    rows = np.asarray(plans, np.float64).reshape(-1, *np.shape(plans)[-2:])
    if not np.isfinite(rows).all() or rows.shape[2] != len(safety.low):
        raise ValueError(
            f"got plans of shape {np.shape(plans)} for limits of {len(safety.low)} dimensions, "
            f"{'all' if np.isfinite(rows).all() else 'some not'} finite, expected finite plans of these dimensions: "
            "reject the whole plan, and hold the robot until another one comes"
        )
    begin = rows[:, :1].repeat(3, 1).clip(safety.low, safety.high) if past is None else past
    sent, done = np.array(begin, np.float64).reshape(-1, 3, rows.shape[2]), Counter[str]()
    behind = np.zeros(rows[:, 0].shape, bool)
    for index in range(rows.shape[1]):
        action, broken = safety.limit(rows[:, index], sent[:, -3:], behind)
        behind = safety.behind(action, rows[:, index])
        sent = np.concatenate([sent, action[:, None]], axis=1)
        done.update(_counted({"steps": np.ones(len(rows), bool), **broken}))
    return sent[:, 3:].reshape(np.shape(plans)).astype(np.float32), done


def _counted(where: Mapping[str, NDArray[np.bool_]]) -> dict[str, int]:
    return {name: int(robots.sum()) for name, robots in where.items() if robots.any()}


__all__ = ["Safe", "Safety", "limited"]
