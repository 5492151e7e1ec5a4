"""How much memory a process has, and something takes at its peak."""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

_FORGET = Path("/proc/self/clear_refs")
_PEAK = "5"  # what makes Linux forget the peak of a process

T = TypeVar("T")


def resident(field: str = "VmRSS", process: int | str = "self") -> float:
    """Resident MiB of a process on Linux: `VmRSS` now, `VmHWM` at its peak."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith(field))


def peak_memory(run: Callable[[], T], device: "torch.device") -> tuple[T, float | None]:
    """Call a function, and measure the most memory that was held meanwhile.

    On CUDA that is what PyTorch took of the device. Elsewhere it is the resident memory of this process, and so of all
    that was loaded before; what was freed before is handed back first, or a small peak would show that of a larger one.

    Returns:
        What the function returned, and MiB, or None where no one tells: only Linux with glibc forgets an earlier peak.
    """
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return run(), torch.cuda.max_memory_reserved(device) / 2**20
    known = sys.platform == "linux" and _forgotten()
    return run(), resident("VmHWM") if known else None


def _forgotten() -> bool:
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _FORGET.write_text(_PEAK)
    except (AttributeError, OSError):  # another C library, or a container that allows less
        return False
    return True


__all__ = ["peak_memory", "resident"]
