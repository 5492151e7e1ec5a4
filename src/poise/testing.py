"""Conformance tests: what every schedule, prediction, sampler, network and encoder must hold, ours and yours.

Each `check_*` takes one object and raises AssertionError with a message where it breaks its contract:

    from poise.testing import check_sampler
    check_sampler(MySampler())
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from poise.denoisers import Gaussian, Mixture
from poise.nn import Encoder, EncoderSpec, Network, NetworkSpec
from poise.predictions import Prediction
from poise.sampling import Sampler, UniformTime, brownian, gaussian, gaussian_law, per_sample, sample, trace
from poise.schedules import Schedule, VPCosine

_DOUBLE = torch.float64


def check_schedule(schedule: Schedule) -> None:
    """Monotone and finite log-SNR, positive alpha and sigma, the inverse, and rates against finite differences."""
    t = torch.linspace(0, 1, 2001, dtype=_DOUBLE)
    alpha, sigma, log_snr = schedule.alpha(t), schedule.sigma(t), schedule.log_snr(t)
    _require(bool((alpha > 0).all() & (sigma > 0).all()), f"{schedule}: alpha and sigma must be above zero on [0, 1]")
    _require(bool(torch.isfinite(log_snr).all()), f"{schedule}: log_snr must be finite on [0, 1]")
    _require(bool((log_snr.diff() < 0).all()), f"{schedule}: log_snr must strictly decrease with t")
    _near(log_snr, torch.log(alpha / sigma), 1e-8, f"{schedule}: log_snr is not log(alpha / sigma)")
    _near(schedule.time(log_snr), t, 1e-8, f"{schedule}: time does not invert log_snr")
    # Midpoints of the cells, so that a table's kinks at round times are not straddled.
    middle, h = (t[1:] + t[:-1])[::7] / 2, 1e-7
    for name, function, rate in zip(
        ("alpha", "sigma"), (schedule.alpha, schedule.sigma), schedule.rates(middle), strict=True
    ):
        difference = (function(middle + h) - function(middle - h)) / (2 * h)
        scale = rate.abs().clamp_min(1.0)
        _near(rate / scale, difference / scale, 1e-5, f"{schedule}: the rate of {name} is not its derivative")
    level = schedule.at(0.5)
    _near(
        torch.tensor(level.alpha, dtype=_DOUBLE),
        schedule.alpha(torch.tensor(0.5, dtype=_DOUBLE)),
        1e-12,
        f"{schedule}: at(0.5)",
    )
    single = schedule.log_snr(t.float())
    _near(single.double(), log_snr, 2e-2, f"{schedule}: float32 strays from float64")


def check_prediction(prediction: Prediction, schedule: Schedule) -> None:
    """The target and its inversion agree in float32 and float64, for any shape, also square ones."""
    generator = torch.Generator().manual_seed(0)
    for dtype, tolerance in ((torch.float32, 2e-3), (_DOUBLE, 1e-9)):
        for shape in ((5,), (5, 5), (4, 3, 2)):
            x0, eps = (torch.randn(shape, generator=generator, dtype=_DOUBLE).to(dtype) for _ in range(2))
            t = torch.linspace(0.02, 0.98, shape[0], dtype=dtype)
            expand = (-1, *[1] * (len(shape) - 1))
            x = schedule.alpha(t).reshape(expand) * x0 + schedule.sigma(t).reshape(expand) * eps
            y = prediction.target(schedule, x0, eps, t)
            clean = prediction.clean(schedule, x, y, t)
            # Recovering x0 from eps divides by alpha: the rounding of x is magnified by 1 / alpha.
            scale = (1 + 1 / schedule.alpha(t)).reshape(expand)
            message = f"{prediction} on {schedule}, {dtype}, {shape}: clean does not invert target"
            _near(clean / scale, x0 / scale, tolerance, message)


@dataclass(frozen=True)
class Scaled(Schedule):
    """A schedule with alpha and sigma times a constant: the same diffusion in other units."""

    base: Schedule = VPCosine()
    factor: float = 3.0

    def alpha(self, t: Tensor) -> Tensor:
        """Times the factor."""
        return self.factor * self.base.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Times the factor."""
        return self.factor * self.base.sigma(t)

    def time(self, log_snr: Tensor) -> Tensor:
        """Unchanged."""
        return self.base.time(log_snr)


