r"""Exponential moving average of a policy's parameters.

$$ \bar\theta \leftarrow d\,\bar\theta + (1 - d)\,\theta, \qquad d = \min\big(d_{max},\, 1 - (1 + n)^{-p}\big), $$

with n the number of updates: the power warm-up of Diffusion Policy (Chi et al. 2023, arXiv 2303.04137), by which the
average forgets its first, untrained parameters.
"""

import copy

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from poise.policies import Policy


class EMA:
    """The running average of a policy.

    Args:
        policy: The policy in training; it is copied with its constants of normalisation.
        power: p.
        maximum: d_max.

    Attributes:
        policy: The averaged policy, in evaluation mode: validate, save and deploy this one.
        updates: n.
    """

    def __init__(self, policy: Policy, power: float = 0.75, maximum: float = 0.9999) -> None:
        self.policy = copy.deepcopy(policy).requires_grad_(False).eval()
        self.power, self.maximum, self.updates = power, maximum, 0

    @property
    def decay(self) -> float:
        """The decay d at the present number of updates."""
        return min(self.maximum, 1 - (1 + self.updates) ** -self.power)

    @torch.no_grad()
    def update(self, policy: Policy) -> None:
        """Take one step towards the policy's parameters."""
        step = get_ema_multi_avg_fn(self.decay)
        step(list(self.policy.parameters()), list(policy.parameters()), self.updates)
        self.updates += 1


__all__ = ["EMA"]
