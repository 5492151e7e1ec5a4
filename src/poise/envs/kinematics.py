r"""Inverse kinematics of an arm in MuJoCo by damped least squares (Nakamura and Hanafusa 1986; Buss 2004).

With the Jacobian J of a site and its error e, a position in metres above a rotation vector in radians, one step is

$$ \Delta q = J^\top (J J^\top + \lambda^2 I)^{-1} e. $$

The damping lambda bounds the step near singular poses, where the undamped one grows without limit. While a pose is
solved for, its square falls to half of the squared error, so that the last steps are fast (Sugihara 2011). A joint
that stands at its limit and would leave it is held still, and the step is solved again for the others. Quaternions are
MuJoCo's, `w, x, y, z`. All is computed on data of this module's own: a simulation is only read.
"""

import difflib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, final

import mujoco as _mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray

DAMPING: Final = 0.1  # lambda, in m and rad: small against the length of an arm
LONGEST: Final = 0.5  # rad or m that a joint moves in one iteration
ITERATIONS: Final = 60
RESTARTS: Final = 20  # from random joints, where an attempt stops short
NEAR: Final = 2e-4  # m and rad, when a target counts as reached

_FLOOR = 1e-6  # of lambda squared
_FOLLOWING = 0.03  # lambda of a single step, which has to be exact as well as bounded
mujoco: Any = _mujoco  # its names are in compiled modules, where type checkers do not look
Floats = NDArray[np.float64]


class Solution(NamedTuple):
    """Joints, and what is left to the target.

    Attributes:
        joints: `(joints,)` in rad, or m of a joint that slides; within their limits.
        distance: Between the site and the target, in m.
        angle: Between their rotations, in rad; 0 where none was asked for.
    """

    joints: Floats
    distance: float
    angle: float

    @property
    def reached(self) -> bool:
        """Whether both are small: below 1 mm and half a degree."""
        return self.distance < 1e-3 and self.angle < np.radians(0.5)


