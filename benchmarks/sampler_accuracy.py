r"""Wasserstein-2 against evaluations on Gaussian data, of every linear sampler, without Monte-Carlo error.

    python benchmarks/sampler_accuracy.py --few
    python benchmarks/sampler_accuracy.py --eigenvalues eigenvalues.npy

For data N(0, diag(v)) the law of a sampler is known in closed form (`gaussian_law`; Pierret, Galerne 2025, arXiv
2405.14250), and so is its distance to the data,

$$ W_2^2 = \sum_k \big(\sqrt{\mathrm{Var}\, x_k} - \sqrt{v_k}\big)^2. $$

The first table has the conventions of theirs, so that the two can be put side by side: the schedule is `VPLinear` down
to the last time, and N evaluations stand for a grid of N points, which makes N - 1 steps, or of floor(N / e) points
where a step takes e evaluations (2 for Heun and DPM-Solver-2, 3 for DPM-Solver-3, 4 for RK4). The published rows of
Heun alone have a grid of N points in the column N: look for them at 2 N here. A pair of lines has the starts p_T, which
is exact, and N(0, I). A dash is a sampler that has no step or no finite law there: one that asks for the denoiser at
the last time where no noise is left, DDPM-score (theirs is "DDPM") on long strides, fewer than two points.

The second table, of --few, has true evaluations (`Sampler.budget`), one schedule, the start N(0, I), and time grids
against those of `optimised`, fitted to a generic spectrum or to that of the data.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poise.cli.machine import machine
from poise.denoisers import Gaussian
from poise.sampling import (
    DDIM,
    DDPM,
    RK4,
    DPMSolverPP,
    DPMSolverSingle,
    Euler,
    EulerMaruyama,
    ExponentialSDE,
    Grid,
    Heun,
    KarrasGrid,
    Quadratic,
    Sampler,
    UniformLogSNR,
    UniformTime,
    UniPC,
    gaussian_law,
    optimised,
)
from poise.schedules import Schedule, VPLinear
from poise.typing import Denoiser, Noise


@dataclass(frozen=True)
class DDPMScore(Sampler):
    r"""DDPM as the published table has it (Song et al. 2021, arXiv 2011.13456, appendix E), unlike the chain of `DDPM`.

    $$ x_s = \frac{x_t + b\, \nabla \log p_t(x_t)}{\sqrt{1 - b}} + \sqrt b\; z, \qquad
       b = -2\,(t - s)\,\frac{\alpha_t'}{\alpha_t} = (t - s)\,\beta(t). $$

    Its b is the rate at t times the stride in the place of $1 - \alpha_t^2 / \alpha_s^2$, and can exceed 1: no step.
    """

    order = 1
    evaluations = 1

    def step(
        self, denoise: Denoiser, schedule: Schedule, x: Tensor, t: float, s: float, noise: Noise, memory: Any = None
    ) -> tuple[Tensor, Any]:
        """One step of the formula above; NaN where b is 1 or more."""
        level = schedule.at(t)
        b = -2 * (t - s) * level.alpha_rate / level.alpha
        score = (level.alpha * denoise(x, t) - x) / level.sigma**2
        return (x + b * score) / (math.sqrt(1 - b) if b < 1 else math.nan) + math.sqrt(b) * noise(x, t, s), None


SAMPLERS: dict[str, Sampler] = {
    "EM": EulerMaruyama(),
    "EI": ExponentialSDE(),
    "DDPM-score": DDPMScore(),
    "DDPM-small": DDPM(),
    "DDPM-large": DDPM(upper=1.0),
    "Euler": Euler(),
    "Heun": Heun(),
    "RK4": RK4(),
    "DDIM": DDIM(),
    "DPM-Solver-2": DPMSolverSingle(2),
    "DPM-Solver-3": DPMSolverSingle(3),
    "DPM-Solver++2M": DPMSolverPP(2),
    "DPM-Solver++3M": DPMSolverPP(3),
    "UniPC-2": UniPC(2),
    "UniPC-3": UniPC(3),
}
GRIDS: dict[str, Grid] = {
    "log-snr": UniformLogSNR(),
    "time": UniformTime(),
    "karras": KarrasGrid(),
    "quadratic": Quadratic(),
}
STARTS = ("p_T", "N(0, I)")
EVALUATIONS = (5, 10, 12, 15, 20, 24, 50, 100, 250, 500, 1000)
LAST = (0.0, 1e-5, 1e-4, 1e-3)
FEW = (5, 6, 8, 10)
FEW_SAMPLERS = (
    "DDIM",
    "Heun",
    "DPM-Solver-2",
    "DPM-Solver-3",
    "DPM-Solver++2M",
    "DPM-Solver++3M",
    "UniPC-2",
    "UniPC-3",
)
FEW_LAST = 1e-3
FEW_ITERATIONS = 10  # more of them lower the distances by some per cent
GENERIC = torch.logspace(-3, 2, 60, dtype=torch.float64)


def starts(schedule: Schedule, spectrum: Tensor) -> Tensor:
    """Variances of the two starts, `(2, K)`."""
    level = schedule.at(1.0)
    return torch.stack([level.alpha**2 * spectrum + level.sigma**2, torch.ones_like(spectrum)])


def stages(sampler: Sampler, schedule: Schedule, times: Sequence[float]) -> list[float]:
    """Times within the steps, so that their levels can be computed at once, which is many times faster."""
    if isinstance(sampler, RK4):
        return [t + 0.5 * (s - t) for t, s in itertools.pairwise(times)]
    if not isinstance(sampler, DPMSolverSingle):
        return []
    levels = [schedule.at(t).log_snr for t in times]
    shares = [stage / sampler.order for stage in range(1, sampler.order)]
    found = [a + (b - a) * share for a, b in itertools.pairwise(levels) for share in shares]
    return [min(max(schedule.time(torch.tensor(one, dtype=torch.float64)).item(), 0.0), 1.0) for one in found]


def law(sampler: Sampler, schedule: Schedule, times: Sequence[float], spectrum: Tensor) -> Tensor:
    """Variances of the samples from the two starts, `(2, K)`; NaN where the sampler has no law."""
    begin = starts(schedule, spectrum)
    if len(times) < 2 or any(not t > s for t, s in itertools.pairwise(times)):
        return torch.full_like(begin, math.nan)
    schedule.remember(times)
    schedule.remember(stages(sampler, schedule, times))
    try:
        if not gaussian_law(sampler, schedule, times[:2], spectrum[:1], begin[0, :1] * 0).any():  # G^2 is all there is
            return begin * gaussian_law(sampler, schedule, times, spectrum, torch.ones_like(spectrum))
        return gaussian_law(sampler, schedule, times, spectrum.repeat(2), begin.flatten()).view_as(begin)
    except ArithmeticError:  # no noise is left where the denoiser is asked
        return torch.full_like(begin, math.nan)


def exact(schedule: Schedule, spectrum: Tensor) -> dict[str, Tensor]:
    r"""Variances with which the reverse SDE and ODE without any error of time end, `(2, K)`.

    $$ \mathrm{SDE}: p_0 + \Big(\frac{\alpha_1 p_0}{\alpha_0 p_1}\Big)^2 (\mathrm{Var}\, x_1 - p_1), \qquad
       \mathrm{ODE}: \frac{p_0}{p_1}\, \mathrm{Var}\, x_1, \qquad p_t = \alpha_t^2 v + \sigma_t^2. $$
    """
    first, last, begin = schedule.at(1.0), schedule.at(0.0), starts(schedule, spectrum)
    end = last.alpha**2 * spectrum + last.sigma**2
    gain = first.alpha / last.alpha * end / begin[0]
    flow = Gaussian(schedule, torch.zeros_like(spectrum), spectrum).flow(begin.sqrt(), 1.0, 0.0)
    return {"exact SDE": end + gain.square() * (begin - begin[0]), "exact ODE": flow.square()}


def distances(variance: Tensor, spectrum: Tensor) -> list[float | None]:
    """Wasserstein-2 to the data, a number a row; None where it is not finite."""
    found = (variance.sqrt() - spectrum.sqrt()).square().sum(-1).sqrt().tolist()
    return [one if math.isfinite(one) else None for one in found]


def rows(spectrum: Tensor, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row a last time, sampler, number of evaluations and start; those of the exact solutions come first."""
    grid = GRIDS[arguments.grid]
    for last in arguments.last:
        schedule = VPLinear(arguments.beta_min, arguments.beta_max, last)
        for name, variance in exact(schedule, spectrum).items():
            for begin, distance in zip(STARTS, distances(variance, spectrum), strict=True):
                yield {"last": last, "sampler": name, "evaluations": None, "start": begin, "w2": distance}
        for name in arguments.samplers:
            for evaluations in arguments.evaluations:
                steps = evaluations // SAMPLERS[name].evaluations - 1
                times = grid.times(schedule, steps) if steps > 0 else []
                found = distances(law(SAMPLERS[name], schedule, times, spectrum), spectrum)
                for begin, distance in zip(STARTS, found, strict=True):
                    yield {"last": last, "sampler": name, "evaluations": evaluations, "start": begin, "w2": distance}


def few(spectrum: Tensor, schedule: Schedule) -> Iterator[dict[str, Any]]:
    """One row a number of evaluations, sampler and grid, from N(0, I); those of the exact ODE come first."""
    floor = distances(exact(schedule, spectrum)["exact ODE"], spectrum)[1]
    yield {"sampler": "exact ODE", "evaluations": None, "grid": None, "w2": floor}
    for evaluations, name in itertools.product(FEW, FEW_SAMPLERS):
        budget = SAMPLERS[name].budget(evaluations)
        grids = {key: tuple(grid.times(schedule, len(budget))) for key, grid in GRIDS.items()}
        grids["generic"] = optimised(schedule, budget, GENERIC, len(budget), iterations=FEW_ITERATIONS)
        grids["fitted"] = optimised(schedule, budget, spectrum, len(budget), iterations=FEW_ITERATIONS)
        for key, times in grids.items():
            (distance,) = distances(gaussian_law(budget, schedule, times, spectrum)[None], spectrum)
            yield {"sampler": name, "evaluations": evaluations, "grid": key, "w2": distance}


def cell(distance: float | None) -> str:
    """A number of the tables."""
    if distance is None:
        return f"{'-':>9}"
    return f"{distance:>9.2f}" if 0.01 <= distance < 1e5 or distance == 0 else f"{distance:>9.1e}"


def table(found: list[dict[str, Any]], columns: Sequence[int]) -> Iterator[str]:
    """Lines of the first table."""
    for last, block in itertools.groupby(found, lambda row: row["last"]):
        yield f"\nlast time {last:g}\n{'sampler':<16}{'start':<8}{'exact':>9}" + "".join(f"{n:>9}" for n in columns)
        lines = {}
        for row in block:
            lines.setdefault((row["sampler"], row["start"]), []).append(cell(row["w2"]))
        for (sampler, begin), cells in lines.items():
            yield f"{sampler:<16}{begin:<8}" + ("" if sampler.startswith("exact") else " " * 9) + "".join(cells)


def few_table(found: list[dict[str, Any]]) -> Iterator[str]:
    """Lines of the second table."""
    yield f"\nexact ODE{cell(found[0]['w2'])}"
    yield f"{'evaluations':<13}{'sampler':<16}" + "".join(f"{row['grid']:>11}" for row in found[1 : 1 + len(GRIDS) + 2])
    for (evaluations, sampler), group in itertools.groupby(found[1:], lambda row: (row["evaluations"], row["sampler"])):
        yield f"{evaluations:<13}{sampler:<16}" + "".join(f"{cell(row['w2']):>11}" for row in group)


def main() -> None:
    """Compute and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eigenvalues", type=Path, help="of the data's covariance (default: 3072, 1e-3 to 1e2)")
    parser.add_argument("--evaluations", nargs="+", type=int, default=EVALUATIONS)
    parser.add_argument("--last", nargs="+", type=float, default=LAST, help="last times, in [0, 1)")
    parser.add_argument("--beta-min", type=float, default=0.1)
    parser.add_argument("--beta-max", type=float, default=20.0)
    parser.add_argument("--grid", choices=list(GRIDS), default="time")
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--few", action="store_true", help="add the table of 5 to 10 evaluations and fitted grids")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the tensors are small
    begin, spectrum = time.perf_counter(), torch.logspace(-3, 2, 3072, dtype=torch.float64)
    if arguments.eigenvalues:
        values = np.load(arguments.eigenvalues).astype(np.float64)
        spectrum = torch.from_numpy(values).flatten().clamp(min=0).abs()  # rounding makes some negative
    print(
        f"Wasserstein-2 to N(0, diag(v)), {len(spectrum)} eigenvalues from {spectrum.min():.3g} to "
        f"{spectrum.max():.3g}; a grid uniform in {arguments.grid} of N points, N / e where a step takes e evaluations"
    )
    found = list(rows(spectrum, arguments))
    print("\n".join(table(found, arguments.evaluations)), flush=True)
    fitted = []
    if arguments.few:
        fitted = list(few(spectrum, VPLinear(arguments.beta_min, arguments.beta_max, FEW_LAST)))
        print("\n".join(few_table(fitted)))
    seconds = time.perf_counter() - begin
    print(json.dumps({"rows": found, "few": fitted, "seconds": seconds, "machine": machine()}))


if __name__ == "__main__":
    main()
