r"""Replay: do recorded actions, from the recorded start, lead where they led when they were recorded?

An episode is started again by `Task.restart`, and its actions are run with no policy. With recorded observations $o_i$
and replayed ones $\hat o_i$, the deviation of a feature after i steps is $d_i = \lVert \hat o_i - o_i \rVert$, in the
units of the data. It is 0 where the environment is deterministic, starts where it should, and its state is in the first
row. Where contacts decide, small differences grow: other physics, a hidden velocity, rounding, or actions that were
recorded before noise was added to them show here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from poise.data import Episodes, Role
from poise.evaluation.task import Task

_SEED = 100_000  # of what a restart leaves open; demonstrations come from others
_REWARDS = ("reward", "next.reward", "rewards")


@dataclass(frozen=True, eq=False)
class Replay:
    """One episode, recorded and replayed.

    Attributes:
        episode: Its number.
        recorded: Rows of the recording.
        steps: Actions that were run; fewer where the environment ended the episode before.
        deviation: Feature -> `(rows,)`, distance between replayed and recorded observations, from the start on.
        left: Feature -> first row whose distance is beyond the tolerance, or None.
        reward: Largest reward of the replay.
        recorded_reward: Largest reward of the recording, where it has rewards.
        success: Whether the replay ended in success, as `Episode.success`.
    """

    episode: int
    recorded: int
    steps: int
    deviation: Mapping[str, NDArray[np.float64]]
    left: Mapping[str, int | None]
    reward: float
    recorded_reward: float | None
    success: bool

    def rms(self, name: str) -> float:
        """Root mean square of the distance over time."""
        return float(np.sqrt(np.mean(np.square(self.deviation[name]))))

    def largest(self, name: str) -> float:
        """Largest distance."""
        return float(self.deviation[name].max())


def replay(task: Task, episodes: Episodes, chosen: Sequence[int], tolerance: float = 0.1) -> Iterator[Replay]:
    """Run the recorded actions of episodes, one episode after the other.

    Compared are the features that both `task.observe` and the data give, images left out.

    Args:
        task: Where they were recorded; its `restart` takes an episode back to its first row.
        episodes: With a feature `action`, as the policy of the task would give it.
        chosen: Numbers of episodes.
        tolerance: Distance up to which a replay follows its recording, in units of the feature's root mean square
            distance from its mean over all episodes.

    Raises:
        ValueError: A task without `restart`, no feature in common, or no such episode.
    """
    if task.restart is None:
        raise ValueError(
            f"replay got {task.environment!r} without a way back to a recorded start, expected Task(restart=...) in "
            "the recipe: a function from the first row of an episode to options of the environment's reset"
        )
    wrong = [k for k in chosen if not 0 <= k < len(episodes)]
    if wrong or "action" not in episodes.features:
        raise ValueError(
            f"replay got the episodes {wrong or list(chosen)} of {len(episodes)} with the features "
            f"{sorted(episodes.features)}, expected existing ones and a feature 'action'"
        )
    envs = task.make(1)
    try:
        tolerances: dict[str, float] = {}
        for number in chosen:
            rows = {
                name: array[episodes.starts[number] : episodes.ends[number]]
                for name, array in episodes.features.items()
            }
            start = task.restart({name: values[0] for name, values in rows.items()})
            seen, rewards, success = _run(envs, task, start, rows["action"])
            tolerances = tolerances or {name: tolerance * _spread(episodes, name) for name in _common(seen, episodes)}
            yield _compared(number, rows, seen, rewards, success, tolerances, _recorded_reward(episodes, rows))
    finally:
        envs.close()


def _run(
    envs: VectorEnv, task: Task, start: dict[str, Any], actions: NDArray
) -> tuple[dict[str, NDArray], NDArray[np.float64], bool]:
    """Features from the start on, rewards, and success."""
    limits = envs.single_action_space
    if not isinstance(limits, Box):
        raise ValueError(f"replay got {task.environment!r} with actions {limits}, expected a Box")
    raw, _ = envs.reset(seed=_SEED, options=start)
    seen, rewards, success = [_first(task, raw)], [], False
    for action in actions:
        bounded = np.clip(task.act(action[None]), limits.low, limits.high)
        raw, reward, terminated, truncated, infos = envs.step(bounded.astype(limits.dtype))
        seen.append(_first(task, raw))
        rewards.append(float(reward[0]))
        success = bool(infos["is_success"][0] if "is_success" in infos else terminated[0])
        if terminated[0] or truncated[0]:
            break
    return {name: np.stack([one[name] for one in seen]) for name in seen[0]}, np.array(rewards), success


def _first(task: Task, raw: Any) -> dict[str, NDArray]:
    """Features of the only environment; copied, since environments may write over what they gave."""
    return {name: np.array(values[0]) for name, values in task.observe(raw).items()}


def _common(seen: Mapping[str, NDArray], episodes: Episodes) -> list[str]:
    shapes = {name: array.shape[1:] for name, array in episodes.features.items()}
    common = [name for name, values in seen.items() if shapes.get(name) == values.shape[1:] and values.ndim < 4]
    if not common:
        given = {name: values.shape[1:] for name, values in seen.items()}
        raise ValueError(
            f"replay got observations {given} for data with {shapes}, expected a feature in common: let the recipe's "
            "`read` and the task's `observe` give the same names"
        )
    return common


def _spread(episodes: Episodes, name: str) -> float:
    rows = episodes.features[name].reshape(episodes.steps, -1).astype(np.float64)
    return float(np.sqrt(rows.var(0).sum()))


def _recorded_reward(episodes: Episodes, rows: Mapping[str, NDArray]) -> float | None:
    names = [name for name in (*episodes.facts.named(Role.REWARD), *_REWARDS) if name in rows]
    return float(rows[names[0]].max()) if names else None


def _compared(
    number: int,
    rows: Mapping[str, NDArray],
    seen: Mapping[str, NDArray],
    rewards: NDArray[np.float64],
    success: bool,
    tolerances: Mapping[str, float],
    recorded_reward: float | None,
) -> Replay:
    deviation, left = {}, {}
    recorded = len(rows["action"])
    both = min(recorded, len(rewards) + 1)  # what the last action led to was not recorded
    for name, limit in tolerances.items():
        gap = (seen[name][:both].astype(np.float64) - rows[name][:both]).reshape(both, -1)
        deviation[name] = np.linalg.norm(gap, axis=1)
        beyond = np.flatnonzero(deviation[name] > limit)
        left[name] = int(beyond[0]) if len(beyond) else None
    best = float(rewards.max())
    return Replay(number, recorded, len(rewards), deviation, left, best, recorded_reward, success)


__all__ = ["Replay", "replay"]
