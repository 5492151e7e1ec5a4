r"""The diffusion transformer with adaptive layer norm zero (Peebles and Xie 2022, arXiv 2212.09748), over the horizon.

$$ h \leftarrow h + g_1 \odot \mathrm{attention}\big((1 + s_1) \odot \mathrm{LN}(h) + b_1\big), \qquad
   h \leftarrow h + g_2 \odot \mathrm{MLP}\big((1 + s_2) \odot \mathrm{LN}(h) + b_2\big), $$

with $(b, s, g) = W_m\,c$ and c from the noise level and, under `FiLM`, the observation. The maps to the modulations and
to the output begin as zero, so that at first every block is the identity and the network the zero function.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from poise.nn.attention import Memory, MultiHead
from poise.nn.conditioning import Conditioning, Doors, FiLM, attend, beside, modulated
from poise.nn.embeddings import Level, LogSnr, Sinusoidal
from poise.nn.spec import Network, NetworkSpec, building
from poise.typing import Actions, Times, Tokens


@dataclass(frozen=True)
class DiT(NetworkSpec):
    """Transformer whose tokens are the steps of the plan, modulated by the noise level; every conditioning fits.

    Attributes:
        width: Width of a token; even, and a multiple of `heads`.
        depth: Number of blocks.
        heads: Heads of the self-attention.
        expand: Units of the MLP of a block, as a multiple of `width`.
        conditioning: Through which doors the observation enters; with `CrossAttention` after the self-attention.
        level: As what the network knows the noise level; `Steps` for networks of a published chain.
    """

    width: int = 192
    depth: int = 4
    heads: int = 4
    expand: int = 4
    conditioning: Conditioning = FiLM()
    level: Level = LogSnr()

    def build(self, horizon: int, action: int, tokens: tuple[int, int]) -> Network:
        """The module for plans `(B, horizon, action)`.

        Raises:
            ValueError: A width that is odd or does not fit the heads.
        """
        with building(self):
            return _DiT(self, horizon, action, tokens)


class _Prepared(NamedTuple):
    entrance: Tensor  # what the observation adds to every step at the input, (B, width)
    condition: Tensor  # what it adds to the conditioning vector, (B, width)
    memories: list[Memory | None]  # what each block attends to


class _Modulation(nn.Module):
    """From the condition to some shifts, scales and gates, each `(B, 1, width)`; zero at first."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.linear, self.parts = nn.Linear(width, parts * width), parts
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, condition: Tensor) -> list[Tensor]:
        return list(self.linear(condition)[:, None].chunk(self.parts, dim=-1))


class _Block(nn.Module):
    def __init__(self, spec: DiT, doors: Doors, tokens: tuple[int, int]) -> None:
        super().__init__()
        width, self.branch = spec.width, 3 if doors.scale else 2
        self.modulation = _Modulation(width, 2 * self.branch)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = MultiHead(width, spec.heads)
        self.attend = attend(doors, width, tokens)
        self.mlp = nn.Sequential(
            nn.Linear(width, spec.expand * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(spec.expand * width, width),
        )

    def forward(self, h: Tensor, condition: Tensor, memory: Memory | None) -> Tensor:
        parts = self.modulation(condition)
        (gate, *first), (other, *second) = parts[: self.branch], parts[self.branch :]
        h = torch.addcmul(h, gate, self.attention(modulated(self.norm(h), *first)))
        h = self.attend(h, memory)
        return torch.addcmul(h, other, self.mlp(modulated(self.norm(h), *second)))


class _DiT(Network):
    def __init__(self, spec: DiT, horizon: int, action: int, tokens: tuple[int, int]) -> None:
        super().__init__()
        doors, width, observation = spec.conditioning.doors, spec.width, tokens[0] * tokens[1]
        self.entrance = nn.Linear(action, width)
        self.entrance_observation = beside(doors.entrance, observation, width)
        positions = Sinusoidal(width, 1e-4, 1.0)(torch.arange(horizon))
        self.register_buffer("positions", positions, persistent=False)
        self.positions: Tensor
        self.condition = nn.Sequential(
            spec.level.build(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.condition_observation = beside(doors.modulation, observation, width)
        blocks = [_Block(spec, doors, tokens) for _ in range(spec.depth)]
        self.blocks, self._attends = nn.ModuleList(blocks), [block.attend for block in blocks]
        self.exit_modulation = _Modulation(width, 2 if doors.scale else 1)
        self.norm, self.exit = nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, action)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    def prepare(self, tokens: Tokens) -> _Prepared:
        flat = tokens.flatten(1)
        memories = [attend.prepare(tokens) for attend in self._attends]
        return _Prepared(self.entrance_observation(flat), self.condition_observation(flat), memories)

    def forward(self, x: Actions, log_snr: Times, prepared: _Prepared) -> Actions:
        condition = functional.silu(self.condition(log_snr) + prepared.condition)
        h = self.entrance(x) + self.positions + prepared.entrance[:, None]
        for block, memory in zip(self.blocks, prepared.memories, strict=True):
            h = block(h, condition, memory)
        return self.exit(modulated(self.norm(h), *self.exit_modulation(condition)))


__all__ = ["DiT"]
