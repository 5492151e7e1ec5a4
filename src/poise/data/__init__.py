"""Demonstrations: episodes, windows over them, normalisers, augmentation and file formats."""

from poise.data.augment import Augmentation, ColourJitter, Crop
from poise.data.episodes import Episodes
from poise.data.formats.npz import read_npz, write_npz
from poise.data.normalise import Limits, Normaliser, Pixels, Quantile, Scaling, Standard, Unscaled
from poise.data.windows import Batch, Windows

__all__ = [
    "Augmentation",
    "Batch",
    "ColourJitter",
    "Crop",
    "Episodes",
    "Limits",
    "Normaliser",
    "Pixels",
    "Quantile",
    "Scaling",
    "Standard",
    "Unscaled",
    "Windows",
    "read_npz",
    "write_npz",
]
