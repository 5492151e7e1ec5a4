"""Films of closed-loop episodes: what the environments render, side by side."""

from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from poise.evaluation.rollout import Slots
from poise.evaluation.task import Task
from poise.policies import Policy
from poise.policies.control import Control, RecedingHorizon


def film(
    policy: Policy, task: Task, seeds: Sequence[int], control: Control = RecedingHorizon
) -> Generator[NDArray[np.uint8], None, None]:
    """Yield one picture a control step, `(H, W, 3)`, of all seeds side by side until the last one ends.

    Args:
        policy: Any policy.
        task: An environment that renders RGB arrays.
        seeds: One a tile.
        control: `(policy, robots) -> controller`, what turns its plans into actions.

    Raises:
        ValueError: An environment that renders nothing.
    """
    slots = Slots(policy, task, seeds, len(seeds), render=True, control=control)
    try:
        shown = _rendered(slots, task)
        while slots.active.any():
            running = slots.active.copy()
            yield tiled(shown)
            for _ in slots.step():
                pass
            fresh = _rendered(slots, task)
            shown = [new if on else old for new, old, on in zip(fresh, shown, running & slots.active, strict=True)]
        yield tiled(shown)
    finally:
        slots.envs.close()


def _rendered(slots: Slots, task: Task) -> list[NDArray[np.uint8]]:
    frames = slots.envs.render()
    if frames is None:
        raise ValueError(f"film got {task.environment!r}, which renders nothing, expected render_mode 'rgb_array'")
    return [np.asarray(frame, dtype=np.uint8) for frame in frames]


def tiled(frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pictures of one size `(H, W, 3)` as a grid about as wide as it is high, empty tiles white."""
    columns = int(np.ceil(np.sqrt(len(frames))))
    rows = -(-len(frames) // columns)
    blank = np.full_like(frames[0], 255)
    padded = [*frames, *[blank] * (rows * columns - len(frames))]
    return np.vstack([np.hstack(padded[columns * r : columns * (r + 1)]) for r in range(rows)])


__all__ = ["film", "tiled"]
