"""One training from beginning to end: bar, figures, checkpoints, evaluations, and what happens when it is stopped."""

import json
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
from tqdm import tqdm

from poise.data import Windows
from poise.evaluation import Task
from poise.evaluation.rollout import Slots
from poise.nn import load_backbone
from poise.policies import NearestNeighbour, Policy, PolicySpec, Safety
from poise.policies.saving import FILE
from poise.training import Checkpoints, Learner, Processes, Progress, Single, TrainingSpec, Validation, train
from poise.training.trackers import Tracker
from poise.training.trackers.json_lines import JsonLines

BEGUN = "training.json"
_FIRST_SEED = 50_000  # of evaluations in training; those from 100000 on are for the final one
_LINES_EVERY = 50
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
        begun: How the run was begun, as JSON data, for who resumes it: `BEGUN` in its folder, from the first step on.
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

    def describe(self) -> None:
        """Write down how the run was begun."""
        if self.begun is not None:
            (self.out / BEGUN).write_text(json.dumps(self.begun, indent=1))


def fit(
    job: Job,
    windows: tuple[Windows, Windows | None],
    resume: bool = False,
    processes: Processes | None = None,
) -> Path:
    """Train, with checkpoints under `checkpoints`, and the limits of the demonstrated actions in their notes.

    SIGTERM and Ctrl-C save a checkpoint and end the training early.

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
        ValueError: A run that is resumed with other demonstrations.
        SystemExit: SIGTERM, with the status 143.
    """
    processes = processes or Single()
    torch.manual_seed(job.training.seed)
    policy = job.kind(job.spec).to(windows[0].device)
    policy.fit(windows[0])
    limits = Safety.fit(windows[0].actions, windows[0].starts)
    job = replace(job, notes={**job.notes, **limits.noted()})
    if job.weights:
        load_backbone(policy, job.weights)
    checkpoints = Checkpoints(job.out, job.training.keep_last, job.training.keep_best)
    with checkpoints.locked() if processes.rank == 0 else nullcontext():
        if isinstance(policy, NearestNeighbour):
            policy.remember(windows[0])
            if processes.rank > 0:
                return job.out / FILE
            job.describe()
            return policy.save(job.out, job.notes)
        learner = Learner(policy, job.training, processes)
        if resume:
            _resume(job, learner, checkpoints)
        elif processes.rank == 0:
            shutil.rmtree(checkpoints.folder, ignore_errors=True)
            (job.out / BEGUN).unlink(missing_ok=True)
        return _run(job, learner, windows, checkpoints)


def _resume(job: Job, learner: Learner, checkpoints: Checkpoints) -> None:
    resumed, name = checkpoints.resume(learner), "demonstrations"
    if resumed is None:
        if learner.processes.rank == 0:
            print(f"no checkpoint in {checkpoints.folder} is whole: beginning anew", file=sys.stderr)
    elif resumed.notes.get(name) != job.notes.get(name):
        raise ValueError(
            f"got the demonstrations {job.notes.get(name)}, but {job.out} was begun with {resumed.notes.get(name)}, "
            "expected the same: restore the data and the recipe, or begin a new run"
        )


def _run(job: Job, learner: Learner, windows: tuple[Windows, Windows | None], checkpoints: Checkpoints) -> Path:
    last, asked, first = None, 0, learner.processes.rank == 0
    with _Stop.caught() as stop, _Report(job, learner.step) if first else nullcontext() as report:
        for now in train(learner, *windows, stopped=lambda: bool(stop.asked)):
            if first and last is None:
                job.describe()
            last = now
            success = _evaluated(job, learner, now, stop)
            if report:
                report(now, success)
            asked = int(learner.processes.most(stop.asked))  # a signal reaches the processes at different steps
            if asked or _due(job, now) or now.step % job.training.save_every == 0 or now.fraction >= 1:
                checkpoints.save(learner, job.notes, _score(job, now, success))
            if asked:
                break
    average = learner.averaged()
    if first and last:
        spent = ", ".join(f"{name} {share:.0%}" for name, share in last.shares.items())
        print(f"{last.samples / last.seconds:,.0f} samples/s; of the time: {spent}")
    if first:
        average.save(job.out, {**job.notes, "progress": asdict(last) if last else None})
    if first and asked:
        print(f"stopped at step {learner.step}: poise train --resume {job.out} goes on from there", file=sys.stderr)
    learner.processes.most(0)  # none ends before the file is there
    if asked == signal.SIGTERM:
        sys.exit(128 + signal.SIGTERM)
    return job.out / FILE


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


def _due(job: Job, now: Progress) -> bool:
    """Whether the policy is tried now, and saved, for it may be the best."""
    every = job.training.evaluate_every
    return every is not None and job.task is not None and (now.step % every == 0 or now.fraction >= 1)


def _score(job: Job, now: Progress, success: float | None) -> float | None:
    """What the best checkpoints are the best by."""
    if job.training.evaluate_every is not None and job.task is not None:
        return success
    return -now.validation.loss if now.validation else None


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
    """A bar on the terminal, figures every 50 steps and wherever there are new ones, and the ids of skipped steps."""

    def __init__(self, job: Job, step: int) -> None:
        self._trackers, self._skipped = (JsonLines(), *job.trackers), job.out / "skipped.jsonl"
        for tracker in self._trackers:
            tracker.open(job.out, job.notes, step)
        self._losses: list[float] = []
        self._seen, self._shown = "", 0.0
        self._bar = tqdm(total=100, desc=job.kind.__name__, bar_format=_BAR, mininterval=0.5)

    def __enter__(self) -> "_Report":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
        for tracker in self._trackers:
            tracker.close()

    def __call__(self, now: Progress, success: float | None) -> None:
        if now.skipped:
            with self._skipped.open("a") as file:
                line = {"step": now.step, "loss": str(now.loss), "gradient_norm": str(now.gradient_norm)}
                file.write(json.dumps({**line, "windows": now.skipped}) + "\n")
        else:
            self._losses.append(now.loss)
        if now.validation is not None:
            self._seen = f", validation {now.validation.loss:.4f}"
        if self._losses and (now.step % _LINES_EVERY == 0 or now.validation or success is not None):
            self._log(now, success)
        self._bar.update(100 * now.fraction - self._shown)
        self._shown = 100 * now.fraction

    def _log(self, now: Progress, success: float | None) -> None:
        mean, self._losses = sum(self._losses) / len(self._losses), []
        figures = {name: value for name, value in asdict(now).items() if name not in ("step", "skipped", "validation")}
        figures |= {"loss": mean, "success": success, "samples_per_second": now.samples / now.seconds}
        figures |= {"validation": None} if now.validation is None else _figures(now.validation)
        for tracker in self._trackers:
            tracker.log(now.step, figures)
        seen = self._seen if success is None else f"{self._seen}, success {success:.0%}"
        self._bar.set_postfix_str(f"step {now.step}, loss {mean:.4f}{seen}, {now.samples / now.seconds:,.0f} samples/s")


def _figures(found: Validation) -> dict[str, Any]:
    return {"validation": found.loss, "levels": found.levels, "action_error": found.action_error}


__all__ = ["Job", "fit"]
