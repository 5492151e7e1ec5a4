"""Sources of noise: callables `(x, t, s) -> eps` of the shape of `x`, for the step from time t to time s.

No sampler touches a global random state by itself. Equal times ask for noise of no step, such as the start.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from poise.typing import Noise

_LEVELS, _BLOCK = 30, 32  # five levels of normals are drawn at once


def gaussian(generator: torch.Generator | None = None) -> Noise:
    """Standard normal noise from one generator (PyTorch's global one when None)."""

    def draw(x: Tensor, t: float, s: float) -> Tensor:
        return torch.empty_like(x).normal_(generator=generator)

    return draw


def per_sample(generators: Sequence[torch.Generator | int]) -> Noise:
    """Noise whose row i comes from generator i alone, so that a sample does not depend on the batch it is in.

    Args:
        generators: One generator, or one seed, a sample. Generators live on the CPU, whatever the device of `x`.

    Raises:
        ValueError: On the first draw for a batch of another size.
    """
    sources = [torch.Generator().manual_seed(g) if isinstance(g, int) else g for g in generators]

    def draw(x: Tensor, t: float, s: float) -> Tensor:
        _fits(x, sources)
        return torch.stack([torch.randn(x.shape[1:], generator=s, dtype=x.dtype) for s in sources]).to(x.device)

    return draw


def tempered(noise: Noise, temperature: float) -> Noise:
    """Noise scaled by a temperature: below 1 a deterministic sampler keeps to the likely middle of what it learned.

    At 0 it starts from zero and returns one plan an observation. The samples no longer follow the learned law.
    """

    def draw(x: Tensor, t: float, s: float) -> Tensor:
        return temperature * noise(x, t, s)

    return draw


def brownian(seeds: Sequence[int]) -> Noise:
    r"""Increments of one Brownian path a sample, so that a finer grid converges to the same sample.

    $$ \epsilon = \frac{W(t) - W(s)}{\sqrt{t - s}}, \qquad
       W(t) = t\,z + \sum_{l} \tfrac12 2^{-l/2}\, \Lambda(2^l t - k)\, z_{l, k}, \quad k = \lfloor 2^l t \rfloor, \quad
       \Lambda(u) = 1 - |2 u - 1|, $$

    Levy's construction, to strides of 1e-9. Every normal z comes from a seed of its own place, so W at a time does not
    depend on what was asked before.

    Args:
        seeds: One seed a sample.

    Raises:
        ValueError: On the first draw for a batch of another size.
    """
    generator, outside, drawn = torch.Generator(), per_sample(seeds), dict[tuple[int, int], Tensor]()

    def normals(x: Tensor, block: tuple[int, int]) -> Tensor:
        """Those of five levels below one interval, and one more, `(32, B, ...)`."""
        if block not in drawn:
            own = (generator.manual_seed(hash((seed, *block)) % 2**63) for seed in seeds)
            rows = [torch.randn(_BLOCK, *x.shape[1:], generator=source, dtype=torch.float64) for source in own]
            drawn[block] = torch.stack(rows, 1)
        return drawn[block]

    def path(x: Tensor, time: float) -> Tensor:
        weights, terms = [time], [normals(x, (0, 0))[0]]
        for level in range(_LEVELS):
            k = min(int(time * 2**level), 2**level - 1)
            weights.append(0.5 * 2 ** (-level / 2) * (1 - abs(2 * (time * 2**level - k) - 1)))
            deeper = level % 5
            terms.append(normals(x, (level // 5, k >> deeper))[2**deeper + k % 2**deeper])
        return torch.tensordot(torch.tensor(weights, dtype=torch.float64), torch.stack(terms), 1)

    def draw(x: Tensor, t: float, s: float) -> Tensor:
        _fits(x, seeds)
        if t == s:
            return outside(x, t, s)
        return ((path(x, t) - path(x, s)) / math.sqrt(abs(t - s))).to(x)

    return draw


def _fits(x: Tensor, sources: Sequence[object]) -> None:
    if len(x) != len(sources):
        raise ValueError(f"got a batch of {len(x)} for {len(sources)} sources of noise, expected one each")


__all__ = ["brownian", "gaussian", "per_sample", "tempered"]
