"""Demonstrations: episodes, windows over them, normalisers and file formats."""

from poise.data.episodes import Episodes
from poise.data.formats.npz import read_npz, write_npz
from poise.data.normalise import Limits, Normaliser, Scaling, Standard
from poise.data.windows import Batch, Windows

__all__ = ["Batch", "Episodes", "Limits", "Normaliser", "Scaling", "Standard", "Windows", "read_npz", "write_npz"]
