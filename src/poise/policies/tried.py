"""What a compiler stumbles over costs a line, not the program."""

import sys
from collections.abc import Callable, Sequence

import torch


def tried(what: str, attempts: Sequence[Callable[[], object]]) -> bool:
    """Run the first of some attempts that goes through; where none does, say why the last one failed.

    Args:
        what: It goes on without compiling.
        attempts: Calls that compile. PyTorch's global random numbers stay what they were.

    Returns:
        Whether one went through.
    """
    line = ""
    for attempt in attempts:
        try:
            with torch.random.fork_rng():
                attempt()
            return True
        except Exception as error:  # whatever a compiler stumbles over
            line = f"{type(error).__name__}: {[*str(error).strip().splitlines(), ''][0]}"
    print(f"{what} goes on without compiling, which failed: {line}", file=sys.stderr)
    return False


__all__ = ["tried"]
