"""Arrays that stay in a file: tensors that share their memory, and a bound on how much of it a process keeps.

Pages of a mapped file count as memory of the process once they were read, though the system may take them back. Whoever
reads through such arrays calls `relieve` now and then: beyond a budget it gives all of them back, and what is read
again comes from the cache of the system.
"""

import mmap
import warnings
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BUDGET = 1200 * 2**20  # bytes of files, those of the libraries too, that a process keeps in its memory
_PAGES = "/proc/self/statm"  # on Linux: the third number counts the pages of files in this process
_TORCH_LACKS = (np.uint16, np.uint32, np.uint64)  # types that cannot be gathered
_shared: WeakSet[mmap.mmap] = WeakSet()


def is_mapped(array: NDArray) -> bool:
    """Whether an array is a memory-mapped file whose rows PyTorch can gather where they are."""
    return _map(array) is not None and array.flags.c_contiguous and array.dtype not in _TORCH_LACKS


def share(array: NDArray) -> Tensor:
    """A tensor over a mapped file, which is for reading only whatever PyTorch thinks, and obeys `relieve`."""
    found = _map(array)
    if found is not None:
        _shared.add(found)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(array))


def release(array: NDArray) -> None:
    """Give back the memory of a mapped file; anything else stays as it is."""
    found = _map(array)
    if found is not None:
        _drop(found)


def relieve() -> None:
    """Give back the memory of all shared files if the process keeps more of files than the budget."""
    if _shared and _resident() > _BUDGET:
        for found in [*_shared]:
            _drop(found)


def _map(array: NDArray) -> mmap.mmap | None:
    """The file behind an array; none for private copies (mode `c`), whose changes would be lost."""
    if not isinstance(array, np.memmap) or array.mode == "c":
        return None
    base = array.base
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


def _drop(found: mmap.mmap) -> None:
    if not found.closed:
        found.madvise(mmap.MADV_DONTNEED)


def _resident() -> float:
    """Bytes of files in the memory of this process; infinite where the system does not tell."""
    try:
        with open(_PAGES, "rb", 0) as file:
            return int(file.read(100).split()[2]) * mmap.PAGESIZE
    except FileNotFoundError:
        return float("inf")


__all__ = ["is_mapped", "release", "relieve", "share"]
