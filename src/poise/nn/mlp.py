r"""A residual multilayer perceptron, the compact network for low-dimensional plans.

$$ h \leftarrow h + (1 + g)\; W_2\, \mathrm{SiLU}\big(W_1\,[(1 + s)\,\mathrm{LN}(h) + b]\big), \qquad
   (s, b, g) = W_m\, c(\lambda, \text{tokens}). $$

Every block is modulated by the noise level and, under `FiLM`, the observation (adaptive layer norm, Peebles and Xie
2022, arXiv 2212.09748); under `Concatenate` the observation enters at the input, beside the noisy plan.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from poise.nn.conditioning import Concatenate, Conditioning, Doors, FiLM, Joined, beside, modulated
from poise.nn.embeddings import Level, LogSnr
from poise.nn.spec import Network, NetworkSpec
from poise.typing import Actions, Times, Tokens

_LEVEL_WIDTH = 64  # sines and cosines of the log-SNR


@dataclass(frozen=True)
class MLP(NetworkSpec):
    """Residual blocks modulated by log-SNR and observation tokens.

    Attributes:
        width: Units of the residual stream.
        depth: Number of blocks.
        expand: Units inside a block, as a multiple of `width`.
        condition: Units of the conditioning vector.
        conditioning: `Concatenate`, `FiLM` or both.
        level: As what the network knows the noise level; `Steps` for networks of a published chain.

    Raises:
        ValueError: A conditioning that attends.
    """

    width: int = 512
    depth: int = 4
    expand: int = 2
    condition: int = 256
    conditioning: Conditioning = Joined((Concatenate(), FiLM()))
    level: Level = LogSnr()

    def __post_init__(self) -> None:
        if self.conditioning.doors.attention:
            raise ValueError(
                f"MLP got conditioning={self.conditioning}, expected Concatenate, FiLM or both, for a flat plan has no "
                "steps that could attend to tokens: for cross-attention use UNet1D, Transformer or DiT"
            )

    def build(self, horizon: int, action: int, tokens: tuple[int, int]) -> Network:
        """The module for plans `(B, horizon, action)`."""
        return _MLP(self, horizon * action, tokens[0] * tokens[1])


class _Prepared(NamedTuple):
    entrance: Tensor  # what the observation adds at the input, (B, width)
    condition: Tensor  # what it adds to the conditioning vector, (B, condition)


class _Block(nn.Module):
    def __init__(self, spec: MLP, doors: Doors) -> None:
        super().__init__()
        self.parts = 3 if doors.scale else 2
        self.norm = nn.LayerNorm(spec.width, elementwise_affine=False)
        self.modulation = nn.Linear(spec.condition, self.parts * spec.width)
        self.widen = nn.Linear(spec.width, spec.expand * spec.width)
        self.narrow = nn.Linear(spec.expand * spec.width, spec.width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        *scale, shift, gate = self.modulation(condition).chunk(self.parts, dim=-1)
        inner = functional.silu(self.widen(modulated(self.norm(h), shift, *scale)))
        return torch.addcmul(h, 1 + gate, self.narrow(inner))


class _MLP(Network):
    def __init__(self, spec: MLP, plan: int, observation: int) -> None:
        super().__init__()
        doors = spec.conditioning.doors
        self.entrance = nn.Linear(plan, spec.width)
        self.entrance_observation = beside(doors.entrance, observation, spec.width)
        self.level = spec.level.build(_LEVEL_WIDTH)
        self.condition_level = nn.Linear(_LEVEL_WIDTH, spec.condition)
        self.condition_observation = beside(doors.modulation, observation, spec.condition)
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(spec.condition, spec.condition), nn.SiLU())
        self.blocks = nn.ModuleList(_Block(spec, doors) for _ in range(spec.depth))
        self.exit = nn.Sequential(nn.LayerNorm(spec.width), nn.Linear(spec.width, plan))

    def prepare(self, tokens: Tokens) -> _Prepared:
        observation = tokens.flatten(1)
        return _Prepared(self.entrance_observation(observation), self.condition_observation(observation))

    def forward(self, x: Actions, log_snr: Times, prepared: _Prepared) -> Actions:
        condition = self.condition(self.condition_level(self.level(log_snr)) + prepared.condition)
        h = self.entrance(x.flatten(1)) + prepared.entrance
        for block in self.blocks:
            h = block(h, condition)
        return self.exit(h).reshape(x.shape)


__all__ = ["MLP"]
