"""Compiling what a policy computes, where that works."""

import sys
from collections.abc import Callable

import torch
from torch import nn

from poise.nn import Network
from poise.policies import Policy


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
    try:
        with torch.random.fork_rng():
            attempt()
    except Exception as error:  # whatever a compiler stumbles over
        _undo(parts)
        line = str(error).strip().splitlines()[0]
        print(f"training goes on without compiling, which failed: {type(error).__name__}: {line}", file=sys.stderr)
        return False
    finally:
        policy.zero_grad()
    return True


def _undo(parts: list[nn.Module]) -> None:
    for part in parts:
        part._compiled_call_impl = None


__all__ = ["compiled"]
