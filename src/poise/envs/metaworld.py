"""Tasks of Meta-World (Yu et al. 2019, arXiv 1910.10897), the Sawyer arm on a table, with several ways to do some.

Importing this module registers `poise/MetaWorld-v0` with Gymnasium, which needs the extra `manipulation`:

    Task("poise.envs.metaworld:poise/MetaWorld-v0", {"task": "pick-place-v3"}, extra="manipulation", slots=10)

An action moves the mocap point that the hand follows, one unit a centimetre and axis, and closes (+1) or opens (-1) the
gripper, each within [-1, 1], 80 times a second. What metaworld calls success terminates; nothing else does.
"""

import difflib
from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import Any, Final, final

import gymnasium
import numpy as np
from numpy.typing import NDArray

from poise.envs.episodic import Episodic, Observation
from poise.extras import extra

STEPS: Final = 300  # control steps of an episode by default; the experts need 50 to 120

_LONGEST = 500  # control steps, after which metaworld refuses to go on
_PARTS = {  # of metaworld's flat observation; what lies between 18 and 36 is the previous one
    "hand": slice(0, 3),
    "gripper": slice(3, 4),
    "object": slice(4, 7),
    "object_quaternion": slice(7, 11),
    "second": slice(11, 14),
    "second_quaternion": slice(14, 18),
    "goal": slice(36, 39),
}
_BETWEEN = {"to_object": ("hand", "object"), "to_goal": ("object", "goal")}
_BESIDE = 0.07  # m, height of the hand over the puck, below which its fingers are beside it
_ACROSS = {  # what is inserted: a site of metaworld, and the axes across the insertion
    "assembly-v3": ("RoundNut", [0, 1]),
    "peg-insert-side-v3": ("pegHead", [1, 2]),
}
_PICTURE = 480  # pixels of `render`


