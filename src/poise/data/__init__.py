"""Demonstrations: episodes, windows over them, normalisers, augmentation and file formats."""

from poise.data.augment import Augmentation, ColourJitter, Crop
from poise.data.episodes import Episodes
from poise.data.facts import Facts, Role
from poise.data.normalise import Limits, Normaliser, Pixels, Quantile, Scaling, Standard, Unscaled
from poise.data.reading import by_episode, convert, known_formats, open_dataset, read, recognised, write
from poise.data.recorder import Recorder
from poise.data.source import Contents, Feature, Finding, Format, Rows, Severity, Sink, Source
from poise.data.untrusted import DataError
from poise.data.windows import Batch, Windows

__all__ = [
    "Augmentation",
    "Batch",
    "ColourJitter",
    "Contents",
    "Crop",
    "DataError",
    "Episodes",
    "Facts",
    "Feature",
    "Finding",
    "Format",
    "Limits",
    "Normaliser",
    "Pixels",
    "Quantile",
    "Recorder",
    "Role",
    "Rows",
    "Scaling",
    "Severity",
    "Sink",
    "Source",
    "Standard",
    "Unscaled",
    "Windows",
    "by_episode",
    "convert",
    "known_formats",
    "open_dataset",
    "read",
    "recognised",
    "write",
]
