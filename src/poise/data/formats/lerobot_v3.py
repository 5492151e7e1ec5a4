"""Opens LeRobotDataset v3.0: `meta/episodes` says which files hold which episode."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from poise.data.formats.lerobot_meta import Info, Kind, read_info
from poise.data.formats.lerobot_source import Demonstrations, Layout, Shard
from poise.data.parquet import Parquet
from poise.data.source import Finding, Severity
from poise.data.untrusted import DataError, inside, read_json

_TASKS, _STATISTICS, _EPISODES = "meta/tasks.parquet", "meta/stats.json", "meta/episodes"
_MOST = 100_000  # files
_BORDERS = ("length", "dataset_from_index", "dataset_to_index", "data/chunk_index", "data/file_index")
_FILM = ("chunk_index", "file_index", "from_timestamp")


class _Film(NamedTuple):
    """`(episodes,)` each: which film, and where in it an episode begins."""

    chunk: NDArray
    file: NDArray
    start: NDArray


@dataclass(frozen=True, eq=False)
class _Layout(Layout):
    info: Info
    borders: NDArray  # (files + 1,), first episodes
    chunk: NDArray
    file: NDArray
    films: Mapping[str, _Film]

    def shard(self, episode: int) -> Shard:
        k = int(np.searchsorted(self.borders, episode, "right"))
        first, last = int(self.borders[k - 1]), int(self.borders[k])
        place = {"chunk_index": int(self.chunk[first]), "file_index": int(self.file[first])}
        return Shard(self.info.file("data_path", **place), first, last)

    def film(self, episode: int, name: str) -> tuple[Path, float]:
        film = self.films[name]
        place = {"chunk_index": int(film.chunk[episode]), "file_index": int(film.file[episode])}
        return self.info.file("video_path", video_key=name, **place), float(film.start[episode])

    def findings(self) -> Iterator[Finding]:
        root = self.info.root
        path = inside(root, _STATISTICS)
        known = read_json(path, _STATISTICS) if path.is_file() else {}
        missing = [name for name in self.info.features if not isinstance(known, dict) or name not in known]
        if missing:
            words = (
                f"{_STATISTICS} lacks {missing[:5]}, which LeRobot normalises by: convert the dataset, which adds it"
            )
            yield Finding("missing-statistics", Severity.WARNING, words)
        if not Parquet(inside(root, _TASKS)).pandas:
            words = f"{_TASKS} has no index of pandas: LeRobot takes its numbers for tasks; convert the dataset"
            yield Finding("tasks-index", Severity.WARNING, words)


def open_v3(root: Path) -> Demonstrations:
    """Read the description of a dataset; rows are read when they are asked for.

    Raises:
        DataError: It is broken.
        ImportError: Names the extra that is missing.
    """
    info = read_info(root, ("v3.0",))
    films = info.of(Kind.VIDEO)
    columns = [*_BORDERS, *(f"videos/{name}/{key}" for name in films for key in _FILM)]
    found, said = _episodes(root, columns)
    lengths, begin, end, chunk, file = (found[name] for name in _BORDERS)
    stops = np.cumsum(lengths)
    _agree(root, "dataset_from_index", begin, stops - lengths)
    _agree(root, "dataset_to_index", end, stops)
    parts = {name: _Film(*(found[f"videos/{name}/{key}"] for key in _FILM)) for name in films}
    layout = _Layout(info, _borders(root, chunk, file), chunk, file, parts)
    return Demonstrations(info, layout, lengths, _tasks(root), said)


def _episodes(root: Path, columns: list[str]) -> tuple[dict[str, NDArray], list[list[str]]]:
    """Columns of numbers of all episodes, and their tasks."""
    folder = inside(root, _EPISODES)
    paths = sorted(islice(folder.glob("*/*.parquet"), _MOST))
    files = [Parquet(inside(root, str(path.relative_to(root)), _EPISODES)) for path in paths]
    if not files:
        raise DataError(folder, _EPISODES, "holds no Parquet file, expected chunk-000/file-000.parquet")
    kinds = {name: "iuf" if name.endswith("from_timestamp") else "iu" for name in columns}
    found = {name: np.concatenate([file.number(name, kind) for file in files]) for name, kind in kinds.items()}
    index = np.concatenate([file.number("episode_index") for file in files])
    _agree(root, "episode_index", index, np.arange(len(index)))
    for name, values in found.items():
        if not ((values >= 0) & (values < 2**40)).all():
            raise DataError(folder, name, "has values below 0 or beyond all bounds: restore the description")
        found[name] = values if kinds[name] == "iuf" else values.astype(np.int64)
    lists = [file.texts("tasks") if "tasks" in file.columns else [[]] * file.rows for file in files]
    return found, [[str(task) for task in tasks] for one in lists for tasks in one]


def _borders(root: Path, chunk: NDArray, file: NDArray) -> NDArray:
    """The first episode of every file of rows, and the number of episodes."""
    forward, on = np.diff(chunk), np.diff(file)
    back = np.flatnonzero((forward < 0) | ((forward == 0) & (on < 0)))
    if len(back):
        problem = f"goes back after episode {back[0]}, expected files in order"
        raise DataError(root / _EPISODES, "data/file_index", problem)
    return np.concatenate([[0], np.flatnonzero((forward != 0) | (on != 0)) + 1, [len(chunk)]])


def _agree(root: Path, name: str, found: NDArray, expected: NDArray) -> None:
    wrong = np.flatnonzero(found != expected)
    if len(wrong):
        row = wrong[0]
        problem = f"is {found[row]} in row {row}, expected {expected[row]}: episodes are missing or doubled"
        raise DataError(root / _EPISODES, name, problem)


def _tasks(root: Path) -> list[str]:
    """The tasks by number; their column is called in two ways."""
    table = Parquet(inside(root, _TASKS))
    name = next((name for name in ("task", "__index_level_0__") if name in table.columns), None)
    if name is None:
        raise DataError(table.path, "task", f"is no column of {table.columns[:9]}, expected it or __index_level_0__")
    numbers, texts = table.number("task_index"), table.texts(name)
    if not np.array_equal(numbers, np.arange(len(texts))) or not all(isinstance(text, str) for text in texts):
        raise DataError(table.path, "task_index", f"is {numbers[:9].tolist()}, expected 0, 1, ... of texts in order")
    return texts


__all__ = ["open_v3"]
