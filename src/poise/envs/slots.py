"""What the vector environments of our own share: seeds, partial resets and commands of their slots, checked."""

from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import ArrayLike, NDArray


def _seed_list(seed: int | list[int | None] | None, count: int) -> list[int | None]:
    """One seed a slot: an int `s` seeds slot `i` with `s + i`, None leaves every slot its stream.

    Raises:
        ValueError: A list of another length.
    """
    if seed is None:
        return [None] * count
    if isinstance(seed, int | np.integer):
        return [int(seed) + i for i in range(count)]
    if len(seed) != count:
        raise ValueError(f"Got {len(seed)} seeds; expected an int or a list of num_envs = {count} entries.")
    return list(seed)


def reset_rows(options: dict[str, Any] | None, count: int) -> list[int]:
    """The slots that `options["reset_mask"]` names, all without it.

    Raises:
        TypeError: A mask that is no boolean array.
        ValueError: A mask of another shape, or one that names none.
    """
    mask = (options or {}).get("reset_mask", np.ones(count, bool))
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise TypeError(f"options['reset_mask'] is {mask!r}; expected a bool array like `terminated | truncated`.")
    if mask.shape != (count,) or not mask.any():
        raise ValueError(
            f"options['reset_mask'] has shape {mask.shape} and {mask.sum()} True; expected ({count},) and "
            "some True. Skip the reset when there is nothing to reset."
        )
    return np.flatnonzero(mask).tolist()


def begin_streams(
    generators: dict[int, np.random.Generator], seed: int | list[int | None] | None, rows: list[int], count: int
) -> None:
    """Seed the streams of the slots `rows` of `count`; a slot without a seed goes on with its own, if it has one.

    Raises:
        ValueError: A list of seeds of another length.
    """
    seeds = _seed_list(seed, count)
    for i in rows:
        if seeds[i] is not None or i not in generators:
            generators[i] = np.random.default_rng(seeds[i])


def velocities(actions: ArrayLike, begun: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Commanded velocities (N, 2) of slots, clipped to [-1, 1] m/s.

    Args:
        actions: As given to the environment.
        begun: Whether each slot has been reset (N,).

    Raises:
        ResetNeeded: A slot that has never been reset.
        ValueError: Another shape, or numbers that are not finite.
    """
    command, count = np.asarray(actions, np.float64), len(begun)
    if command.shape != (count, 2):
        raise ValueError(f"actions have shape {command.shape}; expected ({count}, 2), a velocity in m/s each.")
    if not np.isfinite(command).all():
        bad = np.flatnonzero(~np.isfinite(command).all(axis=1)).tolist()
        raise ValueError(f"actions of environments {bad} are not finite; expected velocities in [-1, 1] m/s.")
    if not begun.all():
        raise ResetNeeded("step() was called before every environment was reset; call reset() first.")
    return np.clip(command, -1.0, 1.0)


def check_arguments(num_envs: int, max_episode_steps: int, render_mode: str | None) -> None:
    """Refuse arguments that no vector environment can have.

    Raises:
        ValueError: No slot, no step, or another render mode than `"rgb_array"`.
    """
    if num_envs < 1 or max_episode_steps < 1:
        raise ValueError(f"Got {num_envs=} and {max_episode_steps=}; expected both to be at least 1.")
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode is {render_mode!r}; expected 'rgb_array' or None.")


__all__ = ["begin_streams", "check_arguments", "reset_rows", "velocities"]
