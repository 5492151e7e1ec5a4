"""Compiling what a policy computes in training, where that works."""

from collections.abc import Callable

from poise.nn import Network
from poise.policies import Policy
from poise.policies.tried import tried


def compiled(policy: Policy, attempt: Callable[[], object]) -> bool:
    """Compile the encoder and the networks of a policy in place; where that fails, say so and leave them as they were.

    Names of tensors stay what they are, and PyTorch's global random numbers too.

    Args:
        policy: In training.
        attempt: One forward and backward pass, at which compilation happens.

    Returns:
        Whether they are compiled.
    """
    parts = [policy.encoder, *(module for module in policy.modules() if isinstance(module, Network))]
    for part in parts:
        part.compile()
    done = tried("training", [attempt])
    policy.zero_grad()
    if not done:
        for part in parts:
            part._compiled_call_impl = None
    return done


__all__ = ["compiled"]
