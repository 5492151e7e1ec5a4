"""One training from beginning to end: bar, figures, checkpoints, evaluations, and what happens when it is stopped."""

import json
import math
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from poise.data import Windows
from poise.evaluation import Task
from poise.evaluation.rollout import Slots
from poise.files import replace_text, saving
from poise.nn import load_backbone
from poise.policies import NearestNeighbour, Policy, PolicySpec, Safety
from poise.policies.saving import FILE
from poise.precision import has_bfloat16
from poise.training import Checkpoints, Learner, Processes, Progress, Single, TrainingSpec, Validation, train
from poise.training.loop import Loss, check_batch
from poise.training.trackers import Tracker
from poise.training.trackers.json_lines import JsonLines, cut

BEGUN = "training.json"
_FIRST_SEED = 50_000  # of evaluations in training; those from 100000 on are for the final one
_LINES_EVERY = 50
_NOTED = ("demonstrations", "teacher", "evaluations", "training")  # that a run which goes on was begun with
_SAME = 1e-3  # in normalised units, between statistics: another machine sums up in another order
_BAR = "{desc} {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left{postfix}"


@dataclass(frozen=True)
class Job:
    """A training to be done.

    Attributes:
        kind: Class of the policy.
        spec: What is learned.
        training: How.
        out: Folder of the run.
        notes: JSON data to keep with the policy.
        task: Where it is tried while it trains, if the training spec says so.
        weights: Safetensors of published weights that the backbones of the encoder begin with.
        trackers: Where figures go besides `metrics.jsonl`.
        begun: How the run was begun, as JSON data, for who resumes it: `BEGUN` in its folder, once inputs are checked.
        policy: What is trained; None is an untrained policy of the kind and spec.
        loss: What is minimised; None is the policy's own loss.
        again: What goes on with the run, for messages; None is `poise train --resume`.
    """

    kind: type[Policy]
    spec: PolicySpec
    training: TrainingSpec
    out: Path
    notes: Mapping[str, Any]
    task: Task | None = None
    weights: Path | None = None
    trackers: tuple[Tracker, ...] = ()
    begun: Mapping[str, Any] | None = None
    policy: Policy | None = None
    loss: Loss | None = None
    again: str | None = None

    def untrained(self, windows: Windows) -> Policy:
        """The policy before its first step, on the device of the demonstrations, whose statistics it has."""
        torch.manual_seed(self.training.seed)
        if self.policy is not None:
            return self.policy
        policy = self.kind(self.spec).to(windows.device)
        policy.fit(windows)
        if self.weights:
            load_backbone(policy, self.weights)
        return policy

    def describe(self) -> None:
        """Write down how the run was begun."""
        if self.begun is not None:
            with saving(f"how the run in {self.out} is begun", "begin it again"):
                replace_text(self.out / BEGUN, json.dumps(self.begun, indent=1))


def fit(
    job: Job,
    windows: tuple[Windows, Windows | None],
    resume: bool = False,
    processes: Processes | None = None,
) -> Path:
    """Train, with checkpoints under `checkpoints`; their notes hold the limits of the demonstrated actions.

    SIGTERM and Ctrl-C save a checkpoint and end the training early. A run that is there is deleted when the inputs of
    the new one are known to be good.

    Where several processes train, each calls this; the first one prints, writes and evaluates.

    Args:
        job: What to do.
        windows: Those to train on, and held-out ones.
        resume: Go on from the newest checkpoint of the run instead of beginning anew.
        processes: Those that share the training; None is one.

    Returns:
        The checkpoint of the averaged policy.

    Raises:
        BlockingIOError: Another process trains in the same folder.
        ImportError: A tracker whose tool is not installed.
        OSError: The disk is full where a checkpoint or the policy is saved; figures that find no place are left out.
        ValueError: A run that is resumed with other demonstrations, a batch that does not fit them, or no such task.
        SystemExit: SIGTERM, with the status 143.
    """
    processes, policy = processes or Single(), job.untrained(windows[0])
    job = replace(job, notes={**job.notes, **_noted(job, windows[0])})
    for tracker in job.trackers:
        tracker.check()
    checkpoints = Checkpoints(job.out, job.training.keep_last, job.training.keep_best, again=job.again)
    if isinstance(policy, NearestNeighbour):
        return _remembered(job, policy, windows[0], checkpoints, processes.rank)
    learner = Learner(policy, job.training, processes)
    check_batch(learner, windows[0])
    if processes.rank == 0:
        _try_task(job, learner.average.policy)
    with checkpoints.locked() if processes.rank == 0 else nullcontext():
        if resume:
            _resume(job, learner, checkpoints)
        elif processes.rank == 0:
            _begin(job, checkpoints)
        return _run(job, learner, windows, checkpoints)


def _remembered(job: Job, policy: NearestNeighbour, windows: Windows, checkpoints: Checkpoints, rank: int) -> Path:
    """The file of a policy that is not trained, but knows all demonstrations; the first process writes it."""
    policy.remember(windows)
    if rank > 0:
        return job.out / FILE
    with checkpoints.locked():
        job.describe()
        with saving(f"the policy in {job.out}", "begin it again"):
            return policy.save(job.out, job.notes)


