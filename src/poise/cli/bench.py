"""`poise bench CHECKPOINT`: how long a plan takes on this machine, where the time goes, and how little it could be."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from poise.cli.devices import check_device
from poise.cli.evaluate import write_json
from poise.cli.machine import machine
from poise.cli.memory import peak_memory
from poise.cli.running import SAMPLERS
from poise.policies import DiffusionPolicy, compiled, load
from poise.precision import has_bfloat16
from poise.sampling import Sampler

_WARM = 3  # plans before the first that counts
_COPIED = 2**26  # bytes: more than caches hold
_SQUARE = 1024  # rows and columns of the product whose speed is measured


@dataclass(frozen=True)
class Grid:
    """What is timed: every combination.

    Attributes:
        samplers: Classes of `poise.sampling`; by default the checkpoint's.
        evaluations: Network evaluations a plan; by default the checkpoint's.
        batches: Robots that plan at once.
        threads: CPU threads; by default PyTorch's choice.
    """

    samplers: tuple[str, ...] = ()
    evaluations: tuple[int, ...] = ()
    batches: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = ()


@dataclass(frozen=True)
class Ways:
    """How plans run.

    Attributes:
        compile: Also compiled for each batch size, which takes minutes (see `poise.compiled`).
        bfloat16: Also compiled with weights of 16 bits.
    """

    compile: bool = False
    bfloat16: bool = False

    def of(self, policy: DiffusionPolicy, batches: tuple[int, ...]) -> dict[str, DiffusionPolicy]:
        """The ways by name."""
        ways = {"eager": policy}
        if self.compile:
            ways["compiled"] = compiled(policy, batches)
        if self.bfloat16:
            ways["bfloat16"] = compiled(policy, batches, torch.bfloat16)
        return ways


def bench(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    grid: Annotated[Grid, tyro.conf.arg(name="")] = Grid(),  # noqa: B008 (frozen)
    ways: Annotated[Ways, tyro.conf.arg(name="")] = Ways(),  # noqa: B008 (frozen)
    repeats: int = 50,
    device: str = "cpu",
    json: Path | None = None,
) -> None:
    """Time plans by sampler, evaluations, batch and threads, show where the time goes and what it cannot fall below.

    "Hz" is the control rate that the slowest of twenty plans (p95) leaves when the robot executes the actions of the
    checkpoint between two plans. The shares are of the encoder and of the network's evaluations; what remains is the
    sampler, checks and normalisation. The floor is the larger of two times: reading the network's weights at the
    measured bandwidth of this memory, which weights that fit into the cache undercut, and its arithmetic at the
    measured speed of a large matrix product. "MiB" is the most memory that the process held while the plans of the row
    were timed, PyTorch and every way to plan included; on CUDA what PyTorch took of the device.

        poise bench out/pusht --samplers DDIM DPMSolverPP --evaluations 5 10 --threads 1 2 --compile

    Args:
        checkpoint: A file or directory of `poise train`.
        grid: What is timed.
        ways: How plans run.
        repeats: Plans a row, after three that do not count.
        device: Where the policy runs, such as cpu or cuda.
        json: File for the figures.

    Raises:
        ValueError: A policy that does not sample, a sampler that does not exist, a number below 1, a device that is not
            there, or bfloat16 where it has no instructions for it.
    """
    policy, rows = _checked(checkpoint, grid, ways, repeats, device), []
    before = torch.get_num_threads()
    try:
        for threads in grid.threads or (before,):
            torch.set_num_threads(threads)
            rows += _timed(policy, grid, ways, repeats)
    finally:
        torch.set_num_threads(before)
    for line in table(rows):
        print(line)
    if json:
        write_json(json, {"rows": rows, "machine": machine()})


def _checked(checkpoint: Path, grid: Grid, ways: Ways, repeats: int, device: str) -> DiffusionPolicy:
    """The policy on its device, where everything that is asked for can be timed."""
    check_device(device)
    policy = load(checkpoint)
    if not isinstance(policy, DiffusionPolicy):
        raise ValueError(f"bench got a {type(policy).__name__}, expected a DiffusionPolicy: only that samples")
    numbers = (repeats, *grid.batches, *grid.threads, *grid.evaluations)
    if min(numbers) < 1 or not grid.batches:
        raise ValueError(f"bench got the numbers {numbers}, expected --repeats, --batches, ... of at least 1")
    if ways.bfloat16 and not has_bfloat16(torch.device(device)):
        raise ValueError(f"bench got --bfloat16 for a {device} without instructions for it: leave it out")
    return policy.eval().to(device)


def _timed(policy: DiffusionPolicy, grid: Grid, ways: Ways, repeats: int) -> Iterator[dict[str, Any]]:
    """The rows of one number of threads."""
    spec, device = policy.spec, policy.action_normaliser.scale.device
    speed = speed_of(device)
    samplers = {name: _sampler(name) for name in grid.samplers} or {type(spec.sampler).__name__: spec.sampler}
    running = ways.of(policy, grid.batches)
    for (name, sampler), evaluations, batch in itertools.product(
        samplers.items(), grid.evaluations or (spec.evaluations,), grid.batches
    ):
        needed = operations(policy, batch)
        for way, its in running.items():
            chosen = its.using(sampler=sampler, evaluations=evaluations)
            row = {"sampler": name, "batch": batch, "threads": torch.get_num_threads(), "way": way}
            plan = partial(_plan, chosen, chosen.blank(batch))
            seconds, row["memory_mib"] = peak_memory(partial(times, plan, repeats), device)
            row |= figures(seconds, spec.execute) | shares(chosen, batch, repeats, statistics.median(seconds))
            size = sum(p.numel() * p.element_size() for p in chosen.diffusion.parameters())
            row["floor_ms"] = 1e3 * row["counted"] * speed.floor(size, needed)
            yield row | {"bandwidth_gb_s": speed.bandwidth / 1e9, "gflop_s": speed.arithmetic / 1e9}


def _plan(policy: DiffusionPolicy, observation: Mapping[str, Tensor]) -> Tensor:
    return policy.plan(observation).cpu()  # which waits for the device


def _sampler(name: str) -> Sampler:
    if name not in SAMPLERS:
        raise ValueError(f"got the sampler {name!r}, expected one of {sorted(SAMPLERS)}")
    return SAMPLERS[name]


def times(run: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of so many calls, after three that do not count."""
    seconds = []
    for _ in range(repeats + _WARM):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return seconds[_WARM:]


