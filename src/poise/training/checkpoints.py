"""Checkpoints to resume from: a folder a checkpoint, whole or not there, of which the last and the best are kept.

    RUN/checkpoints/latest               link to the newest one
    RUN/checkpoints/step-00005000/       policy.safetensors      the averaged policy, which `poise.load` reads
                                         parameters.safetensors  what the next step depends on, see `Learner.tensors`
                                         exp_avg.safetensors, exp_avg_sq.safetensors, ...
                                         manifest.json           counts, best checkpoints, sha256 of every file, and
                                                                 `seal`, that of the manifest itself

A checkpoint is written aside, brought to the disk and renamed; then `latest`, which is for people, is replaced in one
go. Whatever moment a process dies at, the newest whole checkpoint is found. Moments lie in files of their own, so that
writing takes the memory of one of them.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from poise.files import saving
from poise.plain import to_plain
from poise.policies import Policy, load
from poise.policies.saving import FILE, seal, write_tensors
from poise.training.learner import Learner

_FOLDER, _LATEST, _MANIFEST, _ASIDE = "checkpoints", "latest", "manifest.json", ".aside"
_FORMAT = "poise training 2"


class Resumed(NamedTuple):
    """Where a training goes on.

    Attributes:
        step: Steps done.
        notes: What was noted with the checkpoint.
    """

    step: int
    notes: Any


@dataclass
class Checkpoints:
    """The checkpoints of a run.

    Attributes:
        run: Folder of the run.
        keep_last: Newest checkpoints that are kept.
        keep_best: Best ones that are kept besides.
        best: `(score, step)` of the best ones, the best first.
        again: What goes on with the run, for messages; None is `poise train --resume`.
    """

    run: Path
    keep_last: int = 2
    keep_best: int = 1
    best: tuple[tuple[float, int], ...] = ()
    again: str | None = None

    @property
    def goes_on(self) -> str:
        """What goes on with the run."""
        return f"{self.again or f'poise train --resume {self.run}'} goes on"

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self.run / _FOLDER

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While this run is the only one that writes into the folder.

        Raises:
            BlockingIOError: Another process trains there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.run / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise BlockingIOError(
                f"another process trains in {self.run}, expected one at a time: wait for it, or name another --out"
            ) from error
        try:
            for left in self.folder.glob(f"{_ASIDE}*"):
                shutil.rmtree(left, ignore_errors=True)
            yield
        finally:
            lock.release()

    def save(self, learner: Learner, notes: Mapping[str, Any], score: float | None = None) -> Path:
        """Write a checkpoint, and remove those that are neither new nor good enough to keep.

        Where several processes train, all of them must save, and the first one writes.

        Args:
            learner: What is trained.
            notes: JSON data to keep with the policy.
            score: How good the averaged policy is, more being better; None takes no part in the comparison.

        Returns:
            Its folder.

        Raises:
            FloatingPointError: A parameter that is not finite.
            OSError: The disk is full, or broken; the checkpoints so far are as they were.
        """
        average, tensors = learner.averaged(), learner.tensors()
        final, aside = self.folder / f"step-{learner.step:08d}", self.folder / f"{_ASIDE}-{learner.step:08d}"
        if learner.processes.rank > 0:
            return final
        _check_finite(learner.step, average, tensors)
        if score is not None:
            ranked = sorted([*self.best, (score, learner.step)], key=lambda pair: (-pair[0], pair[1]))
            self.best = tuple(ranked[: self.keep_best])
        if final.exists():
            return final
        with saving(f"step {learner.step} in {self.folder}", f"{self.goes_on} from the last good checkpoint"):
            try:
                aside.mkdir(parents=True)
                average.save(aside, notes)
                self._write(aside, tensors, learner.counts(), notes)
                aside.rename(final)
                _synced(self.folder)
                self._point(final.name)
            except OSError:
                shutil.rmtree(aside, ignore_errors=True)
                raise
        self._prune()
        return final

    def would_keep(self, score: float) -> bool:
        """Whether a checkpoint of this score would be among the best."""
        return sum(best >= score for best, _ in self.best) < self.keep_best

    def _write(
        self, aside: Path, whole: Mapping[str, Tensor], counts: Mapping[str, Any], notes: Mapping[str, Any]
    ) -> None:
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in whole.items():
            group = name.rpartition(".")[2] if name.startswith("optimiser.") else "parameters"
            groups.setdefault(group, {})[name] = tensor.detach().cpu().contiguous()
        for group, tensors in groups.items():
            write_tensors(tensors, aside / f"{group}.safetensors")
        files = sorted(file.name for file in aside.iterdir())
        manifest = {
            "format": _FORMAT,
            "counts": counts,
            "best": self.best,
            "files": {name: _digest(aside / name) for name in files},
            "notes": to_plain(notes),
        }
        (aside / _MANIFEST).write_text(json.dumps({**manifest, "seal": seal(manifest)}, indent=1))
        for name in (*files, _MANIFEST):
            _synced(aside / name)
        _synced(aside)

    def _point(self, name: str) -> None:
        """Let `latest` name a checkpoint."""
        aside = self.folder / f".{_LATEST}"
        aside.unlink(missing_ok=True)
        aside.symlink_to(name)
        aside.replace(self.folder / _LATEST)
        _synced(self.folder)

    def _prune(self) -> None:
        kept = {f"step-{step:08d}" for _, step in self.best}
        for old in self._all()[self.keep_last :]:
            if old.name not in kept:
                shutil.rmtree(old.rename(old.with_name(f"{_ASIDE}-{old.name}")), ignore_errors=True)

    def _all(self) -> list[Path]:
        """Checkpoints, the newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)

    def resume(self, learner: Learner) -> Resumed | None:
        """Bring a learner to the newest checkpoint that is whole; None where there is none.

        One whose bits differ from those that were written is passed over, with a line on stderr, and renamed; of those
        one is kept, as soon as there is a whole one. Where several processes train, all of them must resume; the first
        one chooses the checkpoint, and all read it.

        Raises:
            FileNotFoundError: A process does not find the checkpoint that the first one chose.
        """
        processes = learner.processes
        resumed = self._newest(learner) if processes.rank == 0 else None
        chosen = int(processes.most(resumed.step if resumed else -1))
        if processes.rank == 0 or chosen < 0:
            return resumed
        folder = self.folder / f"step-{chosen:08d}"
        if not folder.is_dir():
            raise FileNotFoundError(
                f"process {processes.rank} finds no {folder}, which the first process resumes from: expected the run's "
                "folder on a file system that all machines share"
            )
        return Resumed(chosen, _restored(folder, learner)["notes"])

    def _newest(self, learner: Learner) -> Resumed | None:
        for folder in self._all():
            try:
                manifest = _restored(folder, learner)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                print(f"passing over {folder}, which is not whole: {error}", file=sys.stderr)
                folder.rename(folder.with_name(f"broken-{folder.name}-{time.time_ns()}"))
                continue
            self.best = tuple((score, step) for score, step in manifest["best"])
            self._point(folder.name)
            for broken in sorted(self.folder.glob("broken-*"))[:-1]:
                shutil.rmtree(broken, ignore_errors=True)
            return Resumed(learner.step, manifest["notes"])
        (self.folder / _LATEST).unlink(missing_ok=True)
        return None


