"""LeRobotDataset v2.1 and v2.0, which newer LeRobots refuse: one Parquet file and one film an episode; read only."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from poise.data.formats.lerobot_meta import Info, read_info, version_of
from poise.data.formats.lerobot_source import Demonstrations, Layout, Shard
from poise.data.source import Contents, Finding, Format, Severity, Sink, Source
from poise.data.untrusted import MAX_JSON, DataError, inside, parsed

_VERSIONS = ("v2.1", "v2.0")


@dataclass(frozen=True)
class LeRobotV2(Format):
    """LeRobotDataset v2.1 and v2.0: `data/chunk-000/episode_000000.parquet` and a film of each camera beside it.

    Features of texts are left out; of an episode with several tasks, the task of its first row is kept.
    """

    name: ClassVar[str] = "lerobot-v2"
    suffix: ClassVar[str] = ""
    written: ClassVar[bool] = False

    def recognises(self, path: Path) -> bool:
        """By the version in `meta/info.json`."""
        return (version_of(path) or "").startswith("v2")

    def open(self, path: Path) -> Source:
        """Read the description; rows are read when they are asked for."""
        info = read_info(path, _VERSIONS)
        total = info.totals["total_episodes"]
        episodes = _lines(path, "meta/episodes.jsonl", ("episode_index", "length"), total)
        tasks = _lines(path, "meta/tasks.jsonl", ("task_index", "task"), info.totals["total_frames"])
        lengths = np.array([one["length"] for one in episodes], np.int64)
        said = [[str(task) for task in one["tasks"]] if isinstance(one.get("tasks"), list) else [] for one in episodes]
        return Demonstrations(info, _Layout(info), lengths, [str(one["task"]) for one in tasks], said)

    def create(self, path: Path, contents: Contents) -> Sink:
        """Nothing is written in the old format.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"lerobot-v2 is only read, got {path} to write: choose lerobot, which newer LeRobots read")


@dataclass(frozen=True)
class _Layout(Layout):
    info: Info

    def shard(self, episode: int) -> Shard:
        return Shard(self.info.file("data_path", **self._values(episode)), episode, episode + 1)

    def film(self, episode: int, name: str) -> tuple[Path, float]:
        return self.info.file("video_path", video_key=name, **self._values(episode)), 0.0

    def findings(self) -> Iterator[Finding]:
        name = "meta/stats.json" if self.info.version == "v2.0" else "meta/episodes_stats.jsonl"
        if not inside(self.info.root, name).is_file():
            words = f"{name} is missing, which LeRobot normalises by: convert the dataset, which computes it"
            yield Finding("missing-statistics", Severity.WARNING, words)

    def _values(self, episode: int) -> dict[str, int]:
        return {"episode_chunk": episode // self.info.totals["chunks_size"], "episode_index": episode}


def _lines(root: Path, name: str, keys: tuple[str, str], most: int) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, whose first key counts them from 0."""
    path = inside(root, name)
    if not path.is_file() or path.stat().st_size > MAX_JSON:
        raise DataError(path, name, f"is no file, or one of more than {MAX_JSON} bytes, expected lines of JSON")
    found = []
    for number, line in enumerate(path.read_bytes().splitlines()):
        one = parsed(path, line, f"line {number + 1}")
        counted = isinstance(one, dict) and one.get(keys[0]) == number and keys[1] in one and number < most
        if not counted or (keys[1] == "length" and (type(one["length"]) is not int or not 0 < one["length"] < 2**40)):
            raise DataError(path, f"line {number + 1}", f"is {line[:80]!r}, expected {keys}, the first one {number}")
        found.append(one)
    return found


__all__ = ["LeRobotV2"]
