"""Broadcasting of one number a sample over whole samples; nothing else in the package reshapes coefficients."""

from torch import Tensor


def like(coefficient: Tensor, x: Tensor) -> Tensor:
    """Reshape a coefficient `(B,)` so that it broadcasts over `x` of shape `(B, ...)`."""
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))


__all__ = ["like"]