def _begin(job: Job, checkpoints: Checkpoints) -> None:
    """Make room for a run that is begun anew, and write down how."""
    (job.out / BEGUN).unlink(missing_ok=True)  # first: what is half deleted must not be resumed
    shutil.rmtree(checkpoints.folder, ignore_errors=True)
    job.describe()


def _noted(job: Job, windows: Windows) -> dict[str, Any]:
    """The limits of the demonstrated actions, and the precision that is computed in, wanted or not."""
    half = job.training.bfloat16 and has_bfloat16(windows.device)
    return {**Safety.fit(windows.actions, windows.starts).noted(), "precision": "bfloat16" if half else "float32"}


def _resume(job: Job, learner: Learner, checkpoints: Checkpoints) -> None:
    fitted = _constants(learner.policy)
    resumed = checkpoints.resume(learner)
    if resumed is None:
        if learner.processes.rank == 0:
            print(f"no checkpoint in {checkpoints.folder} is whole: beginning anew", file=sys.stderr)
        return
    others = [feature for feature, held in _constants(learner.policy).items() if _differ(fitted[feature], held)]
    for name in _NOTED:
        got, expected = job.notes.get(name), resumed.notes.get(name)
        if got != expected or (others and name == _NOTED[0]):
            other = expected if got != expected else f"others, with other statistics of {' and '.join(others)}"
            raise ValueError(
                f"got the {name} {got}, but {job.out} was begun with {other}, "
                "expected the same: restore the data and the recipe, or begin a new run"
            )


def _constants(policy: Policy) -> dict[str, Tensor]:
    """Scale and offset of every feature, which come from the demonstrations."""
    names = (*policy.spec.observations, "action")
    return {name: torch.stack(policy.constants(name)).double().cpu() for name in names}


def _differ(fitted: Tensor, held: Tensor) -> bool:
    """Whether what the one normalises to -1 or 1 is elsewhere for the other."""
    (scale, offset), (other, shift) = fitted, held
    ends = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    found = scale.flatten() * (ends - shift.flatten()) / other.flatten() + offset.flatten()
    return bool(((found - ends).abs() > _SAME).any())


def _run(job: Job, learner: Learner, windows: tuple[Windows, Windows | None], checkpoints: Checkpoints) -> Path:
    last, asked, first = None, 0, learner.processes.rank == 0
    with _Stop.caught() as stop, _Report(job, learner.step, checkpoints.goes_on) if first else nullcontext() as report:
        for now in train(learner, *windows, loss=job.loss, stopped=lambda: bool(stop.asked)):
            last = now
            success, failure = _tried(job, learner, now, stop)
            if report:
                report(now, success)
            asked = int(learner.processes.most(stop.asked))  # a signal reaches the processes at different steps
            score = _score(job, now, success)
            if asked or _saves(job, learner, checkpoints, now, score):
                checkpoints.save(learner, job.notes, score)
            if failure:
                print(f"step {now.step} is saved, but could not be tried in closed loop", file=sys.stderr)
                raise failure
            if asked:
                break
    average = learner.averaged()
    if first and last:
        spent = ", ".join(f"{name} {share:.0%}" for name, share in last.shares.items())
        print(f"{last.samples / last.seconds:,.0f} samples/s; of the time: {spent}")
    if first:
        with saving(f"the policy in {job.out}", f"{checkpoints.goes_on} from the last good checkpoint"):
            average.save(job.out, {**job.notes, "progress": asdict(last) if last else None})
    if first and asked:
        print(f"stopped at step {learner.step}: {checkpoints.goes_on} from there", file=sys.stderr)
    learner.processes.most(0)  # none ends before the file is there
    if asked == signal.SIGTERM:
        sys.exit(128 + signal.SIGTERM)
    return job.out / FILE


def _try_task(job: Job, policy: Policy) -> None:
    """One step in the environment of the evaluations, so that what is wrong there shows before the training."""
    if _evaluates(job) and job.task is not None:
        slots = Slots(policy, job.task, [_FIRST_SEED], 1)
        with closing(slots.envs):
            list(slots.step())


def _tried(job: Job, learner: Learner, now: Progress, stop: "_Stop") -> tuple[float | None, Exception | None]:
    """Success where the policy is tried, or what went wrong, for after the step is saved."""
    try:
        return _evaluated(job, learner, now, stop), None
    except Exception as error:  # whatever an environment raises
        return None, error


def _evaluated(job: Job, learner: Learner, now: Progress, stop: "_Stop") -> float | None:
    """Success of the averaged policy in closed loop, by the first process, where due and not stopped meanwhile."""
    if not _due(job, now):
        return None
    policy = learner.averaged()
    if learner.processes.rank > 0 or job.task is None:
        return None
    seeds, won = range(_FIRST_SEED, _FIRST_SEED + job.training.episodes), []
    slots = Slots(policy, job.task, seeds, min(job.task.slots, len(seeds)))
    with closing(slots.envs):
        while slots.active.any():
            won += [episode.success for episode in slots.step()]
            if stop.asked:
                return None
    return sum(won) / len(won)


