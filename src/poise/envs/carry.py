r"""Two ALOHA arms that carry a bar together: one leads, the other follows.

Importing this module registers `poise/Carry-v0` with Gymnasium, where the left arm is the policy's and the right one
follows a script, which alone knows the goal. It needs the extra `manipulation`:

    Task("poise.envs.carry:poise/Carry-v0", extra="manipulation", slots=10)

Each gripper holds one end, and keeps its rotation. The bar is to stay level and to keep its heading, so the places of
the two grippers and the length L between them tell how far they are from what the rigid bar asks for:

$$ e = p_{right} - p_{left} - (L, 0, 0). $$

An arm follows what it is told with a lag of about 0.2 s, as its motors do; the fingers hold the bar by friction alone,
so that a follower who lags behind lets it slip, turn or fall.
"""

from typing import Any, Final, NamedTuple, final

import gymnasium
import numpy as np
from numpy.linalg import norm
from numpy.typing import ArrayLike, NDArray

from poise.envs.aloha import SIDES, Aloha
from poise.envs.cameras import Cameras
from poise.envs.episodic import Episodic, Observation
from poise.envs.experts.carry import DT, LENGTH, ROOM, UNIT, Leader, away
from poise.envs.kinematics import Floats, mujoco
from poise.envs.partner import Partnered

STEPS: Final = 300  # control steps of an episode by default; the expert needs 60 to 200
TOLERANCE: Final = 0.02  # m between the bar and the goal
TILT: Final = 6.0  # degrees that the bar may be off the level
STRETCH: Final = 0.025  # m that the grippers may be nearer or farther than its length
PAUSED: Final = 0.3  # s that the partner has stood still when the follower should, too

_BAR, _JOINT = "red_box", "red_box_joint"  # gym-aloha's cube becomes the bar
_THICK, _MASS = 0.012, 0.1  # m, half of it, and kg
_GRIP, _KNUCKLE, _INNER = (
    0.135,
    0.0687,
    0.0225,
)  # m from the wrist to pad and finger; from a finger's joint to its inside
_FIRM = 2000.0  # N/m of a finger
_PAD = {
    "type": mujoco.mjtGeom.mjGEOM_BOX,
    "size": (0.018, 0.004, 0.01),
    "friction": (2.0, 0.005, 0.0001),
    "solref": (0.01, 1.0),
    "group": 3,
}
_ENDS = np.array([[-LENGTH / 2, 0.0, 0.0], [LENGTH / 2, 0.0, 0.0]])
_REACH = ROOM[:, None] + _ENDS + 0.03 * np.array([-1.0, 1.0])[:, None, None]  # limits of both grippers, (2, 2, 3)
_DOWN = np.radians(45) / 2  # half the angle by which grippers point down
_TURNS = (np.cos(_DOWN), 0.0, np.sin(_DOWN), 0.0), (0.0, -np.sin(_DOWN), 0.0, np.cos(_DOWN))
_OPEN, _SHUT = 0.42, 0.0  # about the bar before it is held, and holding it
_SETTLE = round(0.4 / DT)  # control steps in which the grippers close at a reset
_THERE = round(0.4 / DT)  # control steps that the bar stays at the goal
_REST = 0.03  # m/s, of a gripper that counts as at rest
_SLIPPED = 3  # control steps without touch after which an end is out of a hand


class _Totals(NamedTuple):
    """Of the steps so far."""

    error: float = 0.0  # m
    tilt: float = 0.0  # degrees
    speed: float = 0.0  # m/s, of the follower while the partner pauses
    pauses: int = 0  # steps of that
    stretch: float = 0.0  # m, the largest


