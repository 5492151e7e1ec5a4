"""The order of the data and the seeds of the noise: pure functions of the training seed and the step."""

import numpy as np
import torch
from torch import Tensor

_SHUFFLE, _NOISE = 0, 1


class Order:
    """Batches of window indices without end: a fresh permutation every epoch, cut across its borders.

    Args:
        count: Number of windows.
        batch: Indices a step.
        seed: Of the training.

    Raises:
        ValueError: A batch of more windows than there are.
    """

    def __init__(self, count: int, batch: int, seed: int) -> None:
        if batch > count:
            raise ValueError(
                f"got a batch of {batch} for {count} training windows, expected at most as many: "
                f"--training.batch {count} or fewer, or more demonstrations"
            )
        self._count, self._batch, self._seed = count, batch, seed
        self._known = (-1, torch.empty(0))

    def __call__(self, step: int) -> Tensor:
        """The indices of a step, counted from 0, `(batch,)`."""
        epoch, begin = divmod(step * self._batch, self._count)
        here = self._epoch(epoch)[begin : begin + self._batch]
        if len(here) == self._batch:
            return here
        return torch.cat([here, self._epoch(epoch + 1)[: self._batch - len(here)]])

    def _epoch(self, epoch: int) -> Tensor:
        if self._known[0] != epoch:
            shuffle = torch.Generator().manual_seed(seed_of(self._seed, _SHUFFLE, epoch))
            self._known = epoch, torch.randperm(self._count, generator=shuffle)
        return self._known[1]


def noise_seed(seed: int, step: int) -> int:
    """The seed of all random numbers of a step."""
    return seed_of(seed, _NOISE, step)


def seed_of(*words: int) -> int:
    """A well-mixed seed of 32 bits, all that PyTorch's generator looks at, from numbers of any size."""
    return int(np.random.SeedSequence(words).generate_state(1)[0])


__all__ = ["Order", "noise_seed", "seed_of"]
