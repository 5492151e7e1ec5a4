"""Exported policies on a robot with numpy and onnxruntime alone (extra `runtime`): no PyTorch is needed.

For plans a robot needs this file and the one of `poise export POLICY OUT --format onnx`, and nothing else of poise. The
controller holds what it sends to the limits that the file tells, by `poise.limits`, which needs numpy alone:

    runtime = Runtime("policy.onnx")
    plans = runtime.plan({"state": histories}, seeds=[0])   # (1, history, ...) -> (1, planned, action)

    control = RecedingHorizon(runtime)
    control.reset([0])
    action = control.act({"state": state})                  # (1, ...) -> (1, action), at every control step
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FORMAT = "poise onnx 1"
KEY = "poise"
UNSEALED = "0" * 64  # stands for the digest of a file while it is computed

_SEALED = re.compile(rb'"sha256": "([0-9a-f]{64})"')

Seeds = Sequence[int | np.random.Generator] | NDArray[np.integer]
"""One seed, or one generator, a row."""

Seen = Mapping[str, NDArray]
"""Name of a feature -> its values, a row a robot, in the units of the data."""


class Feature(NamedTuple):
    """An observed feature.

    Attributes:
        shape: At one time step.
        image: Whether it is one, of 8 bits.
    """

    shape: tuple[int, ...]
    image: bool


class Runtime:
    """An exported policy: observation histories to plans. It keeps nothing from one call to the next.

    Args:
        path: A file of `poise export --format onnx`.
        threads: CPU threads; by default onnxruntime's choice.

    Attributes:
        features: Name -> what the policy observes.
        history: Observation steps.
        horizon: Action steps that are denoised, the rows of the noise.
        planned: Action steps of a plan, from now on.
        execute: Of them, those to run before the next plan.
        action: Number of action dimensions.
        draws: Noise that a plan takes: none, the noise it starts from, or that and one a stochastic step.
        facts: All that the file says of itself.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that is no exported policy, of another version, or with bits that changed since.
        ImportError: onnxruntime is missing.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        data = _unbroken(Path(path))
        ort = _library()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self.facts: dict[str, Any] = json.loads(self._session.get_modelmeta().custom_metadata_map[KEY])
        seen: dict[str, list[int]] = self.facts["observations"]
        self.features = {name: Feature(tuple(shape), len(shape) == 3) for name, shape in seen.items()}
        numbers = (int(self.facts[name]) for name in ("history", "horizon", "planned", "execute", "action", "draws"))
        self.history, self.horizon, self.planned, self.execute, self.action, self.draws = numbers

    def plan(self, observation: Seen, seeds: Seeds = (), noise: Sequence[NDArray] | None = None) -> NDArray[np.float32]:
        """Plan once for every row of the batch.

        Args:
            observation: Name -> `(B, history, ...)`, oldest step first; images as uint8.
            seeds: One a row, so that a plan does not depend on its batch.
            noise: Standard normal numbers in place of seeds; see `noise`.

        Returns:
            `(B, planned, action)` in the units of the data; index 0 is the action for now.

        Raises:
            ValueError: A feature that is missing, of a wrong shape or type, or not finite; not one seed a row, or noise
                of another shape; a plan that is not finite.
        """
        feed = {name: self.checked(name, observation, (-1, self.history)) for name in self.features}
        rows = {name: len(values) for name, values in feed.items()}
        batch = next(iter(rows.values()))
        if len(set(rows.values())) > 1:
            raise ValueError(f"the policy got batches of {rows} rows, expected one number: a row of each for a robot")
        if noise is None and self.draws and len(seeds) != batch:
            raise ValueError(f"the policy got {len(seeds)} seeds for {batch} rows, expected one each, or noise")
        noise = self.noise(seeds) if noise is None else noise
        got, expected = [np.shape(part) for part in noise], self._shapes(batch)
        if got != expected:
            raise ValueError(f"the policy got noise of shapes {got}, expected {expected}: see Runtime.noise")
        names = self.facts["noise"][: len(noise)]
        feed |= {name: np.asarray(part, np.float32) for name, part in zip(names, noise, strict=True)}
        (plan,) = self._session.run(None, feed)
        if not np.isfinite(plan).all():
            raise ValueError("the policy planned NaN or infinity, expected finite numbers: hold the robot")
        return plan

    def noise(self, seeds: Seeds) -> list[NDArray[np.float32]]:
        """The noise of a batch: that of the start `(B, horizon, action)`, and of stochastic steps `(steps, B, ...)`.

        Row i comes from the i-th seed alone.
        """
        shape = self.draws, self.horizon, self.action
        drawn = [np.random.default_rng(seed).standard_normal(shape, np.float32) for seed in seeds]
        stack = np.stack(drawn, 1) if drawn else np.zeros((self.draws, 0, *shape[1:]), np.float32)
        return [*stack[:1], stack[1:]][: min(self.draws, 2)]

    def _shapes(self, batch: int) -> list[tuple[int, ...]]:
        plan = batch, self.horizon, self.action
        return [plan, (self.draws - 1, *plan)][: min(self.draws, 2)]

    def checked(self, name: str, observation: Seen, leading: tuple[int, ...], rows: Any = ...) -> NDArray:
        """A feature of an observation as the policy takes it, once it is found to fit.

        Args:
            name: Of the feature.
            observation: All of them.
            leading: Sizes before those of the feature; -1 is any.
            rows: Which of them must be finite.

        Raises:
            ValueError: A feature that is missing, of a wrong shape or type, or not finite.
        """
        if name not in observation:
            raise ValueError(
                f"the policy got the features {sorted(observation)}, expected also {name!r}, which is missing: an "
                "exported policy takes all features, the optional ones too"
            )
        got, (shape, image) = np.asarray(observation[name]), self.features[name]
        expected = (*leading, *shape)
        if got.ndim != len(expected) or any(a not in (-1, b) for a, b in zip(expected, got.shape, strict=True)):
            wanted = ", ".join("batch" if size < 0 else str(size) for size in expected)
            raise ValueError(f"the policy got feature {name!r} of shape {got.shape}, expected ({wanted})")
        if got.dtype != np.uint8 if image else got.dtype.kind not in "fiu":
            kind = "uint8 from 0 to 255, as the camera gives them" if image else "numbers"
            raise ValueError(f"the policy got feature {name!r} of {got.dtype}, expected {kind}")
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and found below
            got = got if image else got.astype(np.float32)
        if not np.isfinite(got[rows]).all():
            large = np.isfinite(np.asarray(observation[name])[rows]).all()
            what = "numbers beyond those of float32, 3.4e38," if large else "NaN or infinity"
            raise ValueError(
                f"the policy got {what} in feature {name!r}, expected finite numbers: "
                "check the sensor, and hold the robot meanwhile"
            )
        return got


