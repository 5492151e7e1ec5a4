"""Sources of noise: callables `x -> eps` of the shape of `x`. No sampler touches a global random state by itself."""

from collections.abc import Sequence

import torch
from torch import Tensor

from poise.typing import Noise


def gaussian(generator: torch.Generator | None = None) -> Noise:
    """Standard normal noise from one generator (PyTorch's global one when None)."""

    def draw(x: Tensor) -> Tensor:
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

    def draw(x: Tensor) -> Tensor:
        if len(x) != len(sources):
            raise ValueError(f"per_sample got a batch of {len(x)} for {len(sources)} generators, expected one each")
        rows = [torch.randn(x.shape[1:], generator=source, dtype=x.dtype) for source in sources]
        return torch.stack(rows).to(x.device)

    return draw


def tempered(noise: Noise, temperature: float) -> Noise:
    """Noise scaled by a temperature: below 1 a deterministic sampler keeps to the likely middle of what it learned.

    At 0 it starts from zero and returns one plan an observation. The samples no longer follow the learned law.
    """

    def draw(x: Tensor) -> Tensor:
        return temperature * noise(x)

    return draw


__all__ = ["gaussian", "per_sample", "tempered"]