@final
class Kinematics:
    """The arm that carries a site.

    Args:
        model: An `MjModel`.
        site: Name of the site that is to be placed.
        joints: Names of the joints that may move, hinges or slides, each with one coordinate.

    Raises:
        ValueError: No such site or joint, or a joint of more coordinates.

    Attributes:
        low: `(joints,)`, lower limits, minus infinity where there is none.
        high: `(joints,)`, upper limits.
        addresses: `(joints,)`, where they are in `qpos`.
    """

    def __init__(self, model: Any, site: str, joints: Sequence[str]) -> None:
        self.model, self._data = model, mujoco.MjData(model)
        self._site = _number(model, mujoco.mjtObj.mjOBJ_SITE, site)
        numbers = [_number(model, mujoco.mjtObj.mjOBJ_JOINT, joint) for joint in joints]
        simple = (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE)
        wrong = [joint for joint, k in zip(joints, numbers, strict=True) if model.jnt_type[k] not in simple]
        if wrong or not numbers:
            raise ValueError(
                f"got the joints {list(joints)}, expected at least one, and hinges or slides only: {wrong}"
            )
        self.addresses, self._column = model.jnt_qposadr[numbers], model.jnt_dofadr[numbers]
        bounded, ranges = model.jnt_limited[numbers].astype(bool), model.jnt_range[numbers].T
        self.low, self.high = np.where(bounded, ranges, [[-np.inf], [np.inf]])
        self._jacobian = np.zeros((6, model.nv))

    def joints(self, data: Any) -> Floats:
        """The joints of a simulation, `(joints,)`."""
        return data.qpos[self.addresses]

    def pose(self, data: Any, joints: ArrayLike | None = None) -> tuple[Floats, Floats]:
        """Position (3,) in m and quaternion (4,) of the site.

        Args:
            data: The `MjData` of the simulation.
            joints: Where the arm would stand, `(joints,)`; None means where it stands.
        """
        self._place_at(data, self.joints(data) if joints is None else np.asarray(joints, np.float64))
        return self._data.site_xpos[self._site].copy(), _quaternion(self._data.site_xmat[self._site])

    def solve(
        self,
        data: Any,
        position: ArrayLike,
        quaternion: ArrayLike | None = None,
        start: ArrayLike | None = None,
        restarts: int = RESTARTS,
    ) -> Solution:
        """The joints that bring the site to a target, or as near as the search came.

        Args:
            data: The `MjData` of the simulation, for all other joints.
            position: Target `(3,)` in m.
            quaternion: Target `(4,)`; None leaves the rotation free.
            start: Joints to begin from; None means those of the simulation. The nearest solution is found first; where
                none is, the search begins again from joints drawn at random, always the same ones.
            restarts: How often at most; 0 keeps to the posture of `start`.
        """
        target = _target(position, quaternion)
        first = self.joints(data) if start is None else np.asarray(start, np.float64)
        best = self._descend(data, first, target)
        generator = np.random.default_rng(0)
        low, high = np.maximum(self.low, -np.pi), np.minimum(self.high, np.pi)
        for _ in range(restarts):
            if best.reached:
                break
            found = self._descend(data, generator.uniform(low, high), target)
            best = min(best, found, key=lambda one: one.distance + one.angle)
        return best

    def follow(
        self,
        data: Any,
        joints: ArrayLike,
        position: ArrayLike,
        quaternion: ArrayLike | None = None,
        longest: float = LONGEST,
    ) -> Floats:
        """One step towards a target that moves, from `joints`; no joint moves by more than `longest`.

        Args:
            data: The `MjData` of the simulation, for all other joints.
            joints: Where the arm is, or was told to be, `(joints,)`.
            position: Target `(3,)` in m.
            quaternion: Target `(4,)`; None leaves the rotation free.
            longest: Of the step of a joint, in rad or m.

        Returns:
            The next joints, `(joints,)`, within their limits.
        """
        joints, target = np.asarray(joints, np.float64), _target(position, quaternion)
        self._place_at(data, joints)
        return self._stepped(joints, self._error(target), longest, _FOLLOWING**2)

    def _descend(self, data: Any, joints: Floats, target: tuple[Floats, Floats | None]) -> Solution:
        joints = np.clip(joints, self.low, self.high)
        for _ in range(ITERATIONS):
            self._place_at(data, joints)
            error = self._error(target)
            if np.abs(error).max() < NEAR:
                break
            joints = self._stepped(joints, error, LONGEST, min(DAMPING**2, float(error @ error) / 2) + _FLOOR)
        self._place_at(data, joints)
        error = self._error(target)
        return Solution(joints, float(np.linalg.norm(error[:3])), float(np.linalg.norm(error[3:])))

    def _place_at(self, data: Any, joints: Floats) -> None:
        self._data.qpos[:] = data.qpos
        self._data.qpos[self.addresses] = joints
        mujoco.mj_kinematics(self.model, self._data)
        mujoco.mj_comPos(self.model, self._data)  # the Jacobian needs it

    def _error(self, target: tuple[Floats, Floats | None]) -> Floats:
        """Of the site where the scratch data have it: `(6,)`, or `(3,)` where the rotation is free."""
        position, quaternion = target
        apart = position - self._data.site_xpos[self._site]
        if quaternion is None:
            return apart
        inverse, turn, vector = np.zeros(4), np.zeros(4), np.zeros(3)
        mujoco.mju_negQuat(inverse, _quaternion(self._data.site_xmat[self._site]))
        mujoco.mju_mulQuat(turn, quaternion, inverse)
        mujoco.mju_quat2Vel(vector, turn, 1.0)
        return np.concatenate([apart, vector])

    def _stepped(self, joints: Floats, error: Floats, longest: float, damping: float) -> Floats:
        jacobian = self._jacobian
        mujoco.mj_jacSite(self.model, self._data, jacobian[:3], jacobian[3:], self._site)
        columns, free = jacobian[: len(error), self._column], np.ones(len(joints), bool)
        while True:
            used = columns * free
            step = used.T @ np.linalg.solve(used @ used.T + damping * np.eye(len(error)), error)
            outside = free & (((joints <= self.low) & (step < 0)) | ((joints >= self.high) & (step > 0)))
            if not outside.any():
                break
            free &= ~outside
        step *= min(1.0, longest / max(np.abs(step).max(), 1e-12))
        return np.clip(joints + step, self.low, self.high)


def _number(model: Any, kind: Any, name: str) -> int:
    number = mujoco.mj_name2id(model, kind, name)
    if number < 0:
        site = kind == mujoco.mjtObj.mjOBJ_SITE
        known = [(model.site if site else model.joint)(k).name for k in range(model.nsite if site else model.njnt)]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise ValueError(
            f"got the {'site' if site else 'joint'} {name!r}, expected one of {len(known)} of the model, "
            f"such as {', '.join(map(repr, near))}"
        )
    return number


def _target(position: ArrayLike, quaternion: ArrayLike | None) -> tuple[Floats, Floats | None]:
    place, turn = np.asarray(position, np.float64), None if quaternion is None else np.asarray(quaternion, np.float64)
    length = 1.0 if turn is None else float(np.linalg.norm(turn))
    if place.shape != (3,) or (turn is not None and turn.shape != (4,)) or not length > 0:
        raise ValueError(
            f"got a target at {place.tolist()} with the rotation {None if turn is None else turn.tolist()}, "
            "expected a position (3,) in m and a quaternion (4,), w first and not zero"
        )
    return place, None if turn is None else turn / length


def _quaternion(matrix: Floats) -> Floats:
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, matrix)
    return quaternion


__all__ = ["DAMPING", "ITERATIONS", "LONGEST", "NEAR", "RESTARTS", "Floats", "Kinematics", "Solution"]
