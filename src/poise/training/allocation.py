"""Freed memory that stays with the process: every step of a training needs as much again."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as malloc.h of glibc numbers them
_KEPT, _LARGE = 2**27, 2**22  # bytes; to keep more, or larger tensors, raises the peak of a network of 65 M parameters


def keep_freed() -> None:
    """Let the allocator of this process keep what it frees, up to 128 MiB; elsewhere than with glibc, do nothing.

    By default the tensors of a step are handed back at its end, and the system clears every page of them for the next
    one: some 10,000 page faults a step of the small U-Net at a batch of 256, a twentieth of its time. Tensors of 4 MiB
    and more are still handed back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _LARGE)


__all__ = ["keep_freed"]
