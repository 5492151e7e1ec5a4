"""The two studies of `poise applications`: policies of fewer demonstrations, and what disturbs policies."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from poise.applications import Application, find
from poise.cli.engines import Engine
from poise.cli.resumable import figures, keep, logged, run_missing
from poise.cli.suite import POLICIES, Case, trained
from poise.data import Episodes
from poise.evaluation import Interval, rollout, wilson
from poise.evaluation.disturbances import STRENGTHS, disturbance, recovery
from poise.evaluation.paired import rate_difference
from poise.policies import Policy, RecedingHorizon, load
from poise.policies.control import Control

Findings = dict[str, list[dict[str, Any]]]
"""Name of a study -> its rows, as `poise.evaluation.studies_page.sections` takes them."""


@dataclass(frozen=True)
class Studies:
    """What is asked of the tasks beside.

    Attributes:
        studies: Also learn each task from fewer demonstrations, and disturb its policies, for two sections of the page.
        shown: Demonstrations that the policies of the first study learn from; of these, as many as there are.
        study_minutes: Of training, for each of those policies.
    """

    studies: bool = False
    shown: tuple[int, ...] = (10, 25, 50, 100, 200)
    study_minutes: float = 3.0

    def run(self, engine: Engine, cases: Sequence[Case]) -> tuple[Findings, dict[str, str]]:
        """What was found, nothing where it is not asked for, and the errors of runs that failed, by their names.

        Args:
            engine: Where.
            cases: Tasks that are finished.
        """
        if not self.studies:
            return {"demonstrations": [], "disturbances": []}, {}
        few = [Fewer(self._shorter(case), count) for case in cases for count in self._counts(case)]
        disturbed = [Shaken(case) for case in cases]
        failures = run_missing(engine, learn, few) | run_missing(engine, disturb, disturbed)
        return {"demonstrations": _rows(few), "disturbances": _rows(disturbed)}, failures

    def _counts(self, case: Case) -> list[int]:
        """Those of which there are as many to train on."""
        recipe = find(case.name).recipe()
        shown = recipe.read(case.data.path)
        return [count for count in sorted(self.shown) if count <= len(shown) - len(shown.held_out(recipe.validation))]

    def _shorter(self, case: Case) -> Case:
        return replace(case, effort=replace(case.effort, minutes=self.study_minutes))


@dataclass(frozen=True)
class Fewer:
    """Both policies of a task, from some of its demonstrations.

    Attributes:
        case: The task.
        count: Demonstrations, of which fewer are among more.
    """

    case: Case
    count: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.case.name} with {self.count} demonstrations"

    @property
    def folder(self) -> Path:
        """In that of the task."""
        return self.case.folder / "fewer" / str(self.count)

    @property
    def identity(self) -> dict[str, Any]:
        """What results depend on."""
        return {**self.case.identity, "shown": self.count}


@dataclass(frozen=True)
class Shaken:
    """Both policies of a task that is finished, under every disturbance.

    Attributes:
        case: The task.
    """

    case: Case

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.case.name}, disturbed"

    @property
    def folder(self) -> Path:
        """In that of the task."""
        return self.case.folder / "disturbed"

    @property
    def identity(self) -> dict[str, Any]:
        """What results depend on."""
        return {**self.case.identity, "strengths": {kind: list(found) for kind, found in STRENGTHS.items()}}


def learn(run: Fewer) -> None:
    """Train from so many demonstrations, and try, in this process."""
    case = replace(run.case, folder=run.folder)
    with logged(run.folder):
        torch.set_num_threads(case.effort.threads)
        case.data.checked()
        application = find(case.name)
        recipe = replace(case.effort.of(application.recipe()), episodes=run.count)
        won = {name: _won(trained(name, recipe, case)[0], application, case) for name in POLICIES}
        rows = [{"task": case.name, "demonstrations": run.count, **row} for row in _compared(won, None)]
        keep(run, {"rows": rows})


def disturb(run: Shaken) -> None:
    """Try the policies of the task under every disturbance, in this process."""
    case, finished = run.case, figures(run.case)
    assert finished is not None
    with logged(run.folder):
        torch.set_num_threads(case.effort.threads)
        application = find(case.name)
        policies = {name: load(case.folder / name) for name in POLICIES}
        shown = _numbers(application, application.recipe().read(case.data.checked()))
        shaken = application.shaken or range(application.action)
        before = finished["won"]
        rows = [{"task": case.name, "kind": "none", "strength": 0.0, **row} for row in _compared(before, before)]
        for kind, strengths in STRENGTHS.items():
            for strength in strengths:
                control = disturbance(kind, strength, shown, shaken)
                won = {name: _won(policy, application, case, control) for name, policy in policies.items()}
                told = {"task": case.name, "kind": kind, "strength": strength}
                rows += [{**told, **row} for row in _compared(won, before)]
        keep(run, {"rows": rows})


def _won(policy: Policy, application: Application, case: Case, control: Control = RecedingHorizon) -> list[bool]:
    """Whether the policy succeeds, of every seed in order."""
    ran = rollout(policy, application.task, case.effort.seeds, control)
    return [episode.success for episode in sorted(ran, key=lambda episode: episode.seed)]


def _compared(
    won: Mapping[str, Sequence[bool]], before: Mapping[str, Sequence[bool]] | None
) -> Iterator[dict[str, Any]]:
    """A row a policy: success, what is left of that before, and diffusion less regression, with intervals."""
    difference = rate_difference(won["diffusion"], won["regression"])
    for name, mine in won.items():
        left = None if before is None else recovery(mine, before[name])
        intervals: dict[str, Interval | None] = {"success": wilson(sum(mine), len(mine)), "recovery": left}
        found = {key: interval and interval._asdict() for key, interval in intervals.items()}
        yield {"policy": name, **found, "difference": difference._asdict()}


def _numbers(application: Application, shown: Episodes) -> dict[str, Any]:
    """The rows of the demonstrations, without images."""
    flat = [name for name, shape in application.features.items() if len(shape) < 3]
    return {name: shown.features[name] for name in (*flat, "action")}


def _rows(runs: Sequence[Fewer | Shaken]) -> list[dict[str, Any]]:
    return [row for run in runs if (found := figures(run)) is not None for row in found["rows"]]


__all__ = ["Fewer", "Findings", "Shaken", "Studies", "disturb", "learn"]
