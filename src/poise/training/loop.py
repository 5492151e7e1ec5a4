"""The training loop, as an iterator: the caller logs, draws bars, saves and stops."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poise.data import Batch, Windows
from poise.policies import Policy
from poise.training.ema import EMA


@dataclass(frozen=True)
class TrainingSpec:
    """How a policy is trained.

    Attributes:
        steps: Gradient steps.
        minutes: Wall-clock limit; the learning rate then falls along whichever of steps and minutes is nearer its end.
        batch: Windows a step.
        learning_rate: Peak of AdamW's rate.
        weight_decay: Of AdamW.
        betas: Of AdamW.
        warmup: Steps of linear warm-up, before the half cosine to zero.
        clip: Largest norm of the gradient.
        ema_power: Power of the averaging warm-up.
        ema_maximum: Largest decay of the average.
        mask_padding: Leave padded actions out of the loss. By default they count, and a policy learns to hold its last
            action at the end of an episode; what no window ever trains, a diffusion would fill at random.
        bfloat16: Run the network under bfloat16 autocast; parameters and sums stay float32.
        validate_every: Steps between validations.
        seed: Of batches, noise and initialisation.

    Raises:
        ValueError: A count that is not positive.
    """

    steps: int = 20_000
    minutes: float | None = None
    batch: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: int = 500
    clip: float = 1.0
    ema_power: float = 0.75
    ema_maximum: float = 0.9995
    mask_padding: bool = False
    bfloat16: bool = False
    validate_every: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"TrainingSpec got {name}={getattr(self, name)}, expected at least 1")


@dataclass(frozen=True)
class Progress:
    """Where training stands after a step.

    Attributes:
        step: Steps done.
        fraction: Share of the budget (steps or minutes) that is spent, 0 to 1.
        loss: Of this step.
        learning_rate: Of this step.
        gradient_norm: Before clipping.
        seconds: Since the start.
        samples: Windows seen.
        validation: Loss of the averaged policy on held-out windows with fixed noise; None between validations.
    """

    step: int
    fraction: float
    loss: float
    learning_rate: float
    gradient_norm: float
    seconds: float
    samples: int
    validation: float | None


def train(
    policy: Policy, windows: Windows, spec: TrainingSpec, average: EMA, validation: Windows | None = None
) -> Iterator[Progress]:
    """Train in place, yielding after every step.

    The order of the data is a pure function of the seed and the epoch, and noise comes from one generator of that seed,
    so that two runs of so many steps are equal bit by bit on one machine.

    Args:
        policy: Fitted policy; its parameters are changed.
        windows: Training windows.
        spec: Hyper-parameters.
        average: Running average of the policy, updated after every step.
        validation: Held-out windows.

    Raises:
        ValueError: A feature without statistics.
        FloatingPointError: A loss that is not finite.
    """
    policy.ready()
    device = policy.action_normaliser.scale.device
    generator = torch.Generator(device).manual_seed(spec.seed)
    optimiser = torch.optim.AdamW(
        policy.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay, betas=spec.betas, fused=True
    )
    begin, fraction = time.perf_counter(), 0.0
    for step, indices in enumerate(_order(len(windows), spec, device), start=1):
        rate = spec.learning_rate * _schedule(step, fraction, spec)
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss, norm = _gradient(policy, windows[indices], spec, generator)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"training got a loss of {loss} at step {step}, expected a finite number: "
                "lower the learning rate or check the data"
            )
        optimiser.step()
        average.update(policy)
        seconds = time.perf_counter() - begin
        fraction = max(step / spec.steps, seconds / (60 * spec.minutes) if spec.minutes else 0.0)
        due = validation is not None and (step % spec.validate_every == 0 or fraction >= 1)
        held_out = validate(average.policy, validation, spec) if validation is not None and due else None
        yield Progress(step, min(fraction, 1.0), loss, rate, norm, seconds, step * spec.batch, held_out)
        if fraction >= 1:
            return


def _gradient(policy: Policy, batch: Batch, spec: TrainingSpec, generator: torch.Generator) -> tuple[float, float]:
    """Leave the clipped gradient of the loss in the parameters; the loss and the norm before clipping."""
    policy.train().zero_grad()
    with torch.autocast(generator.device.type, torch.bfloat16, enabled=spec.bfloat16):
        loss = _loss(policy, batch, spec, generator)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(policy.parameters(), spec.clip)
    return loss.item(), norm.item()


def _loss(policy: Policy, batch: Batch, spec: TrainingSpec, generator: torch.Generator) -> Tensor:
    loss = policy.loss(batch, generator).mean(-1)
    return (loss * batch.real).sum() / batch.real.sum() if spec.mask_padding else loss.mean()


def _order(count: int, spec: TrainingSpec, device: torch.device) -> Iterator[Tensor]:
    """Batches of window indices without end: a fresh permutation every epoch, cut across its borders."""
    epoch, left = 0, torch.empty(0, dtype=torch.long)
    while True:
        while len(left) < spec.batch:
            shuffle = torch.Generator().manual_seed((spec.seed << 32) + epoch)
            left = torch.cat([left, torch.randperm(count, generator=shuffle)])
            epoch += 1
        yield left[: spec.batch].to(device)
        left = left[spec.batch :]


def _schedule(step: int, fraction: float, spec: TrainingSpec) -> float:
    """Linear warm-up, then half a cosine to zero."""
    return min(1.0, step / spec.warmup) * 0.5 * (1 + math.cos(math.pi * fraction))


@torch.no_grad()
def validate(policy: Policy, windows: Windows, spec: TrainingSpec, most: int = 4096) -> float:
    """Loss on up to `most` evenly spread held-out windows, with the same noise and times at every call."""
    device = policy.action_normaliser.scale.device
    generator = torch.Generator(device).manual_seed(spec.seed)
    indices = torch.linspace(0, len(windows) - 1, min(most, len(windows))).long().to(device)
    losses = [_loss(policy, windows[chunk], spec, generator).item() for chunk in indices.split(512)]
    sizes = [len(chunk) for chunk in indices.split(512)]
    return sum(a * b for a, b in zip(losses, sizes, strict=True)) / len(indices)


__all__ = ["Progress", "TrainingSpec", "train", "validate"]
