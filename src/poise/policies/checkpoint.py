"""Checkpoints: one safetensors file a policy, with its spec as JSON in the header. Never pickle.

The header holds, beside the tensors, `format`, `policy` (class name and spec), `notes` (free JSON of the writer: data,
training, environment) and `sha256` of the tensors, for safetensors itself notices truncation but no flipped bit.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from poise.data import Augmentation, Scaling
from poise.nn import Backbone, Conditioning, EncoderSpec, NetworkSpec, Norm, Pooling
from poise.objectives import Density
from poise.plain import concrete, from_plain, to_plain
from poise.policies.actions import ActionSpace
from poise.policies.policy import Policy
from poise.policies.spec import PolicySpec
from poise.predictions import Prediction
from poise.sampling import Grid, Sampler
from poise.schedules import Schedule

FILE = "policy.safetensors"
_FORMAT = "poise 1"
_POLICY = PolicySpec, ActionSpace, Augmentation, Scaling
_NETWORK = EncoderSpec, Backbone, Norm, Pooling, NetworkSpec, Conditioning
_BASES = (*_POLICY, *_NETWORK, Schedule, Prediction, Density, Sampler, Grid)


class Checkpoint(NamedTuple):
    """What a file holds.

    Attributes:
        policy: The policy, on the CPU, ready to plan.
        notes: What the writer noted.
    """

    policy: Policy
    notes: dict[str, Any]


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(path: str | Path, policy: Policy, notes: Mapping[str, Any] | None = None) -> Path:
    """Write a policy atomically: the file is complete or it is not there.

    Args:
        path: A file, or a directory in which `policy.safetensors` is written.
        policy: The policy.
        notes: JSON data to keep with it.

    Returns:
        The file.
    """
    path = Path(path)
    path = path if path.suffix == ".safetensors" else path / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    header = {
        "format": _FORMAT,
        "policy": json.dumps({"type": type(policy).__name__, "spec": to_plain(policy.spec)}),
        "notes": json.dumps(to_plain(notes or {})),
        "sha256": _digest(tensors),
    }
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(save(tensors, header))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a policy; every tensor must be there, fit, and have the bits that were written.

    Args:
        path: The file, or its directory.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A truncated or altered file, a missing or surplus tensor, an unknown class name.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist, expected a checkpoint: see poise train")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file ({error}): copy it again or retrain") from error
    if header.get("format") != _FORMAT:
        raise ValueError(
            f"{path} has the format {header.get('format')!r}, expected {_FORMAT!r}: it is no poise checkpoint"
        )
    try:
        return Checkpoint(_build(header, tensors), json.loads(header["notes"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _build(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Policy:
    plain, kinds = json.loads(header["policy"]), concrete(Policy)
    if plain["type"] not in kinds:
        raise ValueError(f"got the policy class {plain['type']!r}, expected one of {sorted(kinds)}")
    policy = kinds[plain["type"]](from_plain(plain["spec"], concrete(*_BASES)))
    expected = policy.state_dict()
    missing, surplus = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or surplus:
        raise ValueError(f"the tensors {missing} are missing and {surplus} surplus, expected exactly those of the spec")
    if _digest(tensors) != header["sha256"]:
        raise ValueError("the tensors differ from those that were written (sha256): copy the file again")
    for name, buffer in policy.named_buffers():
        if buffer.numel() == 0:  # memories, whose size only the file knows
            buffer.resize_(tensors[name].shape)
    shapes = {k: (tuple(tensors[k].shape), tuple(v.shape)) for k, v in policy.state_dict().items()}
    for name, (got, wanted) in shapes.items():
        if got != wanted:
            raise ValueError(f"tensor {name!r} has the shape {got}, expected {wanted}")
    policy.load_state_dict(dict(tensors), strict=True)
    policy.ready()
    return policy.eval()


__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]
