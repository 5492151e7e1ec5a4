"""LeRobotDataset v3.0: rows of many episodes in Parquet files, images in them or in films (extra `lerobot`)."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from poise.data.formats.lerobot_meta import version_of
from poise.data.formats.lerobot_v3 import open_v3
from poise.data.formats.lerobot_write import Writer
from poise.data.source import Contents, Format, Sink, Source


@dataclass(frozen=True)
class LeRobot(Format):
    """LeRobotDataset v3.0, images as PNG, which loses nothing.

    Features of texts are left out; of an episode with several tasks, the task of its first row is kept. A subset that
    is no single span is written as `0:3,5:7`. Statistics are exact over all rows. A role that the name does not tell
    (`action`, `observation.*`, `next.reward`) stands in the `info` of the feature.

    Attributes:
        rate: Rows a second of what is written, where its source does not say.
    """

    name: ClassVar[str] = "lerobot"
    suffix: ClassVar[str] = ""
    rate: float | None = None

    def recognises(self, path: Path) -> bool:
        """By `meta/info.json`, unless it says that it is of version 2."""
        version = version_of(path)
        return version is not None and not version.startswith("v2")

    def open(self, path: Path) -> Source:
        """Read the description; rows are read when they are asked for."""
        return open_v3(path)

    def create(self, path: Path, contents: Contents) -> Sink:
        """Begin to write; see `Format.create`."""
        return Writer(path, contents, self.rate, video=False)


@dataclass(frozen=True)
class LeRobotVideo(Format):
    """LeRobotDataset v3.0 written with films (AV1), which are far smaller than PNG and lose a little.

    Images of other than 3 channels, and of less than 64 rows or columns, stay PNG.

    Attributes:
        rate: Rows a second of what is written, where its source does not say.
    """

    name: ClassVar[str] = "lerobot-video"
    suffix: ClassVar[str] = ""
    loses: ClassVar[frozenset[str]] = frozenset({"pixels"})
    rate: float | None = None

    def recognises(self, path: Path) -> bool:
        """Never: `LeRobot` reads images and films."""
        return False

    def open(self, path: Path) -> Source:
        """As `LeRobot.open`."""
        return open_v3(path)

    def create(self, path: Path, contents: Contents) -> Sink:
        """Begin to write; see `Format.create`."""
        return Writer(path, contents, self.rate, video=True)


__all__ = ["LeRobot", "LeRobotVideo"]
