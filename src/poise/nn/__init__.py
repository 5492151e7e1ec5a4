"""Networks and encoders: torch modules that know nothing of diffusion but the log signal-to-noise ratio."""

from poise.nn.attention import Attention
from poise.nn.conditioning import Concatenate, Conditioning, CrossAttention, Doors, FiLM, Joined
from poise.nn.dit import DiT
from poise.nn.embeddings import Level, LogSnr, Steps
from poise.nn.encoders import (
    CNN,
    AveragePool,
    Backbone,
    DeepSets,
    FrozenBatchNorm,
    Fusion,
    GroupNorm,
    ImageTransformer,
    Joint,
    Norm,
    Pooling,
    ResNet,
    SmallCNN,
    SpatialSoftmax,
    Timm,
    Vector,
    load_backbone,
    spatial_softmax,
    timm_weights,
)
from poise.nn.mlp import MLP
from poise.nn.spec import Encoder, EncoderSpec, Network, NetworkSpec
from poise.nn.transformer import Transformer
from poise.nn.unet1d import UNet1D

__all__ = [
    "CNN",
    "MLP",
    "Attention",
    "AveragePool",
    "Backbone",
    "Concatenate",
    "Conditioning",
    "CrossAttention",
    "DeepSets",
    "DiT",
    "Doors",
    "Encoder",
    "EncoderSpec",
    "FiLM",
    "FrozenBatchNorm",
    "Fusion",
    "GroupNorm",
    "ImageTransformer",
    "Joined",
    "Joint",
    "Level",
    "LogSnr",
    "Network",
    "NetworkSpec",
    "Norm",
    "Pooling",
    "ResNet",
    "SmallCNN",
    "SpatialSoftmax",
    "Steps",
    "Timm",
    "Transformer",
    "UNet1D",
    "Vector",
    "load_backbone",
    "spatial_softmax",
    "timm_weights",
]
