"""The training loop, as an iterator: the caller logs, draws bars, evaluates, saves and stops."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from poise.data import Batch, Windows
from poise.draws import Draws
from poise.policies import Policy
from poise.precision import bfloat16
from poise.training.allocation import keep_freed
from poise.training.clock import Clock
from poise.training.compiling import compiled
from poise.training.learner import Learner
from poise.training.order import Order, noise_seed, seed_of
from poise.training.validation import Stopped, Validation, validate

_DROPOUT = 2  # order.py has the seeds before it


@dataclass(frozen=True)
class Progress:
    """Where training stands after a step.

    Attributes:
        step: Steps done.
        fraction: Share of the budget (steps or minutes) that is spent, 0 to 1.
        loss: Of this step; it is not finite where the step was skipped.
        learning_rate: Of this step.
        gradient_norm: Before clipping.
        seconds: Since the start of the training, over all its resumptions.
        samples: Windows seen.
        skipped: Indices of the windows of a step that was skipped, because its loss or gradient was not finite.
        shares: Share of the time so far that went into data, forward, backward and optimiser, and, as "else", into what
            was done between steps: validation, and whatever the caller does.
        validation: Of the averaged policy; None between validations.
    """

    step: int
    fraction: float
    loss: float
    learning_rate: float
    gradient_norm: float
    seconds: float
    samples: int
    skipped: tuple[int, ...] = ()
    shares: dict[str, float] = field(default_factory=dict)
    validation: Validation | None = None


Loss = Callable[[Batch, Draws], Tensor]
"""The error of every action, `(B, horizon, action)`, such as `Policy.loss`."""


class Objective(nn.Module):
    """The loss of a part of a batch as a module, which is what engines of many processes wrap.

    Args:
        policy: Whose parameters the gradient is wanted for.
        loss: Of that policy.
        masked: Leave padded actions out.
    """

    def __init__(self, policy: Policy, loss: Loss, masked: bool) -> None:
        super().__init__()
        self.policy, self._loss, self._masked = policy, loss, masked

    def forward(self, batch: Batch, draws: Draws) -> Tensor:
        """The sum over windows and steps of the mean over the dimensions of an action."""
        loss = self._loss(batch, draws).mean(-1)
        return (loss * batch.real).sum() if self._masked else loss.sum()


def train(
    learner: Learner,
    windows: Windows,
    validation: Windows | None = None,
    loss: Loss | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Progress]:
    """Train in place from where the learner stands, yielding after every step.

    Order of the data and random numbers are pure functions of the seed and the step: two runs of so many steps are
    equal bit by bit on one machine, however often they were resumed, and up to rounding whatever the number of parts
    or processes. A step whose loss or gradient is not finite changes nothing. Where several processes train, each runs
    this loop to the same step, and the first one validates. On a CPU the process keeps up to 128 MiB that it frees.

    Args:
        learner: What is trained.
        windows: Training windows.
        validation: Held-out windows.
        loss: What is minimised; None is the policy's own loss.
        stopped: Asked while it validates: whether to leave that, since the caller is about to stop.

    Raises:
        ValueError: A batch of more windows than there are, or of fewer than processes and parts.
        FloatingPointError: `patience` skipped steps in a row.
    """
    spec, step = learner.spec, _Step(learner, windows, loss or learner.policy.loss)
    before, begin, skipped, fraction = learner.seconds, time.perf_counter(), 0, _fraction(learner)
    while fraction < 1:
        rate = spec.learning_rate * _schedule(learner.step + 1, fraction, learner)
        value, norm, indices = step(rate)
        good = math.isfinite(value) and math.isfinite(norm)
        skipped = 0 if good else skipped + 1
        learner.step, learner.seconds = learner.step + 1, _agreed(learner, before + time.perf_counter() - begin)
        fraction = _fraction(learner)
        due = learner.step % spec.validate_every == 0 or fraction >= 1
        yield Progress(
            step=learner.step,
            fraction=fraction,
            loss=value,
            learning_rate=rate,
            gradient_norm=norm,
            seconds=learner.seconds,
            samples=learner.step * spec.batch,
            skipped=() if good else tuple(indices.tolist()),
            shares=step.clock.shares,
            validation=_validated(learner, validation, stopped) if validation is not None and due else None,
        )
        if skipped >= spec.patience:
            raise FloatingPointError(_failed(learner.step, value, norm, skipped))


def _failed(step: int, loss: float, norm: float, skipped: int) -> str:
    return (
        f"training got a loss of {loss} and a gradient of norm {norm} at step {step}, the last of {skipped} such steps "
        "in a row, expected finite numbers: check the data, or begin a new run with a lower learning rate"
    )


class _Step:
    """One gradient step."""

    def __init__(self, learner: Learner, windows: Windows, loss: Loss) -> None:
        self._order = check_batch(learner, windows)
        if learner.device.type == "cpu":
            keep_freed()
        spec, self._processes = learner.spec, learner.processes
        self._learner, self._windows = learner, windows
        self._generator, self.clock = torch.Generator(learner.device), Clock(learner.device)
        objective = Objective(learner.policy, loss, spec.mask_padding)
        self._bfloat16 = bfloat16(spec.bfloat16, learner.device)
        learner.policy.forgetful = spec.forgetful
        if spec.compile:
            compiled(learner.policy, partial(self._attempt, objective))
        self._objective = self._processes.prepare(objective, learner.optimiser, learner.average.policy)

    def __call__(self, rate: float) -> tuple[float, float, Tensor]:
        """Take the step if loss and norm are finite, which it returns with the indices of the windows."""
        learner, clock = self._learner, self.clock
        indices = self._order(learner.step)
        learner.policy.train()
        clock.start(learner.step)
        if self._processes.count > 1:  # else all of them would drop the same units
            torch.manual_seed(seed_of(learner.spec.seed, _DROPOUT, learner.step, self._processes.rank))
        total = self._total(indices)
        loss = self._gradient(indices, total)
        norm = self._processes.clip(self._objective, learner.spec.clip).item()
        value = self._processes.total(loss).item() / total
        if math.isfinite(norm) and math.isfinite(value):
            for group in learner.optimiser.param_groups:
                group["lr"] = rate
            learner.optimiser.step()
            learner.average.update(learner.policy)
        learner.policy.zero_grad()  # whoever saves now has the memory of the gradients for it
        clock.lap("optimiser")
        clock.end()
        return value, norm, indices

    def _attempt(self, objective: Objective) -> None:
        """Forward and backward of the first part of a step, which is when it is compiled."""
        indices = self._order(self._learner.step)
        part = indices.tensor_split(self._processes.count * self._learner.spec.accumulate)[0]
        self._learner.policy.train()
        self._share(objective, self._windows[part.to(self._windows.device)], 0, len(indices)).backward()

    def _share(self, objective: nn.Module, batch: Batch, start: int, total: int) -> Tensor:
        """The loss of a batch whose rows are those from `start` on of `total`."""
        with torch.autocast(self._learner.device.type, torch.bfloat16, enabled=self._bfloat16):
            return objective(batch, self._draws(start, total))

    def _total(self, indices: Tensor) -> int:
        """Steps of actions in the batch, over all processes, that the loss is the mean of."""
        if self._learner.spec.mask_padding:
            return int(self._windows.real(indices.to(self._windows.device)).sum())
        return len(indices) * self._learner.policy.spec.horizon

    def _gradient(self, indices: Tensor, total: int) -> Tensor:
        """Leave the gradient in the parameters; this process's share of the sum of the loss."""
        spec, processes, clock = self._learner.spec, self._processes, self.clock
        parts = indices.tensor_split(processes.count * spec.accumulate)
        first = processes.rank * spec.accumulate
        mine, start = parts[first : first + spec.accumulate], sum(len(part) for part in parts[:first])
        loss = torch.zeros((), device=self._learner.device)
        for part in mine:
            batch = self._windows[part.to(self._windows.device)]
            clock.lap("data")
            with processes.alone(self._objective) if part is not mine[-1] else nullcontext():
                share = self._share(self._objective, batch, start, len(indices))
                clock.lap("forward")
                (share * (processes.count / total)).backward()
                clock.lap("backward")
            loss += share.detach()
            start += len(part)
        return loss

    def _draws(self, start: int, total: int) -> Draws:
        """The step's random numbers for the rows from `start` on: every part begins with the same seed."""
        seed = noise_seed(self._learner.spec.seed, self._learner.step)
        return Draws(self._generator.manual_seed(seed), start, total)