@final
class MetaWorld(Episodic):
    """One task of Meta-World, with another placement of objects and goal for every seed.

    Observations are `hand` (3,) in m, `gripper` (1,) from closed 0 to open 1, `object` (3,) in m and
    `object_quaternion` (4,), `second` (3,) and `second_quaternion` (4,) of a second object, zeros where there is none,
    `goal` (3,) in m, `to_object` (3,) from the hand and `to_goal` (3,) from the object, and pictures (size, size, 3) of
    8 bits by the names of the cameras. The order of a quaternion is metaworld's, which differs between tasks. The
    reward is metaworld's divided by 10, so that 1 is the most. Seeds and episodes that are over are as in `Episodic`.

    Infos hold `is_success`; `measures`, which are the `seconds` since the reset and, in assembly-v3 and
    peg-insert-side-v3, the `precision`: how far in mm the ring or the head of the peg is beside the line along which it
    is inserted; and, in some tasks, `mode`, the way that was taken, -1 until one is recognised:

    | task | mode 0 | mode 1 | recognised |
    |---|---|---|---|
    | pick-place-v3 | from the left, -x | from the right, +x | where the hand first comes down beside the puck |
    | hammer-v3 | by the end of the handle | near the head | where the hand is along the handle when that first rises |
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}

    def __init__(
        self,
        task: str = "pick-place-v3",
        max_steps: int = STEPS,
        camera: str = "corner3",
        cameras: Mapping[str, int] = MappingProxyType({}),
        render_mode: str | None = None,
    ) -> None:
        """Make the arm and its table.

        Args:
            task: Name of a Meta-World task, such as `assembly-v3`.
            max_steps: Control steps after which an episode is truncated.
            camera: Name of the camera of `render`.
            cameras: Name of a camera that is observed -> height and width of its pictures in pixels.
            render_mode: `"rgb_array"`, or None.

        Raises:
            ImportError: The extra `manipulation` is missing.
            ValueError: No task or camera of that name, or more steps than metaworld allows.
            OSError: There is no renderer on this machine, but there is something to render.
        """
        known = _library().env_dict.ALL_V3_ENVIRONMENTS
        _known_task(task, known)
        if not 1 <= max_steps <= _LONGEST:
            raise ValueError(f"MetaWorld got max_steps={max_steps}, expected 1 to {_LONGEST}, the limit of metaworld")
        shapes = {name: (part.stop - part.start,) for name, part in _PARTS.items()} | dict.fromkeys(_BETWEEN, (3,))
        super().__init__(shapes, cameras, 4, 1.0, max_steps, render_mode)
        self.task, self._env, self._mode = task, known[task](), -1
        self._env.seeded_rand_vec = True  # placements come from the environment's own generator
        self._env._freeze_rand_vec = False  # and anew at every reset: metaworld freezes them unless it is told the task
        self._env._partially_observable = False  # else the goal is zeros
        self._env._set_task_called = True
        self._env.__dict__.pop("sawyer_observation_space", None)  # cached with the goal hidden, and clips observations
        from poise.envs.cameras import Cameras  # needs MuJoCo, which comes with metaworld

        self._eyes = Cameras(self._env.model, cameras)
        self._film = Cameras(self._env.model, {camera: _PICTURE} if render_mode else {})

    def render(self) -> NDArray[np.uint8] | None:
        """The picture of the camera (480, 480, 3), or None without a render mode."""
        return next(iter(self._look(self._film).values()), None)

    def close(self) -> None:
        """Free the simulation."""
        self._eyes.close()
        self._film.close()
        self._env.close()

    def _begin(self, seed: int | None) -> tuple[Observation, dict[str, Any]]:
        if seed is not None or self._last is None:
            self._env.seed(int(self.np_random.integers(2**31)) if seed is None else seed)
        self._mode = -1
        return self._seen(self._env.reset()[0]), {"is_success": False}

    def _advance(self, action: NDArray[np.float64]) -> tuple[Observation, float, bool, dict[str, Any]]:
        raw, reward, _, _, told = self._env.step(action)
        success, seen = bool(told["success"]), self._seen(raw)
        return seen, float(reward) / 10, success, self._told(seen, success)

    def _seen(self, raw: NDArray[np.float64]) -> Observation:
        seen = {name: raw[part].astype(np.float32) for name, part in _PARTS.items()}
        between = {name: seen[end] - seen[begin] for name, (begin, end) in _BETWEEN.items()}
        return seen | between | self._look(self._eyes)

    def _look(self, eyes: Any) -> dict[str, NDArray[np.uint8]]:
        """Pictures, those of metaworld's corner cameras the right way up: they hang upside down."""
        pictures = eyes.look(self._env.data)
        return {name: p[::-1, ::-1].copy() if name.startswith("corner") else p for name, p in pictures.items()}

    def _told(self, seen: Observation, success: bool) -> dict[str, Any]:
        measures = {"seconds": self._steps / self.metadata["render_fps"]}
        info: dict[str, Any] = {"is_success": success, "measures": measures}
        if self.task in _ACROSS:
            site, axes = _ACROSS[self.task]
            off = self._env.data.site(site).xpos - self._env._target_pos
            measures["precision"] = 1e3 * float(np.linalg.norm(off[axes]))
        if self.task in _WAYS:
            self._mode = _WAYS[self.task](seen) if self._mode == -1 else self._mode
            info["mode"] = self._mode
        return info


def _side(seen: Observation) -> int:
    """From where the hand came to the puck, which is on the table still."""
    x, _, height = -seen["to_object"]
    return int(x > 0) if height < _BESIDE and seen["object"][2] < 0.03 and 0.02 < abs(x) < 0.15 else -1


def _hold(seen: Observation) -> int:
    """Where the hand holds the hammer, which is in the air."""
    along, _, height = -seen["to_object"]
    held = height < _BESIDE and seen["gripper"][0] < 0.8 and seen["object"][2] > 0.04
    return int(along > 0) if held and not -0.065 < along < 0.015 else -1


_WAYS = {"pick-place-v3": _side, "hammer-v3": _hold}


def _known_task(task: str, known: Any) -> None:
    if task not in known:
        near = difflib.get_close_matches(task, known, n=1, cutoff=0.0)
        raise ValueError(f"got the Meta-World task {task!r}, expected one of {len(known)}, such as {near[0]!r}")


def _library() -> ModuleType:
    with extra("manipulation", "tasks of Meta-World need"):
        import metaworld
    return metaworld


gymnasium.register(id="poise/MetaWorld-v0", entry_point="poise.envs.metaworld:MetaWorld")

__all__ = ["STEPS", "MetaWorld"]
