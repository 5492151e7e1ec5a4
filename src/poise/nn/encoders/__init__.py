"""Encoders: observation histories to tokens."""

from poise.nn.encoders.vector import Vector

__all__ = ["Vector"]