def _evaluates(job: Job) -> bool:
    """Whether the policy is tried in closed loop while it trains."""
    return job.training.evaluate_every is not None and job.task is not None


def _due(job: Job, now: Progress) -> bool:
    """Whether the policy is tried now, and saved, for it may be the best."""
    every = job.training.evaluate_every or 1
    return _evaluates(job) and (now.step % every == 0 or now.fraction >= 1)


def _score(job: Job, now: Progress, success: float | None) -> float | None:
    """What the best checkpoints are the best by."""
    if _evaluates(job):
        return success
    return -now.validation.loss if now.validation and math.isfinite(now.validation.loss) else None


def _saves(job: Job, learner: Learner, checkpoints: Checkpoints, now: Progress, score: float | None) -> bool:
    """Whether to save: it is time, or the policy is among the best. All processes get the same answer."""
    spec = job.training
    if _due(job, now) or now.step % spec.save_every == 0 or now.fraction >= 1:
        return True
    if _evaluates(job) or now.step % spec.validate_every:
        return False
    return learner.processes.most(score is not None and checkpoints.would_keep(score)) > 0


class _Stop:
    """Whether a signal asked the training to end after the step in hand."""

    def __init__(self) -> None:
        self.asked = 0

    def _ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 (signal gives it)
        if self.asked == number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C does not wait
        self.asked = number

    @classmethod
    @contextmanager
    def caught(cls) -> Iterator["_Stop"]:
        """Where signals are noted instead of ending the process."""
        stop = cls()
        main = threading.current_thread() is threading.main_thread()
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT) if main}
        heard = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
        try:
            for number in heard:
                signal.signal(number, stop._ask)
            yield stop
        finally:
            for number, handler in heard.items():
                signal.signal(number, handler)


class _Report:
    """A bar on the terminal, figures every 50 steps and wherever there are new ones, and the ids of skipped steps.

    What cannot be written, for example on a full disk, is said once and left out: figures are worth no training.
    """

    def __init__(self, job: Job, step: int, goes_on: str) -> None:
        self._trackers, self._skipped = (JsonLines(), *job.trackers), job.out / "skipped.jsonl"
        with saving(f"figures in {job.out}", goes_on):
            if self._skipped.is_file():
                cut(self._skipped, step)
            for tracker in self._trackers:
                tracker.open(job.out, job.notes, step)
        self._out, self._failed = job.out, False
        self._losses: list[float] = []
        self._seen, self._shown = "", 0.0
        self._bar = tqdm(total=100, desc=job.kind.__name__, bar_format=_BAR, mininterval=0.5)

    def __enter__(self) -> "_Report":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
        for tracker in self._trackers:
            with self._spared():
                tracker.close()

    @contextmanager
    def _spared(self) -> Iterator[None]:
        """Where an error of the disk costs a line, the first time."""
        try:
            yield
        except OSError as error:
            if not self._failed:
                left = f"figures are left out of {self._out}, which cannot be written ({error}): free some space"
                self._bar.write(f"{left}, or the next checkpoint fails too", file=sys.stderr)
            self._failed = True

    def __call__(self, now: Progress, success: float | None) -> None:
        if now.skipped:
            with self._spared(), self._skipped.open("a") as file:
                line = {"step": now.step, "loss": str(now.loss), "gradient_norm": str(now.gradient_norm)}
                file.write(json.dumps({**line, "windows": now.skipped}) + "\n")
        else:
            self._losses.append(now.loss)
        if now.validation is not None:
            self._seen = f", validation {now.validation.loss:.4f}"
        if now.validation or success is not None or (self._losses and now.step % _LINES_EVERY == 0):
            self._log(now, success)
        self._bar.update(100 * now.fraction - self._shown)
        self._shown = 100 * now.fraction

    def _log(self, now: Progress, success: float | None) -> None:
        mean = sum(self._losses) / len(self._losses) if self._losses else None  # all were skipped
        self._losses = []
        figures = {name: value for name, value in asdict(now).items() if name not in ("step", "skipped", "validation")}
        figures |= {"loss": mean, "success": success, "samples_per_second": now.samples / now.seconds}
        figures |= {"validation": None} if now.validation is None else _figures(now.validation)
        for tracker in self._trackers:
            with self._spared():
                tracker.log(now.step, figures)
        seen = self._seen if success is None else f"{self._seen}, success {success:.0%}"
        loss = "none finite" if mean is None else f"{mean:.4f}"
        self._bar.set_postfix_str(f"step {now.step}, loss {loss}{seen}, {now.samples / now.seconds:,.0f} samples/s")


def _figures(found: Validation) -> dict[str, Any]:
    return {"validation": found.loss, "levels": found.levels, "action_error": found.action_error}


__all__ = ["Job", "fit"]
