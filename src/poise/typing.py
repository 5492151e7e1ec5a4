"""The types that cross layer boundaries: plain callables and mappings, with the shapes they carry."""

from collections.abc import Callable, Mapping

from jaxtyping import Float
from torch import Tensor

Samples = Float[Tensor, "batch *shape"]
Times = Float[Tensor, "batch"]
Tokens = Float[Tensor, "batch tokens width"]
Actions = Float[Tensor, "batch horizon action"]

Denoiser = Callable[[Tensor, float], Tensor]
"""`(x_t, t) -> E[x0 | x_t]`: the only thing that a sampler knows of a model."""

Noise = Callable[[Tensor], Tensor]
"""`x -> eps`, standard normal, of the shape, dtype and device of `x`."""

Observation = Mapping[str, Tensor]
"""Name of a feature -> its history, `(B, history, ...)`, in the units of the data."""

__all__ = ["Actions", "Denoiser", "Noise", "Observation", "Samples", "Times", "Tokens"]
