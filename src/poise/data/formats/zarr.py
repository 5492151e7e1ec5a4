"""Replay buffers of Diffusion Policy and UMI: zarr format 2, `data/<feature>` and `meta/episode_ends` (extra `zarr`).

A folder, or a zip of one (`.zarr.zip`). Features keep their names; by these names their roles are known:

    action, actions                                     actions
    state, obs, img, image, keypoint, camera*, robot*   observations
    goal                                                goals
    reward, rewards                                     rewards

and other arrays have none. Rates, tasks and what else is known go to the attributes of the root group under `poise`,
which other readers leave alone. Chunks are cut in time only: 161 rows, as published, or fewer where a chunk would
exceed 1 MiB, so that few images are decoded for one.
"""

import itertools
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from poise.data.chunks import Layout, decode, encode
from poise.data.facts import Facts, Role
from poise.data.flat import episode_lengths
from poise.data.members import Folder, Members, Zip
from poise.data.source import Contents, Feature, Finding, Format, Rows, Sink, Source
from poise.data.untrusted import MAX_EPISODES, MAX_FEATURES, DataError
from poise.data.writing import Known, member

_ROLES = {
    "action": Role.ACTION,
    "actions": Role.ACTION,
    "state": Role.OBSERVATION,
    "obs": Role.OBSERVATION,
    "img": Role.OBSERVATION,
    "image": Role.OBSERVATION,
    "keypoint": Role.OBSERVATION,
    "camera*": Role.OBSERVATION,
    "robot*": Role.OBSERVATION,
    "goal": Role.GOAL,
    "reward": Role.REWARD,
    "rewards": Role.REWARD,
}
_ROWS, _CHUNK = 161, 2**20  # of a chunk: rows, and bytes that it should not exceed
_ENDS = "meta/episode_ends"


@dataclass(frozen=True)
class Zarr(Format):
    """The replay buffer: a folder of compressed chunks, or a zip of it."""

    name: ClassVar[str] = "zarr"
    suffix: ClassVar[str] = ".zarr"

    def recognises(self, path: Path) -> bool:
        """A folder by its suffix or `.zgroup`, a zip by its suffix."""
        if path.is_dir():
            return path.suffix == ".zarr" or (path / ".zgroup").is_file()
        return path.suffix == ".zip"

    def open(self, path: Path) -> Source:
        """Read what the arrays are; chunks are decoded when their rows are asked for."""
        with ExitStack() as stack:
            return _Buffer(path, Zip(path, stack) if path.is_file() else Folder(path), stack)

    def create(self, path: Path, contents: Contents) -> Sink:
        """Write chunk by chunk, into a zip if the path ends so."""
        return _Writer(path, contents)