def _restored(folder: Path, learner: Learner) -> dict[str, Any]:
    """The manifest of a checkpoint that the learner was brought to."""
    manifest = _verified(folder)
    files = [name for name in manifest["files"] if name != FILE]
    tensors = {name: value for file in files for name, value in load_file(folder / file).items()}
    learner.restore(tensors, load(folder).state_dict(), manifest["counts"])
    return manifest


def _verified(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are those that were written."""
    manifest = json.loads((folder / _MANIFEST).read_text())
    if manifest.get("format") != _FORMAT:
        raise ValueError(f"got the format {manifest.get('format')!r}, expected {_FORMAT!r}")
    if manifest.get("seal") != seal(manifest):
        raise ValueError(f"{_MANIFEST} differs from what was written")
    for name, expected in manifest["files"].items():
        if _digest(folder / name) != expected:
            raise ValueError(f"{name} differs from what was written")
    return manifest


def _check_finite(step: int, average: Policy, tensors: Mapping[str, Tensor]) -> None:
    """Parameters of a training that went wrong are never saved."""
    for name, parameter in average.named_parameters():
        for found in (tensors[f"policy.{name}"], parameter):
            if not bool(torch.isfinite(found).all()):
                raise FloatingPointError(
                    f"parameter {name!r} is not finite at step {step}, so that no checkpoint is written: "
                    "begin a new run with a lower learning rate; those so far are as they were"
                )


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _synced(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


__all__ = ["Checkpoints", "Resumed"]
