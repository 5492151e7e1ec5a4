"""Policies from elsewhere, whose kind is recognised by what the file holds."""

from collections.abc import Collection
from pathlib import Path

from poise.data.untrusted import DataError
from poise.interop.diffusion_policy import from_tree as from_diffusion_policy
from poise.interop.lerobot import import_lerobot
from poise.interop.quarantine import unpickled
from poise.interop.robomimic import from_tree as from_robomimic
from poise.policies import Checkpoint

_PICKLED = {from_diffusion_policy: {"cfg", "state_dicts"}, from_robomimic: {"algo_name", "model", "config"}}


def import_policy(path: str | Path, identity: Collection[str] = ()) -> Checkpoint:
    """A policy of LeRobot (a folder), of diffusion_policy (`.ckpt`) or of robomimic (`.pth`) as ours.

    Args:
        path: The folder or file.
        identity: As in `import_lerobot`, which alone has a use for it.

    Raises:
        FileNotFoundError: Nothing is there.
        DataError: None of the three, and what the importer of its kind refuses.
        ValueError: Names among `identity` for another kind than LeRobot's.
    """
    path = Path(path)
    if path.is_dir():
        return import_lerobot(path, identity)
    got = unpickled(path)
    keys = set(got.rest) if isinstance(got.rest, dict) else set()
    for importer, marks in _PICKLED.items():
        if marks <= keys:
            if identity:
                raise ValueError(
                    f"import got identity={list(identity)} for {path.name}, expected none: it is LeRobot's"
                )
            return importer(path, got)
    raise DataError(
        path, "checkpoint", f"holds {sorted(keys)[:8]}, expected cfg and state_dicts, of diffusion_policy, or "
        "algo_name, config and model, of robomimic"
    )  # fmt: skip


__all__ = ["import_policy"]
