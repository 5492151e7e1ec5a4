"""Writing checkpoints: one safetensors file a policy, with its spec as JSON in the header. Never pickle.

The header holds, beside the tensors, `format`, `policy` (class name and spec), `notes` (free JSON of the writer: data,
training, environment), `sha256` of the tensors, and `seal`, the sha256 of these fields, for safetensors itself notices
truncation but no flipped bit.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from poise.plain import to_plain

FILE = "policy.safetensors"
FORMAT = "poise 1"


class Saved(Protocol):
    """What can be saved: a policy."""

    spec: Any

    def state_dict(self) -> dict[str, Any]:
        """Tensors by name."""
        ...


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of names and bits."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def seal(header: Mapping[str, Any]) -> str:
    """The sha256 of the other fields of a header, or of a manifest."""
    return hashlib.sha256(json.dumps(sorted((k, v) for k, v in header.items() if k != "seal")).encode()).hexdigest()


def write_tensors(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file.

    Raises:
        OSError: The disk is full, or broken; safetensors itself raises an error of another kind, with the number in
            its text.
    """
    try:
        save_file(dict(tensors), path, dict(header) if header else None)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def save_checkpoint(path: str | Path, policy: Saved, notes: Mapping[str, Any] | None = None) -> Path:
    """Write a policy atomically: the file is complete or it is not there.

    Args:
        path: A file, or a directory in which `policy.safetensors` is written.
        policy: The policy.
        notes: JSON data to keep with it.

    Returns:
        The file.

    Raises:
        OSError: The disk is full, or broken.
    """
    path = Path(path)
    path = path if path.suffix == ".safetensors" else path / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    header = {
        "format": FORMAT,
        "policy": json.dumps({"type": type(policy).__name__, "spec": to_plain(policy.spec)}),
        "notes": json.dumps(to_plain(notes or {})),
        "sha256": digest(tensors),
    }
    header["seal"] = seal(header)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_tensors(tensors, aside, header)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


__all__ = ["FILE", "FORMAT", "Saved", "digest", "save_checkpoint", "seal", "write_tensors"]
