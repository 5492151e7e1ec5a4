"""The measured claims of docs/theory: marginals, diversity, few evaluations, imperfect scores, inversion, likelihood.

    python benchmarks/theory.py

Everything is measured against an exact denoiser, that of a mixture of four unequal modes in the plane, so nothing is
trained. Seeds are fixed; the last line is JSON. It takes about a minute on one core.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from poise import (
    DDIM,
    DDPM,
    RK4,
    DormandPrince,
    DPMSolverPP,
    EulerMaruyama,
    Exact,
    Heun,
    Mixture,
    PredictorCorrector,
    Rademacher,
    Rectified,
    Restart,
    Switch,
    UniformLogSNR,
    UniformTime,
    UniPC,
    VPCosine,
    VPLinear,
    forward_sde,
    gaussian,
    log_prob,
    path,
    per_sample,
    reconstruct,
    sample,
    sliced_wasserstein,
    start,
    trace,
)
from poise.cli.machine import machine
from poise.sampling import Sampler
from poise.schedules import Schedule
from poise.typing import Denoiser

COUNT = 20_000
MEANS = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, -2.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
STD = 0.3
Rows = list[dict[str, Any]]


def target(schedule: Schedule) -> Mixture:
    """Four modes of unequal weight."""
    return Mixture(schedule, MEANS, STD, WEIGHTS)


def data(count: int, seed: int) -> Tensor:
    """Draws of the target."""
    generator = torch.Generator().manual_seed(seed)
    modes = torch.multinomial(WEIGHTS, count, replacement=True, generator=generator)
    return MEANS[modes] + STD * torch.randn(count, 2, generator=generator, dtype=torch.float64)


def draws(denoise: Denoiser, schedule: Schedule, sampler: Sampler, evaluations: int, seed: int = 0) -> Tensor:
    """Samples with so many evaluations, on a grid uniform in log-SNR."""
    noise = gaussian(torch.Generator().manual_seed(seed))
    samplers = sampler.budget(evaluations)
    x = start(schedule, torch.empty(COUNT, 2, dtype=torch.float64), noise)
    return sample(denoise, schedule, samplers, UniformLogSNR().times(schedule, len(samplers)), x, noise).x


def distance(x: Tensor) -> float:
    """Sliced Wasserstein-2 to fresh data; two sets of data are about 0.03 apart."""
    return sliced_wasserstein(x, data(COUNT, 1), generator=torch.Generator().manual_seed(2))


def diversity(x: Tensor) -> dict[str, float]:
    """Total variation of the mode weights, and the standard deviation within modes over the true one."""
    nearest = torch.cdist(x, MEANS).argmin(1)
    weights = torch.bincount(nearest, minlength=4) / len(x)
    return {
        "weights_off": ((weights - WEIGHTS).abs().sum() / 2).item(),
        "spread": ((x - MEANS[nearest]).square().mean().sqrt() / STD).item(),
    }


def forward_rows() -> Rows:
    """Simulating the forward SDE against its marginal: Kolmogorov-Smirnov would need a mixture; moments suffice."""
    rows = []
    for schedule in (VPLinear(), Rectified(margin=0.01)):
        drift, diffusion = forward_sde(schedule)
        noise, steps, t = gaussian(torch.Generator().manual_seed(0)), 1000, 0.0
        level = schedule.at(0.0)
        x = level.alpha * data(COUNT, 0) + level.sigma * noise(data(COUNT, 0), 0.0, 0.0)
        schedule.remember([0.7 * i / steps for i in range(steps + 1)])
        for i in range(steps):
            t, s = 0.7 * i / steps, 0.7 * (i + 1) / steps
            x = x + (s - t) * drift(x, t) + diffusion(t) * math.sqrt(s - t) * noise(x, t, s)
        level = schedule.at(0.7)
        exact = level.alpha**2 * torch.cov(data(1_000_000, 3).T).diagonal() + level.sigma**2
        rows.append({"schedule": type(schedule).__name__, "variance_ratio": (x.var(0) / exact).mean().item()})
    return rows


def few_rows() -> Rows:
    """Deterministic and stochastic samplers by evaluations: distance, mode weights, spread."""
    schedule = VPCosine()
    samplers: dict[str, Sampler] = {
        "DDIM": DDIM(),
        "DPM-Solver++ 2M": DPMSolverPP(),
        "UniPC-2": UniPC(),
        "Heun": Heun(),
        "DDPM": DDPM(),
        "SDE-DPM-Solver++ 2M": DPMSolverPP(eta=1.0),
        "Euler-Maruyama": EulerMaruyama(),
    }
    rows = []
    for name, sampler in samplers.items():
        for evaluations in (5, 10, 20, 50, 100, 500):
            x = draws(target(schedule), schedule, sampler, evaluations)
            rows.append({"sampler": name, "evaluations": evaluations, "distance": distance(x), **diversity(x)})
    return rows


def wrong(schedule: Schedule, size: float = 0.1) -> Denoiser:
    """The exact denoiser with an error of its noise prediction, `size * sin(5 x)`."""
    exact = target(schedule)

    def denoise(x: Tensor, t: float) -> Tensor:
        level = schedule.at(t)
        return exact(x, t) - level.sigma / level.alpha * size * torch.sin(5 * x)

    return denoise


def hybrid_rows() -> Rows:
    """With an imperfect score, at equal evaluations: who corrects the error?"""
    schedule = VPCosine()
    samplers: dict[str, Sampler] = {
        "ODE: DPM-Solver++ 2M": DPMSolverPP(),
        "SDE: DPM-Solver++ 2M": DPMSolverPP(eta=1.0),
        "ODE, then SDE below t = 0.4": Switch(DPMSolverPP(), DPMSolverPP(eta=1.0), 0.4),
        "SDE, then ODE below t = 0.4": Switch(DPMSolverPP(eta=1.0), DPMSolverPP(), 0.4),
        "restarts, 0.1 to 0.4, 2 x 4 steps": Restart(DPMSolverPP(), 0.1, 0.4, 2, 4),
        "predictor-corrector": PredictorCorrector(DPMSolverPP()),
    }
    rows = []
    for name, sampler in samplers.items():
        for evaluations in (20, 100):
            for label, denoise in (("exact", target(schedule)), ("imperfect", wrong(schedule))):
                x = draws(denoise, schedule, sampler, evaluations)
                rows.append({"sampler": name, "evaluations": evaluations, "score": label, "distance": distance(x)})
    return rows


def inversion_rows() -> Rows:
    """Round trips through the latent."""
    schedule = VPCosine()
    x, rows = data(256, 5), []
    for steps in (10, 20, 50, 100, 200, 500, 1000):
        times = UniformLogSNR().times(schedule, steps)[::-1]
        error = reconstruct(target(schedule), schedule, x, DDIM(), times).error
        rows.append({"solver": f"DDIM, {steps} steps", "error": error.median().item()})
    for tolerance in (1e-3, 1e-5, 1e-7):
        error = reconstruct(target(schedule), schedule, x, DormandPrince(tolerance, tolerance)).error
        rows.append({"solver": f"Dormand-Prince, {tolerance:g}", "error": error.max().item()})
    return rows


def likelihood_rows() -> Rows:
    """Errors of log-densities, in nats, against the mixture's own."""
    schedule = VPCosine()
    exact, x, rows = target(schedule), data(64, 6), []
    for name, divergence, solver, steps in (
        ("exact trace, Dormand-Prince 1e-6", Exact(), DormandPrince(1e-6, 1e-6), 1),
        ("exact trace, Dormand-Prince 1e-3", Exact(), DormandPrince(1e-3, 1e-3), 1),
        ("exact trace, RK4 x 100", Exact(), RK4(), 100),
        (
            "16 signs, Dormand-Prince 1e-6",
            Rademacher(16, torch.Generator().manual_seed(0)),
            DormandPrince(1e-6, 1e-6),
            1,
        ),
    ):
        found = log_prob(exact, schedule, x, divergence, solver, steps, prior=lambda z: exact.log_prob(z, 1.0))
        rows.append(
            {
                "method": name,
                "evaluations": found.evaluations,
                "error_mean": (found.value - exact.log_prob(x)).abs().mean().item(),
                "error_max": (found.value - exact.log_prob(x)).abs().max().item(),
                "standard_error": found.standard_error.mean().item(),
            }
        )
    return rows


