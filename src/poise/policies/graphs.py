"""The loop from noise to plan as CUDA graphs: hundreds of small kernels that one launch starts."""

from collections.abc import Callable, Collection, Hashable, Iterator
from itertools import islice

import torch
from torch import Tensor

from poise.policies.tried import tried
from poise.sampling import State
from poise.typing import Noise

Walk = Callable[[Tensor, Tensor, Noise], Iterator[State]]
"""`(tokens, x, noise)` to the states from the noisy plan `x` on; it must not wait for the device between them."""


class Graphs:
    """Captured loops, one a kind of plan and batch size.

    The first plan of a kind runs eagerly, and the loop is captured after it; every later one fills in tokens, start
    and noise, which is drawn in the order of the eager loop, and replays. So a plan is what the eager loop makes of the
    same noise.

    Args:
        batches: Batch sizes whose loops are captured; others run eagerly.
    """

    def __init__(self, batches: Collection[int]) -> None:
        self._batches, self._captured = frozenset(batches), dict[Hashable, _Captured | None]()

    def states(self, kind: Hashable, walk: Walk, tokens: Tensor, x: Tensor, noise: Noise) -> Iterator[State]:
        """The states of one loop.

        Args:
            kind: All that decides about the loop but shapes: sampler, times.
            walk: The eager loop.
            tokens: Of the observation, `(B, N, D)`.
            x: The noisy plan, `(B, horizon, action)`.
            noise: Source of noise for stochastic samplers.

        Raises:
            ValueError: A plan that is not finite.
        """
        key = (kind, tuple(x.shape), tuple(tokens.shape))
        captured = self._captured.get(key)
        if captured is not None:
            return captured.replay(tokens, x, noise)
        if len(x) not in self._batches or key in self._captured:
            return walk(tokens, x, noise)
        return self._first(key, walk, tokens, x, noise)

    def _first(self, key: Hashable, walk: Walk, tokens: Tensor, x: Tensor, noise: Noise) -> Iterator[State]:
        asked = list[tuple[float, float]]()

        def listening(x: Tensor, t: float, s: float) -> Tensor:
            asked.append((t, s))
            return noise(x, t, s)

        def capture() -> None:
            self._captured[key] = _Captured(walk, tokens, x, asked, len(states))

        states, self._captured[key] = list(walk(tokens, x, listening)), None
        tried("planning", [capture])
        yield from states


class _Captured:
    """One captured loop.

    Args:
        walk: The loop, which ran once before.
        tokens: As it had them.
        x: As it had it.
        asked: Time and next time of every draw of noise.
        count: The number of its states.
    """

    def __init__(self, walk: Walk, tokens: Tensor, x: Tensor, asked: list[tuple[float, float]], count: int) -> None:
        self._tokens, self._x, self._asked = tokens.clone(), x.clone(), asked
        self._noise = [torch.zeros_like(x) for _ in asked]
        draws = iter(self._noise)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            # Not to its end, where the loop waits for the device to see whether all was finite.
            self._states = list(islice(walk(self._tokens, self._x, lambda x, t, s: next(draws)), count))

    def replay(self, tokens: Tensor, x: Tensor, noise: Noise) -> Iterator[State]:
        """The states for other tokens, start and noise."""
        self._tokens.copy_(tokens)
        self._x.copy_(x)
        for place, (t, s) in zip(self._noise, self._asked, strict=True):
            place.copy_(noise(place, t, s))
        self._graph.replay()
        for state in self._states:
            yield state._replace(x=state.x.clone())  # the next replay overwrites it
        if not bool(torch.isfinite(self._states[-1].x).all()):
            raise ValueError(
                "The plan holds NaN or infinity, expected finite numbers: plan eagerly for the step that they come "
                "from, and check the network's weights"
            )


__all__ = ["Graphs", "Walk"]