def check_batch(learner: Learner, windows: Windows) -> Order:
    """The order of the data, where every part of a batch holds a window and every batch is of different ones.

    Raises:
        ValueError: A batch of more windows than there are, or of fewer than processes and parts.
    """
    spec, count = learner.spec, learner.processes.count
    if spec.batch < count * spec.accumulate:
        raise ValueError(
            f"got a batch of {spec.batch} for {count} processes that compute {spec.accumulate} parts each, expected at "
            f"least {count * spec.accumulate}: --training.batch is over all processes"
        )
    return Order(len(windows), spec.batch, spec.seed)


def _validated(learner: Learner, windows: Windows, stopped: Callable[[], bool]) -> Validation | None:
    """Figures of the average, which all processes gather and the first one tries."""
    average = learner.averaged()
    if learner.processes.rank > 0:
        return None
    with suppress(Stopped):
        return validate(average, windows, learner.spec, stopped)
    return None


def _agreed(learner: Learner, seconds: float) -> float:
    """The clock, which must not differ between processes where the rate and the end depend on it."""
    return learner.processes.most(seconds) if learner.spec.minutes else seconds


def _fraction(learner: Learner) -> float:
    spec = learner.spec
    spent = learner.seconds / (60 * spec.minutes) if spec.minutes else 0.0
    return min(1.0, max(learner.step / spec.steps, spent))


def _schedule(step: int, fraction: float, learner: Learner) -> float:
    """Linear warm-up, then half a cosine to zero."""
    return min(1.0, step / max(1, learner.spec.warmup)) * 0.5 * (1 + math.cos(math.pi * fraction))


__all__ = ["Loss", "Objective", "Progress", "check_batch", "train"]
