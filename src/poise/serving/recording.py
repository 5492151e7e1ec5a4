"""A record of what a server saw and planned, written beside the serving, that `poise.data` reads at any time."""

import logging
import queue
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from poise.data import Facts, Feature, Recorder, Role, Rows
from poise.policies import PolicySpec
from poise.serving.batching import KINDS
from poise.serving.planning import Served

Row = dict[str, NDArray[Any]]

PREFIX = "serving."
"""Of the features that are neither observed nor an action."""

_MOST = 256 * 2**20  # bytes in memory
_SECONDS = 5.0  # until a row is on the disk
_TIMES = "time", "infer_ms", "queue_ms"
_NUMBERS = "batch", "age", "changed", *KINDS, "client", "episode", "plan", "seed", "executed"
_log = logging.getLogger("poise.serving")


class Recording:
    """An `Observer` that records every plan, for `poise.data.read`; a context manager.

    A row is one plan. Its features are what the policy saw, `(history, ...)` each, and `action`, the action of the plan
    for the moment that the observation came, whether or not the robot executed it. Features that are optional are zeros
    where they were not given, as the flags `serving.given` say. Further ones are `serving.actions`
    `(planned, action)`, the plan as it was sent; `serving.executed`, of the same shape, and `serving.moved`,
    `(planned,)`: what the robot says it did in the control steps before this observation, the newest last, and in which
    of them it did not hold; and

    | feature | dimension | what |
    |---|---|---|
    | `serving.times` | `time` | seconds since 1970 |
    | | `infer_ms`, `queue_ms` | as in the reply |
    | `serving.numbers` | `batch` | as in the reply |
    | | `age` | control steps since the observation was taken |
    | | `changed` | actions of the plan that a filter or a limit changed |
    | | `range`, `change`, `acceleration`, `jerk` | actions that wanted to break this limit |
    | | `rejected` | 1 for a plan that did not leave |
    | | `client` | number of the connection |
    | | `episode`, `plan` | number among the robot's episodes, and among the plans of the episode |
    | | `seed` | of the noise of the episode |
    | | `executed` | control steps, the last rows of `serving.executed`, that the robot told; 0 if it tells none |

    They are few, since each is a file that is waited for.

    Rows reach the disk within a few seconds, and so survive the end of the process, however it comes. For that a long
    episode of a robot becomes several of the recording, with the same task, which names connection, robot and episode.

    Plans that did not leave are episodes of their own, whose task ends with `rejected`: as the policy made them, with
    zeros for what is not finite or was not made.

    The planner never waits for the disk: where that is too slow, plans are dropped from the record and counted. So are
    those that come when the recording is closed.

    Args:
        path: A folder that does not exist, or an earlier recording of a policy with the same features.
        spec: Of the policy.
        most: Bytes that wait in memory.
        seconds: That a row waits at most for the disk.

    Attributes:
        dropped: Plans that are not in the record.

    Raises:
        ValueError: An earlier recording of other features.
        DataError: A path that is no recording, or a broken one.
    """

    def __init__(self, path: Path, spec: PolicySpec, most: int = _MOST, seconds: float = _SECONDS) -> None:
        self._spec, self._most, self._seconds, self.dropped = spec, most, seconds, 0
        self._looks = looks = features(spec)
        roles = dict.fromkeys(spec.observations, Role.OBSERVATION) | {"action": Role.ACTION}
        self._recorder = Recorder(path, Facts(roles=roles, names=_names(spec)), looks)
        self._size = sum(look.dtype.itemsize * int(np.prod(look.shape)) for look in looks.values())
        self._rows: queue.SimpleQueue[tuple[str, Row] | None] = queue.SimpleQueue()
        self._lock, self._held, self._closed = threading.Lock(), 0, False  # rows in memory
        self._thread = threading.Thread(target=self._run, name="poise-record", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, served: Served) -> None:
        """Take note of one plan; never waits."""
        task, row = _task(served), self._row(served)
        with self._lock:  # no row comes after the end
            closed, full = self._closed, (self._held + 1) * self._size > self._most
            if closed or full:
                self.dropped += 1
            else:
                self._held += 1
                self._rows.put((task, row))
        if closed:
            _log.warning("a plan of %s came after the end of the record, and is not in it", task)

    def close(self) -> None:
        """Write what waits, and let go of the recording."""
        with self._lock:
            self._closed = True
            self._rows.put(None)
        self._thread.join()
        self._recorder.close()

    def _row(self, served: Served) -> Row:
        planned, age = served.planned, served.request.age
        actions = np.where(np.isfinite(planned.actions), planned.actions, 0.0)
        kinds = [planned.interventions[kind] for kind in KINDS]
        told = served.request.executed
        done = np.full_like(actions, np.nan)
        count = 0 if told is None else len(told)
        if told is not None and count:
            done[-count:] = told
        rows: dict[str, Any] = {
            **{name: planned.seen[name][0].numpy(force=True) for name in planned.seen},
            f"{PREFIX}given": [name in planned.seen for name in self._spec.optional],
            "action": actions[age],
            f"{PREFIX}actions": actions,
            f"{PREFIX}executed": np.where(np.isfinite(done), done, 0.0),
            f"{PREFIX}moved": np.isfinite(done).all(1),
            f"{PREFIX}times": (time.time(), 1e3 * planned.seconds, 1e3 * planned.waited),
            f"{PREFIX}numbers": (planned.batch, age, planned.changed, *kinds, served.client, *planned.turn, count),
        }
        return {
            name: np.asarray(rows[name], look.dtype) if name in rows else np.zeros(look.shape, look.dtype)
            for name, look in self._looks.items()
        }

    # What follows runs in the thread.

    def _run(self) -> None:
        waiting: dict[str, list[Row]] = {}
        due, told, going = 0.0, 0, True
        while going or waiting:
            try:
                item = self._rows.get(timeout=min(1.0, self._seconds) if going else 0.0)
                if item is None:
                    going = False
                else:
                    due = due if waiting else time.monotonic() + self._seconds
                    waiting.setdefault(item[0], []).append(item[1])
            except queue.Empty:
                pass
            if self.dropped > told:
                told = self.dropped
                _log.warning("the disk is too slow: %d plans are not in the record", told)
            kept = sum(map(len, waiting.values())) * self._size
            if waiting and (not going or time.monotonic() >= due or 2 * kept > self._most):
                for task in [*waiting]:
                    self._save(task, waiting.pop(task))

    def _save(self, task: str, rows: list[Row]) -> None:
        try:
            if self._recorder.steps:  # of rows that failed, and were not to be forgotten then
                self._recorder.discard_episode()
            for row in rows:
                self._recorder.add(row)
            self._recorder.save_episode(task)
        except Exception:  # whatever it is, later rows may fare better
            _log.exception("%d plans of %s are not in the record", len(rows), task)
            with self._lock:
                self.dropped += len(rows)
            with suppress(Exception):  # on a full disk even that may fail, and is tried again before the next rows
                self._recorder.discard_episode()
        finally:
            with self._lock:
                self._held -= len(rows)


