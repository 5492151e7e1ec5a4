r"""The transformer of Diffusion Policy (Chi et al. 2023, arXiv 2303.04137; after Vaswani et al. 2017, 1706.03762).

A decoder over the plan that attends to the noise level and the observation tokens,

$$ h \leftarrow h + \mathrm{attention}(\mathrm{LN}\,h), \qquad
   h \leftarrow h + \mathrm{attention}(\mathrm{LN}\,h;\ [m_\lambda, m_1, \dots, m_N]), \qquad
   h \leftarrow h + W_2\,\mathrm{GELU}(W_1\,\mathrm{LN}\,h). $$

The tensors have the names and shapes of the published checkpoints whose memory comes from an MLP, so that these can be
imported. The MLP treats each memory token alone, so keys and values of the observation are computed once a plan and
only those of the noise level at every step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from poise.nn.attention import Attention, Memory, MultiHead
from poise.nn.conditioning import Conditioning, CrossAttention, beside
from poise.nn.embeddings import Level, LogSnr
from poise.nn.spec import Network, NetworkSpec, building
from poise.typing import Actions, Times, Tokens


@dataclass(frozen=True)
class Transformer(NetworkSpec):
    """Decoder with cross-attention; the defaults are the compact size, `depth=8` is the published one.

    Attributes:
        width: Width of a step of the plan; even, and a multiple of `heads`.
        depth: Number of decoder layers.
        heads: Heads of the self-attention.
        expand: Units of the MLP of a layer and of the memory, as a multiple of `width`.
        causal: A step of the plan sees itself and earlier steps only.
        aligned: Step k of the plan sees the tokens up to number k only, as in the published checkpoints, whose plans
            begin at the oldest observation.
        dropout: Probability with which training hides activations and attention weights; 0.3 is published.
        conditioning: `CrossAttention`, alone or joined with `Concatenate`.
        level: As what the network knows the noise level; `Steps` for networks of a published chain.

    Raises:
        ValueError: A conditioning without attention, or with modulation.
    """

    width: int = 256
    depth: int = 4
    heads: int = 4
    expand: int = 4
    causal: bool = False
    aligned: bool = False
    dropout: float = 0.0
    conditioning: Conditioning = CrossAttention()
    level: Level = LogSnr()

    def __post_init__(self) -> None:
        if self.conditioning.doors.modulation or not self.conditioning.doors.attention:
            raise ValueError(
                f"Transformer got conditioning={self.conditioning}, expected CrossAttention, alone or joined with "
                "Concatenate, for its noise level is a token that the plan attends to: for another conditioning use "
                "DiT, a transformer with adaptive layer norm"
            )

    def build(self, horizon: int, action: int, tokens: tuple[int, int]) -> Network:
        """The module for plans `(B, horizon, action)`.

        Raises:
            ValueError: A width that is odd or does not fit the heads, or aligned tokens that no step would see.
        """
        if self.aligned and tokens[0] > horizon:
            raise ValueError(
                f"Transformer got aligned=True and {tokens[0]} tokens for horizon={horizon}, expected at most one "
                "token a step of the plan, for the rest would never be seen: use aligned=False"
            )
        attention = self.conditioning.doors.attention
        assert attention is not None
        with building(self):
            return _Transformer(self, horizon, action, tokens, attention)


class _Prepared(NamedTuple):
    entrance: Tensor  # what the observation adds to every step at the input, (B, width)
    memories: list[Memory]  # keys and values of the observation, for each layer


class _Layer(nn.Module):
    """A layer of `nn.TransformerDecoder` with the norm first, under its names, with a memory of keys and values."""

    def __init__(self, spec: Transformer, attention: Attention) -> None:
        super().__init__()
        width = spec.width
        self.self_attn = MultiHead(width, spec.heads, spec.dropout)
        self.multihead_attn = attention
        self.linear1, self.linear2 = nn.Linear(width, spec.expand * width), nn.Linear(spec.expand * width, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, h: Tensor, memory: Memory, mask: Tensor | None, memory_mask: Tensor | None) -> Tensor:
        h = h + self.dropout(self.self_attn(self.norm1(h), mask=mask))
        h = h + self.dropout(self.multihead_attn(self.norm2(h), memory, memory_mask))
        return h + self.dropout(self.linear2(self.dropout(functional.gelu(self.linear1(self.norm3(h))))))


class _Transformer(Network):
    def __init__(
        self,
        spec: Transformer,
        horizon: int,
        action: int,
        tokens: tuple[int, int],
        attention: Callable[[int], Attention],
    ) -> None:
        super().__init__()
        width, (count, features) = spec.width, tokens
        self.input_emb = nn.Linear(action, width)
        self.entrance_observation = beside(spec.conditioning.doors.entrance, count * features, width)
        self.pos_emb = nn.Parameter(torch.zeros(1, horizon, width))
        self.time_emb = spec.level.build(width)
        self.cond_obs_emb = nn.Linear(features, width)
        self.cond_pos_emb = nn.Parameter(torch.zeros(1, 1 + count, width))
        self.encoder = nn.Sequential(
            nn.Linear(width, spec.expand * width), nn.Mish(), nn.Linear(spec.expand * width, width)
        )
        self._layers = [_Layer(spec, attention(width)) for _ in range(spec.depth)]
        self.decoder = nn.ModuleDict({"layers": nn.ModuleList(self._layers)})
        self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, action)
        step, token = torch.arange(horizon)[:, None], torch.arange(1 + count)
        self.register_buffer("mask", token.new_ones(horizon, horizon).tril().bool(), persistent=False)
        self.register_buffer("memory_mask", step >= token - 1, persistent=False)  # the noise level is token 0
        self.mask: Tensor
        self.memory_mask: Tensor
        self._masks = spec.causal, spec.aligned
        self.apply(_initialise)
        nn.init.normal_(self.pos_emb, std=0.02)
        nn.init.normal_(self.cond_pos_emb, std=0.02)

    def _memories(self, embedded: Tensor) -> list[Memory]:
        """Keys and values of embedded memory tokens `(B, n, width)`, for each layer."""
        encoded = self.encoder(embedded)
        return [layer.multihead_attn.memory(encoded) for layer in self._layers]

    def prepare(self, tokens: Tokens) -> _Prepared:
        memories = self._memories(self.cond_obs_emb(tokens) + self.cond_pos_emb[:, 1:])
        return _Prepared(self.entrance_observation(tokens.flatten(1)), memories)

    def forward(self, x: Actions, log_snr: Times, prepared: _Prepared) -> Actions:
        causal, aligned = self._masks
        mask, memory_mask = self.mask if causal else None, self.memory_mask if aligned else None
        levels = self._memories(self.time_emb(log_snr)[:, None] + self.cond_pos_emb[:, :1])
        h = self.input_emb(x) + self.pos_emb + prepared.entrance[:, None]
        for layer, level, memory in zip(self._layers, levels, prepared.memories, strict=True):
            h = layer(h, level.then(memory), mask, memory_mask)
        return self.head(self.ln_f(h))


def _initialise(module: nn.Module) -> None:
    """As published: matrices of standard deviation 0.02, biases zero."""
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


__all__ = ["Transformer"]
