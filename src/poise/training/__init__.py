"""Training: the loop as an iterator, the running average of parameters, and runs that survive."""

from poise.training.checkpoints import Checkpoints, Resumed
from poise.training.distillation import Distillation, gap, student_of
from poise.training.ema import EMA
from poise.training.learner import Learner
from poise.training.loop import Loss, Progress, train
from poise.training.processes import Processes, Single
from poise.training.spec import TrainingSpec
from poise.training.validation import Validation, validate

__all__ = [
    "EMA",
    "Checkpoints",
    "Distillation",
    "Learner",
    "Loss",
    "Processes",
    "Progress",
    "Resumed",
    "Single",
    "TrainingSpec",
    "Validation",
    "gap",
    "student_of",
    "train",
    "validate",
]
