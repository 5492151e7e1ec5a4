"""Engines by the options of the command line."""

from dataclasses import dataclass
from typing import Literal

from poise.cli.engines.cluster import Ray
from poise.cli.engines.engine import Engine
from poise.cli.engines.local import Local


@dataclass(frozen=True)
class Workers:
    """Where runs take place.

    Attributes:
        jobs: How many runs side by side, each in a process of its own with one thread.
        engine: Processes of this machine, or the machines of a Ray cluster (extra `cluster`), with the same results.
        address: Of the Ray cluster; by default that of RAY_ADDRESS, or else a cluster of this machine that ends with
            the command.
    """

    jobs: int | None = None
    engine: Literal["local", "ray"] = "local"
    address: str | None = None

    @property
    def apart(self) -> bool:
        """Whether processes of their own are asked for."""
        return self != Workers()

    def start(self, cpus: int = 1, gpus: int = 0) -> Engine:
        """The engine.

        Args:
            cpus: Cores that a run needs.
            gpus: Accelerators that a run needs; a local one shares those that there are.

        Raises:
            ValueError: No job, or the address of a cluster for the local engine.
        """
        jobs = 1 if self.jobs is None else self.jobs
        engines = {"local": Local(jobs), "ray": Ray(jobs, self.address, cpus, gpus)}
        if self.address and self.engine == "local":
            raise ValueError(f"got --address {self.address} for processes of this machine, expected --engine ray too")
        return engines[self.engine]


__all__ = ["Workers"]
