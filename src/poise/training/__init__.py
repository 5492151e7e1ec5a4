"""Training: the loop as an iterator, and the running average of parameters."""

from poise.training.ema import EMA
from poise.training.loop import Progress, TrainingSpec, train, validate

__all__ = ["EMA", "Progress", "TrainingSpec", "train", "validate"]
