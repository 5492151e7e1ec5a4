"""The two abstract specs of networks and encoders, and the modules that they build.

A spec is a frozen dataclass of hyper-parameters that lives in the file of its module; it travels as JSON inside
checkpoints. To add a network or an encoder, write a spec and a module: `poise.testing` checks both.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from poise.typing import Actions, Observation, Times, Tokens


class Network(nn.Module, ABC):
    """A module that knows `(x, log_snr, condition)` and nothing else of diffusion."""

    @abstractmethod
    def prepare(self, tokens: Tokens) -> Any:
        """What depends on the observation tokens alone: computed once a plan, used at every denoising step."""

    @abstractmethod
    def forward(self, x: Actions, log_snr: Times, prepared: Any) -> Actions:
        """The output `y`, of the shape of `x`, for log signal-to-noise ratios `(B,)`."""


class Encoder(nn.Module, ABC):
    """A module from observation histories to tokens `(B, N, D)`.

    Features of three dimensions are images `(height, width, channels)`; all others are low-dimensional. Where there are
    several tokens a history step, those of a step stand together, oldest step first.

    Attributes:
        tokens: `(N, D)`.
        raw: Features that the encoder wants in the units of the data, such as angles; the others come normalised.
        alike: Features whose rows are things of one kind, and share the constants of their normalisation.
    """

    tokens: tuple[int, int]
    raw: frozenset[str] = frozenset()
    alike: frozenset[str] = frozenset()

    @abstractmethod
    def forward(self, observation: Observation) -> Tokens:
        """Tokens of normalised features `(B, history, ...)`."""


@dataclass(frozen=True)
class NetworkSpec(ABC):
    """Hyper-parameters of a network."""

    @abstractmethod
    def build(self, horizon: int, action: int, tokens: tuple[int, int]) -> Network:
        """The module for plans `(B, horizon, action)` under a condition of `tokens = (N, D)`."""


@dataclass(frozen=True)
class EncoderSpec(ABC):
    """Hyper-parameters of an encoder."""

    @abstractmethod
    def build(self, shapes: Mapping[str, tuple[int, ...]], history: int) -> Encoder:
        """The module for the named features of the given shapes, over `history` steps."""


@contextmanager
def building(spec: NetworkSpec) -> Iterator[None]:
    """Where what is wrong with a part is said to be wrong with the network.

    Raises:
        ValueError: That of the part, after the name of the network.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{type(spec).__name__} cannot be built: {error}") from error


__all__ = ["Encoder", "EncoderSpec", "Network", "NetworkSpec", "building"]
