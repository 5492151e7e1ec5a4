"""Policies small enough to be exported within a test."""

import torch

from poise.nn import MLP
from poise.policies import DiffusionPolicy, Policy, PolicySpec

SMALL = MLP(width=16, depth=1, condition=8)


def built(spec: PolicySpec, kind: type[Policy] = DiffusionPolicy) -> Policy:
    """An untrained policy with statistics, no part of which is zero: what is not used would else agree by itself."""
    torch.manual_seed(0)
    policy = kind(spec).eval()
    for parameter in policy.parameters():
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    for number, name in enumerate([*spec.observations, "action"], 1):
        scale, offset = (torch.ones_like(constant) for constant in policy.constants(name))
        around = 2 / 255 if name in spec.cameras else 1 / number
        policy.set_constants(name, around * scale, offset * (-1 if name in spec.cameras else 0.3 * number))
    return policy
