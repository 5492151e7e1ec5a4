"""The quarantine: tensors and configuration of a pickled PyTorch checkpoint, without running anything that is in it.

A program of its own, which `poise.interop.quarantine` runs in a process with limits and which imports nothing of poise:

    python unpickle.py CHECKPOINT FOLDER

Every class and function that a pickle names becomes an inert stand-in that is made, called and filled, and does
nothing. Only the handful that rebuild tensors are understood, as views of the numbers in the archive; neither PyTorch
nor the packages that wrote the file are imported. FOLDER gets `tensors.safetensors`, whose names are paths such as
`state_dicts/ema_model/model.weight`, and `rest.json`, the rest of the tree as JSON.
"""

import itertools
import json
import math
import pickle
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

_DEPTH = 64
_VALUES = 10**6  # of the tree, each as often as it is in it: a list may hold itself
_TEXT = 2**20  # characters of one string that is kept
_DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "|b1",
}


class _RefusedError(Exception):
    """A file that is not read, and why."""


class _Stand:
    """Stands for whatever a pickle names: takes arguments, items and state, keeps the state, and calls nothing."""

    origin, state = "", None

    def __new__(cls, *arguments: Any, **named: Any) -> "_Stand":
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *arguments: Any, **named: Any) -> "_Stand":
        return _Stand()

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """An item of a list."""

    extend = append


class _Table(dict[Any, Any]):
    """In the place of an ordered dictionary, which may carry attributes, as the state of a PyTorch module does."""


class _Storage(NamedTuple):
    """Numbers in the archive."""

    kind: str
    key: str


class _Numbers(NamedTuple):
    """A tensor: a view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> _Numbers:
    """In the place of torch._utils._rebuild_tensor_v2."""
    return _Numbers(storage, offset, tuple(shape), tuple(stride))


def _rebuild_parameter(data: _Numbers, *_: Any) -> _Numbers:
    """In the place of torch._utils._rebuild_parameter."""
    return data


_KNOWN = {
    ("collections", "OrderedDict"): _Table,
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
    ("builtins", "tuple"): tuple,
    ("builtins", "set"): set,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """A stand-in for what is named, or one of the few that are understood."""
        known = _KNOWN.get((module_name, global_name))
        if known is not None:
            return known
        if module_name == "torch" and global_name in _DTYPES:
            return global_name
        return type("_Stand", (_Stand,), {"origin": f"{module_name}.{global_name}"})

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage of a tensor."""
        try:
            word, kind, key, _, _ = pid
        except (TypeError, ValueError) as error:
            raise _RefusedError("data.pkl: a storage that is none of PyTorch's") from error
        if word != "storage" or kind not in _DTYPES or not isinstance(key, str):
            raise _RefusedError(f"data.pkl: the storage {str(pid)[:100]}, expected one of {sorted(_DTYPES)}")
        return _Storage(kind, key)


def _tree_of(archive: zipfile.ZipFile) -> tuple[Any, str]:
    """The unpickled tree, and the folder of the archive that it is in."""
    names = archive.namelist()
    if any(name.rsplit("/", 1)[-1] == "constants.pkl" for name in names):
        raise _RefusedError("archive: is TorchScript, expected a checkpoint of torch.save")
    if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
        raise _RefusedError("archive: has compressed entries, expected a checkpoint of torch.save, which has none")
    found = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(found) != 1:
        raise _RefusedError(f"archive: holds {len(found)} files data.pkl, expected one, of torch.save")
    with archive.open(found[0]) as file:
        return _Reader(file).load(), found[0].removesuffix("data.pkl")


_visits = itertools.count()


def _visit() -> None:
    if next(_visits) > _VALUES:
        raise _RefusedError(f"data.pkl: holds more than {_VALUES} values, or one within itself")


def _leaves(tree: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, _Numbers]]:
    """Tensors by their path."""
    _visit()
    if depth > _DEPTH:
        raise _RefusedError(f"{path[:200]}: is nested deeper than {_DEPTH}")
    if isinstance(tree, _Numbers):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{path}/{key}" if path else str(key), depth + 1)


def _array_of(archive: zipfile.ZipFile, folder: str, path: str, tensor: _Numbers) -> np.ndarray:
    """The numbers of a tensor; those of bfloat16 as float32."""
    dtype = np.dtype(_DTYPES[tensor.storage.kind])
    sizes = (tensor.offset, *tensor.shape, *tensor.stride)
    if len(tensor.shape) != len(tensor.stride) or not all(type(n) is int and n >= 0 for n in sizes):
        raise _RefusedError(f"{path}: is a view of offset, shape and stride {sizes}, expected numbers of 0 or more")
    try:
        data = archive.read(f"{folder}data/{tensor.storage.key}")
    except KeyError as error:
        raise _RefusedError(f"{path}: its storage {tensor.storage.key!r} is missing") from error
    stored = np.frombuffer(data, dtype, count=len(data) // dtype.itemsize)
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride, strict=True))
    if math.prod(tensor.shape) > len(stored) or (math.prod(tensor.shape) and last >= len(stored)):
        raise _RefusedError(f"{path}: needs {last + 1} numbers of a storage of {len(stored)}")
    strides = [s * dtype.itemsize for s in tensor.stride]
    view = np.lib.stride_tricks.as_strided(stored[tensor.offset :], tensor.shape, strides, writeable=False)
    if tensor.storage.kind == "BFloat16Storage":
        return (view.astype(np.uint32) << 16).view(np.float32)
    return np.array(view, order="C")


def _plain(value: Any, depth: int = 0) -> Any:
    """What is no tensor as JSON; of OmegaConf's containers their content, of other stand-ins their name."""
    _visit()
    if depth > _DEPTH:
        return None
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return value[:_TEXT]
    if isinstance(value, Mapping):
        return {str(k): _plain(v, depth + 1) for k, v in value.items() if not isinstance(v, _Numbers | bytes)}
    if isinstance(value, list | tuple | set) and not isinstance(value, _Numbers | _Storage):
        return [_plain(v, depth + 1) for v in value if not isinstance(v, _Numbers | bytes)]
    if isinstance(value, _Stand):
        state = value.state if isinstance(value.state, Mapping) else {}
        for key in ("_content", "_val"):
            if key in state:
                return _plain(state[key], depth + 1)
        return {"stand-in": value.origin}
    return None


def main(source: str, folder: str) -> None:
    """Read and write, or print why not and exit with status 3."""
    try:
        with zipfile.ZipFile(source) as archive:
            tree, inner = _tree_of(archive)
            tensors = {path: _array_of(archive, inner, path, tensor) for path, tensor in _leaves(tree)}
        save_file(tensors, Path(folder) / "tensors.safetensors")
        (Path(folder) / "rest.json").write_text(json.dumps(_plain(tree)))
    except _RefusedError as error:
        print(error)
        sys.exit(3)
    except zipfile.BadZipFile as error:
        print(f"archive: {error}, expected a checkpoint of torch.save since PyTorch 1.6")
        sys.exit(3)
    except Exception as error:  # whatever a hostile pickle makes the machine of pickle stumble over
        print(f"data.pkl: is broken ({type(error).__name__}: {str(error)[:200]})")
        sys.exit(3)


if __name__ == "__main__":
    main(*sys.argv[1:])


__all__ = ["main"]
