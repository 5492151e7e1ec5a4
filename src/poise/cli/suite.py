"""One application from demonstrations to figures: what `poise applications` runs for each."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.image import imsave
from numpy.typing import NDArray

from poise.applications import Application, Driven, find
from poise.cli.collect import attempts, ended
from poise.cli.engines import Pinned
from poise.cli.fitting import Job, fit
from poise.cli.machine import machine
from poise.cli.resumable import keep, logged
from poise.data import Episodes
from poise.data.video import write_video
from poise.evaluation import Episode, entropy, film, latency, rollout, summary, wilson
from poise.evaluation.applications_page import FILM, STRIP
from poise.evaluation.paired import rate_difference
from poise.evaluation.statistics import finite_mean, jerk
from poise.plain import to_plain
from poise.policies import DiffusionPolicy, Policy, Regression, load
from poise.recipe import Recipe

POLICIES = {"diffusion": DiffusionPolicy, "regression": Regression}
"""What is compared on every task."""

_TILES, _STRIP, _GAP = 4, 6, 6  # episodes of a film, pictures of a strip, pixels beside each of them


@dataclass(frozen=True)
class Effort:
    """How long policies learn, and what they are tried on.

    Attributes:
        minutes: Of training, for each policy.
        steps: Largest number of gradient steps; by default that of the task's recipe.
        batch: Windows a step; by default that of the task's recipe.
        threads: CPU threads of a run.
        episodes: Unseen starts that policies and expert are tried on.
        seed: Of the first; seeds from 100000 on are for evaluation and never for training.
        pictures: Most of a film.
    """

    minutes: float = 15.0
    steps: int | None = None
    batch: int | None = None
    threads: int = 1
    episodes: int = 200
    seed: int = 100_000
    pictures: int = 400

    def __post_init__(self) -> None:
        for name in ("minutes", "threads", "episodes", "pictures"):
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"got --{name} {value}, expected more than 0")

    @property
    def seeds(self) -> range:
        """One an episode."""
        return range(self.seed, self.seed + self.episodes)

    def of(self, recipe: Recipe) -> Recipe:
        """The recipe with as much training."""
        own = recipe.training
        steps, batch = self.steps or own.steps, self.batch or own.batch
        return replace(recipe, training=replace(own, minutes=self.minutes, steps=steps, batch=batch))


@dataclass(frozen=True)
class Case:
    """One application to be run.

    Attributes:
        name: Of the application.
        data: Its demonstrations.
        folder: Where everything is written.
        effort: How much.
    """

    name: str
    data: Pinned
    folder: Path
    effort: Effort

    @property
    def identity(self) -> dict[str, Any]:
        """What results depend on."""
        application = find(self.name)
        recipe = self.effort.of(application.recipe())
        task = {"environment": application.task.environment, "arguments": repr(application.task.arguments)}
        specs = {"policy": to_plain(recipe.policy), "training": to_plain(recipe.training)}
        return {"effort": asdict(self.effort), "demonstrations": self.data.sha256, "task": task, **specs}


def run(case: Case) -> None:
    """Train, evaluate and film in this process, with what is printed in a log."""
    with logged(case.folder):
        torch.set_num_threads(case.effort.threads)
        application, data = find(case.name), case.data.checked()
        recipe = case.effort.of(application.recipe())
        shown = recipe.read(data)
        reference = entropy(_modes(shown)) if application.modes else None
        makers = {"expert": application.expert, **application.rivals}
        scripted = {
            name: _driven(replace(application, expert=m), case.effort.seeds, reference) for name, m in makers.items()
        }
        figures: dict[str, dict[str, Any]] = {}
        episodes: dict[str, list[Episode]] = {}
        for name in POLICIES:
            policy, minutes = trained(name, recipe, case)
            ran = rollout(policy, application.task, case.effort.seeds)
            episodes[name] = sorted(ran, key=lambda episode: episode.seed)
            measured = summary(episodes[name], latency(policy), reference)
            figures[name] = {**measured, "minutes": minutes, "rate_hz": _rate(policy, measured["plan_ms_p95"])}
        won = {name: [episode.success for episode in ran] for name, ran in episodes.items()}
        found = {
            **{name: getattr(application, name) for name in ("name", "area", "about")},
            "demonstrations": len(shown),
            "policies": figures,
            "expert": scripted.pop("expert"),
            "rivals": scripted,
            "won": won,
            "difference": rate_difference(won["diffusion"], won["regression"])._asdict(),
            "note": filmed(case, load(case.folder / "diffusion"), episodes["diffusion"]),
        }
        keep(case, found)


def trained(name: str, recipe: Recipe, case: Case) -> tuple[Policy, float]:
    """The policy of a name among `POLICIES`, saved in the folder of the case, and the minutes that it took."""
    begin, out = time.perf_counter(), case.folder / name
    notes = {"application": case.name, "data": str(case.data.path), "machine": machine(), "training": recipe.training}
    job = Job(POLICIES[name], recipe.policy, recipe.training, out, to_plain(notes))
    file = fit(job, recipe.parts(case.data.path))
    return load(file), (time.perf_counter() - begin) / 60


def _rate(policy: Policy, milliseconds: float) -> float:
    spec = policy.spec
    ahead = max(1, min(spec.execute, spec.planned - spec.execute))  # steps that a plan may take; see Row.ahead
    return 1e3 * ahead / milliseconds


def _modes(episodes: Episodes) -> NDArray[np.int64]:
    return episodes.features["mode"][episodes.starts, 0].astype(np.int64)


def _driven(application: Application, seeds: Sequence[int], reference: float | None) -> dict[str, Any]:
    """What its expert does on the seeds, undisturbed."""
    tried = list(attempts(application, 0.0, seeds))
    success = wilson(sum(one.success for one in tried), len(tried))
    modes = [one.mode for one in tried if one.success and one.mode is not None]
    return {
        "success": success.value,
        "success_low": success.low,
        "success_high": success.high,
        "mode_entropy": entropy(modes) / reference if reference else None,
        "collision": finite_mean([float(one.collision) for one in tried if one.collision is not None]),
        "jerk": finite_mean([jerk(one.rows["action"]) for one in tried]),
        "measures": {name: finite_mean([one.measures[name] for one in tried]) for name in tried[0].measures},
        "failed": _failures(tried),
    }


def _failures(tried: Sequence[Driven]) -> str:
    failed = [one for one in tried if not one.success]
    return ended(failed) if failed else ""


def filmed(case: Case, policy: Policy, episodes: Sequence[Episode]) -> str | None:
    """Film a few episodes, successes first, and cut a strip of pictures out of the first; why not, where that fails."""
    application, most = find(case.name), case.effort.pictures
    chosen = sorted(episodes, key=lambda episode: not episode.success)[:_TILES]
    wanted = set(np.linspace(0, min(len(chosen[0].actions), most - 1), _STRIP).astype(int).tolist())
    strip: list[NDArray[np.uint8]] = []
    try:
        with closing(film(policy, application.task, [episode.seed for episode in chosen])) as frames:
            cut = _cut(islice(frames, most), wanted, strip, len(chosen))
            write_video(case.folder / FILM, cut, application.rate)
        imsave(
            case.folder / STRIP, np.hstack([np.pad(p, ((0, 0), (0, _GAP), (0, 0)), constant_values=255) for p in strip])
        )
    except Exception as error:  # whatever a missing renderer or codec raises: the figures stand without pictures
        return f"There is no film: {error}"
    return None


def _cut(
    frames: Iterable[NDArray[np.uint8]], wanted: set[int], strip: list[NDArray[np.uint8]], tiles: int
) -> Iterator[NDArray[np.uint8]]:
    """Pass frames on, and keep the first tile of those of the wanted numbers."""
    across = int(np.ceil(np.sqrt(tiles)))
    down = -(-tiles // across)
    for number, frame in enumerate(frames):
        if number in wanted:
            strip.append(frame[: frame.shape[0] // down, : frame.shape[1] // across].copy())
        yield frame


__all__ = ["POLICIES", "Case", "Effort", "filmed", "run", "trained"]
