"""Limits of what leaves for the robot, from its demonstrations, and controllers that keep them; see `poise.limits`."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from poise.data.mapped import relieve
from poise.limits import ActionLimits, Guard, counted
from poise.plain import from_plain, to_plain
from poise.policies.control import Controller
from poise.policies.memory import Age, Mask, Seeds, Seen
from poise.watchdog import Hold

_NEARLY_CONSTANT = 1e-4  # as in normalisers: a dimension that hardly moves is not held to its rounding
_NOTE = "safety"


@dataclass(frozen=True)
class Safety(ActionLimits):
    """Limits that are taken from demonstrations, and kept in the notes of a checkpoint."""

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

    def __init__(self, controller: Controller, safety: ActionLimits, hold: Hold) -> None:
        self._controller, self.robots = controller, controller.robots
        self._guard, self._rejected = Guard(safety, self.robots, hold), np.zeros(self.robots, bool)
        self.interventions = self._guard.interventions

    @property
    def fresh(self) -> NDArray[np.bool_]:
        """Whether the last action returned was the first of a new plan, `(robots,)`."""
        return self._controller.fresh

    def reset(self, seeds: Seeds, which: Mask = None) -> None:
        """Reset the controller, and forget what was sent."""
        self._controller.reset(seeds, which)
        chosen = slice(None) if which is None else which
        self._guard.reset(chosen)
        self._rejected[chosen] = False

    def act(self, observation: Seen, which: Mask = None, age: Age = None) -> NDArray[np.float32]:
        """The actions of the controller, within the limits; see `Controller.act`.

        Raises:
            ValueError: The first action after a reset is not finite, so that there is nothing to hold, or has another
                number of dimensions than the limits.
        """
        wanted, guard = self._controller.act(observation, which, age), self._guard
        if wanted.shape != guard.last.shape:
            raise ValueError(
                f"Safe got actions of shape {wanted.shape} and limits of {guard.last.shape[1]} dimensions, expected as "
                "many: take the limits of this policy's own demonstrations"
            )
        active = np.ones(self.robots, bool) if which is None else np.asarray(which, bool)
        finite = np.isfinite(wanted).all(1)
        self._rejected = np.where(active, ~finite | (self._rejected & ~self.fresh), self._rejected)
        nothing = active & ~guard.begun & ~finite
        if nothing.any():
            raise ValueError(
                f"the first action of robot {np.flatnonzero(nothing)[0]} holds NaN or infinity, expected "
                "finite numbers: there is no action before it to hold, so repair the policy before the robot moves"
            )
        held = active & self._rejected
        guard.send(wanted, active & ~self._rejected)
        guard.hold(held)
        self.interventions.update(counted({"steps": held, "rejected": held}))
        return guard.last


def limited(
    plans: NDArray, safety: ActionLimits, past: NDArray | None = None
) -> tuple[NDArray[np.float32], Counter[str]]:
    """Plans within limits, for a server that hands out whole ones.

    Args:
        plans: `(B, planned, action)`, or one `(planned, action)`.
        safety: The limits.
        past: The last three actions that were sent, oldest first, `(B, 3, action)` or `(3, action)`, where the robot
            goes on from them at index 0. None takes it that the robot already moves as the plan begins, for a plan
            tells nothing of what was sent before it; `poise.robot.Robot` holds to the limits what it sends.

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
    begin = _moving(rows, safety) if past is None else past
    sent, done = np.array(begin, np.float64).reshape(-1, 3, rows.shape[2]), Counter[str]()
    behind = np.zeros(rows[:, 0].shape, bool)
    for index in range(rows.shape[1]):
        action, broken = safety.limit(rows[:, index], sent[:, -3:], behind)
        behind = safety.behind(action, rows[:, index])
        sent = np.concatenate([sent, action[:, None]], axis=1)
        done.update(counted({"steps": np.ones(len(rows), bool), **broken}))
    return sent[:, 3:].reshape(np.shape(plans)).astype(np.float32), done


def _moving(rows: NDArray, safety: ActionLimits) -> NDArray:
    """Three actions before each plan that go on into it at the speed of its first step, as far as that is allowed."""
    first = rows[:, :1].clip(safety.low, safety.high)
    step = np.diff(rows[:, :2].clip(safety.low, safety.high), axis=1) if rows.shape[1] > 1 else np.zeros_like(first)
    if safety.change is not None:
        step = step.clip(np.negative(safety.change), safety.change)
    return first - step * np.array([3.0, 2.0, 1.0])[:, None]


__all__ = ["Safe", "Safety", "limited"]
