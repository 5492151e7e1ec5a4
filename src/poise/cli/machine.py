"""What figures depend on, in words."""

import platform
import time
from pathlib import Path

import torch


def machine() -> str:
    """Processor, threads, versions and the date."""
    return (
        f"{processor()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    )


def processor() -> str:
    """Number and name of the cores."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()


__all__ = ["machine", "processor"]