class RecedingHorizon:
    """Plan, execute the first `execute` actions, plan again, for any number of robots; poise's controller in numpy.

    Robots need not be in step; those that plan at the same time share one batch. Actions are held to the limits of the
    demonstrations that the file tells, if it tells any, by a `Guard` of `poise.limits`, which knows what was sent.

    Args:
        runtime: An exported policy; one serves any number of controllers.
        robots: Their number.
        hold: What the last action of robots becomes in a step that ended in an error, and in which they so hold, which
            the next one goes on from: by default that action again, `zeroed` of `poise.watchdog` for velocities.
        safety: Whether the limits are kept.

    Attributes:
        fresh: `(robots,)`, whether the last action returned was the first of a new plan.
        interventions: What the limits changed, as those of `poise.limits.Guard`; empty without limits.

    Raises:
        ImportError: There are limits, and poise is not installed.
        ValueError: Limits that are none, or of other dimensions than the actions.
    """

    def __init__(
        self, runtime: Runtime, robots: int = 1, hold: Callable[[NDArray], NDArray] = np.copy, safety: bool = True
    ) -> None:
        self.robots, self.fresh, self._runtime = robots, np.zeros(robots, bool), runtime
        limits = runtime.facts.get("safety") if safety else None
        self._guard = None if limits is None else _guard(limits, robots, runtime.action, hold)
        self.interventions: Counter[str] = Counter() if self._guard is None else self._guard.interventions
        self._history = {
            name: np.zeros((robots, runtime.history, *shape), np.uint8 if image else np.float32)
            for name, (shape, image) in runtime.features.items()
        }
        self._plan = np.zeros((robots, runtime.planned, runtime.action), np.float32)
        self._noise = [np.random.default_rng(robot) for robot in range(robots)]
        self._begun, self._next = np.zeros(robots, bool), np.full(robots, runtime.execute)

    def reset(self, seeds: Sequence[int] | NDArray[np.integer], which: NDArray[np.bool_] | None = None) -> None:
        """Forget history and plan, and seed the noise, of all robots or of those of the mask `which`.

        Args:
            seeds: One seed a robot that is reset, in the order of the robots.
            which: `(robots,)`; None means all.
        """
        chosen = np.arange(self.robots) if which is None else np.flatnonzero(which)
        for robot, seed in zip(chosen, seeds, strict=True):
            self._noise[robot] = np.random.default_rng(int(seed))
        self._begun[chosen], self._next[chosen] = False, self._runtime.execute
        if self._guard is not None:
            self._guard.reset(chosen)

    def act(self, observation: Seen, which: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """The action of every robot for now, `(robots, action)`, in the units of the data: one control step.

        Args:
            observation: Name -> `(robots, ...)`, images as uint8; the first one after a reset also fills the history.
            which: Robots to act for; the others keep their state and get their last action.

        Raises:
            ValueError: A feature that is missing, of a wrong shape or type, or not finite; nothing is then changed, but
                that the limits take it that these robots held.
        """
        active, guard = np.ones(self.robots, bool) if which is None else np.asarray(which, bool), self._guard
        try:
            wanted = self._wanted(observation, active)
        except ValueError:
            if guard is not None:
                guard.hold(active & guard.begun)
            raise
        if guard is None:
            return wanted
        guard.send(wanted, active)
        return guard.last

    def _wanted(self, observation: Seen, active: NDArray[np.bool_]) -> NDArray[np.float32]:
        """The actions of the plans."""
        runtime = self._runtime
        got = {name: runtime.checked(name, observation, (self.robots,), active) for name in self._history}
        for name, history in self._history.items():
            history[active] = np.concatenate([history[active, 1:], got[name][active, None]], 1)
            first = active & ~self._begun
            history[first] = got[name][first, None]
        self._begun[active] = True
        self.fresh = active & (self._next >= runtime.execute)
        if self.fresh.any():
            window = {name: history[self.fresh] for name, history in self._history.items()}
            robots = np.flatnonzero(self.fresh)
            self._plan[robots] = runtime.plan(window, [self._noise[robot] for robot in robots])
            self._next[robots] = 0
        self._next[active] += 1
        return self._plan[np.arange(self.robots), self._next - 1]


def _unbroken(path: Path) -> bytes:
    """The bytes of a file, once its digest is found to be theirs: ONNX itself notices no flipped bit."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, expected a file of poise export --format onnx")
    data = path.read_bytes()
    found = _SEALED.search(data)
    if found is None or f'"format": "{FORMAT}"'.encode() not in data:
        raise ValueError(f"{path} is no policy in the format {FORMAT!r}: write one by poise export --format onnx")
    if hashlib.sha256(data.replace(found[1], UNSEALED.encode())).hexdigest() != found[1].decode():
        raise ValueError(f"{path} differs from what was written, expected its sha256 to hold: copy the file again")
    return data


def _guard(limits: Mapping[str, Any], robots: int, action: int, hold: Callable[[NDArray], NDArray]) -> Any:
    try:
        from poise.limits import ActionLimits, Guard
    except ImportError as error:
        raise ImportError(
            "to keep the limits that the exported policy tells, poise is needed (numpy is enough for it): pip install "
            "--no-deps poise; or do without limits, RecedingHorizon(runtime, safety=False)"
        ) from error
    known = ActionLimits(**limits)
    if len(known.low) != action:
        raise ValueError(f"got limits of {len(known.low)} dimensions for actions of {action}: export the policy again")
    return Guard(known, robots, hold)


def _library() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("exported policies need onnxruntime: pip install onnxruntime, or 'poise[runtime]'") from error
    return onnxruntime


__all__ = ["FORMAT", "KEY", "UNSEALED", "Feature", "RecedingHorizon", "Runtime", "Seeds", "Seen"]