@final
class Carry(Episodic):
    """Both arms, at 20 Hz; `poise/Carry-v0` leaves the right one to `Leader`.

    Actions are displacements of what the grippers are told, (6,) in cm within [-1, 1]: the left one's, then the right
    one's. Observations are of the left arm, in m and m/s: `hand` (3,), the place of its gripper; `lead` (3,), what it
    is told beyond that; `partner` (3,), where the other gripper is, seen from its own; `partner_velocity` (3,);
    `object` (3,), where the centre of the bar is, seen from its own gripper; and `axis` (3,), the unit vector along the
    bar. The goal is not among them.

    The bar within 2 cm of the goal for 0.4 s while the right gripper is at rest is success and terminates. So does
    losing it, without success: more than 6 degrees off the level, 2.5 cm of stretch, or an end out of a hand. The
    reward is `clip(1 - distance / initial distance, 0, 1)`, and exactly 1 on success. Infos hold `is_success` and
    `measures`, over the episode so far: `synchrony_mm`, the mean length of e; `tilt_deg`, the mean tilt of the bar;
    `stretch_mm`, the largest stretch; `waiting_mm_s`, the mean speed of the left gripper while the right one pauses;
    and `lost`, 0 or 1. Seeds and episodes that are over are as in `Episodic`.

    Attributes:
        start: Where the centre of the bar begins, (3,) in m.
        goal: Where it is to be brought, (3,) in m.
        told: Where the grippers are told to be, (2, 3) in m.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / DT)}

    def __init__(self, max_steps: int = STEPS, render_mode: str | None = None) -> None:
        """Make the arms and the bar.

        Args:
            max_steps: Control steps after which an episode is truncated.
            render_mode: `"rgb_array"`, or None.

        Raises:
            ImportError: The extra `manipulation` is missing.
            OSError: MuJoCo cannot draw here, where a render mode asks for it.
            ValueError: No step, or another render mode.
        """
        names = ("hand", "lead", "partner", "partner_velocity", "object", "axis")
        super().__init__(dict.fromkeys(names, (3,)), {}, 6, 1.0, max_steps, render_mode)
        self._aloha = Aloha(round(1 / DT), change=_with_bar)
        self._film = Cameras(self._aloha.model, {"front": 480} if render_mode else {})
        self.start, self.goal, self.told = np.zeros(3), np.zeros(3), np.zeros((2, 3))

    def render(self) -> NDArray[np.uint8] | None:
        """The picture of a camera in front (480, 480, 3), or None without a render mode."""
        return self._film.look(self._aloha.data).get("front")

    def close(self) -> None:
        """Free the simulation."""
        self._film.close()

    def _begin(self, seed: int | None) -> tuple[Observation, dict[str, Any]]:
        """Place the bar in both hands, and draw the goal."""
        self.start = self.np_random.uniform(*ROOM)
        self.goal = away(self.np_random, self.start)
        self.told = self.start + _ENDS
        self._aloha.begin(self._tools(), dict.fromkeys(SIDES, _OPEN))
        self._aloha.put(_JOINT, self.start)
        for _ in range(_SETTLE):
            self._aloha.step(self._tools(), dict.fromkeys(SIDES, _SHUT))
        self._hands, self._velocities = self._places(), np.zeros((2, 3))
        self._there, self._paused, self._loose, self._totals = 0, 0, np.zeros(2, int), _Totals()
        self._bar = self._centre()
        return self._observe(), self._info(success=False, lost=False)

    def _advance(self, action: NDArray[np.float64]) -> tuple[Observation, float, bool, dict[str, Any]]:
        self.told = np.clip(self.told + UNIT * action.reshape(2, 3), *_REACH)
        self._aloha.step(self._tools(), dict.fromkeys(SIDES, _SHUT))
        hands, self._bar = self._places(), self._centre()
        self._velocities, self._hands = (hands - self._hands) / DT, hands
        tilt, stretch = self._measured()
        held = [any(self._aloha.touches(side, _BAR)) for side in SIDES]
        self._loose = np.where(held, 0, self._loose + 1)
        lost = tilt > TILT or stretch > STRETCH or bool((self._loose >= _SLIPPED).any())
        distance = norm(self.goal - self._bar)
        self._there = self._there + 1 if distance < TOLERANCE and self._paused else 0
        success = not lost and self._there >= _THERE
        reward = 1.0 if success else float(np.clip(1 - distance / norm(self.goal - self.start), 0.0, 1.0))
        return self._observe(), reward, success or lost, self._info(success, lost)

    def _measured(self) -> tuple[float, float]:
        """Tilt in degrees and stretch in m, which are noted with what else is measured."""
        apart = self._hands[1] - self._hands[0]
        tilt, stretch = float(np.degrees(np.arcsin(abs(self._axis()[2])))), float(abs(norm(apart) - LENGTH))
        follower, partner = norm(self._velocities, axis=1)
        self._paused = self._paused + 1 if partner < _REST else 0
        pausing, old = self._paused > PAUSED / DT, self._totals
        self._totals = _Totals(
            error=old.error + float(norm(apart - (LENGTH, 0.0, 0.0))),
            tilt=old.tilt + tilt,
            speed=old.speed + float(follower) * pausing,
            pauses=old.pauses + pausing,
            stretch=max(old.stretch, stretch),
        )
        return tilt, stretch

    def _info(self, success: bool, lost: bool) -> dict[str, Any]:
        totals, steps = self._totals, max(self._steps, 1)
        measures = {
            "synchrony_mm": 1e3 * totals.error / steps,
            "tilt_deg": totals.tilt / steps,
            "stretch_mm": 1e3 * totals.stretch,
            "waiting_mm_s": 1e3 * totals.speed / max(totals.pauses, 1),
            "lost": float(lost),
        }
        return {"is_success": success, "measures": measures}

    def _observe(self) -> Observation:
        hand = self._hands[0]
        seen = {
            "hand": hand,
            "lead": self.told[0] - hand,
            "partner": self._hands[1] - hand,
            "partner_velocity": self._velocities[1],
            "object": self._bar - hand,
            "axis": self._axis(),
        }
        return {name: values.astype(np.float32) for name, values in seen.items()}

    def _tools(self) -> dict[str, tuple[ArrayLike, ArrayLike]]:
        return {side: (place, turn) for side, place, turn in zip(SIDES, self.told, _TURNS, strict=True)}

    def _places(self) -> Floats:
        return np.stack([self._aloha.tool(side) for side in SIDES])

    def _centre(self) -> Floats:
        return self._aloha.data.geom(_BAR).xpos.copy()

    def _axis(self) -> Floats:
        return self._aloha.data.geom(_BAR).xmat.reshape(3, 3)[:, 0].copy()


def _with_bar(scene: Any) -> None:
    """Make the cube a bar and put flat pads, which hold it firmly, on the fingers; nothing else touches anything."""
    geoms = {geom.name: geom for geom in scene.geoms}
    for name in geoms.keys() - {_BAR, "table"}:
        geoms[name].contype = geoms[name].conaffinity = 0
    for side in SIDES:
        # The point that is told where to be: in the middle of the pads, not at the very tips.
        next(site for site in scene.sites if site.name == f"cali_{side}_site1").pos = (_GRIP, 0.0, 0.0)
        for finger, sign in (("left", 1.0), ("right", -1.0)):
            name = f"vx300s_{side}/10_{finger}_gripper_finger"
            geoms[name].name = f"{name}_shown"
            pad = scene.body(f"vx300s_{side}/{finger}_finger_link").add_geom(name=name, **_PAD)
            pad.pos = (_GRIP - _KNUCKLE, sign * (_PAD["size"][1] - _INNER), 0.0)
    for actuator in scene.actuators:
        if "finger" in actuator.target:
            actuator.gainprm[0], actuator.biasprm[1] = _FIRM, -_FIRM
    body, bar, half = scene.body("box"), geoms[_BAR], LENGTH / 2 + 0.04
    bar.size, bar.condim, bar.friction, bar.rgba = (half, _THICK, _THICK), 3, _PAD["friction"], (0.8, 0.5, 0.2, 1.0)
    across, along = _MASS / 3 * 2 * _THICK**2, _MASS / 3 * (half**2 + _THICK**2)
    body.mass, body.inertia = _MASS, (across, along, along)
    scene.option.timestep = 0.005  # s: two to one target of the joints
    scene.worldbody.add_camera(name="front", pos=(0.0, -0.25, 0.55), xyaxes=(1.0, 0.0, 0.0, 0.0, 0.45, 0.9), fovy=50)


def with_partner(**arguments: Any) -> Partnered:
    """`Carry` with a leader at the right arm; the policy's actions are those of the left one, (3,).

    Args:
        arguments: Of `Carry`.
    """
    return Partnered(Carry(**arguments), Leader(), mine=(0, 1, 2), theirs=(3, 4, 5))


gymnasium.register(id="poise/Carry-v0", entry_point=with_partner)

__all__ = ["PAUSED", "STEPS", "STRETCH", "TILT", "TOLERANCE", "Carry", "with_partner"]
