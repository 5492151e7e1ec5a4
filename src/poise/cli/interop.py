"""`poise import SRC DST` and `poise export CHECKPOINT DST`: policies from elsewhere, and for elsewhere."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from poise.interop.foreign import import_policy as imported
from poise.interop.lerobot_export import export_lerobot
from poise.policies import DiffusionPolicy, load

_WRITERS = {"lerobot": export_lerobot}


def import_policy(
    source: Annotated[Path, tyro.conf.Positional],
    destination: Annotated[Path, tyro.conf.Positional],
    identity: tuple[str, ...] = (),
) -> None:
    """Read a policy of LeRobot, diffusion_policy or robomimic, whose plans stay the same, and write it as a checkpoint.

    Which of them it is shows in what the source holds.

    Args:
        source: A folder with config.json and model.safetensors, such as .../checkpoints/last/pretrained_model, of
            LeRobot; a file .ckpt of diffusion_policy; or a file .pth of robomimic. Nothing in it is executed.
        destination: A file, or a directory in which policy.safetensors is written.
        identity: Of LeRobot, features that were trained without normalisation; any other one that lacks statistics is
            an error.
    """
    policy, notes = imported(source, identity)
    path = policy.save(destination, {**notes, "source": str(source)})
    print(f"{path}: {sum(p.numel() for p in policy.parameters()):,} parameters")
    if notes["unused"]:
        print(f"inputs that its network does not see: {', '.join(notes['unused'])}")


def export_policy(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    destination: Annotated[Path, tyro.conf.Positional],
    format: Literal["lerobot"] = "lerobot",  # noqa: A002 (the name of the option)
) -> None:
    """Write a policy for another library; a part that it has no counterpart of is an error that names it.

    Args:
        checkpoint: A file or directory of poise train or poise import.
        destination: A folder that does not exist yet.
        format: The library.
    """
    policy = load(checkpoint)
    if not isinstance(policy, DiffusionPolicy):
        raise ValueError(f"got a {type(policy).__name__}, expected a DiffusionPolicy: no other kind is known elsewhere")
    print(_WRITERS[format](policy, destination))


__all__ = ["export_policy", "import_policy"]
