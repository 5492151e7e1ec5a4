r"""Functions from denoiser to denoiser: they change what is sampled, and no sampler hears of them.

By Tweedie's formula a denoiser is a score, $E[x_0 | x_t] = (x_t + \sigma^2 \nabla \log p(x_t)) / \alpha$, so what is
known beside the model, a likelihood p(y | x_t), shifts it by $\frac{\sigma^2}{\alpha} \nabla \log p(y | x_t)$. The
result is a denoiser again, and guidance composes as functions do, the innermost first:

    denoise = clipped(prefixed(steered(policy, schedule, cost), schedule, prefix), -1, 1)

With a weight, mask or limit of 0 (`guided`: with 1) each is the identity, up to rounding. What is inside `pull=vjp` is
differentiated, a second time if it uses `vjp` itself: give one of the two `pull=identity` to save that.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from poise.schedules import Schedule
from poise.tensors import like
from poise.typing import Denoiser

Pull = Callable[[Denoiser, Tensor, float], tuple[Tensor, Callable[[Tensor], Tensor]]]
"""`(denoise, x, t) -> (x0, transpose)`: the prediction, and `c -> J^T c` with J its Jacobian in x, or a stand-in."""


def vjp(denoise: Denoiser, x: Tensor, t: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    r"""The prediction and its true vector-Jacobian product, by one backward pass a call.

    $$ c \mapsto J^\top c, \qquad J = \partial x_0 / \partial x. $$

    It works under `no_grad` and `inference_mode`, with tensors made there too. What it returns is detached, unless the
    caller itself differentiates in `x`, as guidance around guidance does.

    Raises:
        ValueError: An output that autograd cannot follow back.
    """
    nested = torch.is_grad_enabled() and x.requires_grad
    # The clones cost time, and break up a compiled graph: only where there may be something to clone.
    captured = _NormalTensors() if torch.is_inference_mode_enabled() else nullcontext()
    # Of the kernels of attention only that of plain products has second derivatives.
    kernels = sdpa_kernel(SDPBackend.MATH) if nested else nullcontext()
    with torch.inference_mode(False), torch.enable_grad(), captured, kernels:
        leaf = x if nested else x.detach().clone().requires_grad_()
        x0 = denoise(leaf, t)
    if not x0.requires_grad:
        raise ValueError(
            f"vjp got an output at t={t} without a gradient, expected a differentiable function of x: remove no_grad "
            "and detach from the denoiser or cost, or use pull=identity for a denoiser that has no gradient"
        )

    def transpose(c: Tensor) -> Tensor:
        with torch.inference_mode(False):
            return torch.autograd.grad(x0, leaf, c, retain_graph=True, create_graph=nested)[0]

    return x0 if nested else x0.detach(), transpose


def identity(denoise: Denoiser, x: Tensor, t: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    r"""The prediction with $J = I$ in place of its Jacobian: no backward pass, but no account of correlations.

    Guidance calls it in units where $\alpha^2 + \sigma^2 = 1$; there the identity is exact for N(0, I) without noise.
    """
    return denoise(x, t), lambda c: c


class _NormalTensors(TorchFunctionMode):
    """Clone the inference tensors that a function has captured, such as its tokens: autograd refuses to save them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*_normal(args), **_normal(kwargs or {}))


def _normal(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, dict):
        return {name: _normal(item) for name, item in value.items()}
    # Exactly these: a torch.Size or a named tuple is passed on as it is.
    return type(value)(map(_normal, value)) if type(value) in (tuple, list) else value


def _pulled(pull: Pull, denoise: Denoiser, schedule: Schedule, x: Tensor, t: float) -> tuple:
    r"""`(signal, x0, transpose)` with $\alpha / h$ and the Jacobian in $x_t / h$: no unit is left."""
    level = schedule.at(t)
    scale = math.hypot(level.alpha, level.sigma)
    return level.alpha / scale, *pull(lambda z, t: denoise(scale * z, t), x / scale, t)


def _gradient(function: Callable[[Tensor, float], Tensor], x: Tensor, t: float, name: str) -> Tensor:
    values, transpose = vjp(function, x, t)
    if values.shape != x.shape[:1]:
        raise ValueError(
            f"{name} returned shape {tuple(values.shape)}, expected ({len(x)},), one number a sample: sum over the "
            "other dimensions, as in cost.flatten(1).sum(1)"
        )
    return transpose(torch.ones_like(values))


def clipped(denoise: Denoiser, low: float, high: float) -> Denoiser:
    """Clamp the predicted `x0` to `[low, high]`, in the units of the samples.

    The sample itself may still leave the range, by the noise `sigma(0)` of the last level: clamp it once more.
    """

    def clipped_denoise(x: Tensor, t: float) -> Tensor:
        return denoise(x, t).clamp(low, high)

    return clipped_denoise


