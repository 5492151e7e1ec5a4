"""The expert that takes the cube in `Handover`."""

from collections.abc import Mapping
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from poise.envs.experts.partners import UNIT

REACH: Final = 0.06  # m, x of a cube that is within reach
STILL: Final = 0.025  # m/s, of a partner that stands
STANDOFF: Final = 0.07  # m from the cube until the tool is in line with it
HOLDING: Final = 0.75  # opening of a gripper that is closed on the cube
NEAR: Final = 0.012  # m from the cube where the gripper closes
WAITING: Final = (-0.2, 0.5, 0.3)  # m, where it waits
ROOM: Final = 0.12  # m, in x, to a cube that is not offered
BUMPED: Final = 0.08  # m/s, of a partner that stands, where the receiver is at the cube
CLOSE: Final = 0.05  # m, where it is
FIRM: Final = 0.016  # m from the cube where it stays closed
GAIN: Final = 0.35  # of the way to the goal, a control step
RELEASED: Final = 0.8  # opening of the partner's gripper
_LEAD = 0.7  # how much of the lag of the tool counts as done


@final
class HandoverExpert:
    """Waits while the partner moves or is out of reach, takes the cube, and pulls away when the partner has let go.

    An `Expert` for the left arm, which reads nothing but the observation of this control step, and draws nothing.

    Attributes:
        stage: `wait`, `reach`, `grasp`, `hold` or `pull`.
    """

    stage: str = "wait"

    def reset(self, env: Any, seed: int) -> None:
        """Begin; see `Expert.reset`."""
        self.stage = "wait"

    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Displacement and gripper; see `Expert.act`."""
        hand, cube = observation["hand"].astype(np.float64), observation["cube"].astype(np.float64)
        place = hand + cube
        self.stage = self._stage(observation, float(place[0]), float(np.linalg.norm(cube)))
        aside = float(np.linalg.norm(cube[1:]))
        goals = {
            "wait": np.array([min(WAITING[0], place[0] - ROOM), *WAITING[1:]]),
            "reach": place - (float(np.clip(3 * (aside - 0.008), 0, STANDOFF)), 0, 0),
            "pull": hand - (1.0, 0.0, 0.0),
        }
        goal = goals.get(self.stage, place)
        move = GAIN * (goal - hand - _LEAD * observation["lead"])
        closed = self.stage in ("grasp", "hold", "pull")
        return np.array([*np.clip(move / UNIT, -1, 1), 1.0 if closed else -1.0], np.float32)

    def _stage(self, observation: Mapping[str, NDArray[Any]], x: float, distance: float) -> str:
        gripper, released = observation["gripper"][0], observation["partner_gripper"][0] > RELEASED
        near = distance < NEAR or (distance < FIRM and gripper < 0.9)
        if near and observation["touch"].any() and gripper < HOLDING:
            return "pull" if released else "hold"
        # A bump by the receiver itself moves the partner a little: no reason to let go.
        still = np.linalg.norm(observation["partner_velocity"]) < (STILL if distance > CLOSE else BUMPED)
        if not (still and x < REACH):
            return "wait"
        return "grasp" if near else "reach"


__all__ = [
    "BUMPED",
    "CLOSE",
    "FIRM",
    "GAIN",
    "HOLDING",
    "NEAR",
    "REACH",
    "RELEASED",
    "ROOM",
    "STANDOFF",
    "STILL",
    "WAITING",
    "HandoverExpert",
]
