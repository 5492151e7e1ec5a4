"""`poise demo`: from demonstrations to a report, in minutes on a laptop."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from poise.cli.evaluate import described, write_json
from poise.cli.fitting import Job, fit
from poise.cli.machine import machine
from poise.cli.running import SAMPLERS
from poise.data import Episodes, Windows
from poise.data.video import write_video
from poise.envs import Map, demonstrate
from poise.envs.drawing import draw_frame
from poise.envs.pictures import denoising_figure, integrate, routes_figure
from poise.evaluation import Episode, Interval, Task, entropy, latency, paired_difference, rollout, summary
from poise.evaluation.plots import success_figure, tradeoff_figure, training_figure
from poise.evaluation.report import Section, Table, write_report
from poise.nn import MLP
from poise.policies import DiffusionPolicy, NearestNeighbour, Policy, PolicySpec, Regression, load
from poise.sampling import per_sample
from poise.training import TrainingSpec

MAP = Map()
SPEC = PolicySpec(
    observations={"position": (2,), "velocity": (2,), "goal": (2,)},
    action=2,
    network=MLP(width=256, depth=3, condition=128),
)
TRAINING = TrainingSpec(steps=6000, batch=256, ema_maximum=0.999, bfloat16=True)
TASK = Task("poise.envs:poise/Navigate-v0", slots=500)
FIRST_SEED = 100_000  # evaluation; demonstrations come from other seeds
SWEEP = (2, 3, 5, 10, 20, 50)
NAMES = {DiffusionPolicy: "diffusion", Regression: "regression", NearestNeighbour: "nearest neighbour"}


@dataclass(frozen=True)
class Demonstrations:
    """What the scripted expert drove.

    Attributes:
        episodes: Features of the policy and `action`.
        modes: Route of every episode.
    """

    episodes: Episodes
    modes: NDArray[np.int64]


def demo(out: Path = Path("out/demo"), episodes: int = 500, demonstrations: int = 1500, threads: int = 2) -> None:
    """Learn to navigate among obstacles from demonstrations, prove it in closed loop and write a report.

    A point robot passes three discs; four routes are equally good, and the demonstrators take each as often. The
    diffusion policy learns all four; regression on the same network averages them and hits what they go around.

    Args:
        out: Where report.html, results.json, plots, video and checkpoints are written.
        episodes: Unseen starts that every policy is tried on.
        demonstrations: Episodes that the expert drives.
        threads: CPU threads.
    """
    begin = time.perf_counter()
    torch.set_num_threads(threads)
    shown = _demonstrations(demonstrations)
    print(f"{len(shown.episodes)} demonstrations, {shown.episodes.steps} steps")
    policies = _learn(shown.episodes, out)
    reference, seeds = entropy(shown.modes), range(FIRST_SEED, FIRST_SEED + episodes)
    driven: dict[str, list[Episode]] = {}
    figures: dict[str, dict[str, Any]] = {}
    for name, policy in policies.items():
        ran = tqdm(rollout(policy, TASK, seeds), total=episodes, desc=f"driving {name}")
        driven[name] = sorted(ran, key=lambda episode: episode.seed)
        figures[name] = summary(driven[name], latency(policy), reference)
        print(f"\n{name}\n{described(figures[name])}\n")
    diffusion = policies["diffusion"]
    assert isinstance(diffusion, DiffusionPolicy)
    sweep = _sweep(diffusion, seeds, reference)
    results = {"policies": figures, "paired": _paired(driven), "sweep": sweep, "machine": machine()}
    _report(out, shown, driven, results, diffusion)
    seconds = time.perf_counter() - begin
    write_json(out / "results.json", {**results, "seconds": seconds})
    print(f"{seconds:.0f} seconds; open {out / 'report.html'}")


def _demonstrations(count: int) -> Demonstrations:
    data = demonstrate(MAP, count, seed=0, noise=0.1)
    features = {name: data[name] for name in (*SPEC.observations, "action")}
    return Demonstrations(Episodes(features, data["episode_ends"]), data["mode"])


def _learn(episodes: Episodes, out: Path) -> dict[str, Policy]:
    names = tuple(SPEC.observations)
    training, validation = (
        Windows(part, names, SPEC.history, SPEC.horizon, SPEC.horizon - 1) for part in episodes.split(0.05)
    )
    notes = {"environment": TASK.environment, "machine": machine(), "training": TRAINING}
    files = {
        name: fit(Job(kind, SPEC, TRAINING, out / name.replace(" ", "_"), notes), (training, validation))
        for kind, name in NAMES.items()
    }
    return {name: load(file) for name, file in files.items()}


def _sweep(policy: DiffusionPolicy, seeds: Sequence[int], reference: float) -> list[dict[str, Any]]:
    """Every sampler at several numbers of evaluations, all from the one checkpoint."""
    rows = []
    with tqdm(total=4 * len(SWEEP), desc="samplers x evaluations") as bar:
        for name in ("DDIM", "DPMSolverPP", "Heun", "DDPM"):
            for evaluations in SWEEP:
                chosen = policy.using(sampler=SAMPLERS[name], evaluations=evaluations)
                figures = summary(list(rollout(chosen, TASK, seeds)), latency(chosen, 10), reference)
                rows.append({"sampler": name, **figures})
                bar.update()
    return rows


def _paired(driven: dict[str, list[Episode]]) -> dict[str, Interval]:
    """By how much diffusion succeeds more often than each other policy on the same starts."""
    won = {name: [e.success for e in ran] for name, ran in driven.items()}
    return {name: paired_difference(won["diffusion"], won[name]) for name in won if name != "diffusion"}


def _window(episode: Episode, step: int, count: int) -> dict[str, torch.Tensor]:
    """What the policy saw at a step of an episode, `count` times over."""
    steps = [max(0, step - k) for k in reversed(range(SPEC.history))]
    seen = {name: torch.as_tensor(episode.observations[name][steps]) for name in SPEC.observations}
    return {name: values[None].expand(count, -1, -1) for name, values in seen.items()}


def _driven(episode: Episode, step: int, plans: torch.Tensor) -> NDArray:
    """Positions that plans made at a step of an episode would drive."""
    position, velocity = (episode.observations[name][step].astype(np.float64) for name in ("position", "velocity"))
    return integrate(position, velocity, plans.double().numpy())


def _denoising(policy: DiffusionPolicy, episode: Episode, count: int) -> list[tuple[float, NDArray]]:
    """Plans for the first observation of an episode on their way from noise: (t, positions)."""
    with torch.inference_mode():
        states = list(policy.trace(_window(episode, 0, count), per_sample(range(count))))
    return [(state.t, _driven(episode, 0, state.x)) for state in states]


def _video(path: Path, policy: DiffusionPolicy, episodes: Sequence[Episode]) -> None:
    """Episodes one after the other, with candidate plans wherever the policy planned."""
    frames = []
    for episode in episodes:
        trail = episode.observations["position"]
        plans = None
        for step, goal in enumerate(episode.observations["goal"]):
            if episode.fresh[step]:
                plans = _driven(episode, step, policy.plan(_window(episode, step, 24), per_sample(range(24))))
            frames.append(draw_frame(MAP, trail[step], goal, trail[: step + 1], plans, height=360))
    write_video(path, frames, rate=20.0)


def _report(
    out: Path, shown: Demonstrations, driven: dict[str, list[Episode]], results: dict[str, Any], policy: DiffusionPolicy
) -> None:
    """Pictures, video and the page that holds them."""
    paths = np.split(shown.episodes.features["position"], shown.episodes.ends[:-1])
    panels = {"demonstrations": [(path, True) for path in paths[:60]]}
    panels |= {name: [(e.observations["position"], e.success) for e in ran[:60]] for name, ran in driven.items()}
    first = driven["diffusion"][0]
    states = _denoising(policy.using(evaluations=20), first, 48)
    metrics = _metrics(out / "diffusion" / "metrics.jsonl")
    figures = {
        "routes": routes_figure(MAP, panels),
        "denoising": denoising_figure(MAP, states, *(first.observations[name][0] for name in ("position", "goal"))),
        "success": success_figure(results["policies"]),
        "tradeoff": tradeoff_figure(results["sweep"]),
        "training": training_figure(metrics),
    }
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=150)
    _video(out / "video.mp4", policy, driven["diffusion"][:6])
    write_report(
        out / "report.html", "From noise to poise", _LEAD, _sections(figures, results, out), results["machine"]
    )


def _metrics(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


_LEAD = """Four routes lead past three discs, and the demonstrators took each of them as often. A policy that learns \
the average of what it saw drives into the disc that everyone went around. A diffusion policy learns the \
distribution."""


def _sections(figures: dict[str, Any], results: dict[str, Any], out: Path) -> list[Section]:
    policies = results["policies"]
    columns = ("policy", "success", "95 % interval", "collisions", "route entropy", "plan, ms", "evaluations")
    rows = [
        (
            name,
            f"{p['success']:.1%}",
            f"{p['success_low']:.1%} to {p['success_high']:.1%}",
            f"{p['collision']:.1%}",
            f"{p['mode_entropy']:.3f}",
            f"{p['plan_ms_median']:.1f}",
            str(p["evaluations"]),
        )
        for name, p in policies.items()
    ]
    swept = [
        (
            r["sampler"],
            str(r["evaluations"]),
            f"{r['success']:.1%}",
            f"{r['collision']:.1%}",
            f"{r['plan_ms_median']:.1f}",
        )
        for r in results["sweep"]
    ]
    paired = " ".join(
        f"Against {name}, diffusion succeeds on {100 * d.value:.1f} points more of the starts "
        f"(95 % interval {100 * d.low:.1f} to {100 * d.high:.1f}, paired by seed)."
        for name, d in results["paired"].items()
    )
    return [
        Section("Why diffusion", _WHY, [figures["routes"]], video=out / "video.mp4"),
        Section("The proof", f"{_PROOF}\n\n{paired}", [figures["success"]], Table(columns, rows)),
        Section("From noise to plans", _DENOISING, [figures["denoising"]]),
        Section(
            "One checkpoint, every sampler",
            _SWEEP_TEXT,
            [figures["tradeoff"]],
            Table(("sampler", "evaluations", "success", "collisions", "plan, ms"), swept),
        ),
        Section("Training", _TRAINING_TEXT, [figures["training"]]),
    ]


_WHY = """Each line is one episode, coloured by its route. Regression, on the same network and with the same data, \
plans the conditional mean: where routes split, their mean is no route. The nearest neighbour copies one demonstration \
and cannot adapt it.

The video shows episodes of the diffusion policy; the thin lines are candidate plans drawn at the same moment."""
_PROOF = """Every policy is tried on the same unseen starts. Success is given with its 95 % Wilson interval; route \
entropy is that of the successful episodes, divided by the demonstrators': 1 means that every route is taken as often \
as they took it."""
_DENOISING = """Forty-eight plans for one and the same observation, as the probability-flow ODE carries them from pure \
noise (t = 1) to actions (t = 0). The choice of a route falls while the plans are still noise."""
_SWEEP_TEXT = """The network was trained once. DDIM, DPM-Solver++ and Heun follow the deterministic ODE, DDPM the \
stochastic reverse process; they differ in how many network evaluations they need for the same success. Each row is \
measured on the same starts."""
_TRAINING_TEXT = """Loss on training windows, and on held-out episodes with fixed noise for the averaged parameters."""


__all__ = ["Demonstrations", "demo"]
