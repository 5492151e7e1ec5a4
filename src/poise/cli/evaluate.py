"""`poise evaluate CHECKPOINT`: closed-loop episodes of a policy, with intervals."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from poise.cli.engines import Engine, Pinned, Workers
from poise.cli.machine import machine
from poise.cli.running import Machine, Sampling
from poise.data.video import write_video
from poise.evaluation import Episode, Task, film, latency, rollout, summary
from poise.evaluation.plots import rewards_figure, success_figure
from poise.evaluation.report import Section, Table, write_report
from poise.files import replace_text
from poise.policies import load
from poise.policies.saving import FILE
from poise.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class Output:
    """What is written beside the lines on the terminal.

    Attributes:
        json: File for the figures.
        html: File for a report with plots; it holds the video too.
        video: File for an mp4 of the first nine episodes (extra `video`).
    """

    json: Path | None = None
    html: Path | None = None
    video: Path | None = None


@dataclass(frozen=True)
class Trial:
    """What a policy is tried on.

    Attributes:
        recipe: Recipe file whose task and adapters are used; it is run as a program.
        environment: Gymnasium id to try instead, as `id` or `module:id`; needs no recipe where the names of its
            observations are those of the policy.
        episodes: Number of episodes.
        seed: Seed of the first one; seeds from 100000 on are for evaluation and never for training.
    """

    recipe: Path | None = None
    environment: str | None = None
    episodes: int = 100
    seed: int = 100_000

    @property
    def seeds(self) -> range:
        """One an episode."""
        return range(self.seed, self.seed + self.episodes)


@dataclass(frozen=True)
class Chunk:
    """Some of the episodes, for a process of their own.

    Attributes:
        checkpoint: File of the policy.
        sampling: How plans are sampled.
        running: What runs the policy.
        recipe: Recipe file, if there is one.
        environment: Otherwise an id.
        seeds: Of the episodes.
    """

    checkpoint: Pinned
    sampling: Sampling
    running: Machine
    recipe: Pinned | None
    environment: str | None
    seeds: range

    def run(self) -> list[Episode]:
        """The episodes, as this process runs them."""
        task = task_of(load_recipe(self.recipe.checked()) if self.recipe else None, self.environment)
        policy = self.running.take(load(self.checkpoint.checked()), self.sampling)
        return list(rollout(policy, task, self.seeds))


def evaluate(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    trial: Annotated[Trial, tyro.conf.arg(name="")] = Trial(),  # noqa: B008 (frozen)
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling(),  # noqa: B008 (frozen)
    output: Annotated[Output, tyro.conf.arg(name="")] = Output(),  # noqa: B008 (frozen)
    running: Annotated[Machine, tyro.conf.arg(name="")] = Machine(),  # noqa: B008 (frozen)
    workers: Annotated[Workers, tyro.conf.arg(name="")] = Workers(),  # noqa: B008 (frozen)
    chunk: int = 25,
) -> None:
    """Try a policy in closed loop on consecutive seeds and print success, reward and latency with their intervals.

    With --jobs or --engine ray, episodes run in other processes, a chunk each, and figures depend on neither of the
    two: an episode depends on its seed and, in the rounding of batched arithmetic, on its chunk. Plans are timed, and
    the video is filmed, in this process when the episodes have ended.

    Args:
        checkpoint: A file or directory of `poise train`.
        trial: What the policy is tried on.
        sampling: How plans are sampled.
        output: What is written.
        running: What runs the policy.
        workers: Where episodes run; without --jobs and --engine, in this process.
        chunk: Episodes that another process gets at once; an option of --jobs and --engine.
    """
    task = task_of(load_recipe(trial.recipe) if trial.recipe else None, trial.environment)
    policy = running.take(load(checkpoint), sampling)
    begin, ran = time.perf_counter(), rollout(policy, task, trial.seeds)
    if workers.apart:
        chunks, hardware = list(_chunks(checkpoint, trial, sampling, running, chunk)), running.hardware
        ran = _apart(workers.start(hardware.threads or 1, int(hardware.device.startswith("cuda"))), chunks)
    bar = tqdm(ran, total=trial.episodes, desc="episodes")
    ran = sorted(bar, key=lambda episode: episode.seed)
    figures = summary(ran, latency(policy))
    seconds = time.perf_counter() - begin
    print(described(figures))
    results = {"policies": {type(policy).__name__: figures}, "seconds": seconds, "machine": machine()}
    if output.json:
        write_json(output.json, results)
    if output.video:
        write_video(output.video, film(policy, task, trial.seeds[:9]), rate=10.0)
    if output.html:
        _page(output.html, results, ran, output.video)


def _chunks(checkpoint: Path, trial: Trial, sampling: Sampling, running: Machine, size: int) -> Iterator[Chunk]:
    if size < 1:
        raise ValueError(f"got --chunk {size}, expected at least 1 episode")
    weights = Pinned.of(checkpoint / FILE if checkpoint.is_dir() else checkpoint)
    recipe = Pinned.of(trial.recipe) if trial.recipe else None
    hardware = running.hardware
    running = replace(running, hardware=replace(hardware, threads=hardware.threads or 1))
    for first in range(0, trial.episodes, size):
        seeds = trial.seeds[first : first + size]
        yield Chunk(weights, sampling, running, recipe, trial.environment, seeds)


def _apart(engine: Engine, chunks: Sequence[Chunk]) -> Iterator[Episode]:
    """The episodes of chunks in other processes; failures are told when all have ended."""
    failures = []
    with closing(engine.map(Chunk.run, chunks)) as outcomes:
        for outcome in outcomes:
            if outcome.error is not None:
                seeds = chunks[outcome.number].seeds
                failures.append(f"episodes {seeds[0]} to {seeds[-1]}: {outcome.error}")
            yield from outcome.value or ()
    if failures:
        lines = [*sorted(failures), f"{len(failures)} of {len(chunks)} chunks of episodes failed: nothing is written"]
        print("\n".join(f"poise: {line}" for line in lines), file=sys.stderr)
        sys.exit(1)


def _page(path: Path, results: dict[str, Any], episodes: Sequence[Episode], video: Path | None) -> None:
    figures = next(iter(results["policies"].values()))
    rows = [*((name, value) for name, value in figures.items() if name != "measures"), *figures["measures"].items()]
    closing = [Section("Episodes", _EPISODES, [rewards_figure([e.reward_max for e in episodes])], video=video)]
    proof = Section(
        "Success", described(figures), [success_figure(results["policies"])], Table(("figure", "value"), rows)
    )
    lead = f"{figures['episodes']} closed-loop episodes from seed {min(e.seed for e in episodes)}."
    write_report(path, "Evaluation", lead, [proof, *closing], results["machine"])


_EPISODES = "The largest reward of every episode, sorted: how many nearly succeed, and how many never come near."


def task_of(recipe: Recipe | None, environment: str | None) -> Task:
    """The task of a recipe, or else an environment as it is.

    Raises:
        ValueError: Neither of the two.
    """
    if recipe is not None:
        return recipe.task
    if environment is None:
        raise ValueError("got neither a recipe nor an environment, expected --recipe RECIPE or --environment ID")
    return Task(environment)


def described(figures: dict[str, Any]) -> str:
    """The figures of `summary` as lines for people."""
    low, high = figures["success_low"], figures["success_high"]
    lines = [
        f"success       {figures['success']:.1%}   (95 % Wilson interval {low:.1%} to {high:.1%}, "
        f"{figures['episodes']} episodes)",
        f"reward        {figures['reward_max_mean']:.3f}   (mean of the maximum; bootstrap "
        f"{figures['reward_max_low']:.3f} to {figures['reward_max_high']:.3f})",
        f"plan          {figures['plan_ms_median']:.1f} ms (p95 {figures['plan_ms_p95']:.1f} ms), "
        f"{figures['evaluations']} network evaluations",
    ]
    if figures["collision"] is not None:
        lines.append(f"collisions    {figures['collision']:.1%}")
    if figures["mode_entropy"] is not None:
        lines.append(f"mode entropy  {figures['mode_entropy']:.3f} of the demonstrators'")
    lines += [f"{name:<13} {value:.4g}" for name, value in figures["measures"].items() if value is not None]
    if figures["jerk"] is not None:
        lines.append(f"smoothness    jerk {figures['jerk']:.3g} action units a step cubed")
    if figures["seam_jump"] is not None:
        lines.append(f"plan seams    {figures['seam_jump']:.2f} x the change within plans")
    return "\n".join(lines)


def write_json(path: Path, results: dict[str, Any]) -> None:
    """Write results, making the directory; the file is complete or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(results, indent=2) + "\n")


__all__ = [
    "Chunk",
    "Output",
    "Trial",
    "described",
    "evaluate",
    "task_of",
    "write_json",
]