def path_rows() -> Rows:
    """Straightness of the probability flow, and what one step of DDIM makes of it."""
    rows = []
    for schedule in (VPCosine(), VPLinear(), Rectified()):
        x = start(schedule, torch.empty(2000, 2, dtype=torch.float64), per_sample(range(2000)))
        states = trace(target(schedule), schedule, DPMSolverPP(), UniformTime().times(schedule, 500), x)
        rows.append({"schedule": type(schedule).__name__, "straightness": path(states).straightness.mean().item()})
    return rows


SECTIONS: dict[str, Callable[[], Rows]] = {
    "forward process (docs/theory/forward.md)": forward_rows,
    "few evaluations and diversity (ode.md, sde.md)": few_rows,
    "imperfect score (hybrid.md)": hybrid_rows,
    "round trips (ode.md)": inversion_rows,
    "likelihood (likelihood.md)": likelihood_rows,
    "straightness (ode.md)": path_rows,
}


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A table with the keys of the rows as its head."""
    cells = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(rows[0], *cells, strict=True)]
    for line in (list(rows[0]), *cells):
        print("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)))


def main() -> None:
    """Measure and print."""
    begin, results = time.perf_counter(), {}
    for title, rows in SECTIONS.items():
        results[title] = rows()
        print(f"\n{title}")
        show(results[title])
    print(json.dumps({"sections": results, "seconds": time.perf_counter() - begin, "machine": machine()}))


if __name__ == "__main__":
    main()
