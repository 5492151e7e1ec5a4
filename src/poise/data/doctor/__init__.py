"""The doctor: what is wrong with a dataset, where, and what to do about it."""

from poise.data.doctor.check import About, ColumnCheck, EpisodeCheck, Seen
from poise.data.doctor.examination import examine

__all__ = ["About", "ColumnCheck", "EpisodeCheck", "Seen", "examine"]
