"""Untrusted files that are read in a process of its own, for their parsers may hang, crash or ask for all memory."""

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from poise.data.untrusted import DataError

_REFUSED = 3  # exit status of a program that says why


class Limits(NamedTuple):
    """What a program may use.

    Attributes:
        seconds: Of the processor.
        memory: Bytes.
        written: Bytes of every file that it writes.
        patience: Seconds until it has to be done, however long it waited for the processor or the disk.
    """

    seconds: float
    memory: int
    written: int
    patience: float


def quarantined(path: Path, field: str, program: Path, arguments: Sequence[str], limits: Limits) -> None:
    """Run a program of ours, which imports nothing of poise, on an untrusted file.

    Args:
        path: The file.
        field: What of it is read, for messages.
        program: A Python program; it refuses the file by a line `field: problem` and the exit status 3.
        arguments: Those of the program.
        limits: What it may use.

    Raises:
        DataError: It refuses the file, dies of it, or takes too long.
    """
    numbers = [math.ceil(limits.seconds), limits.memory, limits.written]
    start = [sys.executable, "-I", "-B", str(Path(__file__).with_name("limited.py")), *map(str, numbers)]
    # Stacks of threads would count as memory, and HDF5 loads no plugin.
    environment = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HDF5_PLUGIN_PRELOAD": "::"}
    try:
        done = subprocess.run(
            [*start, str(program), *arguments],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limits.patience,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(path, field, f"took more than {limits.patience:.0f} s to read") from error
    if done.returncode:
        said = done.stdout.decode(errors="replace").strip() if done.returncode == _REFUSED else ""
        unsaid = f"{field}: broke its reader, which is safe from it: restore the file"
        field, _, problem = (said or unsaid).partition(": ")
        raise DataError(path, field, problem)


__all__ = ["Limits", "quarantined"]
