"""Untrusted safetensors files, and the strict placing of their tensors into a policy.

Nothing is built at the sizes that a configuration declares before the tensors of the file are found to have them.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from poise.data.untrusted import DataError, broken
from poise.interop.fields import described
from poise.policies import DiffusionPolicy, PolicySpec

_HEADER, _COUNT, _NAMED = 2**24, 20_000, 5


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, by name.

    Raises:
        DataError: No such file, one that is truncated or broken, too long a header, or too many tensors.
    """
    if not path.is_file():
        raise DataError(path, path.name, "does not exist, expected a safetensors file beside config.json")
    size = path.stat().st_size
    with path.open("rb") as file:
        declared = int.from_bytes(file.read(8), "little")
    if size < 8 or declared > min(size - 8, _HEADER):
        problem = f"declares a header of {declared} bytes in a file of {size}, expected at most {_HEADER} within it"
        raise DataError(path, "header", f"{problem}: copy the file again")
    with broken(path, "header", SafetensorError, ValueError, RuntimeError), safe_open(path, framework="pt") as file:
        names = list(file.keys())
        if len(names) > _COUNT:
            raise DataError(path, "header", f"names {len(names)} tensors, expected at most {_COUNT}")
        return {name: file.get_tensor(name) for name in names}


def columns(embedding: int, history: int, theirs: Mapping[str, int], ours: Sequence[str]) -> Tensor:
    """Where the inputs of our modulation stand in that of another network, whose features have another order.

    Both begin with the embedded noise level, and go on with all features of the oldest step, of the next, and so on.

    Args:
        embedding: Width of the embedded noise level.
        history: Observation steps.
        theirs: Name of a feature -> its width at one step, in their order.
        ours: The names in our order.
    """
    begins, size = {}, 0
    for name, width in theirs.items():
        begins[name], size = size, size + width
    step = torch.cat([begins[name] + torch.arange(theirs[name]) for name in ours])
    steps = [embedding + i * size + step for i in range(history)]
    return torch.cat([torch.arange(embedding), *steps])


def filled(
    path: Path,
    spec: PolicySpec,
    tensors: Mapping[str, Tensor],
    name_of: Callable[[str], str | None],
    order_of: Callable[[str, Tensor], Tensor | None],
) -> DiffusionPolicy:
    """A policy whose every tensor is one of a file; statistics are not among them and stay to be set.

    Args:
        path: The file, for messages.
        spec: What to build.
        tensors: Those of the file, each of which must have its place.
        name_of: Name of a tensor of ours -> its name in the file.
        order_of: Name of a tensor of ours, and that of the file -> where our columns stand in it; None leaves them.

    Raises:
        DataError: A policy that cannot be built, or a tensor that is missing, surplus, of another shape, or not finite.
    """
    with described(path, "configuration"), torch.device("meta"):
        outline = DiffusionPolicy(spec).state_dict()
    found, left, missing = {}, dict(tensors), []
    for name, blank in outline.items():
        if "normaliser" in name.split(".")[0]:
            continue
        theirs = name_of(name)
        if theirs not in left:
            missing.append(name)
            continue
        tensor = left.pop(theirs)
        if tensor.shape != blank.shape:
            shapes = f"has the shape {tuple(tensor.shape)}, expected {tuple(blank.shape)}"
            raise DataError(path, theirs, f"{shapes}: the configuration describes another network")
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise DataError(path, theirs, f"got {tensor.dtype} or numbers that are not finite, expected finite floats")
        order = order_of(name, tensor)
        found[name] = (tensor if order is None else tensor[:, order]).float()
    if missing:
        raise DataError(path, "tensors", f"lacks those for {_listed(missing)}, expected every tensor of the network")
    if left:
        problem = f"has no place for {_listed(sorted(left))}, expected every tensor of the file to be used"
        raise DataError(path, "tensors", f"{problem}: this is another kind of network")
    policy = DiffusionPolicy(spec)
    policy.load_state_dict({**policy.state_dict(), **found}, strict=True)
    return policy.eval()


def _listed(names: Sequence[str]) -> str:
    return f"{list(names[:_NAMED])}" + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


__all__ = ["columns", "filled", "read_tensors"]
