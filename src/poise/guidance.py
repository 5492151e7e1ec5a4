"""Functions from denoiser to denoiser: they change what is sampled, and no sampler hears of them."""

from torch import Tensor

from poise.typing import Denoiser


def clipped(denoise: Denoiser, low: float, high: float) -> Denoiser:
    """Clamp the predicted `x0` to `[low, high]`, in the units of the samples.

    The sample itself may still leave the range, by the noise `sigma(0)` of the last level: clamp it once more.
    """

    def clipped_denoise(x: Tensor, t: float) -> Tensor:
        return denoise(x, t).clamp(low, high)

    return clipped_denoise


__all__ = ["clipped"]
