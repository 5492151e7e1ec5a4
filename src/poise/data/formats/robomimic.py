"""Demonstrations of robomimic: HDF5 with a group a demonstration (extra `hdf5`).

Names of the file become features so:

    data/demo_i/obs/<key>              <key>, an observation (`obs.<key>` if the next line takes its name)
    data/demo_i/<key>                  <key>: `actions`, `rewards`, and without a role `states`, `dones`, ...
    data/demo_i/action_dict/<key>      action_dict.<key>, an action
    data/demo_i/next_obs               left out, since it repeats `obs` one row later; as are all other groups
    mask/<key>                         the subset <key>
    data: env_args                     the robot is `env_name`, the rate is `control_freq` of robosuite
    data/demo_i: ep_meta               the task is `lang`

Written files have the layout that robomimic reads, in which there must be `actions`: the feature of this name, else
the only action, else `action`. A reward becomes `rewards`. `poise_about`, beside `data` and `mask`, remembers the names
that features had, and the other facts.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from poise.data.facts import Facts, Role
from poise.data.hdf5 import Hdf5, created, is_hdf5
from poise.data.source import Contents, Finding, Format, Rows, Sink, Source
from poise.data.untrusted import MAX_FEATURES, MAX_JSON, DataError, parsed
from poise.data.writing import Known, member

_ABOUT = "poise_about"
_DEMO = re.compile(r"demo_(\d{1,9})")
_ACTIONS, _REWARDS = "actions", "rewards"
_TOP = (_ACTIONS, _REWARDS, "dones", "states")  # beside `obs`
_GYM = 2  # robomimic's type of an environment that Gym makes


@dataclass(frozen=True)
class Robomimic(Format):
    """The HDF5 file of robomimic, MimicGen, robosuite and LIBERO."""

    name: ClassVar[str] = "robomimic"
    suffix: ClassVar[str] = ".hdf5"

    def recognises(self, path: Path) -> bool:
        """HDF5 without the metadata of Minari beside it."""
        minari = path.name == "main_data.hdf5" and path.with_name("metadata.json").is_file()
        return is_hdf5(path) and not minari

    def open(self, path: Path) -> Source:
        """Read lengths and shapes; rows are read when they are asked for."""
        with ExitStack() as stack:
            return _Demos(path, Hdf5(path, stack), stack)

    def create(self, path: Path, contents: Contents) -> Sink:
        """Write a demonstration at a time, uncompressed as robomimic does."""
        return _Writer(path, contents)


class _Demos(Source):
    def __init__(self, path: Path, file: Hdf5, stack: ExitStack) -> None:
        self._file, self._demos = file, _demos(file)
        places = _places(file, self._demos[0])
        lengths = np.array([file.length(demo, _ACTIONS, "num_samples") for demo in self._demos])
        known = _about(file, places)
        looks, roles = {}, {}
        for place, (name, role) in places.items():
            looks[name] = file.feature(f"{self._demos[0]}/{place}")
            roles |= {name: role} if role else {}
        facts = known or Facts(*_environment(file), roles)
        tasks = tuple(_task(file, demo) for demo in self._demos)
        contents = Contents(looks, lengths, facts, tasks if any(tasks) else (), _masks(file, self._demos))
        super().__init__(path, contents, stack.pop_all())
        self._places = {name: place for place, (name, _) in places.items()}

    def rows(self, episode: int, names: Sequence[str]) -> dict[str, NDArray]:
        demo, steps, looks = self._demos[episode], int(self.contents.lengths[episode]), self.contents.features
        return {name: self._file.rows(f"{demo}/{self._places[name]}", looks[name], steps) for name in names}

    def whole(self, names: Sequence[str]) -> None:
        """Demonstrations lie apart."""
        return

    def findings(self) -> Iterator[Finding]:
        yield from ()


def _demos(file: Hdf5) -> list[str]:
    """Paths of the demonstrations, in the order of their numbers."""
    found = file.names("data")
    strange = [name for name in found if not _DEMO.fullmatch(name)]
    if strange or not found:
        problem = f"holds {strange[:5] or 'nothing'}, expected demonstrations demo_0, demo_1, ..."
        raise DataError(file.path, "data", problem)
    return [f"data/{name}" for name in sorted(found, key=lambda name: int(name[5:]))]


def _places(file: Hdf5, demo: str) -> dict[str, tuple[str, Role | None]]:
    """Path within a demonstration -> name and role of the feature."""
    found: dict[str, tuple[str, Role | None]] = {}
    names = file.names(demo)
    tops = [name for name in names if not file.holds_group(f"{demo}/{name}")]
    for top in tops:
        found[top] = (top, {_ACTIONS: Role.ACTION, _REWARDS: Role.REWARD}.get(top))
    for key in file.names(f"{demo}/obs") if "obs" in names else ():
        found[f"obs/{key}"] = (f"obs.{key}" if key in {*tops, *_TOP} else key, Role.OBSERVATION)
    for key in file.names(f"{demo}/action_dict") if "action_dict" in names else ():
        found[f"action_dict/{key}"] = (f"action_dict.{key}", Role.ACTION)
    if len({name for name, _ in found.values()}) != len(found) or len(found) > MAX_FEATURES:
        problem = f"holds {len(found)} arrays, expected at most {MAX_FEATURES}, of different names"
        raise DataError(file.path, demo, problem)
    return found


def _object(file: Hdf5, where: str, name: str) -> dict[str, Any]:
    """The object of JSON in an attribute; empty if there is none."""
    text = file.attribute(where, name)
    found = parsed(file.path, text.encode(), f"{where}: {name}") if type(text) is str else None
    return found if type(found) is dict else {}


def _environment(file: Hdf5) -> tuple[float | None, str | None]:
    """Rate and name that `env_args` gives."""
    found = _object(file, "data", "env_args")
    inner, name = found.get("env_kwargs"), found.get("env_name")
    rate = inner.get("control_freq") if type(inner) is dict else None
    known = float(rate) if isinstance(rate, int | float) and 0 < rate < 1e6 else None
    return known, name if type(name) is str else None


def _task(file: Hdf5, demo: str) -> str:
    task = _object(file, demo, "ep_meta").get("lang")
    return task if type(task) is str else ""


def _masks(file: Hdf5, demos: list[str]) -> dict[str, tuple[int, ...]]:
    numbers = {demo.removeprefix("data/"): i for i, demo in enumerate(demos)}
    masks: dict[str, tuple[int, ...]] = {}
    for name in file.names("mask") if "mask" in file.names("") else ():
        chosen = file.texts(f"mask/{name}")
        strange = [demo for demo in chosen if demo not in numbers]
        if strange:
            raise DataError(file.path, f"mask/{name}", f"names {strange[:5]}, expected some of the {len(demos)} demos")
        masks[name] = tuple(numbers[demo] for demo in chosen)
    return masks


def _about(file: Hdf5, places: dict[str, tuple[str, Role | None]]) -> Facts | None:
    """What a file of poise knows; gives its features in `places` the names that they had."""
    if _ABOUT not in file.names(""):
        return None
    (size,) = file.look(_ABOUT)[1] or (0,)
    if size > MAX_JSON:
        raise DataError(file.path, _ABOUT, f"has {size} bytes, expected at most {MAX_JSON}")
    plain = parsed(file.path, file.array(_ABOUT).tobytes(), _ABOUT)
    facts = Known.of(file.path, _ABOUT, plain).facts
    names = plain.get("names")
    if type(names) is not dict or set(names) != set(places) or len({*map(str, names.values())}) != len(names):
        raise DataError(file.path, _ABOUT, f"names {str(names)[:200]}, expected one name for each of {sorted(places)}")
    for place, name in names.items():
        places[place] = (str(name), None)
    return facts


class _Writer(Sink):
    def __init__(self, path: Path, contents: Contents) -> None:
        super().__init__(path, contents)
        self._places = _written(contents)
        for name in contents.subsets:
            member("robomimic", name)
        self._total = 0
        self._file = created(self.aside)
        self._data = self._file.create_group("data")

    def write(self, rows: Rows, steps: int, task: str) -> None:
        demo = self._data.create_group(f"demo_{len(self.tasks)}")
        for name, place in self._places.items():
            look = self.contents.features[name]
            single = place in _TOP[1:3] and math.prod(look.shape) == 1
            values = np.asarray(rows[name], look.dtype)
            demo.create_dataset(place, data=values.reshape(-1) if single else values)
        demo.attrs["num_samples"] = steps
        if task:
            demo.attrs["ep_meta"] = json.dumps({"lang": task})
        self._total += steps

    def finish(self) -> None:
        environment = {"env_name": self.contents.facts.robot or "", "env_type": _GYM, "env_kwargs": {}}
        self._data.attrs["total"] = self._total
        self._data.attrs["env_args"] = json.dumps(environment)
        for name, chosen in self.contents.subsets.items():
            self._file[f"mask/{name}"] = np.array([f"demo_{i}".encode() for i in chosen], "S")
        plain = Known(self.contents.facts).plain() | {"names": {place: name for name, place in self._places.items()}}
        self._file[_ABOUT] = np.frombuffer(json.dumps(plain).encode(), np.uint8)

    def close(self) -> None:
        self._file.close()


def _written(contents: Contents) -> Mapping[str, str]:
    """Feature -> its path within a demonstration.

    Raises:
        ValueError: No feature that could be the actions.
    """
    places: dict[str, str] = {}
    for usual, role, other in ((_ACTIONS, Role.ACTION, "action"), (_REWARDS, Role.REWARD, "reward")):
        named = [name for name in contents.facts.named(role) if name in contents.features]
        options = [usual, *(named if len(named) == 1 else ()), other]
        chosen = next((name for name in options if name in contents.features), None)
        places |= {chosen: usual} if chosen else {}
    if _ACTIONS not in places.values():
        raise ValueError(
            f"robomimic got the features {sorted(contents.features)}, expected one of the role action, or called "
            "'actions'"
        )
    for name in contents.features:
        group, _, key = member("robomimic", name).partition(".")
        if name in _TOP or (group in ("obs", "action_dict") and key):
            places.setdefault(name, name.replace(".", "/", 1) if name not in _TOP else name)
        places.setdefault(name, f"obs/{name}")
    taken = list(places.values())
    if len(set(taken)) != len(taken):
        raise ValueError(f"robomimic got the features {sorted(places)}, of which two would be one array: rename one")
    return places


__all__ = ["Robomimic"]
