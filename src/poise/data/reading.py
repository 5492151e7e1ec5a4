"""One reader for all formats, and the way from one to another."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from poise.data.episodes import Episodes
from poise.data.flat import in_memory
from poise.data.formats import load
from poise.data.source import Format, Source
from poise.data.untrusted import DataError
from poise.plain import concrete

_AHEAD = 2  # episodes that a process decodes before they are asked for
_SHARE = 0.8  # of the memory of the machine, which `read` may fill


def known_formats() -> dict[str, Format]:
    """Every format, by name."""
    load()
    found = [kind() for kind in concrete(Format).values()]
    return {one.name: one for one in found}


def recognised(path: str | Path) -> Format:
    """The format of a dataset.

    Raises:
        FileNotFoundError: No such path.
        DataError: None that is known.
    """
    path, known = Path(path), known_formats()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist, expected a dataset of one of the formats {sorted(known)}")
    for one in known.values():
        if one.recognises(path):
            return one
    raise DataError(path, "format", f"is none that is known, expected one of {sorted(known)}")


def open_dataset(path: str | Path) -> Source:
    """Open a dataset of any format, episode by episode.

    Raises:
        FileNotFoundError: No such path.
        DataError: An unknown format, or a broken file.
        ImportError: Names the extra that the format needs.
    """
    return recognised(path).open(Path(path))


def read(
    path: str | Path,
    features: Sequence[str] | None = None,
    subset: str | None = None,
    workers: int = 0,
) -> Episodes:
    """Read demonstrations of any format.

    Features keep the names and types that they have in the file. `Episodes.facts` says what they are for.

    Args:
        path: A file or folder: LeRobotDataset v2.0 to v3.0, a replay buffer of Diffusion Policy (zarr), robomimic or
            Minari HDF5, an archive of `write`, or a recording.
        features: Names; None means all, videos too.
        subset: Name of some of the episodes, such as `train`; None means all.
        workers: Processes that decode videos; 0 decodes here.

    Raises:
        FileNotFoundError: No such path.
        DataError: An unknown format, a broken file, a missing feature or subset, or more than fits into memory.
        ImportError: Names the extra that the format needs.
    """
    with open_dataset(path) as source:
        names, chosen = _chosen(source, features, subset)
        contents = source.contents
        tasks = tuple(contents.tasks[i] for i in chosen) if contents.tasks else ()
        whole = source.whole(names) if subset is None else None
        arrays = _gathered(source, names, chosen, workers) if whole is None else whole
        try:
            return Episodes(arrays, np.cumsum(contents.lengths[list(chosen)]), tasks, contents.facts.only(names))
        except ValueError as error:
            raise DataError(source.path, "episodes", str(error)) from error


def _chosen(source: Source, features: Sequence[str] | None, subset: str | None) -> tuple[list[str], Sequence[int]]:
    contents = source.contents
    names = list(contents.features) if features is None else list(features)
    missing = sorted(set(names) - set(contents.features))
    if missing or not names:
        raise DataError(source.path, "features", f"holds {sorted(contents.features)}, expected also {missing}")
    if subset is not None and subset not in contents.subsets:
        raise DataError(source.path, "subsets", f"holds {sorted(contents.subsets)}, expected also {subset!r}")
    return names, range(len(source)) if subset is None else contents.subsets[subset]


def _gathered(source: Source, names: list[str], chosen: Sequence[int], workers: int) -> dict[str, NDArray]:
    steps = int(source.contents.lengths[list(chosen)].sum())
    looks = {name: source.contents.features[name] for name in names}
    size = sum(steps * int(np.prod(f.shape)) * f.dtype.itemsize for f in looks.values())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > _SHARE * memory:
        raise DataError(
            source.path,
            "features",
            f"take {size // 2**30} GiB of the {memory / 2**30:.0f} GiB of this machine: name those that you need, "
            "or pack the dataset by poise dataset pack, which is then read from the disk",
        )
    arrays = {name: np.empty((steps, *look.shape), look.dtype) for name, look in looks.items()}
    first = 0
    for rows in by_episode(source, names, chosen, workers):
        last = first + len(rows[names[0]])
        for name in names:
            arrays[name][first:last] = rows[name]
        first = last
    return arrays


def by_episode(
    source: Source, names: Sequence[str], chosen: Sequence[int] | None = None, workers: int = 0
) -> Iterator[dict[str, NDArray]]:
    """The rows of episodes, one after the other, with a bar of progress where films are decoded.

    Args:
        source: An opened dataset.
        names: Features.
        chosen: Numbers of episodes; None means all.
        workers: Processes that decode films; 0 decodes here.
    """
    chosen = range(len(source)) if chosen is None else chosen
    films = any(source.contents.features[name].video for name in names)
    with tqdm(
        total=len(chosen), desc=f"reading {source.path.name}", unit="episode", disable=None if films else True
    ) as bar:
        for rows in _decoded(source, names, chosen, workers if films else 0):
            yield rows
            bar.update()


def _decoded(source: Source, names: Sequence[str], chosen: Sequence[int], workers: int) -> Iterator[dict[str, NDArray]]:
    if not workers:
        yield from (source.rows(episode, names) for episode in chosen)
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        waiting = []
        for episode in chosen:
            waiting.append(pool.submit(_rows, source.path, episode, tuple(names)))
            if len(waiting) > _AHEAD * workers:
                yield waiting.pop(0).result()
        yield from (future.result() for future in waiting)


@lru_cache(maxsize=1)
def _opened(path: Path) -> Source:
    """The dataset of a process that decodes, which stays open as long as the process lives."""
    return open_dataset(path)


def _rows(path: Path, episode: int, names: tuple[str, ...]) -> dict[str, NDArray]:
    return _opened(path).rows(episode, names)


def convert(
    source: Source, path: str | Path, format: Format, features: Sequence[str] | None = None, workers: int = 0
) -> None:
    """Write a dataset in another format, one episode at a time, with a bar of progress.

    Args:
        source: An opened dataset.
        path: What is written.
        format: Of what is written.
        features: Names; None means all.
        workers: Processes that decode films.

    Raises:
        FileExistsError: There is something already.
        DataError: A missing feature, or a broken file.
        ValueError: A feature that the format cannot hold.
    """
    if Path(path).exists():
        raise FileExistsError(f"{path} exists, expected a path to write to: remove it or name another one")
    names, _ = _chosen(source, features, None)
    contents = source.contents
    looks = {name: contents.features[name] for name in names}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with format.create(Path(path), replace(contents, features=looks, facts=contents.facts.only(looks))) as sink:
        rows = by_episode(source, names, workers=workers)
        bar = tqdm(rows, f"writing {Path(path).name}", len(source), unit="episode", disable=None)
        for episode, one in enumerate(bar):
            sink.append(one, contents.tasks[episode] if contents.tasks else "")


def write(path: str | Path, episodes: Episodes, format: Format | None = None) -> None:
    """Write episodes in one piece.

    Args:
        path: What is written.
        episodes: The episodes.
        format: Of what is written; None means that of the suffix.

    Raises:
        FileExistsError: There is something already.
        ValueError: A suffix that no format claims, or a feature that the format cannot hold.
    """
    convert(in_memory(episodes), path, format or format_of(path))


def format_of(path: str | Path) -> Format:
    """The format that a path to write to claims by its suffix.

    Raises:
        ValueError: None does.
    """
    suffixes = {one.suffix: one for one in known_formats().values() if one.suffix}
    claims = (suffixes[end] for end in reversed(Path(path).suffixes) if end in suffixes)  # `.zarr.zip` is zarr
    chosen = next(claims, None)
    if chosen is None:
        raise ValueError(
            f"got {path}, expected a suffix of {sorted(suffixes)}, or a format of {sorted(known_formats())}"
        )
    return chosen


__all__ = ["by_episode", "convert", "format_of", "known_formats", "open_dataset", "read", "recognised", "write"]
