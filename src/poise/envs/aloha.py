"""The two ViperX arms of ALOHA (Zhao et al. 2023, arXiv 2304.13705) at a table, told where their tools are to be.

The scene is that of gym-aloha, with its position-controlled joints, their friction and their limits; it needs the extra
`manipulation`. A tool is the point between the tips of the two fingers. Where a tool is to be is turned into joint
targets by inverse kinematics, once a control step, and these move there evenly; the joints follow as their motors can,
some centimetres late while they move and some millimetres off when they stand. Nothing is moved but by these motors.

Nothing is drawn unless it is asked for: a simulation is some thirty times faster than life.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, final

import mujoco as _mujoco
import numpy as np
from numpy.typing import ArrayLike

from poise.envs.kinematics import Floats, Kinematics, Solution

SIDES: Final = ("left", "right")
BASES: Final = {"left": (-0.469, 0.5), "right": (0.469, 0.5)}
"""Where the arms stand, x and y in m."""
LOOKS: Final = 100  # times a second that joints get new targets

mujoco: Any = _mujoco  # its names are in compiled modules, where type checkers do not look
_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
_FOREARM = _JOINTS.index("forearm_roll")
_CLOSED, _OPEN = 0.021, 0.057  # m, of a finger from the middle
_FASTEST = 6.0  # rad/s, of a joint's target


@final
class Arm:
    """One of the arms.

    Args:
        model: Of the scene.
        side: `"left"` or `"right"`.
        first: Index of its first actuator.
    """

    def __init__(self, model: Any, side: str, first: int) -> None:
        self.kinematics = Kinematics(model, f"cali_{side}_site1", [f"vx300s_{side}/{joint}" for joint in _JOINTS])
        self.actuators = slice(first, first + 6)
        self.fingers = slice(first + 6, first + 8)
        names = ("left_finger", "right_finger")
        self.finger_joints = np.array([model.joint(f"vx300s_{side}/{name}").qposadr[0] for name in names])
        self.finger_geoms = [model.geom(f"vx300s_{side}/10_{name.replace('_', '_gripper_')}").id for name in names]
        geoms = (model.geom(k) for k in range(model.ngeom))
        self.geoms = frozenset(geom.id for geom in geoms if geom.name.startswith(f"vx300s_{side}/"))


@final
class Aloha:
    """The simulation.

    Args:
        rate: Control steps a second, a divisor of 100.
        scene: Name of a scene of gym-aloha.
        change: What changes its `MjSpec` before it is compiled, if anything does.

    Raises:
        ImportError: The extra `manipulation` is missing.

    Attributes:
        model: Of MuJoCo.
        data: Of MuJoCo.
        arms: By side.
    """

    def __init__(
        self,
        rate: int = 20,
        scene: str = "bimanual_viperx_transfer_cube",
        change: Callable[[Any], None] | None = None,
    ) -> None:
        specification = mujoco.MjSpec.from_file(str(_assets() / f"{scene}.xml"))
        if change is not None:
            change(specification)
        self.model = specification.compile()
        self.data, self.rate = mujoco.MjData(self.model), rate
        self.arms = {side: Arm(self.model, side, 8 * k) for k, side in enumerate(SIDES)}
        self._looks = LOOKS // rate
        self._substeps = round(1 / LOOKS / self.model.opt.timestep)

    def begin(self, tools: dict[str, tuple[ArrayLike, ArrayLike]], openings: dict[str, float]) -> None:
        """Put the arms at rest.

        Args:
            tools: Side -> position (3,) in m and quaternion (4,) of the tool.
            openings: Side -> opening of the gripper, from closed 0 to open 1.

        Raises:
            ValueError: A pose that the arm cannot reach.
        """
        mujoco.mj_resetDataKeyframe(self.model, self.data, 0)
        for side, arm in self.arms.items():
            position, quaternion = (np.asarray(part, np.float64) for part in tools[side])
            solution = _posture(arm.kinematics, self.data, position, quaternion)
            if not solution.reached:
                raise ValueError(
                    f"the {side} arm got the tool pose {position.tolist()}, {quaternion.tolist()}, which it misses by "
                    f"{1e3 * solution.distance:.0f} mm and {np.degrees(solution.angle):.0f} degrees: keep within reach"
                )
            self.data.qpos[arm.kinematics.addresses] = self.data.ctrl[arm.actuators] = solution.joints
            self.data.ctrl[arm.fingers] = self.data.qpos[arm.finger_joints] = _apart(openings[side])
        mujoco.mj_forward(self.model, self.data)

    def put(self, joint: str, position: ArrayLike, quaternion: ArrayLike = (1.0, 0.0, 0.0, 0.0)) -> None:
        """Put an object somewhere, at rest.

        Args:
            joint: Name of its free joint.
            position: `(3,)` in m.
            quaternion: `(4,)`.
        """
        self.data.joint(joint).qpos[:] = np.concatenate([np.asarray(position), np.asarray(quaternion)])
        self.data.joint(joint).qvel[:] = 0
        mujoco.mj_forward(self.model, self.data)

    def step(self, tools: dict[str, tuple[ArrayLike, ArrayLike]], openings: dict[str, float]) -> None:
        """One control step.

        Args:
            tools: Side -> position and quaternion where the tool is to be at its end.
            openings: Side -> opening of the gripper that is to be.
        """
        started, goals = {}, {}
        for side, arm in self.arms.items():
            started[side] = joints = self.data.ctrl[arm.actuators].copy()
            goals[side] = arm.kinematics.follow(self.data, joints, *tools[side], _FASTEST / self.rate)
            self.data.ctrl[arm.fingers] = _apart(openings[side])
        for look in range(1, self._looks + 1):
            for side, arm in self.arms.items():
                part = look / self._looks
                self.data.ctrl[arm.actuators] = (1 - part) * started[side] + part * goals[side]
            mujoco.mj_step(self.model, self.data, self._substeps)
        mujoco.mj_forward(self.model, self.data)

    def tool(self, side: str) -> Floats:
        """Where a tool is, `(3,)` in m."""
        return self.data.site(f"cali_{side}_site1").xpos.copy()

    def opening(self, side: str) -> float:
        """Of a gripper, from closed 0 to open 1."""
        fingers = np.abs(self.data.qpos[self.arms[side].finger_joints])
        return float((fingers.mean() - _CLOSED) / (_OPEN - _CLOSED))

    def touches(self, side: str, geom: str) -> tuple[bool, bool]:
        """Whether each finger of a gripper touches a part of an object, by the name of the part."""
        number, (first, second) = self.model.geom(geom).id, self.arms[side].finger_geoms
        pairs = {frozenset(pair) for pair in self.data.contact.geom.tolist()}
        return frozenset((number, first)) in pairs, frozenset((number, second)) in pairs

    def collides(self) -> bool:
        """Whether the arms touch each other."""
        left, right = (self.arms[side].geoms for side in SIDES)
        pairs = self.data.contact.geom.tolist()
        return any((a in left and b in right) or (a in right and b in left) for a, b in pairs)


def pointing(side: str, position: ArrayLike, roll: float = 0.0) -> Floats:
    """The rotation (w, x, y, z) of a level tool that points away from its arm's base, where the wrist has most room.

    Args:
        side: Of the arm.
        position: Of the tool, `(3,)` in m.
        roll: About the axis of the tool, in rad: the fingers are side by side at 0, one above the other at pi / 2.
    """
    x, y = np.asarray(position)[:2] - BASES[side]
    yaw = np.arctan2(y, x)
    (a, b), (c, d) = ((np.cos(angle / 2), np.sin(angle / 2)) for angle in (yaw, roll))
    return np.array([a * c, a * d, b * d, b * c])


def _posture(kinematics: Kinematics, data: Any, position: Floats, quaternion: Floats) -> Solution:
    """Joints that reach a pose with the elbow up and the forearm turned as little as can be."""
    found = []
    for turn in (0.0, np.pi / 2, -np.pi / 2, 3.0):
        start = kinematics.joints(data)
        start[-1] = turn
        found.append(kinematics.solve(data, position, quaternion, start, restarts=0))
    return min(found, key=lambda one: (not one.reached, abs(one.joints[_FOREARM])))


def _apart(opening: float) -> Floats:
    finger = _CLOSED + (_OPEN - _CLOSED) * float(np.clip(opening, 0.0, 1.0))
    return np.array([finger, -finger])


def _assets() -> Path:
    found = importlib.util.find_spec("gym_aloha")  # importing it would import dm_control, which takes seconds
    if found is None or found.origin is None:
        raise ImportError("the arms of ALOHA need the extra 'manipulation': pip install 'poise[manipulation]'")
    return Path(found.origin).parent / "assets"


__all__ = ["BASES", "LOOKS", "SIDES", "Aloha", "Arm", "pointing"]
