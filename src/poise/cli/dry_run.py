"""`poise train RECIPE --dry-run`: what a training sees and what it takes, from a few steps that are thrown away."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from poise.cli.fitting import Job
from poise.cli.memory import peak_memory
from poise.data import Batch, Windows
from poise.draws import Draws
from poise.policies import Policy
from poise.training import Learner, TrainingSpec, train
from poise.training.loop import Objective
from poise.training.order import Order, noise_seed

_WARM, _TIMED, _SECONDS = 2, 10, 10.0  # steps before the timed ones, timed ones, and when these are enough
_STILL = 1e-6


@dataclass(frozen=True)
class Column:
    """A feature of the first batch, in normalised units.

    Attributes:
        name: Of the feature, or "action".
        shape: Windows, steps, and the shape at a step.
        low: Smallest number.
        mean: Mean.
        high: Largest number.
        still: Numbers of a step that are the same in the whole batch, as those of a broken sensor are.
        width: Numbers of a step.
    """

    name: str
    shape: tuple[int, ...]
    low: float
    mean: float
    high: float
    still: int
    width: int


@dataclass(frozen=True)
class Forecast:
    """What a training comes to.

    Attributes:
        steps: Until its end.
        minutes: Until then.
        rate: Windows a second.
        epochs: How often each window is seen.
    """

    steps: int
    minutes: float
    rate: float
    epochs: float


def column(name: str, values: Tensor) -> Column:
    """The statistics of values `(B, steps, ...)`."""
    rows = values.detach().float().flatten(2).flatten(0, 1)
    still = int((rows.amax(0) - rows.amin(0) < _STILL).sum())
    low, mean, high = (float(f()) for f in (rows.min, rows.mean, rows.max))
    return Column(name, tuple(values.shape), low, mean, high, still, rows.shape[1])


def forecast(spec: TrainingSpec, windows: int, seconds: float) -> Forecast:
    """What so many seconds a step come to, validations and evaluations left out."""
    whole = spec.steps * seconds / 60
    minutes = whole if spec.minutes is None else min(whole, spec.minutes)
    steps = spec.steps if minutes == whole else int(60 * minutes / seconds)
    return Forecast(steps, minutes, spec.batch / seconds, steps * spec.batch / windows)


def losses(learner: Learner, batch: Batch) -> tuple[float, float]:
    """The loss of the first step, and that of a network that answers zero to everything, of the same draws.

    Near each other before training, as they should be, they say that targets and network have the same scale. The
    running average is what is made zero.
    """
    spec, found = learner.spec, []
    with torch.no_grad():
        for parameter in learner.average.policy.parameters():
            parameter.zero_()
        for policy in (learner.policy.train(), learner.average.policy.train()):
            draws = Draws(torch.Generator(learner.device).manual_seed(noise_seed(spec.seed, 0)))
            total = batch.real.sum() if spec.mask_padding else batch.real.numel()
            found.append(float(Objective(policy, policy.loss, spec.mask_padding)(batch, draws) / total))
    return found[0], found[1]


def memory(learner: Learner, windows: tuple[Windows, Windows | None]) -> dict[str, int]:
    """Bytes of what a training keeps; what a step needs for a while comes on top."""
    weights = _bytes(learner.policy.parameters())
    features = [tensor for part in windows if part for tensor in (*part.observations.values(), part.actions)]
    return {
        "parameters": weights,
        "gradients": weights,
        "moments": 2 * weights,
        "average": _bytes(learner.average.policy.parameters()),
        "data": _bytes({tensor.data_ptr(): tensor for tensor in features}.values()),
    }


def on_disk(learner: Learner) -> int:
    """Bytes of a checkpoint of a learner that has taken a step."""
    return _bytes(learner.tensors().values()) + _bytes(learner.average.policy.state_dict().values())


def seconds_a_step(learner: Learner, windows: Windows) -> float:
    """Median of a few steps, which change the learner, after a few that nobody times."""
    begin, laps = time.perf_counter(), []
    since = begin
    for now in train(learner, windows):
        lap, since = time.perf_counter() - since, time.perf_counter()
        if now.step > _WARM:
            laps.append(lap)
        if len(laps) == _TIMED or (laps and since - begin > _SECONDS):
            break
    return median(laps or [since - begin])


def rehearse(job: Job, windows: tuple[Windows, Windows | None]) -> Iterator[str]:
    """Build what the job trains, and say in lines what there is to know; nothing is written."""
    policy = job.untrained(windows[0])
    order = Order(len(windows[0]), job.training.batch, job.training.seed)
    batch = windows[0][order(0).to(windows[0].device)]
    yield from _data_lines(policy, batch)
    encoder, whole = (sum(p.numel() for p in part.parameters()) for part in (policy.encoder, policy))
    yield f"parameters  {whole:,}: encoder {encoder:,}, network {whole - encoder:,}"
    if not whole:
        yield "nothing to train: the policy is written at once"
        return
    learner = Learner(policy, job.training)
    untrained, zero = losses(learner, batch)
    yield f"loss        {untrained:.4g} untrained, expected near {zero:.4g}, that of a network that answers zero"
    taken = memory(learner, windows)
    seconds, peak = peak_memory(partial(seconds_a_step, learner, windows[0]), learner.device)
    yield f"memory      {_listed(taken)}; in all {_size(sum(taken.values()))}{_used(learner.device, peak)}"
    yield from _cost_lines(job, learner, len(windows[0]), seconds)


def _data_lines(policy: Policy, batch: Batch) -> Iterator[str]:
    with torch.no_grad():
        seen = policy.eval().normalised(batch.observation)
        tokens, plan = policy.tokens(batch.observation), policy.encoded(batch)
    yield f"\n{'first batch, normalised':<34}{'shape':<22}{'min':>9}{'mean':>9}{'max':>9}  still"
    for role, name, values in (*(("observes", *item) for item in seen.items()), ("plans", "action", plan)):
        found = column(name, values)
        numbers = "".join(f"{number:9.3f}" for number in (found.low, found.mean, found.high))
        yield f"{role:<12}{name:<22}{found.shape!s:<22}{numbers}  {found.still} of {found.width}"
    yield f"{'tokens':<34}{tuple(tokens.shape)}"
    yield f"\npadding     {1 - batch.real.float().mean():.1%} of the actions of the batch"


def _cost_lines(job: Job, learner: Learner, windows: int, seconds: float) -> Iterator[str]:
    spec, cost, each = job.training, forecast(job.training, windows, seconds), on_disk(learner)
    limit = "" if cost.steps == spec.steps else f" of {spec.steps:,}, when the time is up"
    yield (
        f"time        {seconds * 1000:,.1f} ms a step, {cost.rate:,.0f} samples/s: {cost.minutes:,.1f} minutes for "
        f"{cost.steps:,} steps{limit}, validation and saving not counted; every window {cost.epochs:,.1f} times"
    )
    kept = spec.keep_last + spec.keep_best
    yield f"disk        {_size(each)} a checkpoint, at most {kept} kept: {_size(kept * each)} in {job.out}"


def _used(device: torch.device, peak: float | None) -> str:
    """What MiB at the peak of the steps are, where they are known."""
    if peak is None:
        return ""
    whose = "PyTorch" if device.type == "cuda" else "this process"
    return f"; {whose} had {_size(int(peak * 2**20))} at the peak of these steps"


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _listed(taken: dict[str, int]) -> str:
    return ", ".join(f"{name} {_size(count)}" for name, count in taken.items())


def _size(count: int) -> str:
    unit, name, digits = (1e9, "GB", 2) if count >= 1e9 else (1e6, "MB", 1) if count >= 1e6 else (1e3, "kB", 0)
    return f"{count / unit:,.{digits}f} {name}"


__all__ = ["Column", "Forecast", "column", "forecast", "losses", "memory", "on_disk", "rehearse", "seconds_a_step"]