def asymmetric_mixture(schedule: Schedule) -> Mixture:
    """A mixture in one dimension without any symmetry that could raise an order by accident."""
    means = torch.tensor([[-1.2], [0.3], [1.5]], dtype=_DOUBLE)
    return Mixture(schedule, means, 0.35, torch.tensor([0.2, 0.5, 0.3], dtype=_DOUBLE))


def transport(mixture: Mixture, x: Tensor, t: float, s: float) -> Tensor:
    r"""Where the probability-flow ODE takes `x` of shape `(B, 1)` from time `t` to time `s`, in closed form.

    In one dimension the flow keeps the order of the samples, so it maps quantiles to quantiles,

    $$ x_s = F_s^{-1}\big(F_t(x_t)\big), $$

    with F the cumulative distributions; inverted by bisection.
    """
    target = mixture.cdf(x, t)
    low, high = torch.full_like(x, -60.0), torch.full_like(x, 60.0)
    for _ in range(80):
        middle = (low + high) / 2
        below = mixture.cdf(middle, s) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def observed_order(sampler: Sampler, schedule: Schedule, target: str, steps: int = 400) -> float:
    """Slope of the error against the number of steps (`steps` to twice as many), from t = 0.8 to t = 0.2.

    The two strides before the equal ones are as short as the square of theirs, so that what a multistep method does
    without a past does not count.

    Args:
        sampler: A deterministic sampler.
        schedule: Any schedule.
        target: `gaussian` or `mixture`; both have their ODE's solution in closed form.
        steps: The coarser number of steps.
    """
    begin, end = 0.8, 0.2
    x = torch.linspace(-1.5, 1.5, 7, dtype=_DOUBLE)[:, None]
    if target == "gaussian":
        denoise = Gaussian(schedule, torch.tensor([0.7], dtype=_DOUBLE), torch.tensor([0.2], dtype=_DOUBLE))
        exact = denoise.flow(x, begin, end)
    else:
        denoise = asymmetric_mixture(schedule)
        exact = transport(denoise, x, begin, end)
    errors = []
    for n in (steps, 2 * steps):
        brief = ((begin - end) / n) ** 2
        times = [begin, begin - brief, *(begin - 2 * brief + (end - begin + 2 * brief) * i / n for i in range(n + 1))]
        got = sample(denoise, schedule, sampler, times, x).x
        errors.append((got - exact).abs().mean().item())
    return math.log2(errors[0] / errors[1])


def weak_order(sampler: Sampler, schedule: Schedule, steps: int = 40) -> float:
    """Slope of the error of the variance on a Gaussian (`steps` to twice as many), by the exact law of the sampler."""
    begin, end = 0.8, 0.2
    variance = torch.tensor([0.2, 0.6, 3.0], dtype=_DOUBLE)
    first, last = (level.alpha**2 * variance + level.sigma**2 for level in (schedule.at(begin), schedule.at(end)))
    errors = []
    for n in (steps, 2 * steps):
        times = [begin + (end - begin) * i / n for i in range(n + 1)]
        errors.append((gaussian_law(sampler, schedule, times, variance, first) - last).abs().sum().item())
    return math.log2(errors[0] / errors[1])


def strong_order(sampler: Sampler, schedule: Schedule, steps: int = 32, paths: int = 64) -> float:
    """Slope of the distance to the same sampler on the same Brownian paths with twice as many steps, on a mixture."""
    begin, end, noise = 0.8, 0.2, brownian(range(paths))
    denoise, x = asymmetric_mixture(schedule), torch.linspace(-1.5, 1.5, paths, dtype=_DOUBLE)[:, None]
    results = []
    for n in (steps, 2 * steps, 4 * steps):
        times = [begin + (end - begin) * i / n for i in range(n + 1)]
        results.append(sample(denoise, schedule, sampler, times, x, noise).x)
    coarse, fine = ((a - b).square().mean().sqrt().item() for a, b in zip(results, results[1:], strict=False))
    return math.log2(coarse / fine)


