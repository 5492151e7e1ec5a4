"""Writes LeRobotDataset v3.0, episode by episode, as LeRobot 0.4 and newer read it."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.data.facts import Facts
from poise.data.flat import Flat
from poise.data.formats.lerobot_meta import BOOKKEEPING, INFO, Kind, conventional_role
from poise.data.formats.lerobot_v3 import open_v3
from poise.data.images import encode_png
from poise.data.parquet import ParquetWriter
from poise.data.source import Contents, Feature, Rows, Sink, Source
from poise.data.statistics import is_image, statistics
from poise.data.video import FilmWriter
from poise.data.writing import member, remove

DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEOS = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
DATA_MEGABYTES, VIDEO_MEGABYTES = 100, 200  # of a file, from which on the next one begins
_CHUNK = 1000  # files in a folder
_BUFFERED = 500  # episodes whose descriptions are written at a time
_PNG = (1, 3, 4)  # channels of images that PNG holds
_FILMED = 64  # rows and columns of a film at least: the encoder of some releases of PyAV dies on smaller ones
_RANK = 5  # sizes of a row that LeRobot knows


class Writer(Sink):
    """Writes rows, films and descriptions episode by episode, and statistics of what was written at the end.

    Args:
        path: The folder.
        contents: What is in it.
        rate: Rows a second where `contents` does not say.
        video: Images become films (AV1, which loses a little) rather than PNG.

    Raises:
        ValueError: No rate, or a feature that LeRobot cannot hold.
        ImportError: Names the extra that is missing.
    """

    def __init__(self, path: Path, contents: Contents, rate: float | None, video: bool) -> None:
        super().__init__(path, contents)
        self._rate = _rate(contents.facts, rate)
        self._kinds = {name: _kind(name, look, video) for name, look in contents.features.items()}
        remove(self.aside)
        self.aside.mkdir(parents=True)
        self._records: list[dict[str, Any]] = []
        self._numbers: dict[str, int] = {}  # of tasks
        self._frames = 0
        with ExitStack() as undo:
            undo.callback(remove, self.aside)
            self._data = _Tables(self.aside)
            self._meta = ParquetWriter(self.aside / _filled(EPISODES, 0))
            films = {name: look for name, look in contents.features.items() if self._kinds[name] is Kind.VIDEO}
            self._films = {name: _Films(self.aside, name, self._rate, look.shape) for name, look in films.items()}
            undo.pop_all()
        self._open = ExitStack()
        for one in (self._meta, self._data, *self._films.values()):
            self._open.callback(one.close)

    def write(self, rows: Rows, steps: int, task: str) -> None:
        """See `Sink.write`."""
        columns, films, shown = {}, {}, {}
        for name, kind in self._kinds.items():
            values = np.asarray(rows[name])
            shown[name] = values if values.ndim > 1 else values[:, None]
            if kind is Kind.VIDEO:
                films |= self._films[name].append(values)
            else:
                pictures = kind is Kind.IMAGE
                columns[name] = np.array([encode_png(one) for one in values], object) if pictures else shown[name]
        own = self._bookkeeping(steps, self._numbers.setdefault(task, len(self._numbers)))
        stats = _statistics(Flat(self.aside, shown | own, np.array([steps])))
        chunk, file = self._data.append(columns | own, steps)
        record = {
            "episode_index": len(self.tasks),
            "tasks": [task],
            "length": steps,
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + steps,
        }
        flat = {f"stats/{name}/{key}": value for name, one in stats.items() for key, value in one.items()}
        self._records.append(record | films | flat | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        self._frames += steps
        if len(self._records) >= _BUFFERED:
            self._flush()

    def finish(self) -> None:
        """See `Sink.finish`."""
        self._flush()
        self.close()
        writer = ParquetWriter(self.aside / "meta/tasks.parquet", _PANDAS)
        writer.records([{"task_index": number, "task": task} for task, number in self._numbers.items()])
        writer.close()
        self._write_json(INFO, self._info())
        with open_v3(self.aside) as written:
            own = {name: written.bookkeeping(name) for name in BOOKKEEPING}
            found = _statistics(written) | _statistics(Flat(self.aside, own, written.contents.ends))
        self._write_json("meta/stats.json", found)

    def close(self) -> None:
        """See `Sink.close`."""
        self._open.close()

    def _flush(self) -> None:
        if self._records:
            self._meta.records(self._records)
            self._records = []

    def _bookkeeping(self, steps: int, task: int) -> dict[str, NDArray]:
        row = np.arange(steps)
        found = {
            "timestamp": row / self._rate,
            "frame_index": row,
            "episode_index": np.full(steps, len(self.tasks)),
            "index": self._frames + row,
            "task_index": np.full(steps, task),
        }
        return {name: values.astype(BOOKKEEPING[name].dtype)[:, None] for name, values in found.items()}

    def _info(self) -> dict[str, Any]:
        contents, rate = self.contents, self._rate
        features = {name: self._described(name, look) for name, look in contents.features.items()}
        own = {name: {"dtype": look.dtype.name, "shape": [1], "names": None} for name, look in BOOKKEEPING.items()}
        return {
            "codebase_version": "v3.0",
            "robot_type": contents.facts.robot,
            "total_episodes": len(self.tasks),
            "total_frames": self._frames,
            "total_tasks": len(self._numbers),
            "chunks_size": _CHUNK,
            "data_files_size_in_mb": DATA_MEGABYTES,
            "video_files_size_in_mb": VIDEO_MEGABYTES,
            "fps": int(rate) if rate == int(rate) else rate,
            "splits": {name: _spans(numbers) for name, numbers in contents.subsets.items()}
            or {"train": f"0:{len(self.tasks)}"},
            "data_path": DATA,
            "video_path": VIDEOS if self._films else None,
            "features": features | own,
        }

    def _described(self, name: str, look: Feature) -> dict[str, Any]:
        kind, facts = self._kinds[name], self.contents.facts
        names = facts.names.get(name, ())
        fits = look.shape == (len(names),)
        found: dict[str, Any] = {"dtype": look.dtype.name, "shape": [*look.shape] or [1]}
        found["names"] = [*names] if fits else None
        if kind is not Kind.COLUMN:
            found |= {"dtype": kind.value, "names": ["height", "width", "channels"]}
        about: dict[str, Any] = _film_facts(look, self._rate) if kind is Kind.VIDEO else {}
        role = facts.roles.get(name)
        if role is not conventional_role(name):
            about["role"] = role.value if role else ""
        return found | ({"info": about} if about else {})

    def _write_json(self, name: str, plain: Mapping[str, Any]) -> None:
        (self.aside / name).write_text(json.dumps(plain, indent=2))


class _Tables:
    """The files of rows, one row group an episode."""

    def __init__(self, root: Path) -> None:
        self._root, self._number = root, 0
        self._writer = ParquetWriter(root / _filled(DATA, 0))

    def append(self, columns: Mapping[str, NDArray], rows: int) -> tuple[int, int]:
        """Write an episode; returns the chunk and the file that it is in."""
        if _full(self._writer.size(), self._writer.rows, rows, DATA_MEGABYTES):
            self._writer.close()
            self._number += 1
            self._writer = ParquetWriter(self._root / _filled(DATA, self._number))
        self._writer.columns(columns)
        return divmod(self._number, _CHUNK)

    def close(self) -> None:
        """Complete the last file."""
        self._writer.close()


class _Films:
    """The films of a feature, of many episodes each."""

    def __init__(self, root: Path, name: str, rate: float, shape: tuple[int, ...]) -> None:
        self._root, self._name, self._rate, self._size = root, name, rate, (shape[0], shape[1])
        self._number = 0
        self._writer = self._begun()

    def append(self, frames: NDArray[np.uint8]) -> dict[str, Any]:
        """Encode an episode; returns what its description says of the film."""
        if _full(self._writer.size, self._writer.frames, len(frames), VIDEO_MEGABYTES):
            self._writer.close()
            self._number += 1
            self._writer = self._begun()
        first = self._writer.frames
        self._writer.append(frames)
        chunk, file = divmod(self._number, _CHUNK)
        found = {"chunk_index": chunk, "file_index": file, "from_timestamp": first / self._rate}
        found["to_timestamp"] = self._writer.frames / self._rate
        return {f"videos/{self._name}/{key}": value for key, value in found.items()}

    def close(self) -> None:
        """Complete the last film."""
        self._writer.close()

    def _begun(self) -> FilmWriter:
        return FilmWriter(self._root / _filled(VIDEOS, self._number, self._name), self._rate, self._size)


def _filled(template: str, number: int, video: str = "") -> str:
    chunk, file = divmod(number, _CHUNK)
    return template.format(chunk_index=chunk, file_index=file, video_key=video)


def _full(size: int, rows: int, more: int, megabytes: float) -> bool:
    """Whether so many more rows would bring a file to its limit."""
    return rows > 0 and size + size / rows * more >= megabytes * 2**20


def _rate(facts: Facts, rate: float | None) -> float:
    found = facts.rate or rate
    if found is None:
        raise ValueError(
            "lerobot needs a rate, which the source does not say: give rows a second by LeRobot(rate=...), by "
            "Facts(rate=...) of the episodes, or by --rate of poise dataset convert"
        )
    return found


def _kind(name: str, look: Feature, video: bool) -> Kind:
    if member("lerobot", name) in (*BOOKKEEPING, "task"):
        raise ValueError(f"lerobot got a feature {name!r}, a name that it uses itself: rename the feature")
    if len(look.shape) > _RANK or 0 in look.shape:
        raise ValueError(f"lerobot cannot hold {name!r} of shape {look.shape}, expected 1 to {_RANK} sizes above 0")
    if not is_image(look):
        return Kind.COLUMN
    if look.shape[-1] not in _PNG:
        raise ValueError(f"lerobot got images {name!r} of shape {look.shape}, expected 1, 3 or 4 channels")
    return Kind.VIDEO if video and look.shape[-1] == 3 and min(look.shape[:2]) >= _FILMED else Kind.IMAGE


def _statistics(source: Source) -> dict[str, Any]:
    """As LeRobot lays them out: lists of the shape of a row; those of images by channel, of values from 0 to 1."""
    found = {}
    steps = [int(source.contents.lengths.sum())]
    for name, one in statistics(source).items():
        look = source.contents.features[name]
        if is_image(look):
            lists = {key: (value / 255).reshape(-1, 1, 1).tolist() for key, value in one.named().items()}
        else:
            extremes = {key: value.astype(look.dtype) for key, value in (("min", one.minimum), ("max", one.maximum))}
            lists = {key: value.reshape(look.shape).tolist() for key, value in (one.named() | extremes).items()}
        found[name] = lists | {"count": steps}
    return found


def _spans(numbers: tuple[int, ...]) -> str:
    """`0:3,5:7` for the episodes 0, 1, 2, 5 and 6; LeRobot itself writes one span and reads none."""
    cuts = [k for k in range(1, len(numbers)) if numbers[k] != numbers[k - 1] + 1]
    edges = zip([0, *cuts], [*cuts, len(numbers)], strict=True)
    return ",".join(f"{numbers[first]}:{numbers[last - 1] + 1}" for first, last in edges)


def _film_facts(look: Feature, rate: float) -> dict[str, Any]:
    return {
        "video.height": look.shape[0],
        "video.width": look.shape[1],
        "video.codec": "av1",
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "video.fps": rate,
        "video.channels": 3,
        "has_audio": False,
    }


def _pandas() -> str:
    """Makes the texts of `meta/tasks.parquet` the index that LeRobot looks them up by."""

    def column(name: str, kind: str, numpy: str) -> dict[str, Any]:
        return {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}

    unnamed = column("", "unicode", "object") | {"name": None, "field_name": None, "metadata": {"encoding": "UTF-8"}}
    about = {"index_columns": ["task"], "column_indexes": [unnamed], "pandas_version": "2.2.0"}
    about["columns"] = [column("task_index", "int64", "int64"), column("task", "unicode", "object")]
    return json.dumps(about)


_PANDAS = _pandas()

__all__ = ["DATA", "DATA_MEGABYTES", "EPISODES", "VIDEOS", "VIDEO_MEGABYTES", "Writer"]
