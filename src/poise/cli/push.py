"""`poise push CHECKPOINT NAME`: share a policy on the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated

import tyro

from poise.data.untrusted import read_json
from poise.interop.hub import push_to_hub
from poise.policies import load_checkpoint


def push(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    name: Annotated[str, tyro.conf.Positional],
    results: Path | None = None,
    private: bool = False,
) -> None:
    """Share a policy on the hub, with a model card; `hf auth login` signs in.

    Args:
        checkpoint: A file or directory of poise train.
        name: Of the repository, as owner/name; it is made where there is none.
        results: What poise evaluate --json wrote, shown on the card.
        private: A new repository is seen by its owner alone.
    """
    policy, notes = load_checkpoint(checkpoint)
    print(push_to_hub(policy, name, notes, read_json(results) if results else None, private))


__all__ = ["push"]
