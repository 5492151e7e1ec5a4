"""Datasets of Minari: HDF5 with a group an episode, and `metadata.json` beside it (extra `hdf5`); read only.

    observations, actions                  features of these names; parts of Dict and Tuple spaces are
                                           `observations.<key>` and `observations._index_0`
    rewards, terminations, truncations     features of these names

An episode of T steps has T + 1 observations; the last one, that no action answers, is left out. A part `desired_goal`
is a goal, other parts of `observations` are observations. Texts and `infos` are left out. Images that Minari compressed
(JPEG, extra `images`) are decoded.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from poise.data.facts import Facts, Role
from poise.data.hdf5 import Hdf5
from poise.data.images import decode_image
from poise.data.source import Contents, Feature, Finding, Format, Severity, Source
from poise.data.untrusted import (
    MAX_DIMENSIONS,
    MAX_EPISODES,
    MAX_FEATURES,
    DataError,
    affordable,
    broken,
    inside,
    parsed,
    read_json,
)

_META, _MAIN = "metadata.json", "main_data.hdf5"
_SIGNALS = ("rewards", "terminations", "truncations")
_SMALLEST = 32  # height and width of what Minari takes for an image


@dataclass(frozen=True)
class Minari(Format):
    """A dataset of Minari, by its folder, the folder `data` in it, or the HDF5 file in this."""

    name: ClassVar[str] = "minari"
    suffix: ClassVar[str] = ""
    written: ClassVar[bool] = False

    def recognises(self, path: Path) -> bool:
        """By `metadata.json` beside the data, in any of the three storages."""
        folder = _folder(path)
        here = path.name == _MAIN if path.is_file() else folder.name == "data" or (folder / _MAIN).is_file()
        return here and (folder / _META).is_file()

    def open(self, path: Path) -> Source:
        """Read lengths and spaces; rows are read when they are asked for."""
        folder = _folder(path)
        with ExitStack() as stack:
            meta = _metadata(folder)
            return _Dataset(folder, Hdf5(inside(folder, _MAIN), stack), meta, stack)

    def create(self, path: Path, contents: Contents) -> NoReturn:
        """Refused."""
        raise ValueError(f"minari is only read, got {path} to write: choose another format, such as zarr or robomimic")


class _Leaf(NamedTuple):
    """One array of an episode."""

    place: str
    image: tuple[int, ...] | None  # shape, where frames are JPEG
    extra: int  # rows beyond the steps
    text: bool = False

    @property
    def feature(self) -> str:
        return self.place.replace("/", ".")


class _Dataset(Source):
    def __init__(self, folder: Path, file: Hdf5, meta: dict[str, Any], stack: ExitStack) -> None:
        leaves = _leaves(folder / _META, meta)
        for leaf in leaves:
            affordable(folder / _META, leaf.place, leaf.image or (), np.uint8, file.path.stat().st_size)
        self._file, self._leaves = file, {leaf.feature: leaf for leaf in leaves if not leaf.text}
        self._texts = [leaf.feature for leaf in leaves if leaf.text]
        count = meta.get("total_episodes")
        if type(count) is not int or not 0 < count <= MAX_EPISODES or len(file.names("")) != count:
            found = f"{count!r}, and the file holds {len(file.names(''))}"
            raise DataError(
                folder, f"{_META}: total_episodes", f"is {found}, expected as many, at least 1: download it anew"
            )
        lengths = np.array([file.length(f"episode_{i}", _SIGNALS[0], "total_steps") for i in range(count)])
        if meta.get("total_steps") != lengths.sum():
            found = f"{meta.get('total_steps')!r}, and the file holds {lengths.sum()}"
            raise DataError(folder, f"{_META}: total_steps", f"is {found}, expected as many: download it anew")
        looks = {
            name: Feature(np.dtype(np.uint8), leaf.image) if leaf.image else file.feature(f"episode_0/{leaf.place}")
            for name, leaf in self._leaves.items()
        }
        roles = {name: role for name in looks if (role := _role(name))}
        facts = Facts(robot=_environment(folder / _META, meta), roles=roles)
        super().__init__(folder, Contents(looks, lengths, facts), stack.pop_all())

    def rows(self, episode: int, names: Sequence[str]) -> dict[str, NDArray]:
        return {name: self._read(episode, name) for name in names}

    def _read(self, episode: int, name: str) -> NDArray:
        where, leaf = f"episode_{episode}/{self._leaves[name].place}", self._leaves[name]
        look, steps = self.contents.features[name], int(self.contents.lengths[episode])
        if leaf.image is None:
            return self._file.rows(where, look, steps + leaf.extra)[:steps]
        packets = self._file.packets(where)
        if len(packets) != steps + leaf.extra:
            raise DataError(self._file.path, where, f"has {len(packets)} images, expected {steps + leaf.extra}")
        shape = leaf.image if len(leaf.image) == 3 else (*leaf.image, 1)
        frames = [decode_image(self._file.path, f"{where}[{i}]", data, shape) for i, data in enumerate(packets[:steps])]
        return np.stack(frames).reshape(steps, *leaf.image)

    def whole(self, names: Sequence[str]) -> None:
        """Episodes lie apart."""
        return

    def findings(self) -> Iterator[Finding]:
        for name in self._texts:
            yield Finding(
                "text", Severity.WARNING, "is a text, which is not read: add it as numbers if it is needed", name
            )


def _folder(path: Path) -> Path:
    """Where `metadata.json` should be."""
    if path.is_file():
        return path.parent
    return path / "data" if (path / "data" / _META).is_file() else path


def _metadata(folder: Path) -> dict[str, Any]:
    file = inside(folder, _META)
    meta = read_json(file)
    if type(meta) is not dict:
        raise DataError(file, _META, f"is {type(meta).__name__}, expected an object")
    storage = meta.get("data_format", "hdf5")
    if storage != "hdf5":
        raise DataError(
            file, "data_format", f"is {storage!r}, expected 'hdf5', the only storage that is read: convert it by Minari"
        )
    return meta


def _leaves(file: Path, meta: dict[str, Any]) -> list[_Leaf]:
    """The arrays that the metadata declare."""
    leaves: list[_Leaf] = []
    for name, extra in (("observations", 1), ("actions", 0)):
        field, text = f"{name[:-1]}_space", meta.get(f"{name[:-1]}_space")
        if type(text) is not str:
            raise DataError(file, field, f"is {str(text)[:100]!r}, expected a space of Gymnasium as JSON text")
        with broken(file, field, KeyError, TypeError, AttributeError, ValueError, RecursionError):
            compressed = bool(meta.get("jpeg_encoding", True))
            leaves += _of_space(parsed(file, text.encode(), field), name, extra, compressed)
    if len(leaves) > MAX_FEATURES:
        raise DataError(file, "spaces", f"declare {len(leaves)} arrays, expected at most {MAX_FEATURES}")
    return leaves + [_Leaf(name, None, 0) for name in _SIGNALS]


def _of_space(space: Any, place: str, extra: int, compressed: bool) -> Iterator[_Leaf]:
    if place.count("/") > MAX_DIMENSIONS:
        raise ValueError(f"got spaces nested in {place}, expected at most {MAX_DIMENSIONS} levels")
    kind = space["type"]
    if kind in ("Dict", "Tuple"):
        parts = space["subspaces"]
        named = parts.items() if kind == "Dict" else ((f"_index_{i}", part) for i, part in enumerate(parts))
        for key, part in named:
            if not key or "/" in key or not key.isprintable():
                raise ValueError(f"got the key {key!r}, expected printable characters without /")
            yield from _of_space(part, f"{place}/{key}", extra, compressed)
        return
    if kind not in ("Box", "Discrete", "MultiDiscrete", "MultiBinary", "Text"):
        raise ValueError(
            f"got a space {kind!r}, expected one of Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple"
        )
    image = tuple(space["shape"]) if compressed and kind == "Box" and _is_image(space) else None
    yield _Leaf(place, image, extra, kind == "Text")


def _is_image(space: Any) -> bool:
    """As Minari decides which spaces it compresses."""
    shape = space["shape"]
    sizes = len(shape) in (2, 3) and all(type(n) is int for n in shape) and min(shape[:2]) >= _SMALLEST
    bounds = (np.asarray(space["low"]) == 0).all() and (np.asarray(space["high"]) == 255).all()
    return sizes and space["dtype"] == "uint8" and bool(bounds)


def _role(name: str) -> Role | None:
    if name.endswith(".desired_goal"):
        return Role.GOAL
    roles = {"observations": Role.OBSERVATION, "actions": Role.ACTION, "rewards": Role.REWARD}
    return roles.get(name.split(".")[0])


def _environment(file: Path, meta: dict[str, Any]) -> str | None:
    """The name of the environment in `env_spec`, JSON in JSON."""
    text = meta.get("env_spec")
    spec = parsed(file, text.encode(), "env_spec") if type(text) is str else text
    name = spec.get("id") if type(spec) is dict else None
    return name if type(name) is str else None


__all__ = ["Minari"]
