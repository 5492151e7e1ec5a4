"""What a server keeps of a robot: a history of its observations and a source of noise."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from poise.policies import Policy, PolicySpec
from poise.policies.memory import Memory, check_pixels
from poise.typing import Noise

Name = int | str | None
"""What a client calls a robot or a request; None where it calls it nothing."""

_ONE = np.zeros(1, np.intp)
_LONGEST = 64  # characters of a name
_ROBOT, _ROW = 2**14, 512  # bytes beside those in arrays: of a robot, of a feature at one control step


@dataclass(frozen=True)
class Request:
    """One message of a client.

    Attributes:
        rows: Observations of consecutive control steps, the newest last: name -> `(...)`.
        name: `request_id`, which the reply repeats.
        robot: `env_id`, of which robot of the connection it tells.
        reset: Whether an episode begins with it.
        age: Control steps since it was taken.
        executed: `(steps, action)`, what the robot did since its last request, the newest last, NaN where it held;
            None where it does not tell.
    """

    rows: Sequence[Mapping[str, NDArray[Any]]]
    name: Name = None
    robot: Name = None
    reset: bool = False
    age: int = 0
    executed: NDArray[np.float32] | None = None


KEYS = "request_id", "env_id", "reset", "age", "executed"
"""Keys of a message beside the features of the policy; all of them may be left out."""


def request_of(message: Any, spec: PolicySpec) -> Request:
    """The request in a decoded message; keys that nobody knows are left out.

    Shapes and types are checked before a request waits, so that what waits is of a known size.

    Raises:
        ValueError: No map; a value of the wrong type for one of `KEYS`; images that are not of 8 bits; a feature that
            is missing, or of other shapes than `(...)`, one control step, or `(steps, ...)`, the same 1 to `history`
            steps for all features.
    """
    if not isinstance(message, dict):
        raise ValueError(f"got a message that is a {type(message).__name__}, expected a map of an observation")
    name, robot, reset, age, executed = (message.get(key) for key in KEYS)
    for key, value in (("request_id", name), ("env_id", robot)):
        if not isinstance(value, int | np.integer | str | None) or len(str(value)) > _LONGEST:
            raise ValueError(f"got {key} {str(value)[:40]!r}, expected a number or a text of up to {_LONGEST} letters")
    if not isinstance(reset, bool | np.bool_ | None):
        raise ValueError(f"got reset {str(reset)[:40]!r}, expected true or false")
    if not isinstance(age, int | np.integer | None) or isinstance(age, bool):
        raise ValueError(f"got age {str(age)[:40]!r}, expected whole control steps")
    done = None if executed is None else _executed(executed, spec)
    return Request(_rows(message, spec), name, robot, bool(reset), int(age or 0), done)


def _executed(value: Any, spec: PolicySpec) -> NDArray[np.float32]:
    array = _array("executed", value, spec)
    if array.ndim != 2 or len(array) > spec.planned or array.shape[1] != spec.action:
        raise ValueError(
            f"got executed of shape {array.shape}, expected (steps, {spec.action}) of up to {spec.planned} "
            "control steps"
        )
    return array


def _rows(message: Mapping[str, Any], spec: PolicySpec) -> list[dict[str, NDArray[Any]]]:
    shapes = spec.observations
    given = [name for name in shapes if name in message]
    missing = [name for name in shapes if name not in message and name not in spec.optional]
    if missing or not given:
        raise ValueError(
            f"got the keys {str(sorted(message))[:200]}, expected also the features {missing or [*shapes]}"
        )
    arrays = {name: _array(name, message[name], spec) for name in given}
    steps = {name: array.shape[: array.ndim - len(shapes[name])] for name, array in arrays.items()}
    for name, array in arrays.items():
        several = len(steps[name]) == 1 and 1 <= steps[name][0] <= spec.history
        if array.shape != (*steps[name], *shapes[name]) or not (several or steps[name] == ()):
            raise ValueError(
                f"got feature {name!r} of shape {array.shape}, expected {tuple(shapes[name])}, or that of 1 to "
                f"{spec.history} control steps, the newest last"
            )
    if len(set(steps.values())) > 1:
        raise ValueError(f"got features of {steps} control steps, expected one number for all")
    for name in given:
        if name in spec.cameras:
            check_pixels(name, arrays[name])
    if steps[given[0]] == ():
        return [arrays]
    return [{name: array[step] for name, array in arrays.items()} for step in range(*steps[given[0]])]


def _array(name: str, value: Any, spec: PolicySpec) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"got feature {name!r} of uneven lists ({error}), expected an array") from None
    if array.dtype.kind not in "biuf":
        raise ValueError(f"got feature {name!r} of {array.dtype}, expected numbers")
    if name in spec.cameras:
        return array
    with np.errstate(over="ignore"):  # what is too large becomes infinity, which is refused
        return array.astype(np.float32)


def joined(earlier: Sequence[Request], new: Request, most: int) -> list[Request]:
    """Requests of one robot that were superseded, and the new one: the last so many, for its history.

    An episode begins where one of them says so.
    """
    if new.reset:
        return [new]
    requests = [*earlier, new]
    kept = requests[-most:]
    if any(request.reset for request in requests[:-most]):
        kept[0] = dataclasses.replace(kept[0], reset=True)
    return kept


def executed(requests: Sequence[Request], most: int) -> NDArray[np.float32] | None:
    """What a robot did since the request before these, at most the last so many control steps."""
    told = [request.executed for request in requests if request.executed is not None]
    return np.concatenate(told)[-most:] if told else None


def robot_bytes(spec: PolicySpec) -> int:
    """The most bytes that a server holds of one robot.

    They are its history; what waits to be planned for, up to `history` requests of as many control steps, each with
    what the robot did; and up to three replies on their way, each as a plan, as a message, and where the connection
    buffers it.
    """
    row = sum(_ROW + math.prod(n) * (1 if name in spec.cameras else 4) for name, n in spec.observations.items())
    return _ROBOT + spec.history * (1 + spec.history) * row + (spec.history + 3 * 3) * 4 * spec.planned * spec.action


class Turn(NamedTuple):
    """Which plan of a robot it is.

    Attributes:
        episode: Its number among the episodes of the robot.
        plan: Its number among the plans of the episode.
        seed: Of the noise of the episode.
    """

    episode: int
    plan: int
    seed: int


class Session:
    """The history and the noise of one robot, for one thread.

    Args:
        policy: Any policy.
        seed: Of the noise of its first episode; that of the k-th one is larger by k.
    """

    def __init__(self, policy: Policy, seed: int) -> None:
        self._memory, self._turn = Memory(policy, 1), Turn(0, 0, seed)
        self._memory.reset([seed])
        self._fresh = True

    def observe(self, request: Request, superseded: bool = False) -> None:
        """Take an observation into the history.

        Args:
            request: The observation.
            superseded: Whether a newer one is planned for. Then one that is wrong is left out: its control step passes
                with the observation before it, as one that never came.

        Raises:
            ValueError: As `Memory.observe`: NaN, images that are not of 8 bits, an age that does not fit.
        """
        if request.reset and not self._fresh:
            episode, _, seed = self._turn
            self._turn = Turn(episode + 1, 0, seed + 1)
            self._memory.reset([seed + 1])
        for row in request.rows:
            try:
                self._memory.observe({name: values[None] for name, values in row.items()}, age=request.age)
            except ValueError:
                if not superseded:
                    raise
                self._memory.skip()
        self._fresh = False

    def window(self) -> dict[str, Tensor]:
        """The history for the policy, `(1, history, ...)` a feature; optional ones only where they are given."""
        return self._memory.window(_ONE)

    def noise(self) -> Noise:
        """Noise for a batch of one."""
        return self._memory.noise(_ONE)

    def turn(self) -> Turn:
        """Which plan the next one is; counts it."""
        turn = self._turn
        self._turn = turn._replace(plan=turn.plan + 1)
        return turn


__all__ = ["KEYS", "Name", "Request", "Session", "Turn", "executed", "joined", "request_of", "robot_bytes"]
