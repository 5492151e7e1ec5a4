"""Runs a program of ours under limits that count for its process alone; imports nothing of poise.

    python limited.py SECONDS MEMORY WRITTEN PROGRAM ARGUMENTS...

Limits are those of the processor's time, of memory and of every file that is written, in bytes. A process that sets
them for itself needs no code between fork and exec, which is unsafe where there are threads.
"""

import resource
import runpy
import sys


def main(seconds: str, memory: str, written: str, *program: str) -> None:
    """Set the limits and go on as the program."""
    most = {"RLIMIT_CPU": seconds, "RLIMIT_AS": memory, "RLIMIT_FSIZE": written, "RLIMIT_CORE": "0"}
    for name, number in most.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        limit = int(number) if hard == resource.RLIM_INFINITY else min(int(number), hard)
        resource.setrlimit(kind, (limit, limit))
    sys.argv = [*program]
    runpy.run_path(program[0], run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])


__all__ = ["main"]