def thresholded(denoise: Denoiser, quantile: float = 0.995, bound: float = 1.0) -> Denoiser:
    r"""Dynamic thresholding: saturate the largest entries and rescale (Saharia et al. 2022, arXiv 2205.11487).

    $$ x_0 \mapsto \frac{b}{s}\, \mathrm{clamp}(x_0, -s, s), \qquad s = \max(b, \mathrm{quantile}_q |x_0|). $$

    Args:
        denoise: For `x` of shape `(B, ...)`; the quantile is over all entries of one sample.
        quantile: q in (0, 1]; 1 rescales by the largest entry.
        bound: b above zero, the range of the data.

    Raises:
        ValueError: A quantile or bound out of range.
    """
    if not (0 < quantile <= 1 and bound > 0):
        raise ValueError(
            f"thresholded got quantile={quantile}, bound={bound}, expected a quantile in (0, 1] and a bound above 0, "
            "such as 0.995 and 1.0"
        )

    def thresholded_denoise(x: Tensor, t: float) -> Tensor:
        x0 = denoise(x, t)
        s = like(torch.quantile(x0.abs().flatten(1), quantile, dim=1).clamp_min(bound), x0)
        return x0.clamp(-s, s) * (bound / s)

    return thresholded_denoise


def guided(conditional: Denoiser, unconditional: Denoiser, weight: float) -> Denoiser:
    r"""Classifier-free guidance (Ho, Salimans 2022, arXiv 2207.12598): two evaluations a call.

    $$ x_0 = u + w\,(c - u), \qquad p_w \propto p(x_t)\, p(y | x_t)^w. $$

    Args:
        conditional: c, the denoiser given y.
        unconditional: u.
        weight: w; 0 is the unconditional, 1 the conditional, more exaggerates the condition. (The paper's is w - 1.)
    """

    def guided_denoise(x: Tensor, t: float) -> Tensor:
        return torch.lerp(unconditional(x, t), conditional(x, t), weight)

    return guided_denoise


def classified(
    denoise: Denoiser, schedule: Schedule, log_likelihood: Callable[[Tensor, float], Tensor], weight: float = 1.0
) -> Denoiser:
    r"""Classifier guidance (Dhariwal, Nichol 2021, arXiv 2105.05233); at weight 1 the exact posterior.

    $$ E[x_0 | x_t, y] = x_0 + w\, \frac{\sigma^2}{\alpha}\, \nabla_{x_t} \log p(y | x_t). $$

    Args:
        denoise: The prior, for `x` of shape `(B, ...)`.
        schedule: Its schedule.
        log_likelihood: `(x_t, t) -> log p(y | x_t)`, `(B,)`, of noisy samples; for costs of clean ones see `steered`.
        weight: w; 0 is the prior.

    Raises:
        ValueError: When called, a likelihood that is not differentiable or not of shape `(B,)`.
    """

    def classified_denoise(x: Tensor, t: float) -> Tensor:
        level = schedule.at(t)
        gradient = _gradient(log_likelihood, x, t, "log_likelihood")
        return denoise(x, t) + weight * level.sigma**2 / level.alpha * gradient

    return classified_denoise


def steered(
    denoise: Denoiser,
    schedule: Schedule,
    cost: Callable[[Tensor], Tensor],
    weight: float = 1.0,
    limit: float = 5.0,
    pull: Pull = vjp,
) -> Denoiser:
    r"""Steer by a cost of the predicted sample: obstacles, joint limits, goals.

    $$ x_0 - w\, \frac{\sigma^2}{\alpha}\, J^\top \nabla \mathrm{cost}(x_0), \qquad J = \partial x_0 / \partial x_t, $$

    that is classifier guidance with $p(y | x_t) \approx e^{-w\,\mathrm{cost}(x_0)}$ (Chung et al. 2022, arXiv
    2209.14687; for plans Janner et al. 2022, arXiv 2205.09991). It ignores that x0 is uncertain, and so is too strong
    in much noise; there $\sigma^2 / \alpha$ is bounded by `limit`, in units where $\alpha^2 + \sigma^2 = 1$.

    Args:
        denoise: For `x` of shape `(B, ...)`.
        schedule: Its schedule.
        cost: `x0 -> (B,)`, differentiable, in the units of the samples.
        weight: w, 0 or more.
        limit: Largest factor; infinite is the plain formula, which is unstable with `pull=identity`.
        pull: `vjp`, or the cheaper `identity`.

    Raises:
        ValueError: When called, a cost or denoiser that is not differentiable, or a cost not of shape `(B,)`.
    """

    def steered_denoise(x: Tensor, t: float) -> Tensor:
        signal, x0, transpose = _pulled(pull, denoise, schedule, x, t)
        gradient = _gradient(lambda x0, _: cost(x0), x0, t, "cost")
        return x0 - weight * min(limit, (1 - signal**2) / signal) * transpose(gradient)

    return steered_denoise


