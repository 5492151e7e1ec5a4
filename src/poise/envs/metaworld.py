"""Tasks of Meta-World (Yu et al. 2019, arXiv 1910.10897), the Sawyer arm on a table, and demonstrations by its experts.

Importing this module registers `poise/MetaWorld-v0` with Gymnasium, which needs the extra `manipulation`:

    Task("poise.envs.metaworld:poise/MetaWorld-v0", {"task": "pick-place-v3"}, extra="manipulation", slots=10)

An action moves the mocap point that the hand follows, one unit a centimetre and axis, and closes (+1) or opens (-1) the
gripper, each within [-1, 1], 80 times a second. What metaworld calls success terminates; nothing else does.
"""

import difflib
import warnings
from types import ModuleType
from typing import Any, Final, final

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Dict
from numpy.typing import ArrayLike, NDArray

STEPS: Final = 300  # control steps of an episode by default; the experts need 50 to 120

Observation = dict[str, NDArray[np.float32]]

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
_MOST = 5  # attempts for every demonstration that is asked for


@final
class MetaWorld(gymnasium.Env[Any, NDArray[np.float32]]):
    """One task of Meta-World, with another placement of objects and goal for every seed.

    Observations are `hand` (3,) in m, `gripper` (1,) from closed 0 to open 1, `object` (3,) in m and
    `object_quaternion` (4,), `second` (3,) and `second_quaternion` (4,) of a second object, zeros where there is none,
    and `goal` (3,) in m. The order of a quaternion is metaworld's, which differs between tasks. The reward is
    metaworld's divided by 10, so that 1 is the most. Infos hold `is_success`. An episode that is over stays as it is,
    and repeats its last step, until it is reset.

    Seed `s` gives the same episode whatever came before it; a reset without a seed continues the stream.

    Attributes:
        raw: Metaworld's own observation (39,), which its experts read.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}

    def __init__(
        self,
        task: str = "pick-place-v3",
        max_steps: int = STEPS,
        camera: str = "corner3",
        render_mode: str | None = None,
    ) -> None:
        """Make the arm and its table.

        Args:
            task: Name of a Meta-World task, such as `assembly-v3`.
            max_steps: Control steps after which an episode is truncated.
            camera: Name of the camera of `render`.
            render_mode: `"rgb_array"`, or None.

        Raises:
            ImportError: The extra `manipulation` is missing.
            ValueError: No task of that name, or more steps than metaworld allows.
        """
        known = _library().env_dict.ALL_V3_ENVIRONMENTS
        _known_task(task, known)
        if not 1 <= max_steps <= _LONGEST:
            raise ValueError(f"MetaWorld got max_steps={max_steps}, expected 1 to {_LONGEST}, the limit of metaworld")
        self.task, self.max_steps, self.render_mode = task, max_steps, render_mode
        self._env = known[task](render_mode=render_mode, camera_name=camera)
        self._env.seeded_rand_vec = True  # placements come from the environment's own generator
        self._env._freeze_rand_vec = False  # and anew at every reset: metaworld freezes them unless it is told the task
        self._env._partially_observable = False  # else the goal is zeros
        self._env._set_task_called = True
        self._env.__dict__.pop("sawyer_observation_space", None)  # cached with the goal hidden, and clips observations
        shapes = {name: (part.stop - part.start,) for name, part in _PARTS.items()}
        self.observation_space = Dict({n: Box(-np.inf, np.inf, shape) for n, shape in shapes.items()})
        self.action_space = Box(-1.0, 1.0, (4,))
        self._steps, self._last = 0, None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Place objects and goal; `options` are not used."""
        super().reset(seed=seed)
        if seed is not None or self._last is None:
            self._env.seed(int(self.np_random.integers(2**31)) if seed is None else seed)
        self.raw, _ = self._env.reset()
        self._steps = 0
        self._last = self.raw, 0.0, False, False, {"is_success": False}
        return _parts(self.raw), {"is_success": False}

    def step(self, action: ArrayLike) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move the hand and the gripper; `action` is (4,), clipped to [-1, 1].

        Raises:
            ResetNeeded: Before the first reset.
        """
        if self._last is None:
            raise ResetNeeded("step() was called before reset(): call reset() first.")
        if not (self._last[2] or self._last[3]):
            self._steps += 1
            self.raw, reward, _, _, told = self._env.step(np.clip(np.asarray(action, np.float64), -1.0, 1.0))
            success = bool(told["success"])
            over = not success and self._steps >= self.max_steps
            self._last = self.raw, float(reward) / 10, success, over, {"is_success": success}
        raw, reward, terminated, truncated, info = self._last
        return _parts(raw), reward, terminated, truncated, dict(info)

    def render(self) -> NDArray[np.uint8] | None:
        """The picture of the camera (480, 480, 3), or None without a render mode."""
        return None if self.render_mode is None else self._env.render()

    def close(self) -> None:
        """Free the simulation."""
        self._env.close()


def collect(task: str, episodes: int, seed: int, noise: float = 0.0) -> dict[str, NDArray[Any]]:
    """Demonstrations by metaworld's scripted expert, of which only successful ones are kept.

    Noise disturbs the hand, not the labels, so that the data cover recoveries (DART: Laskey et al. 2017, arXiv
    1703.09327): the arm executes the expert's clipped action plus noise, the data hold the action without it.

    Args:
        task: Name of a Meta-World task.
        episodes: Number of demonstrations.
        seed: Of the first attempt, and of the noise; the next attempts take the next seeds.
        noise: Standard deviation of what is added to each of the three components of the hand's motion.

    Returns:
        Flat float32 arrays of every feature of `MetaWorld` and `action` (T, 4), one demonstration after another; int64
        `episode_ends` (E,); and `success_rate` (), the share of attempts that succeeded.

    Raises:
        ImportError: The extra `manipulation` is missing.
        ValueError: No such task, no episode or negative noise, or an expert that fails nearly always.
    """
    if episodes < 1 or noise < 0:
        raise ValueError(f"collect got {episodes=} and {noise=}, expected at least 1 episode and noise >= 0")
    env, kept, attempt = MetaWorld(task), [], 0
    while len(kept) < episodes:
        if attempt == _MOST * episodes:
            raise ValueError(
                f"collect got {len(kept)} successes of the expert of {task!r} in {attempt} attempts with {noise=}, "
                f"expected {episodes}: lower the noise"
            )
        steps = _driven(env, seed + attempt, noise)
        kept += [steps] if steps else []
        attempt += 1
    env.close()
    flat = [step for steps in kept for step in steps]
    return {
        **{name: np.stack([step[name] for step in flat]) for name in flat[0]},
        "episode_ends": np.cumsum([len(steps) for steps in kept]),
        "success_rate": np.asarray(len(kept) / attempt),
    }


def _driven(env: MetaWorld, seed: int, noise: float) -> list[Observation]:
    """The steps of one attempt of the expert, none if it failed."""
    expert, generator = _library().policies.ENV_POLICY_MAP[env.task](), np.random.default_rng(seed)
    (observation, _), steps, terminated, truncated = env.reset(seed=seed), [], False, False
    while not (terminated or truncated):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Constant")  # the expert says that its actions will be clipped
            action = np.clip(expert.get_action(env.raw), -1.0, 1.0).astype(np.float32)
        steps.append({**observation, "action": action})
        disturbance = noise * generator.standard_normal(4) * (1, 1, 1, 0)
        observation, _, terminated, truncated, _ = env.step(action + disturbance)
    return steps if terminated else []


def _parts(raw: NDArray[np.float64]) -> Observation:
    return {name: raw[part].astype(np.float32) for name, part in _PARTS.items()}


def _known_task(task: str, known: Any) -> None:
    if task not in known:
        near = difflib.get_close_matches(task, known, n=1, cutoff=0.0)
        raise ValueError(f"got the Meta-World task {task!r}, expected one of {len(known)}, such as {near[0]!r}")


def _library() -> ModuleType:
    try:
        import metaworld
        import metaworld.policies
    except ImportError as error:
        raise ImportError(
            "tasks of Meta-World need the extra 'manipulation': pip install 'poise[manipulation]'"
        ) from error
    return metaworld


gymnasium.register(id="poise/MetaWorld-v0", entry_point="poise.envs.metaworld:MetaWorld")

__all__ = ["STEPS", "MetaWorld", "collect"]