def figures(seconds: list[float], execute: int) -> dict[str, float]:
    """Quantiles in milliseconds, plans a second, and the control rate in Hz that p95 leaves."""
    median, p95, p99 = np.quantile(seconds, [0.5, 0.95, 0.99]).tolist()
    quantiles = {"median_ms": 1e3 * median, "p95_ms": 1e3 * p95, "p99_ms": 1e3 * p99}
    return quantiles | {"plans_per_s": 1 / median, "control_hz": execute / p95}


@dataclass(frozen=True)
class Speed:
    """What a machine can do at best.

    Attributes:
        bandwidth: Bytes a second, read and written.
        arithmetic: Floating-point operations a second, of a large product of float32.
    """

    bandwidth: float
    arithmetic: float

    def floor(self, size: float, operations: float) -> float:
        """Seconds in which so many bytes are read and so many operations done, at the same time."""
        return max(size / self.bandwidth, operations / self.arithmetic)


def speed_of(device: torch.device) -> Speed:
    """The speed of a device, measured."""
    source = torch.ones(_COPIED // 4, device=device)
    target, square = torch.empty_like(source), torch.ones(_SQUARE, _SQUARE, device=device)
    copied = min(times(lambda: target.copy_(source)[0].item(), 5))
    multiplied = min(times(lambda: (square @ square)[0, 0].item(), 5))
    return Speed(2 * _COPIED / copied, 2 * _SQUARE**3 / multiplied)


@torch.inference_mode()
def operations(policy: DiffusionPolicy, batch: int) -> int:
    """Floating-point operations of an evaluation of an eager network."""
    (x, level, prepared), network = _call(policy, batch), policy.diffusion.network
    with FlopCounterMode(display=False) as counter:
        network(x, level, prepared)
    return counter.get_total_flops()


@torch.inference_mode()
def shares(policy: DiffusionPolicy, batch: int, repeats: int, whole: float) -> dict[str, float]:
    """Evaluations, counted, and what encoder and network take of a plan of `whole` seconds."""
    observation, network, given = policy.blank(batch), policy.diffusion.network, _call(policy, batch)
    *_, last = policy.path(observation)
    encoder = statistics.median(times(lambda: policy.tokens(observation).cpu(), repeats))
    once = statistics.median(times(lambda: network(*given).cpu(), repeats))
    return {
        "counted": last.evaluations,
        "encoder_share": encoder / whole,
        "network_share": last.evaluations * once / whole,
    }


def _call(policy: DiffusionPolicy, batch: int) -> tuple[Tensor, Tensor, Any]:
    """What a network is called with."""
    tokens = policy.tokens(policy.blank(batch))
    x = tokens.new_zeros(batch, policy.spec.horizon, policy.spec.action)
    return x, x.new_zeros(batch), policy.diffusion.network.prepare(tokens)


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines for people."""
    yield (
        f"{'sampler':<16}{'eval.':>6}{'batch':>6}{'threads':>8}  {'way':<10}{'median':>9}{'p95':>9}{'p99':>9} ms"
        f"{'plans/s':>9}{'Hz':>8}{'encoder':>9}{'network':>9}{'floor':>9} ms{'MiB':>7}"
    )
    for row in rows:
        memory = "-" if row["memory_mib"] is None else f"{row['memory_mib']:.0f}"
        yield (
            f"{row['sampler']:<16}{row['counted']:>6}{row['batch']:>6}{row['threads']:>8}  {row['way']:<10}"
            f"{row['median_ms']:>9.2f}{row['p95_ms']:>9.2f}{row['p99_ms']:>9.2f}   "
            f"{row['plans_per_s']:>9.1f}{row['control_hz']:>8.0f}{row['encoder_share']:>9.0%}"
            f"{row['network_share']:>9.0%}{row['floor_ms']:>9.2f}   {memory:>7}"
        )
    best = rows[-1]
    yield f"{best['bandwidth_gb_s']:.1f} GB/s of memory and {best['gflop_s']:.0f} GFLOP/s measured; {machine()}"


__all__ = [
    "Grid",
    "Speed",
    "Ways",
    "bench",
    "figures",
    "operations",
    "shares",
    "speed_of",
    "table",
    "times",
]
