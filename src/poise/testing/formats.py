"""Conformance of data formats: what is written is read again, whole or not at all."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from poise.data import Contents, DataError, Episodes, Facts, Feature, Format, Role, Rows, open_dataset, read
from poise.testing.assertions import require

_LENGTHS = (180, 1, 7, 2, 4)
_TASKS = ("push the T", "push the T", "", "öffne die Tür", "push the T")
_SUBSETS = {"train": (0, 2, 4), "valid": (1, 3)}
_CUTS = 8  # files of a dataset that are cut, the largest ones


def varied_contents() -> Contents:
    """A dataset of episodes of unequal lengths, one of them a single row, and features of many types."""
    looks = {
        "action": Feature(np.dtype("f4"), (2,)),
        "state": Feature(np.dtype("f8"), (3,)),
        "keypoint": Feature(np.dtype("f4"), (3, 2)),
        "image": Feature(np.dtype("u1"), (8, 6, 3)),
        "phase": Feature(np.dtype("i8"), (1,)),
        "contact": Feature(np.dtype("?"), (1,)),
        "reward": Feature(np.dtype("f4"), (1,)),
    }
    roles = dict.fromkeys(("state", "keypoint", "image"), Role.OBSERVATION)
    roles |= {"action": Role.ACTION, "reward": Role.REWARD}
    facts = Facts(10.0, "pusher", roles, {"action": ("x", "y"), "state": ("x", "y", "angle")})
    return Contents(looks, np.array(_LENGTHS), facts, _TASKS, _SUBSETS)


def varied_episodes(contents: Contents) -> Episodes:
    """Rows of such a dataset, whose numbers are all different or random."""
    random, steps = np.random.default_rng(0), int(contents.lengths.sum())
    arrays = {}
    for name, look in contents.features.items():
        shape = (steps, *look.shape)
        if look.dtype.kind == "f":
            arrays[name] = random.standard_normal(shape).astype(look.dtype)
        else:
            high = {"b": 2, "u": 256, "i": 2**40}[look.dtype.kind]
            arrays[name] = random.integers(0, high, shape).astype(look.dtype)
    return Episodes(arrays, contents.lengths.cumsum(), contents.tasks, contents.facts)


def check_format(format: Format, folder: Path) -> None:
    """Round trips of rows and facts, nothing left by a writer that fails, typed errors of files that are cut.

    Args:
        format: One that is written; what it declares to lose is not compared.
        folder: An empty folder to write in.
    """
    contents = varied_contents()
    if "pixels" in format.loses:
        looks = {name: look for name, look in contents.features.items() if name != "image"}
        contents = replace(contents, features=looks, facts=contents.facts.only(looks))
    episodes, path = varied_episodes(contents), folder / f"data{format.suffix}"
    _check_abandon(format, folder, contents, episodes)
    _write(format, path, contents, episodes)
    require([*folder.iterdir()] == [path], f"{format}: left {[*folder.iterdir()]}, expected {path.name} alone")
    _check_rows(format, path, contents, episodes)
    _check_facts(format, path, contents)
    _check_cuts(format, path, folder / f"cut{format.suffix}", episodes)


def _write(format: Format, path: Path, contents: Contents, episodes: Episodes, stop: int | None = None) -> None:
    with format.create(path, contents) as sink:
        for number, (first, end) in enumerate(zip(episodes.starts, episodes.ends, strict=True)):
            if number == stop:
                raise InterruptedError
            rows = {name: array[first:end].copy() for name, array in episodes.features.items()}
            sink.append(rows, contents.tasks[number])
            for array in rows.values():
                array[:] = 0  # the caller may use its memory again
            require(not path.exists(), f"{format}: {path.name} exists before it is finished")


def _check_abandon(format: Format, folder: Path, contents: Contents, episodes: Episodes) -> None:
    try:
        _write(format, folder / f"stopped{format.suffix}", contents, episodes, stop=3)
    except InterruptedError:
        left = [*folder.iterdir()]
        require(not left, f"{format}: a writer that failed left {left}, expected nothing")
    else:
        raise AssertionError(f"{format}: a writer swallowed an error")


def _check_rows(format: Format, path: Path, contents: Contents, episodes: Episodes) -> None:
    with open_dataset(path) as source:
        found = source.contents
        require(found.lengths.tolist() == [*_LENGTHS], f"{format}: lengths {found.lengths}, written {_LENGTHS}")
        looks = {name: (look.dtype, look.shape) for name, look in found.features.items()}
        written = {name: (look.dtype, look.shape) for name, look in contents.features.items()}
        require(looks == written, f"{format}: features {looks}, written {written}")
        for episode in (4, 1, 0):  # any order
            names = ["state", "action"]
            rows = source.rows(episode, names)
            require([*rows] == names, f"{format}: rows of {[*rows]}, asked for {names}")
            changed = _changed(episodes, episode, rows)
            require(not changed, f"{format}: episode {episode} came back with other rows of {changed}")
        whole = source.whole(names)
        require(whole is None or [*whole] == names, f"{format}: whole gave {whole and [*whole]}, asked for {names}")
    _same(format, episodes, read(path), range(len(episodes)))
    try:
        read(path, ["absent"])
    except DataError as error:
        require("'absent'" in str(error), f"{format}: {error}, expected the name of the missing feature")
    else:
        raise AssertionError(f"{format}: a missing feature was read")


def _check_facts(format: Format, path: Path, contents: Contents) -> None:
    with open_dataset(path) as source:
        found = source.contents
    written = {"tasks": contents.tasks, "subsets": contents.subsets, **contents.facts.plain()}
    again = {"tasks": found.tasks, "subsets": found.subsets, **found.facts.plain()}
    for name in sorted(set(written) - format.loses):
        require(again[name] == written[name], f"{format}: {name} {again[name]}, written {written[name]}")
    for name, chosen in {} if "subsets" in format.loses else contents.subsets.items():
        _same(format, varied_episodes(contents), read(path, subset=name), chosen)


def _check_cuts(format: Format, path: Path, broken: Path, episodes: Episodes) -> None:
    """Of a file that is cut, whole episodes may be left, but never other rows; and errors are of one type."""
    for name in _largest(path):
        for share in (0.0, 0.5, 0.98):
            shutil.copytree(path, broken) if path.is_dir() else shutil.copy(path, broken)
            file = broken / name if name else broken
            data = file.read_bytes()
            file.write_bytes(data[: int(share * len(data))])
            for problem in _damage(broken, episodes):
                raise AssertionError(f"{format}: {name or 'the file'} cut to {share} of its bytes gave {problem}")
            shutil.rmtree(broken) if broken.is_dir() else broken.unlink()


def _damage(broken: Path, episodes: Episodes) -> Iterator[str]:
    try:
        with open_dataset(broken) as source:
            for episode in range(len(source)):
                changed = _changed(episodes, episode, source.rows(episode, [*source.contents.features]))
                yield from (f"other rows of {name} in episode {episode}" for name in changed)
    except DataError as error:
        if broken.name not in str(error):
            yield f"the message {error}, which does not name the file"
    except Exception as error:
        yield f"{type(error).__name__} ({error}), expected a DataError"


def _changed(episodes: Episodes, episode: int, rows: Rows) -> list[str]:
    """Features whose rows are not those that were written."""
    part = slice(episodes.starts[episode], episodes.ends[episode])
    return [name for name, array in rows.items() if not np.array_equal(array, episodes.features[name][part])]


def _largest(path: Path) -> list[str]:
    """Files of a dataset, relative to it, the empty name for itself."""
    if path.is_file():
        return [""]
    files = sorted((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    return [str(file.relative_to(path)) for file in [*files[:: max(1, len(files) // _CUTS)], files[-1]]]


def _same(format: Format, episodes: Episodes, found: Episodes, chosen: "range | tuple[int, ...]") -> None:
    expected = episodes.select([*chosen])
    require(found.ends.tolist() == expected.ends.tolist(), f"{format}: ends {found.ends}, written {expected.ends}")
    tasks = set(found.tasks) <= set(expected.tasks) and len(found.tasks) in (0, len(expected.tasks))
    require(tasks, f"{format}: tasks {found.tasks}, written {expected.tasks}")
    for name, array in expected.features.items():
        again = found.features[name]
        same = again.dtype == array.dtype and np.array_equal(again, array)
        require(same, f"{format}: {name} changed from {array.dtype} {array.shape} to {again.dtype} {again.shape}")


__all__ = ["check_format", "varied_contents", "varied_episodes"]
