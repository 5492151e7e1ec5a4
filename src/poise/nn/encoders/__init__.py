"""Encoders: observation histories to tokens."""

from poise.nn.encoders.backbones import Backbone, FrozenBatchNorm, GroupNorm, Norm, SmallCNN
from poise.nn.encoders.cnn import CNN
from poise.nn.encoders.deep_sets import DeepSets
from poise.nn.encoders.fusion import Fusion
from poise.nn.encoders.image_transformer import ImageTransformer
from poise.nn.encoders.joint import Joint
from poise.nn.encoders.pooling import AveragePool, Pooling, SpatialSoftmax, spatial_softmax
from poise.nn.encoders.resnet import ResNet
from poise.nn.encoders.vector import Vector
from poise.nn.encoders.vision import Timm, timm_weights
from poise.nn.encoders.weights import load_backbone

__all__ = [
    "CNN",
    "AveragePool",
    "Backbone",
    "DeepSets",
    "FrozenBatchNorm",
    "Fusion",
    "GroupNorm",
    "ImageTransformer",
    "Joint",
    "Norm",
    "Pooling",
    "ResNet",
    "SmallCNN",
    "SpatialSoftmax",
    "Timm",
    "Vector",
    "load_backbone",
    "spatial_softmax",
    "timm_weights",
]
