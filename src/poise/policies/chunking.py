r"""Real-time chunking: a plan that is made while the last one runs, and begins as that one goes on.

Black et al. 2025 (arXiv 2506.07339) guide a flow towards what is left of the last plan, $Y$, with weights $W$ that are
1 for the d actions that will be executed before the new plan arrives, and fade out over those that both plans share:

$$ v + \min\Big(\beta, \frac{1 - \tau}{\tau}\, \frac{\tau^2 + (1 - \tau)^2}{(1 - \tau)^2}\Big)\,
   J^\top W (Y - \hat x), \qquad \hat x = x + (1 - \tau)\, v, \qquad J = \partial \hat x / \partial x. $$

`chunked` is the same for a denoiser of any schedule, prediction and sampler; `Chunking` runs it under `Asynchronous`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from poise.guidance import Pull, vjp
from poise.policies.carriers import Plans, Request, afresh
from poise.policies.diffusion import DiffusionPolicy
from poise.schedules import Schedule
from poise.typing import Denoiser, Observation


@dataclass(frozen=True)
class SoftMask(ABC):
    r"""How much a new plan is held to each action of the last one.

    It is 1 for the first d actions, which are executed before the new plan is there, 0 from e on, where the last plan
    ends, and between them a function of

    $$ c_i = \frac{e - i}{e - d + 1}, \qquad d \le i < e. $$
    """

    @abstractmethod
    def between(self, c: Tensor) -> Tensor:
        """The weights of the actions that both plans may execute, from 0 to 1."""

    def weights(self, delay: Tensor, end: Tensor, steps: int) -> Tensor:
        """The weights of `steps` actions, `(B, steps)`.

        Args:
            delay: d, `(B,)`; beyond e it counts as e.
            end: e, `(B,)`.
            steps: Their number.
        """
        i, end = torch.arange(steps), end[:, None]
        delay = torch.minimum(delay[:, None], end)
        soft = self.between((end - i) / (end - delay + 1))
        return torch.where(i < delay, 1.0, torch.where(i < end, soft, 0.0))


@dataclass(frozen=True)
class LinearMask(SoftMask):
    """$c$: the default of LeRobot."""

    def between(self, c: Tensor) -> Tensor:
        """Unchanged."""
        return c


@dataclass(frozen=True)
class ExponentialMask(SoftMask):
    r"""$c\, \frac{e^c - 1}{e - 1}$: that of the paper."""

    def between(self, c: Tensor) -> Tensor:
        """The formula above."""
        return c * torch.expm1(c) / (torch.e - 1)


@dataclass(frozen=True)
class OnesMask(SoftMask):
    """1: held to all that is left of the last plan."""

    def between(self, c: Tensor) -> Tensor:
        """Ones."""
        return torch.ones_like(c)


@dataclass(frozen=True)
class ZerosMask(SoftMask):
    """0: held to what is executed before the new plan is there, and to no more."""

    def between(self, c: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(c)


def chunked(
    denoise: Denoiser, schedule: Schedule, previous: Tensor, weights: Tensor, beta: float = 5.0, pull: Pull = vjp
) -> Denoiser:
    r"""Guide plans towards an earlier one.

    Any schedule is the flow at $\tau = \alpha / (\alpha + \sigma)$ in the units $z = x_t / (\alpha + \sigma)$, and a
    velocity counts $1 - \tau$ times in the prediction. So the paper's formula, times $1 - \tau$, is

    $$ x_0 + \min\Big(\beta (1 - \tau), \frac{\tau^2 + (1 - \tau)^2}{\tau}\Big)\, J_z^\top W (Y - x_0), \qquad
       J_z = \partial x_0 / \partial z, $$

    and with $\alpha = 1 - t$ and $\sigma = t$ it is the paper's itself. The factor that beta does not bind is that of
    pseudo-inverse guidance, as in `poise.guidance.inpainted`, whose bound does not fade out near the data as this one
    does: there a plan is free to become what the policy says.

    Args:
        denoise: For plans `(B, T, A)`.
        schedule: Its schedule.
        previous: Y, `(B, T, A)`; finite also where the weights are 0.
        weights: W in [0, 1], `(B, T)`.
        beta: Bound of the guidance of a velocity: 5 in the paper, 10 in LeRobot.
        pull: `vjp`, the paper's $J^\top$, by a backward pass an evaluation; or `identity`, as LeRobot has it.

    Raises:
        ValueError: A plan and weights of other shapes, weights outside [0, 1], or a beta below 0.
    """
    if previous.ndim != 3 or weights.shape != previous.shape[:2] or not bool(((weights >= 0) & (weights <= 1)).all()):
        raise ValueError(
            f"chunked got an earlier plan of shape {tuple(previous.shape)} and weights of shape "
            f"{tuple(weights.shape)}, expected (batch, steps, action), and (batch, steps) in [0, 1]"
        )
    if not beta >= 0:
        raise ValueError(f"chunked got beta={beta}, expected 0 or more: 0 is no guidance, 5 that of the paper")

    def chunked_denoise(x: Tensor, t: float) -> Tensor:
        level = schedule.at(t)
        scale = level.alpha + level.sigma
        tau = level.alpha / scale
        x0, transpose = pull(lambda z, t: denoise(scale * z, t), x / scale, t)
        factor = min(beta * (1 - tau), (tau**2 + (1 - tau) ** 2) / tau)
        return x0 + factor * transpose(weights.to(x0)[..., None] * (previous.to(x0) - x0))

    return chunked_denoise


@dataclass(frozen=True)
class Chunking:
    """Plans that begin as the running ones go on: a `Way` of `Asynchronous` for diffusion policies.

    The running plan is taken to the units that the policy learns, measured from the observation of the new one. Plans
    must overlap: `execute` well below their length, and delays of at most what then is left.

    Attributes:
        mask: How much of the running plan holds.
        beta: See `chunked`.
        pull: See `chunked`.
        fade: Actions after those that are executed meanwhile over which the mask fades out, at most; None is all that
            are left, as in the paper. Few leave a plan freer to answer what was seen.

    Raises:
        ValueError: A fade below 0.
    """

    mask: SoftMask = ExponentialMask()
    beta: float = 5.0
    pull: Pull = vjp
    fade: int | None = None

    def __post_init__(self) -> None:
        if self.fade is not None and self.fade < 0:
            raise ValueError(
                f"Chunking got fade={self.fade}, expected actions, 0 or more, or None for all that are left"
            )

    def __call__(self, policy: DiffusionPolicy, request: Request) -> Plans:
        """Plans for the robots of a request."""
        if not request.left.any():
            return afresh(policy, request)
        spec, first = policy.spec, policy.action_normaliser.scale
        previous = torch.as_tensor(request.previous).to(first)
        delay, end = torch.as_tensor(request.delay), torch.as_tensor(request.left)
        end = end if self.fade is None else torch.minimum(end, delay + self.fade)
        weights = self.mask.weights(delay, end, spec.planned)
        # The steps of a lead are over; nothing holds them.
        weights = torch.nn.functional.pad(weights, (spec.lead, 0)).to(first)

        def guide(denoise: Denoiser, observation: Observation) -> Denoiser:
            inner = denoise if policy.guide is None else policy.guide(denoise, observation)
            known = policy.learned(previous, observation)
            return chunked(inner, spec.schedule, known, weights, self.beta, self.pull)

        return afresh(policy.using(guide=guide), request)


__all__ = ["Chunking", "ExponentialMask", "LinearMask", "OnesMask", "SoftMask", "ZerosMask", "chunked"]