def check_sampler(sampler: Sampler, schedule: Schedule | None = None) -> None:
    """Order, counted evaluations, budgets, determinism, independence of the batch, moments, and scaling."""
    schedule = schedule or VPCosine()
    _check_evaluations(sampler, schedule)
    _check_batch_independence(sampler, schedule)
    _check_scaling(sampler, schedule)
    _check_moments(sampler, schedule)
    if _draws_noise(sampler, schedule) or not sampler.evaluations:
        return
    for target in ("gaussian", "mixture"):
        order = observed_order(sampler, schedule, target)
        _require(
            order > sampler.order - 0.2, f"{sampler}: observed order {order:.2f} on a {target}, not {sampler.order}"
        )


def _draws_noise(sampler: Sampler, schedule: Schedule) -> bool:
    calls = []

    def spy(x: Tensor, t: float, s: float) -> Tensor:
        calls.append(x)
        return torch.zeros_like(x)

    times = UniformTime().times(schedule, 10)
    sample(asymmetric_mixture(schedule), schedule, sampler, times, torch.ones(2, 1, dtype=_DOUBLE), spy)
    return bool(calls)


def _check_evaluations(sampler: Sampler, schedule: Schedule) -> None:
    if not sampler.evaluations:
        _require(sampler.budget(7) == (sampler,), f"{sampler}: a tolerance decides, but a budget is several steps")
        return
    denoise, x = asymmetric_mixture(schedule), torch.ones(2, 1, dtype=_DOUBLE)
    counts = [state.evaluations for state in trace(denoise, schedule, sampler, [1.0, 0.7, 0.3, 0.0], x)]
    declared = 3 * sampler.evaluations + sampler.extra
    _require(counts[-1] == declared, f"{sampler}: counted evaluations {counts}, declared {declared}")
    for budget in (sampler.extra + steps * sampler.evaluations for steps in (1, 2, 7)):
        samplers = sampler.budget(budget)
        times = UniformTime().times(schedule, len(samplers))
        spent = sample(denoise, schedule, samplers, times, x).evaluations
        _require(spent == budget, f"{sampler}: spent {spent} of a budget of {budget}")


def _check_batch_independence(sampler: Sampler, schedule: Schedule) -> None:
    denoise, times = asymmetric_mixture(schedule), UniformTime().times(schedule, 8)
    x = torch.linspace(-1, 1, 6, dtype=_DOUBLE)[:, None]
    together = sample(denoise, schedule, sampler, times, x, per_sample(range(6))).x
    again = sample(denoise, schedule, sampler, times, x, per_sample(range(6))).x
    _require(torch.equal(together, again), f"{sampler}: the same seeds gave two results")
    if sampler.evaluations:  # strides by a tolerance are common to the batch
        alone = torch.cat(
            [sample(denoise, schedule, sampler, times, x[i : i + 1], per_sample([i])).x for i in range(6)]
        )
        _near(together, alone, 1e-12, f"{sampler}: a sample depends on its batch")


def _check_scaling(sampler: Sampler, schedule: Schedule) -> None:
    """In units that are c times smaller everything is c times larger; the denoiser's `x0` stays."""
    scaled, times = Scaled(schedule), UniformTime().times(schedule, 6)
    x = torch.linspace(-1, 1, 5, dtype=_DOUBLE)[:, None]
    base = sample(asymmetric_mixture(schedule), schedule, sampler, times, x, per_sample(range(5))).x
    other = sample(asymmetric_mixture(scaled), scaled, sampler, times, scaled.factor * x, per_sample(range(5))).x
    if sampler.evaluations:  # an absolute tolerance has units
        _near(other / scaled.factor, base, 1e-9, f"{sampler}: the result depends on the units of the diffusion")


