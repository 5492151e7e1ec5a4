"""Scripted partners, which drive one agent of two; see `Partnered`."""

from collections.abc import Mapping
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

RATE: Final = 20  # control steps a second
UNIT: Final = 0.015  # m that a tool's target moves for an action of 1
HESITATIONS: Final = ("none", "pause", "withdraw")
OFFERS: Final = ((-0.09, 0.42, 0.22), (0.02, 0.58, 0.38))  # m, corners of where the tool offers
PAUSES: Final = (0.09, 0.12)  # m, x of the tool where it stops half-way, out of reach
DELAY: Final = (0.0, 1.0)  # s before it moves
SPEED: Final = (0.1, 0.22)  # m/s
DURATION: Final = (0.5, 1.5)  # s, of a pause, and of a withdrawal once it is back
PATIENCE: Final = (0.1, 0.5)  # s that an offer stands before it is withdrawn
BACK: Final = 0.09  # m, x of the tool that has withdrawn, out of reach
CLOSE: Final = 0.05  # m from the cube where the receiver may have it, whatever the partner was about
FIRM: Final = 0.016  # m from the cube where the receiver can hold it firmly
FEELING: Final = (0.15, 0.4)  # s that the receiver must hold the cube before it is let go
_LAG = 0.012  # m that the tool stays behind its target, at most, when it stands


@final
class HandoverPartner:
    """Brings the cube to a random place, at a random time and speed, and lets go once the receiver holds it.

    In half of the episodes it hesitates: it stops half-way for a while, or withdraws its offer once, unless the
    receiver is at the cube by then. An `Expert` for the right arm of `Handover`.

    Attributes:
        stage: `wait`, `bring`, `pause`, `offer`, `withdraw`, `away` or `release`.
        hesitation: `none`, `pause` or `withdraw`.
    """

    stage: str = "wait"

    def reset(self, env: Any, seed: int) -> None:
        """Draw place, time, speed and hesitation; see `Expert.reset`."""
        draw = np.random.default_rng(seed)
        self._env, self.stage = env, "wait"
        self.hesitation = str(draw.choice(HESITATIONS, p=(0.5, 0.25, 0.25)))
        self.offer = draw.uniform(*OFFERS)
        self._pause_at = draw.uniform(*PAUSES)
        self.speed = float(draw.uniform(*SPEED))
        self._delay, self._duration, self._patience, self._feeling = (
            round(RATE * float(draw.uniform(*seconds))) for seconds in (DELAY, DURATION, PATIENCE, FEELING)
        )
        self._since = self._felt = 0
        self._hesitates = self.hesitation != "none"
        self._target = self._tool()

    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Displacement and gripper; see `Expert.act`. What is not observed it reads from the environment."""
        receiver = float(np.linalg.norm(self._env.simulation.tool("left") - self._env.cube))
        self._felt = self._felt + 1 if self._env.held("left") and receiver < FIRM else 0
        self._close = receiver < CLOSE
        self._since += 1
        following = self._next()
        if following != self.stage:
            self.stage, self._since = following, 0
        away = np.array([BACK, *self.offer[1:]])
        goal = {"bring": self.offer, "offer": self.offer, "withdraw": away, "away": away}.get(self.stage, self._target)
        step, longest = goal - self._target, self.speed / RATE
        step *= min(1.0, longest / max(float(np.linalg.norm(step)), 1e-9))
        self._target = self._target + step
        return np.array([*np.clip(step / UNIT, -1, 1), -1.0 if self.stage == "release" else 1.0], np.float32)

    def _next(self) -> str:
        """The stage that follows; most often the same."""
        there = np.linalg.norm(self._tool() - self.offer) < _LAG
        if self._felt >= self._feeling or self.stage == "release":
            return "release"
        if (
            self.stage == "bring"
            and self.hesitation == "pause"
            and self._hesitates
            and self._tool()[0] < self._pause_at
        ):
            self._hesitates = False
            return "pause"
        if self.stage == "offer" and self.hesitation == "withdraw" and self._hesitates and self._since > self._patience:
            self._hesitates = False
            return "offer" if self._close else "withdraw"
        changes = {
            "wait": (self._since > self._delay, "bring"),
            "bring": (there, "offer"),
            "pause": (self._since > self._duration, "bring"),
            "withdraw": (self._tool()[0] > BACK - _LAG, "away"),
            "away": (self._since > self._duration, "bring"),
        }
        changed, following = changes.get(self.stage, (False, self.stage))
        return following if changed else self.stage

    def _tool(self) -> NDArray[np.float64]:
        return self._env.simulation.tool("right")


__all__ = [
    "BACK",
    "CLOSE",
    "DELAY",
    "DURATION",
    "FEELING",
    "FIRM",
    "HESITATIONS",
    "OFFERS",
    "PATIENCE",
    "PAUSES",
    "RATE",
    "SPEED",
    "UNIT",
    "HandoverPartner",
]
