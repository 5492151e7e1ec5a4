"""`poise import SRC DST` and `poise export CHECKPOINT DST`: policies from elsewhere, and for elsewhere."""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from poise.cli.running import Sampling
from poise.interop.foreign import import_policy as imported
from poise.interop.lerobot_export import export_lerobot
from poise.interop.onnx_export import export_onnx
from poise.interop.program import Exported, export_torch
from poise.policies import DiffusionPolicy, Policy, Safety, load_checkpoint


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
    format: Literal["onnx", "torch", "lerobot"],  # noqa: A002 (the name of the option)
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling(),  # noqa: B008 (frozen)
    safety: bool = True,
) -> None:
    """Write a policy for elsewhere: as one program, sampling included, that runs without poise, or for LeRobot.

    What an export cannot hold is an error that names it. Plans of a program are compared with those of the policy, on
    random observations and noise in batches of 1 and 3, and it is written only if they agree.

    Args:
        checkpoint: A file or directory of poise train or poise import.
        destination: A file, or for lerobot a folder that does not exist yet.
        format: onnx (extra `onnx`) runs with numpy and onnxruntime, see poise.runtime; torch is a file of torch.export;
            lerobot is a folder pretrained_model.
        sampling: How plans are sampled.
        safety: Write the limits that the checkpoint notes of its demonstrations beside a program. LeRobot keeps none.
    """
    found = load_checkpoint(checkpoint)
    print(_WRITERS[format](sampling.of(found.policy), destination, partial(_limits, found.notes, safety)))


def _limits(notes: Mapping[str, Any], safety: bool) -> Safety | None:
    """What is written of limits, as `poise serve` has it: none is an error unless it is asked for."""
    if not safety:
        print("the file has no limits: whatever the policy plans is sent to the robot as it is", file=sys.stderr)
        return None
    try:
        return Safety.of(notes)
    except ValueError as error:
        raise ValueError(f"{error}. Or export without limits: --no-safety") from error


def _lerobot(policy: Policy, destination: Path, limits: Callable[[], Safety | None]) -> str:  # noqa: ARG001 (it has none)
    if not isinstance(policy, DiffusionPolicy):
        raise ValueError(f"got a {type(policy).__name__}, expected a DiffusionPolicy: LeRobot knows no other kind")
    return str(export_lerobot(policy, destination))


def _onnx(policy: Policy, destination: Path, limits: Callable[[], Safety | None]) -> str:
    return _told(export_onnx(policy, destination, limits()), "onnxruntime")


def _torch(policy: Policy, destination: Path, limits: Callable[[], Safety | None]) -> str:
    return _told(export_torch(policy, destination, limits()), "the program")


def _told(exported: Exported, runner: str) -> str:
    return (
        f"{exported.path}: {exported.path.stat().st_size / 1e6:.2f} MB, {exported.draws} draws of noise a plan\n"
        f"plans of {runner} and of the policy, for random observations and noise in batches of 1 and 3, differ by at "
        f"most {exported.difference:.1e} of their range"
    )


_WRITERS = {"lerobot": _lerobot, "onnx": _onnx, "torch": _torch}

__all__ = ["export_policy", "import_policy"]