def _check_moments(sampler: Sampler, schedule: Schedule, count: int = 20_000) -> None:
    mean, variance = torch.tensor([0.4], dtype=_DOUBLE), torch.tensor([0.3], dtype=_DOUBLE)
    denoise, level = Gaussian(schedule, mean, variance), schedule.at(1.0)
    noise = gaussian(torch.Generator().manual_seed(0))
    spread = torch.sqrt(level.alpha**2 * variance + level.sigma**2)
    x = level.alpha * mean + spread * noise(torch.empty(count, 1, dtype=_DOUBLE), 1.0, 1.0)
    steps = 250 if sampler.evaluations else 20  # which a tolerance divides further
    x = sample(denoise, schedule, sampler, UniformTime().times(schedule, steps), x, noise).x
    last = schedule.at(0.0)
    expected_mean, expected = last.alpha * mean, last.alpha**2 * variance + last.sigma**2
    # Five standard errors, and one per cent for the strides.
    error = 5 * torch.sqrt(expected / count) + 0.01 * torch.sqrt(expected)
    _require(bool((x.mean(0) - expected_mean).abs() < error), f"{sampler}: mean {x.mean(0)}, exact {expected_mean}")
    ratio = x.var(0) / expected
    _require(bool((ratio - 1).abs() < 5 * math.sqrt(2 / count) + 0.02), f"{sampler}: variance off by {ratio}")


def check_network(spec: NetworkSpec, horizon: int = 16, action: int = 3) -> None:
    """Every parameter and input matters, no output depends on its batch or on earlier calls, the state dict is all.

    In evaluation mode, at several sizes, in float64, float32 and under bfloat16 autocast.
    """
    torch.manual_seed(0)
    network = spec.build(horizon, action, (2, 5)).double().eval()
    _randomise(network)
    given = x, log_snr, tokens = _network_inputs(4, horizon, action, (2, 5))
    y = _output(network, *given)
    y.square().sum().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    _require(not idle, f"{spec}: no gradient reaches {idle}")
    with torch.no_grad():
        _check_inputs(spec, network, given)
        alone = torch.cat([_output(network, *(values[i : i + 1] for values in given)) for i in range(4)])
        _near(alone, y, 1e-9, f"{spec}: an output depends on its batch")
        prepared = network.prepare(tokens)
        for shift in (0.5, -0.5, 0.5, 0.0):
            fresh = _output(network, x, log_snr + shift, tokens)
            _near(network(x, log_snr + shift, prepared), fresh, 1e-9, f"{spec}: a call changes what was prepared")
        twin = spec.build(horizon, action, (2, 5)).double().eval()
        twin.load_state_dict(network.state_dict())
        _require(torch.equal(_output(twin, *given), y), f"{spec}: the state dict is not all")
        for sizes in ((horizon, action, (2, 5)), (2 * horizon, action + 1, (1, 7)), (horizon, 1, (3, 2))):
            other, values = spec.build(*sizes).eval(), _network_inputs(2, *sizes)
            got = other(*(v.float() for v in values[:2]), other.prepare(values[2].float()))
            _require(got.shape == values[0].shape, f"{spec}: output {tuple(got.shape)} for {tuple(values[0].shape)}")
        _check_precisions(spec, network, given, y)