class _Array:
    """One array, read by bands: the chunks that hold the same rows."""

    def __init__(self, members: Members, field: str) -> None:
        self._members, self._field = members, field
        found = members.json(field, ".zarray")
        sizes = {name: size for name, size in members.sizes(field).items() if name[0] != "."}
        stored = sum(sizes.values())
        stored = min(stored, members.path.stat().st_size) if members.path.is_file() else stored
        self.layout = Layout.of(members.path, field, found, stored)
        expected = itertools.product(*map(range, self.layout.grid))
        missing = next((name for cell in expected if (name := ".".join(map(str, cell))) not in sizes), None)
        if missing is not None:
            raise DataError(
                members.path,
                f"{field}/{missing}",
                f"is missing among {len(sizes)} chunks: restore it; if zarr 3 left it out since it is all zeros, write "
                "the buffer with config={'write_empty_chunks': True}",
            )
        self._kept: tuple[int, NDArray] | None = None

    def rows(self, first: int, last: int) -> NDArray:
        """Rows from `first` to `last - 1`, as a copy."""
        size = self.layout.chunks[0]
        bands = range(first // size, (last - 1) // size + 1)
        return np.concatenate([self._band(i)[max(0, first - i * size) : last - i * size] for i in bands])

    def _band(self, index: int) -> NDArray:
        if self._kept is not None and self._kept[0] == index:
            return self._kept[1]
        layout, path = self.layout, self._members.path
        row = layout.shape[1:]
        band = np.empty((layout.chunks[0], *row), layout.dtype.newbyteorder("="))
        for cell in itertools.product(*map(range, layout.grid[1:])):
            name = f"{self._field}/{'.'.join(map(str, (index, *cell)))}"
            chunk = decode(path, name, layout, self._members.read(name))
            where = [slice(i * c, min((i + 1) * c, n)) for i, c, n in zip(cell, layout.chunks[1:], row, strict=True)]
            band[:, *where] = chunk[:, *(slice(0, w.stop - w.start) for w in where)]
        self._kept = (index, band)
        return band


class _Buffer(Source):
    def __init__(self, path: Path, members: Members, stack: ExitStack) -> None:
        _check_root(members)
        self._arrays = {name: _Array(members, f"data/{name}") for name in members.folders("data")}
        ends = _Array(members, _ENDS)
        if len(ends.layout.shape) != 1 or not 0 < ends.layout.shape[0] <= MAX_EPISODES:
            raise DataError(path, _ENDS, f"has the shape {ends.layout.shape}, expected one end an episode")
        steps = {name: array.layout.shape[0] for name, array in self._arrays.items()}
        lengths = episode_lengths(path, _ENDS, ends.rows(0, ends.layout.shape[0]), steps)
        looks = {name: _look(array.layout) for name, array in self._arrays.items()}
        known = _about(members, looks).checked(path, ".zattrs", len(lengths))
        super().__init__(path, Contents(looks, lengths, *known), stack.pop_all())

    def rows(self, episode: int, names: Sequence[str]) -> dict[str, NDArray]:
        span, looks = self.contents.span(episode), self.contents.features
        return {name: self._arrays[name].rows(*span).reshape(-1, *looks[name].shape) for name in names}

    def whole(self, names: Sequence[str]) -> None:
        """By episode is as fast, since the last band is kept."""
        return

    def findings(self) -> Iterator[Finding]:
        yield from ()


def _look(layout: Layout) -> Feature:
    return Feature(layout.dtype.newbyteorder("="), layout.shape[1:] or (1,))


def _check_root(members: Members) -> None:
    files, folders = members.sizes(""), members.folders("")
    if "zarr.json" in files:
        raise DataError(members.path, "zarr.json", "is zarr format 3, expected format 2, as Diffusion Policy writes it")
    if not {"data", "meta"} <= set(folders):
        problem = f"holds the folders {folders[:10]}, expected data and meta: a replay buffer"
        raise DataError(members.path, "root", f"{problem}; a zip of one has no folder around it")
    arrays = len(members.folders("data"))
    if not 0 < arrays <= MAX_FEATURES:
        raise DataError(members.path, "data", f"holds {arrays} arrays, expected 1 to {MAX_FEATURES}")


def _about(members: Members, looks: Mapping[str, Feature]) -> Known:
    found = members.json("", ".zattrs") if ".zattrs" in members.sizes("") else {}
    if type(found) is dict and "poise" in found:
        return Known.of(members.path, ".zattrs: poise", found["poise"])
    roles = {name: role for name in looks for pattern, role in _ROLES.items() if fnmatchcase(name, pattern)}
    return Known(Facts(roles=roles))


class _Writer(Sink):
    def __init__(self, path: Path, contents: Contents) -> None:
        super().__init__(path, contents)
        for name in contents.features:
            member("zarr", name)
        self._layouts = {name: _layout(look) for name, look in contents.features.items()}
        self._waiting: dict[str, list[NDArray]] = {name: [] for name in contents.features}
        self._written = dict.fromkeys(contents.features, 0)
        self._lengths: list[int] = []
        encode(np.zeros(1))  # a missing extra is named before anything is written
        self._archive = zipfile.ZipFile(self.aside, "w", allowZip64=True) if path.suffix == ".zip" else None

    def write(self, rows: Rows, steps: int, task: str) -> None:
        self._lengths.append(steps)
        for name, layout in self._layouts.items():
            self._waiting[name].append(np.array(rows[name], layout.dtype).reshape(-1, *layout.shape[1:]))
            self._drain(name, layout.chunks[0])

    def _drain(self, name: str, enough: int) -> None:
        """Write chunks while at least so many rows wait."""
        layout, waiting = self._layouts[name], self._waiting[name]
        if sum(map(len, waiting)) < enough:
            return
        rows, size = np.concatenate(waiting), layout.chunks[0]
        while len(rows) >= enough:
            chunk = np.zeros(layout.chunks, layout.dtype)
            chunk[: len(rows[:size])] = rows[:size]
            cell = (self._written[name], *[0] * (len(layout.shape) - 1))
            self._put(f"data/{name}/{'.'.join(map(str, cell))}", encode(chunk))
            self._written[name], rows = self._written[name] + 1, rows[size:]
        self._waiting[name] = [rows]

    def finish(self) -> None:
        for group in ("", "data/", "meta/"):
            self._put(f"{group}.zgroup", b'{"zarr_format": 2}')
        ends = np.cumsum(self._lengths).astype("<i8")
        for name, layout in self._layouts.items():
            self._drain(name, 1)
            whole = Layout((int(ends[-1]), *layout.shape[1:]), layout.chunks, layout.dtype)
            self._put(f"data/{name}/.zarray", json.dumps(whole.plain()).encode())
        self._put(f"{_ENDS}/.zarray", json.dumps(Layout(ends.shape, ends.shape, ends.dtype).plain()).encode())
        self._put(f"{_ENDS}/0", encode(ends))
        self._put(".zattrs", json.dumps({"poise": self.known().plain()}).encode())

    def close(self) -> None:
        if self._archive is not None:
            self._archive.close()

    def _put(self, name: str, data: bytes) -> None:
        if self._archive is not None:
            self._archive.writestr(name, data)
        else:
            file = self.aside / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)


def _layout(look: Feature) -> Layout:
    """Of an array without rows yet."""
    dtype = look.dtype.newbyteorder("<")
    row = int(np.prod(look.shape)) * dtype.itemsize
    rows = min(_ROWS, max(1, _CHUNK // max(1, row)))
    return Layout((0, *look.shape), (rows, *(max(1, n) for n in look.shape)), dtype)


__all__ = ["Zarr"]
