"""Two agents in one environment: a policy gives some components of the action, a scripted partner gives the rest."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box
from numpy.typing import ArrayLike, NDArray

from poise.envs.experts.expert import Expert


@final
class Partnered(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment of which a policy drives one part only.

    The partner is an `Expert` whose actions are the components `theirs` alone. It may look into the environment, which
    it is given at every reset together with a seed from the environment's own generator: the seed of a reset decides
    what the partner does as well.

    Args:
        env: With a flat Box of actions.
        partner: Who drives the rest.
        mine: Components of the action that the policy gives, in the order of its own action.
        theirs: Components that the partner gives, in the order of its own.

    Raises:
        ValueError: Actions of another kind, or a split in which a component is missing, given twice or does not exist.

    Attributes:
        action_space: The policy's part.
        partner: Who drives the rest.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], partner: Expert, mine: Sequence[int], theirs: Sequence[int]
    ) -> None:
        space = env.action_space
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise ValueError(f"Partnered got actions {space}, expected a flat Box")
        _splits(space.shape[0], mine, theirs)
        super().__init__(env)
        self._mine, self._theirs, self.partner = np.asarray(mine, int), np.asarray(theirs, int), partner
        self._space, self._seen = space, None
        low, high = space.low[self._mine], space.high[self._mine]
        self.action_space = Box(low, high, dtype=space.dtype.type)  # pyright: ignore[reportArgumentType]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, the partner's too."""
        self._seen, infos = self.env.reset(seed=seed, options=options)
        self.partner.reset(self.env.unwrapped, int(self.env.unwrapped.np_random.integers(2**31)))
        return self._seen, infos

    def step(self, action: ArrayLike) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step of both; `action` is the policy's part.

        Raises:
            ResetNeeded: Before the first reset.
            ValueError: A part of another length.
        """
        if self._seen is None:
            raise ResetNeeded("step() was called before reset(): call reset() first.")
        joined = np.zeros(self._space.shape, self._space.dtype)
        joined[self._mine] = _part("the policy", action, len(self._mine))
        joined[self._theirs] = _part("the partner", self.partner.act(self._seen), len(self._theirs))
        self._seen, reward, terminated, truncated, infos = self.env.step(joined)
        return self._seen, reward, terminated, truncated, infos


def _part(who: str, action: ArrayLike | Mapping[str, Any], length: int) -> NDArray[Any]:
    part = np.asarray(action)
    if part.shape != (length,):
        raise ValueError(f"{who} gave an action of shape {part.shape}, expected ({length},): its part of the whole")
    return part


def _splits(size: int, mine: Sequence[int], theirs: Sequence[int]) -> None:
    given = [*mine, *theirs]
    twice = sorted({k for k in given if given.count(k) > 1})
    missing, strange = sorted(set(range(size)) - set(given)), sorted(set(given) - set(range(size)))
    if twice or missing or strange or not len(mine):
        raise ValueError(
            f"Partnered got a split of {size} components with {missing} given by nobody, {twice} given twice and "
            f"{strange} that do not exist, {len(mine)} of them the policy's: give each exactly once, and the policy one"
        )


__all__ = ["Partnered"]