def _network_inputs(batch: int, horizon: int, action: int, tokens: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, c = (torch.randn(batch, *s, generator=generator, dtype=_DOUBLE) for s in ((horizon, action), tokens))
    return x, torch.linspace(-3, 3, batch, dtype=_DOUBLE), c


def _output(network: Network, x: Tensor, log_snr: Tensor, tokens: Tensor) -> Tensor:
    return network(x, log_snr, network.prepare(tokens))


def _check_inputs(spec: NetworkSpec, network: Network, given: tuple[Tensor, Tensor, Tensor]) -> None:
    """Each output depends on each input, on each token, on their order, and on the order of the steps of the plan."""
    (x, log_snr, tokens), y = given, _output(network, *given)
    rounding = 1e-11 * y.norm()  # what is far above it was no accident, however little a fresh network heeds it
    changed = {"x": (x + 0.1, log_snr, tokens), "log_snr": (x, log_snr + 0.5, tokens)}
    for i in range(tokens.shape[1]):
        without = tokens.clone()
        without[:, i] = 0
        changed[f"token {i}"] = x, log_snr, without
    changed["the order of the tokens"] = x, log_snr, tokens.flip(1)
    for name, values in changed.items():
        moved = (_output(network, *values) - y).flatten(1).norm(dim=1).min()
        _require(bool(moved > rounding), f"{spec}: {name} does not matter")
    flipped = _output(network, x.flip(1), log_snr, tokens).flip(1)
    _require(bool((flipped - y).norm() > rounding), f"{spec}: the order of the steps does not matter")


def _check_precisions(spec: NetworkSpec, network: Network, given: tuple[Tensor, Tensor, Tensor], y: Tensor) -> None:
    network, scale = network.float(), y.abs().max().item()
    single = [values.float() for values in given]
    _near(_output(network, *single).double(), y, 1e-4 * scale, f"{spec}: float32 strays from float64")
    with torch.autocast("cpu", torch.bfloat16):
        half = _output(network, *single)
    _near(half.double(), y, 0.1 * scale, f"{spec}: bfloat16 autocast strays from float64")


_STATES = {"joints": (4,), "pose": (2, 3)}
_IMAGES = {"left": (48, 48, 3), "right": (96, 48, 3)}


def check_encoder(spec: EncoderSpec, shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
    """Declared tokens, dependence on every feature and step, not on the batch; gradients; the state dict.

    Args:
        spec: The encoder.
        shapes: Its features; by default states, images of two sizes, and both, of which it may refuse some, not all.
    """
    accepted = 0
    for features in (_STATES, _IMAGES, {**_STATES, **_IMAGES}) if shapes is None else (shapes,):
        torch.manual_seed(0)
        try:
            encoder = spec.build(features, 2)
        except ValueError as error:
            _require(bool(str(error)), f"{spec}: refuses {features} without a message")
            continue
        accepted += 1
        _check_encoder(spec, encoder.eval(), features)
    _require(accepted > 0, f"{spec}: refuses states, images, and both: name its features in shapes")


def _check_encoder(spec: EncoderSpec, encoder: Encoder, shapes: Mapping[str, tuple[int, ...]]) -> None:
    observation = {name: torch.randn(3, 2, *shape) for name, shape in shapes.items()}
    tokens = encoder(observation)
    _require(tokens.shape == (3, *encoder.tokens), f"{spec}: tokens {tuple(tokens.shape)}, declared {encoder.tokens}")
    if parameters := {name: p for name, p in encoder.named_parameters() if p.requires_grad}:
        (tokens * torch.randn_like(tokens)).sum().backward()
        idle = [name for name, p in parameters.items() if p.grad is None or not p.grad.abs().sum() > 0]
        _require(not idle, f"{spec}: no gradient reaches {idle}")
    with torch.no_grad():
        for name, values in observation.items():
            for step in range(2):
                moved = values.clone()
                moved[:, step] = torch.randn_like(moved[:, step])
                change = (encoder({**observation, name: moved}) - tokens).flatten(1).norm(dim=1).min()
                _require(bool(change > 1e-4), f"{spec}: step {step} of {name!r} does not matter")
        alone = encoder({name: values[1:2] for name, values in observation.items()})
        _near(alone, tokens[1:2], 1e-5, f"{spec}: tokens depend on the batch")
        twin = spec.build(shapes, 2).eval()
        twin.load_state_dict(encoder.state_dict())
        _require(torch.equal(twin(observation), encoder(observation)), f"{spec}: the state dict is not all")


def _randomise(module: torch.nn.Module) -> None:
    """Give layers that start at zero, such as gates, something to pass on."""
    for parameter in module.parameters():
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.1)


def _near(got: Tensor, expected: Tensor, tolerance: float, message: str) -> None:
    error = (got - expected).abs().max().item()
    _require(error <= tolerance, f"{message} (largest error {error:.3g}, allowed {tolerance:.3g})")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


__all__ = [
    "Scaled",
    "asymmetric_mixture",
    "check_encoder",
    "check_network",
    "check_prediction",
    "check_sampler",
    "check_schedule",
    "observed_order",
    "strong_order",
    "transport",
    "weak_order",
]
