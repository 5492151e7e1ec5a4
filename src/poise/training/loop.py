"""The training loop, as an iterator: the caller logs, draws bars, evaluates, saves and stops."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from poise.data import Batch, Windows
from poise.draws import Draws
from poise.policies import Policy
from poise.training.clock import Clock
from poise.training.learner import Learner
from poise.training.order import Order, noise_seed
from poise.training.processes import Processes, Single
from poise.training.validation import Validation, validate


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
        shares: Share of the time so far that went into data, forward, backward and optimiser.
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
    processes: Processes | None = None,
    loss: Loss | None = None,
) -> Iterator[Progress]:
    """Train in place from where the learner stands, yielding after every step.

    Order of the data and random numbers are pure functions of the seed and the step: two runs of so many steps are
    equal bit by bit on one machine, however often they were resumed, and up to rounding whatever the number of parts
    or processes. A step whose loss or gradient is not finite changes nothing.

    Args:
        learner: What is trained.
        windows: Training windows.
        validation: Held-out windows.
        processes: Those that share the training; None is one.
        loss: What is minimised; None is the policy's own loss.

    Raises:
        ValueError: A batch of more windows than there are.
        FloatingPointError: `patience` skipped steps in a row.
    """
    spec, processes = learner.spec, processes or Single()
    order, generator = Order(len(windows), spec.batch, spec.seed), torch.Generator(learner.device)
    module = Objective(learner.policy, loss or learner.policy.loss, spec.mask_padding)
    objective = processes.prepare(module, learner.optimiser)
    step = _Step(learner, windows, objective, processes, generator)
    before, begin, skipped = learner.seconds, time.perf_counter(), 0
    fraction = _fraction(learner)
    while fraction < 1:
        rate = spec.learning_rate * _schedule(learner.step + 1, fraction, learner)
        indices = order(learner.step)
        value, norm = step(indices, rate)
        good = math.isfinite(value) and math.isfinite(norm)
        skipped = 0 if good else skipped + 1
        learner.step, learner.seconds = learner.step + 1, before + time.perf_counter() - begin
        fraction = _fraction(learner)
        due = validation is not None and (learner.step % spec.validate_every == 0 or fraction >= 1)
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
            validation=validate(learner.average.policy, validation, spec) if validation is not None and due else None,
        )
        if skipped >= spec.patience:
            raise FloatingPointError(
                f"training got a loss of {value} and a gradient of norm {norm} at step {learner.step}, the last of "
                f"{skipped} such steps in a row, expected finite numbers: lower the learning rate or check the data"
            )


class _Step:
    """One gradient step."""

    def __init__(
        self, learner: Learner, windows: Windows, objective: nn.Module, processes: Processes, generator: torch.Generator
    ) -> None:
        self._learner, self._windows, self._generator = learner, windows, generator
        self._objective, self._processes = objective, processes
        self.clock = Clock(learner.device)

    def __call__(self, indices: Tensor, rate: float) -> tuple[float, float]:
        """Take the step if loss and norm, which it returns, are finite."""
        learner, clock = self._learner, self.clock
        learner.policy.train().zero_grad()
        clock.start(learner.step)
        total = self._total(indices)
        loss = self._gradient(indices, total)
        norm = self._processes.clip(self._objective, learner.spec.clip).item()
        value = self._processes.total(loss).item() / total
        if math.isfinite(norm) and math.isfinite(value):
            for group in learner.optimiser.param_groups:
                group["lr"] = rate
            learner.optimiser.step()
            learner.average.update(learner.policy)
        clock.lap("optimiser")
        return value, norm

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
                with torch.autocast(self._learner.device.type, torch.bfloat16, enabled=spec.bfloat16):
                    share = self._objective(batch, self._draws(start, len(indices)))
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


def _fraction(learner: Learner) -> float:
    spec = learner.spec
    spent = learner.seconds / (60 * spec.minutes) if spec.minutes else 0.0
    return min(1.0, max(learner.step / spec.steps, spent))


def _schedule(step: int, fraction: float, learner: Learner) -> float:
    """Linear warm-up, then half a cosine to zero."""
    return min(1.0, step / learner.spec.warmup) * 0.5 * (1 + math.cos(math.pi * fraction))


__all__ = ["Loss", "Objective", "Progress", "train"]
