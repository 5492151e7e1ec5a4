"""What `meta/info.json` of LeRobot's datasets says, checked: features, rate, path templates, subsets."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from poise.data.facts import Facts, Role
from poise.data.source import Feature
from poise.data.untrusted import MAX_EPISODES, MAX_FEATURES, DataError, affordable, inside, read_json

INFO = "meta/info.json"
BOOKKEEPING = {
    "timestamp": Feature(np.dtype(np.float32), (1,)),
    "frame_index": Feature(np.dtype(np.int64), (1,)),
    "episode_index": Feature(np.dtype(np.int64), (1,)),
    "index": Feature(np.dtype(np.int64), (1,)),
    "task_index": Feature(np.dtype(np.int64), (1,)),
}
"""The columns that every dataset has beside its features."""

_FIELD = re.compile(r"\{(\w+)(?::0?(\d)d)?\}")  # of a path template; wider numbers would only fill memory
_SPAN = re.compile(r"(\d{1,12}):(\d{1,12})")
_FASTEST = 1e6  # frames a second
_TEXTS = ("string", "language")  # types of features that hold no numbers
_CHANNELS = ("channel", "channels")


class Kind(StrEnum):
    """Where the rows of a feature are."""

    COLUMN = "column"
    IMAGE = "image"
    VIDEO = "video"


@dataclass(frozen=True)
class Info:
    """The checked content of `meta/info.json`.

    Attributes:
        root: The dataset's folder.
        version: Such as `v3.0`.
        features: Name -> look, in the order of the file, without the bookkeeping and texts.
        kinds: Name -> where its rows are.
        facts: What holds for all episodes.
        totals: `total_episodes`, `total_frames` and `chunks_size`.
        templates: `data_path` and `video_path`.
        splits: Name -> what the file says of it.
    """

    root: Path
    version: str
    features: Mapping[str, Feature]
    kinds: Mapping[str, Kind]
    facts: Facts
    totals: Mapping[str, int]
    templates: Mapping[str, str]
    splits: Mapping[str, str]

    @property
    def rate(self) -> float:
        """Frames a second."""
        return self.facts.rate or math.nan

    def of(self, kind: Kind) -> tuple[str, ...]:
        """The features of a kind."""
        return tuple(name for name, found in self.kinds.items() if found is kind)

    def file(self, template: str, **values: Any) -> Path:
        """The file that a template names for some values.

        Raises:
            DataError: It lies outside of the dataset.
        """

        def value(found: re.Match[str]) -> str:
            if found[1] not in values:
                raise DataError(self.root, f"{INFO}: {template}", f"names {found[1]!r}, expected {sorted(values)}")
            return f"{values[found[1]]:0{found[2]}d}" if found[2] else str(values[found[1]])

        return inside(self.root, _FIELD.sub(value, self.templates[template]), f"{INFO}: {template}")

    def subsets(self) -> tuple[dict[str, tuple[int, ...]], list[str]]:
        """The subsets that name episodes of this dataset, and the names of the other ones."""
        known, unknown = {}, []
        for name, text in self.splits.items():
            found = [_SPAN.fullmatch(part.strip()) for part in text.split(",")]
            spans = [(int(one[1]), int(one[2])) for one in found if one]
            total = self.totals["total_episodes"]
            size = sum(last - first for first, last in spans)
            if len(spans) < len(found) or size > total or any(not first < last <= total for first, last in spans):
                unknown.append(name)
            else:
                known[name] = tuple(k for first, last in spans for k in range(first, last))
        return known, unknown


def version_of(path: Path) -> str | None:
    """What a folder says that it is; None where it is no dataset of LeRobot, empty where that cannot be read."""
    if not (path / INFO).is_file():
        return None
    try:
        found = read_json(inside(path, INFO))
    except DataError:
        return ""
    return str(found.get("codebase_version", "")) if isinstance(found, dict) else ""


def read_info(root: Path, versions: Iterable[str]) -> Info:
    """Read and check `meta/info.json`.

    Args:
        root: The dataset's folder.
        versions: Those that are expected.

    Raises:
        DataError: Anything that is missing or wrong in it.
    """
    plain = read_json(inside(root, INFO), INFO)
    try:
        version, declared = str(plain["codebase_version"]), {**plain["features"]}
        totals = {key: plain.get(key, 1000 if key == "chunks_size" else None) for key in _TOTALS}
        templates = {key: plain.get(key) or "" for key in ("data_path", "video_path")}
        splits = {str(name): str(span) for name, span in (plain.get("splits") or {}).items()}
        rate, robot = plain["fps"], plain.get("robot_type")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(root, INFO, f"lacks or garbles {error}, expected what LeRobot writes") from error
    versions = tuple(versions)
    if version not in versions:
        problem = f"is {version!r}, expected one of {versions}: convert it by LeRobot"
        raise DataError(root, f"{INFO}: codebase_version", problem)
    for key, count in totals.items():
        if type(count) is not int or not 0 < count <= _TOTALS[key]:
            raise DataError(root, f"{INFO}: {key}", f"is {count!r}, expected a number from 1 to {_TOTALS[key]}")
    if type(rate) not in (int, float) or not 0 < rate < _FASTEST:
        raise DataError(root, f"{INFO}: fps", f"is {rate!r}, expected frames a second above 0")
    if not all(isinstance(text, str) for text in templates.values()):
        raise DataError(root, INFO, f"has the path templates {templates}, expected texts")
    features, kinds = _features(root, declared)
    facts = Facts(float(rate), None if robot is None else str(robot), _roles(declared, features), _names(declared))
    return Info(root, version, features, kinds, facts.only(features), totals, templates, splits)


_TOTALS = {"total_episodes": MAX_EPISODES, "total_frames": 2**40, "chunks_size": 2**31}


def _features(root: Path, declared: Mapping[str, Any]) -> tuple[dict[str, Feature], dict[str, Kind]]:
    if len(declared) > MAX_FEATURES:
        raise DataError(root, f"{INFO}: features", f"are {len(declared)}, expected at most {MAX_FEATURES}")
    features, kinds = {}, {}
    for name, about in declared.items():
        field = f"{INFO}: features: {name}"
        try:
            dtype, shape = str(about["dtype"]), tuple(about["shape"])
        except (KeyError, TypeError) as error:
            raise DataError(root, field, f"is {str(about)[:200]}, expected its dtype and shape") from error
        if name in BOOKKEEPING or dtype in _TEXTS:
            continue
        if any(type(n) is not int or n < 1 for n in shape) or "/" in name:
            raise DataError(root, field, f"has the shape {shape}, expected numbers above 0, and no '/' in its name")
        kinds[name] = Kind(dtype) if dtype in (Kind.IMAGE, Kind.VIDEO) else Kind.COLUMN
        if kinds[name] is Kind.COLUMN:
            features[name] = Feature(_dtype(root, field, dtype), shape or (1,))
        else:
            features[name] = Feature(np.dtype(np.uint8), _image(shape, about), kinds[name] is Kind.VIDEO)
    if not features:
        raise DataError(root, f"{INFO}: features", f"are {sorted(declared)}, expected one of numbers or images")
    return features, kinds


def _dtype(root: Path, field: str, name: str) -> np.dtype:
    try:
        return affordable(root, field, (), name, 0)
    except DataError as error:
        raise DataError(root, field, f"has the dtype {name!r}, expected integers, floats or truth values") from error


def _image(shape: tuple[int, ...], about: Mapping[str, Any]) -> tuple[int, ...]:
    """`(H, W, C)`, where some recorders declare `(C, H, W)` and say so by the names of the axes."""
    names = about.get("names")
    first = isinstance(names, list) and len(names) == 3 and names[0] in _CHANNELS and len(shape) == 3
    return (*shape[1:], shape[0]) if first else shape


def _roles(declared: Mapping[str, Any], features: Iterable[str]) -> dict[str, Role]:
    known = {role.value: role for role in Role}
    roles = {}
    for name in features:
        about = declared[name].get("info")
        said = isinstance(about, dict) and "role" in about
        role = known.get(str(about["role"])) if said else conventional_role(name)
        roles |= {name: role} if role else {}
    return roles


def conventional_role(name: str) -> Role | None:
    """What a feature of this name is for in LeRobot."""
    if name == "action" or name.startswith("action."):
        return Role.ACTION
    if name.startswith("observation."):
        return Role.OBSERVATION
    return Role.REWARD if name == "next.reward" else None


def _names(declared: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Names of dimensions: a list, or lists or numbers of dimensions by words; those of the axes of images are not."""
    found = {}
    for name, about in declared.items():
        said = about.get("names")
        if isinstance(said, dict):
            lists = [one for one in said.values() if isinstance(one, list)]
            said = [word for one in lists for word in one] if lists else [*said]
        if isinstance(said, list) and [len(said)] == list(about["shape"]):
            found[name] = tuple(map(str, said))
    return found


__all__ = [
    "BOOKKEEPING",
    "INFO",
    "Info",
    "Kind",
    "conventional_role",
    "read_info",
    "version_of",
]
