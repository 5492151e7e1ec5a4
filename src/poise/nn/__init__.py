"""Networks and encoders: torch modules that know nothing of diffusion but the log signal-to-noise ratio."""

from poise.nn.encoders import Vector
from poise.nn.mlp import MLP
from poise.nn.spec import Encoder, EncoderSpec, Network, NetworkSpec
from poise.nn.unet1d import UNet1D

__all__ = ["MLP", "Encoder", "EncoderSpec", "Network", "NetworkSpec", "UNet1D", "Vector"]
