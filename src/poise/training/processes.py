"""The processes that share a training: what the loop asks of them. One process needs nothing."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from torch.optim import Optimizer


class Processes(ABC):
    """Processes that train one policy together; each computes a share of every batch.

    Attributes:
        rank: Number of this process, from 0.
        count: How many there are.
    """

    rank: int
    count: int

    @abstractmethod
    def prepare(self, module: nn.Module, optimiser: Optimizer) -> nn.Module:
        """The module whose gradients are the mean over the processes."""

    @abstractmethod
    def alone(self, module: nn.Module) -> AbstractContextManager:
        """Where gradients are not exchanged: all parts of a batch but the last."""

    @abstractmethod
    def clip(self, module: nn.Module, most: float) -> Tensor:
        """Clip the gradient to this norm, and its norm before."""

    @abstractmethod
    def total(self, value: Tensor) -> Tensor:
        """The sum over the processes."""


class Single(Processes):
    """One process."""

    rank, count = 0, 1

    def prepare(self, module: nn.Module, optimiser: Optimizer) -> nn.Module:  # noqa: ARG002 (others need it)
        """The module as it is."""
        return module

    def alone(self, module: nn.Module) -> AbstractContextManager:  # noqa: ARG002 (others need it)
        """Nowhere in particular."""
        return nullcontext()

    def clip(self, module: nn.Module, most: float) -> Tensor:
        """Clip the gradient to this norm, and its norm before."""
        return nn.utils.clip_grad_norm_(module.parameters(), most)

    def total(self, value: Tensor) -> Tensor:
        """The value."""
        return value


__all__ = ["Processes", "Single"]
