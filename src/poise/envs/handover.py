"""Handover: one arm of ALOHA offers a cube, the other takes it.

Importing this module registers `poise/Handover-v0` with Gymnasium, which needs the extra `manipulation`. There the
right arm is a scripted `HandoverPartner`, and a policy drives the left one, the receiver. `Handover` itself takes the
actions of both.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, final

import gymnasium
import numpy as np
from numpy.typing import NDArray

from poise.envs.aloha import Aloha, pointing
from poise.envs.cameras import Cameras
from poise.envs.episodic import Episodic, Observation
from poise.envs.experts.partners import RATE, UNIT, HandoverPartner
from poise.envs.partner import Partnered

STEPS: Final = 300  # control steps of an episode at most; the expert needs 60 to 220
LEASH: Final = 0.04  # m from the tool that its target may be
ZONE: Final = 0.06  # m: a cube that stands still at a smaller x is offered
APART: Final = 0.08  # m between the tools, of a handover that is done
DONE: Final = 5  # control steps that the receiver must hold the cube alone
LOW: Final = (-0.25, 0.3, 0.1)  # m, corners of where the tools may be told to go
HIGH: Final = (0.25, 0.7, 0.5)

_SHAPES = {
    **dict.fromkeys(("hand", "lead", "cube", "cube_velocity", "partner", "partner_velocity"), (3,)),
    **{"gripper": (1,), "touch": (2,), "partner_gripper": (1,)},
}
_JOINT, _CUBE = "red_box_joint", "red_box"
_ROLLS = {"left": np.pi / 2, "right": 0.0}
_START = {"left": (-0.2, 0.5, 0.3), "right": (0.18, 0.5, 0.3)}  # m, of the tools
_SPREAD = (0.02, 0.06, 0.05)  # m to either side
_COMMANDED = 0.02  # of an action, above which the partner is told to move
_PICTURE = 480  # pixels of a side
_SETTLING = 12  # control steps in which the partner closes its gripper on the cube


@final
class Handover(Episodic):
    """Two arms at a table; the right one holds a cube of 4 cm, and the left one is to have it.

    An action is `(8,)` within [-1, 1], four numbers an arm, left before right: a displacement of the target of the
    tool, one unit 1.5 cm and axis, and how far the gripper is to be closed, from open -1 to closed 1, 20 times a
    second. Both tools stay level and point away from their bases, the right one with its fingers side by side, the left
    one with one finger above the other, so that both can hold the cube at once. Inverse kinematics and
    position-controlled joints with friction do the rest, see `Aloha`: the tool follows its target some centimetres
    late, and the cube is held by friction alone.

    Observations are what the receiver can know, in m and m/s: `hand`, its tool; `lead`, the target of the tool minus
    the tool; `gripper`, its opening from 0 to 1; `touch`, whether each of its fingers feels the cube; `cube`, the
    middle of the cube minus the tool, and `cube_velocity`; `partner`, the partner's tool minus its own,
    `partner_velocity`, and `partner_gripper`; and the pictures that were asked for.

    Success: the receiver holds the cube with both fingers, the partner does not touch it, and the tools are 8 cm apart,
    for a quarter of a second. It terminates, and so does a cube that falls. The reward is 1 at success. Infos hold
    `is_success`, `collision`, whether the arms have touched each other, and `measures`:

    - `response_s`: from the moment the offer stood still, for the last time before it was taken, to the end;
    - `offers`: how often the cube was brought within reach and held still; more than 1 where the partner withdrew;
    - `clearance_mm`: least distance of the receiver's tool to the cube while the partner moved it or held it out of
      reach, before the receiver touched it;
    - `premature`: how often the receiver began to close its gripper meanwhile.

    Seeds and episodes that are over are as in `Episodic`.

    Attributes:
        simulation: The arms.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": RATE}

    def __init__(
        self,
        max_steps: int = STEPS,
        cameras: Mapping[str, int] = MappingProxyType({}),
        camera: str = "angle",
        render_mode: str | None = None,
    ) -> None:
        """Make the arms and their table.

        Args:
            max_steps: Control steps after which an episode is truncated.
            cameras: Name of a camera of the scene that is observed -> height and width of its pictures in pixels.
            camera: Name of the camera of `render`.
            render_mode: `"rgb_array"`, or None.

        Raises:
            ImportError: The extra `manipulation` is missing.
            OSError: Pictures are asked for where MuJoCo cannot draw.
            ValueError: No step, another render mode, or no camera of that name.
        """
        super().__init__(_SHAPES, cameras, 8, 1.0, max_steps, render_mode)
        self.simulation = Aloha(RATE)
        self._eyes = Cameras(self.simulation.model, cameras)
        self._film = Cameras(self.simulation.model, {camera: _PICTURE} if render_mode else {})

    def render(self) -> NDArray[np.uint8] | None:
        """The picture of the camera (480, 480, 3), or None without a render mode."""
        return next(iter(self._film.look(self.simulation.data).values()), None)

    def close(self) -> None:
        """Free what draws."""
        self._eyes.close()
        self._film.close()

    def held(self, side: str) -> bool:
        """Whether both fingers of a gripper touch the cube."""
        return all(self.simulation.touches(side, _CUBE))

    @property
    def cube(self) -> NDArray[np.float64]:
        """The middle of the cube, `(3,)` in m."""
        return self.simulation.data.joint(_JOINT).qpos[:3].copy()

    def _begin(self, seed: int | None) -> tuple[Observation, dict[str, Any]]:
        """Put the receiver somewhere, the partner elsewhere, the cube in its gripper."""
        draw = self.np_random.uniform
        self._targets = {side: np.array(place) + draw(-1, 1, 3) * _SPREAD for side, place in _START.items()}
        tools, openings = self._told({"left": 1.0, "right": 0.0})
        self.simulation.begin(tools, openings | {"right": 0.75})
        self.simulation.put(_JOINT, self._targets["right"] + draw((0.0, 0.0, -0.004), (0.006, 0.0, 0.004)))
        for _ in range(_SETTLING):
            self.simulation.step(tools, openings)
        self._held = self._offers = self._premature = 0
        self._still_since: int | None = None
        self._clearance, self._closing, self._taken, self._collision = np.inf, False, False, False
        self._places = self._moving()
        self._measure(False, False)
        return self._observation(), self._infos(False)

    def _advance(self, action: NDArray[np.float64]) -> tuple[Observation, float, bool, dict[str, Any]]:
        simulation = self.simulation
        for side, part in (("left", action[:3]), ("right", action[4:7])):
            tool = simulation.tool(side)
            led = np.clip(self._targets[side] + UNIT * part, tool - LEASH, tool + LEASH)
            self._targets[side] = np.clip(led, LOW, HIGH)
        self._places = self._moving()
        simulation.step(*self._told({"left": (1 - action[3]) / 2, "right": (1 - action[7]) / 2}))
        self._measure(action[3] > 0, bool(np.abs(action[4:7]).max() > _COMMANDED))
        apart = np.linalg.norm(simulation.tool("left") - simulation.tool("right")) > APART
        alone = self.held("left") and not any(simulation.touches("right", _CUBE)) and apart
        self._held = self._held + 1 if alone else 0
        success = self._held >= DONE
        fallen = bool(self.cube[2] < 0.05)
        return self._observation(), float(success), success or fallen, self._infos(success)

    def _told(self, openings: dict[str, float]) -> tuple[dict[str, Any], dict[str, float]]:
        """What the simulation is told: poses of the tools, and openings."""
        return {side: (at, pointing(side, at, _ROLLS[side])) for side, at in self._targets.items()}, openings

    def _moving(self) -> dict[str, NDArray[np.float64]]:
        """Where that is of which the velocity is told."""
        return {"cube": self.cube, "partner": self.simulation.tool("right")}

    def _velocity(self, name: str) -> NDArray[np.float64]:
        return RATE * (self._moving()[name] - self._places[name])

    def _measure(self, closing: bool, moving: bool) -> None:
        """Keep count of what the measures tell."""
        simulation = self.simulation
        self._collision |= simulation.collides()
        self._taken |= any(simulation.touches("left", _CUBE))
        begun, self._closing = closing and not self._closing, closing
        if self._taken:
            return
        if not moving and self.cube[0] < ZONE:
            if self._still_since is None:
                self._still_since, self._offers = self._steps, self._offers + 1
            return
        self._still_since = None
        self._premature += begun
        self._clearance = min(self._clearance, float(np.linalg.norm(self.cube - simulation.tool("left"))))

    def _infos(self, success: bool) -> dict[str, Any]:
        measures = {
            "response_s": (self._steps - (self._still_since or 0)) / RATE,
            "offers": float(self._offers),
            "clearance_mm": 1e3 * self._clearance,
            "premature": float(self._premature),
        }
        return {"is_success": success, "collision": self._collision, "measures": measures}

    def _observation(self) -> Observation:
        simulation, hand = self.simulation, self.simulation.tool("left")
        values = {
            "hand": hand,
            "lead": self._targets["left"] - hand,
            "cube": self.cube - hand,
            "cube_velocity": self._velocity("cube"),
            "partner": simulation.tool("right") - hand,
            "partner_velocity": self._velocity("partner"),
            "gripper": [simulation.opening("left")],
            "touch": simulation.touches("left", _CUBE),
            "partner_gripper": [simulation.opening("right")],
        }
        numbers = {name: np.asarray(value, np.float32) for name, value in values.items()}
        return numbers | self._eyes.look(simulation.data)


def with_partner(**arguments: Any) -> Partnered:
    """`Handover` of which a `HandoverPartner` drives the right arm; arguments are those of `Handover`."""
    return Partnered(Handover(**arguments), HandoverPartner(), mine=range(4), theirs=range(4, 8))


gymnasium.register(id="poise/Handover-v0", entry_point="poise.envs.handover:with_partner")

__all__ = [
    "APART",
    "DONE",
    "HIGH",
    "LEASH",
    "LOW",
    "STEPS",
    "ZONE",
    "Handover",
    "with_partner",
]
