"""The processes that share a training: what the loop asks of them. One process needs nothing."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

_Module = TypeVar("_Module", bound=nn.Module)


class Processes(ABC):
    """Processes that train one policy together; each computes a share of every batch.

    All of them must call `prepare`, `clip`, `total`, `most`, `whole` and `gathered`, in the same order: a process that
    does not leaves the others waiting.

    Attributes:
        rank: Number of this process, from 0; the first one writes and prints.
        count: How many there are.
    """

    rank: int
    count: int

    @abstractmethod
    def prepare(self, module: nn.Module, optimiser: Optimizer, average: nn.Module) -> nn.Module:
        """The module whose gradients are the mean over the processes.

        Args:
            module: What is differentiated. Its parameters may become shards, in place.
            optimiser: Of its parameters; its state becomes shards with them.
            average: Module with the same parameters, in the same order, which become shards likewise.
        """

    @abstractmethod
    def alone(self, module: nn.Module) -> AbstractContextManager:
        """Where gradients are not exchanged: all parts of a batch but the last."""

    @abstractmethod
    def clip(self, module: nn.Module, most: float) -> Tensor:
        """Clip the gradient to this norm, and its norm before."""

    @abstractmethod
    def total(self, value: Tensor) -> Tensor:
        """The sum over the processes."""

    @abstractmethod
    def most(self, value: float) -> float:
        """The largest over the processes: how they agree, and wait for each other."""

    @abstractmethod
    def whole(self, tensor: Tensor) -> Tensor:
        """The tensor that shards are of; one that is whole is returned as it is."""

    @abstractmethod
    def gathered(self, module: _Module) -> _Module:
        """A module with whole parameters; one that has them is returned as it is."""


class Single(Processes):
    """One process."""

    rank, count = 0, 1

    def prepare(self, module: nn.Module, optimiser: Optimizer, average: nn.Module) -> nn.Module:  # noqa: ARG002
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

    def most(self, value: float) -> float:
        """The value."""
        return value

    def whole(self, tensor: Tensor) -> Tensor:
        """The tensor."""
        return tensor

    def gathered(self, module: _Module) -> _Module:
        """The module."""
        return module


__all__ = ["Processes", "Single"]