def inpainted(
    denoise: Denoiser, schedule: Schedule, known: Tensor, mask: Tensor, limit: float = 5.0, pull: Pull = vjp
) -> Denoiser:
    r"""Fill in around known entries: pseudo-inverse guidance with a soft mask (Song et al. 2023, ICLR, "PiGDM").

    $$ x_0 + \frac{\sigma^2}{\alpha r^2}\, J^\top W (y - x_0), \qquad J = \partial x_0 / \partial x_t, \qquad
       r^2 = \frac{\sigma^2}{\alpha^2 + \sigma^2}, $$

    whose factor is $(\alpha^2 + \sigma^2) / \alpha$: exact for data $N(0, I)$, too strong for correlated data in much
    noise. So it is bounded by `limit`, in units where $\alpha^2 + \sigma^2 = 1$.

    Real-time chunking (Black et al. 2025, arXiv 2506.07339) adds the same term to the velocity of `Rectified`, with the
    factor bounded by beta. A velocity counts $\sigma$ times in x0, so beta is a limit of $\beta \sigma(t)$. In their
    five steps it binds at t = 1 alone, and the limit of 5 is their beta of 5; over more steps theirs also fades out
    near the data, where this one goes on to hold the known entries.

    Args:
        denoise: For `x` of shape `(B, ...)`.
        schedule: Its schedule.
        known: y, broadcasting over `x`; finite also where the mask is 0.
        mask: W in [0, 1], broadcasting over `x`; 1 is known, 0 is free.
        limit: Largest factor; infinite is the plain formula, which is unstable with `pull=identity`.
        pull: `vjp`, or the cheaper `identity`, which leaves the free entries to follow by themselves.

    Raises:
        ValueError: A mask outside [0, 1]; when called, shapes that do not broadcast, or no gradient to be had.
    """
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise ValueError(
            f"inpainted got a mask from {mask.min()} to {mask.max()}, expected values in [0, 1]: 1 is known, 0 is free"
        )

    def inpainted_denoise(x: Tensor, t: float) -> Tensor:
        for name, shape in (("known", known.shape), ("mask", mask.shape)):
            if len(shape) > x.ndim or any(a not in (1, b) for a, b in zip(shape[::-1], x.shape[::-1], strict=False)):
                raise ValueError(
                    f"inpainted got {name} of shape {tuple(shape)}, expected one that broadcasts over x of shape "
                    f"{tuple(x.shape)}: use the size of x or 1 in every dimension"
                )
        signal, x0, transpose = _pulled(pull, denoise, schedule, x, t)
        return x0 + min(limit, 1 / signal) * transpose(mask.to(x0) * (known.to(x0) - x0))

    return inpainted_denoise


def prefixed(
    denoise: Denoiser,
    schedule: Schedule,
    prefix: Tensor,
    weights: Tensor | None = None,
    limit: float = 5.0,
    pull: Pull = vjp,
) -> Denoiser:
    r"""Plans that begin with given actions, such as those still to come of the last plan.

    This is `inpainted` with

    $$ y = (\mathrm{prefix}, 0), \qquad W = (w_1, \dots, w_d, 0, \dots, 0). $$

    Args:
        denoise: For plans `(B, T, A)`.
        schedule: Its schedule.
        prefix: The first d actions, `(B, d, A)`, or `(1, d, A)` for all plans.
        weights: w, `(d,)` in [0, 1], one an action; by default ones. Weights that decay let a plan leave an old one.
        limit: See `inpainted`.
        pull: See `inpainted`.

    Raises:
        ValueError: Weights not of shape `(d,)` in [0, 1]; when called, a prefix that does not fit the plan.
    """
    w = prefix.new_ones(prefix.shape[1:2]) if weights is None else weights
    if prefix.ndim != 3 or w.shape != prefix.shape[1:2]:
        raise ValueError(
            f"prefixed got a prefix of shape {tuple(prefix.shape)} with weights {tuple(w.shape)}, expected "
            "(batch, d, action) and (d,): give one weight for each of the first d actions"
        )

    @cache  # the mask is judged once, not at every evaluation
    def filled(horizon: int) -> Denoiser:
        known = torch.nn.functional.pad(prefix, (0, 0, 0, horizon - len(w)))
        mask = torch.nn.functional.pad(w, (0, horizon - len(w)))[:, None]
        return inpainted(denoise, schedule, known, mask, limit, pull)

    def prefixed_denoise(x: Tensor, t: float) -> Tensor:
        batch, _, action = prefix.shape
        if x.ndim != 3 or batch not in (1, len(x)) or len(w) > x.shape[1] or action != x.shape[2]:
            raise ValueError(
                f"prefixed got a prefix of shape {tuple(prefix.shape)} for plans of shape {tuple(x.shape)}, expected "
                "(batch, d, action) with d at most the horizon: cut the prefix, or plan further ahead"
            )
        return filled(x.shape[1])(x, t)

    return prefixed_denoise


__all__ = [
    "Pull",
    "classified",
    "clipped",
    "guided",
    "identity",
    "inpainted",
    "prefixed",
    "steered",
    "thresholded",
    "vjp",
]