def _task(served: Served) -> str:
    name, planned = served.request.robot, served.planned
    robot = "" if name is None else f", robot {name!r}"
    rejected = ", rejected" if planned.interventions["rejected"] else ""
    return f"connection {served.client}{robot}, episode {planned.turn.episode}{rejected}"


def features(spec: PolicySpec) -> dict[str, Feature]:
    """What the features of a record look like."""
    image, number = np.dtype(np.uint8), np.dtype(np.float32)
    seen = {
        name: Feature(image if name in spec.cameras else number, (spec.history, *shape))
        for name, shape in spec.observations.items()
    }
    own = {"given": np.dtype(np.bool_), "times": np.dtype(np.float64), "numbers": np.dtype(np.int64)}
    return {
        **seen,
        "action": Feature(number, (spec.action,)),
        **{f"{PREFIX}{name}": Feature(number, (spec.planned, spec.action)) for name in ("actions", "executed")},
        f"{PREFIX}moved": Feature(own["given"], (spec.planned,)),
        **{name: Feature(own[name.removeprefix(PREFIX)], (len(of),)) for name, of in _names(spec).items()},
    }


def column(rows: Rows, name: str) -> NDArray[np.int64]:
    """One of `serving.numbers`, `(plans,)`."""
    return rows[f"{PREFIX}numbers"][:, _NUMBERS.index(name)]


def _names(spec: PolicySpec) -> dict[str, tuple[str, ...]]:
    names = {"times": _TIMES, "numbers": _NUMBERS, "given": tuple(spec.optional)}
    return {f"{PREFIX}{name}": words for name, words in names.items() if words}


__all__ = ["PREFIX", "Recording", "column", "features"]
