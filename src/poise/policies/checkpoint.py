"""Reading checkpoints, as `Policy.save` writes them; see `poise.policies.saving`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from poise.data import Augmentation, Scaling
from poise.data.untrusted import DataError, broken, parsed
from poise.nn import Backbone, Conditioning, EncoderSpec, Level, NetworkSpec, Norm, Pooling
from poise.objectives import Density
from poise.plain import concrete, from_plain
from poise.policies.actions import ActionSpace
from poise.policies.couplings import Coupling
from poise.policies.policy import Policy
from poise.policies.saving import FILE, FORMAT, digest, seal
from poise.policies.spec import PolicySpec
from poise.policies.weightings import Weighting
from poise.predictions import Prediction
from poise.sampling import Grid, Sampler
from poise.schedules import Schedule

_POLICY = PolicySpec, ActionSpace, Augmentation, Scaling
_NETWORK = EncoderSpec, Backbone, Norm, Pooling, NetworkSpec, Conditioning, Level
_KEYS = {"format", "policy", "notes", "sha256"}
_SPARE = 1000  # parameters that a policy may make and drop again while it is built
_BASES = (*_POLICY, *_NETWORK, Schedule, Prediction, Density, Weighting, Coupling, Sampler, Grid)


class Checkpoint(NamedTuple):
    """What a file holds.

    Attributes:
        policy: The policy, on the CPU, ready to plan.
        notes: What the writer noted.
    """

    policy: Policy
    notes: dict[str, Any]


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a policy; every tensor must be there, fit, and have the bits that were written.

    Args:
        path: The file, or its directory.

    Raises:
        FileNotFoundError: No such file.
        DataError: A truncated or altered file, a missing or surplus tensor, one of another shape or type, an unknown
            class name, or a policy that cannot be built.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, expected a checkpoint: see poise train")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        problem = f"is truncated or no safetensors file ({error}): copy it again or retrain"
        raise DataError(path, "header", problem) from error
    if header.get("format") != FORMAT:
        problem = f"has the format {header.get('format')!r}, expected {FORMAT!r}: it is no poise checkpoint"
        raise DataError(path, "format", problem)
    if not _KEYS <= set(header) <= {*_KEYS, "seal"}:
        raise DataError(path, "header", f"holds {sorted(header)}, expected {sorted(_KEYS)} and perhaps 'seal'")
    notes = parsed(path, header["notes"].encode(), "notes")
    with broken(path, "policy", ValueError, KeyError, TypeError, AttributeError, RuntimeError, ArithmeticError):
        return Checkpoint(_build(path, header, tensors), notes)


def load(path: str | Path) -> Policy:
    """The policy of a checkpoint, ready to plan; see `load_checkpoint`, which returns its notes too."""
    return load_checkpoint(path).policy


def _build(path: Path, header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Policy:
    plain, kinds = parsed(path, header["policy"].encode(), "policy"), concrete(Policy)
    if plain["type"] not in kinds:
        raise ValueError(f"got the policy class {plain['type']!r}, expected one of {sorted(kinds)}")
    spec = from_plain(plain["spec"], concrete(*_BASES))
    with torch.device("meta"), _at_most(_SPARE + 4 * len(tensors)):  # nothing is built that the file does not hold
        _check_tensors(path, kinds[plain["type"]](spec), tensors)
    if header.get("seal", seal(header)) != seal(header):
        raise DataError(path, "seal", "differs from the sha256 of the other fields: copy the file again")
    if digest(tensors) != header["sha256"]:
        raise DataError(path, "sha256", "the tensors differ from those that were written: copy the file again")
    policy = kinds[plain["type"]](spec)
    for name, buffer in policy.named_buffers():
        if buffer.numel() == 0:  # memories, whose size only the file knows
            buffer.resize_(tensors[name].shape)
    policy.load_state_dict(dict(tensors), strict=True)
    policy.ready()
    return policy.eval()


@contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Where no more parameters than these may be made, whatever number of layers is declared."""
    left = count

    def counted(module: nn.Module, name: str, parameter: nn.Parameter) -> None:  # noqa: ARG001 (PyTorch gives them)
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"describes more than {count} tensors, expected those of the file")

    hook = register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()


def _check_tensors(path: Path, outline: Policy, tensors: Mapping[str, Tensor]) -> None:
    """That the file holds the tensors of a policy, of their shapes and types; empty ones may have any size."""
    expected = outline.state_dict()
    missing, surplus = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or surplus:
        problem = f"the tensors {missing} are missing and {surplus} surplus, expected exactly those of the spec"
        raise DataError(path, "tensors", problem)
    for name, wanted in expected.items():
        got = tensors[name]
        if got.dtype != wanted.dtype or (wanted.numel() and got.shape != wanted.shape):
            found = f"has the shape {tuple(got.shape)} of {got.dtype}"
            raise DataError(path, name, f"{found}, expected {tuple(wanted.shape)} of {wanted.dtype}")


__all__ = ["Checkpoint", "load", "load_checkpoint"]
