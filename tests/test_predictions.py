import pytest
import torch

from poise.denoisers import Diffusion, Gaussian
from poise.draws import Draws
from poise.nn import Network
from poise.objectives import LogitNormal, Uniform
from poise.predictions import Clean, Epsilon, Flow, Score, Velocity
from poise.schedules import VE, Karras, Rectified, SubVP, Tabulated, VPCosine, VPLinear
from poise.testing import check_prediction

PREDICTIONS = [Epsilon(), Clean(), Velocity(), Flow(), Score()]
SCHEDULES = [VPLinear(), SubVP(), VPCosine(), Rectified(), VE(), Karras(), Tabulated.squared_cosine(100)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("prediction", PREDICTIONS, ids=lambda p: type(p).__name__)
def test_conformance(prediction, schedule):
    check_prediction(prediction, schedule)


class Exact(Network):
    """The network whose denoiser is exact for a Gaussian: outputs what `prediction` would of E[x0 | x_t]."""

    def __init__(self, denoise, schedule, prediction):
        super().__init__()
        self.denoise, self.schedule, self.prediction = denoise, schedule, prediction

    def prepare(self, tokens):
        return tokens

    def forward(self, x, log_snr, prepared):
        t = self.schedule.time(log_snr)
        scale = torch.hypot(self.schedule.alpha(t), self.schedule.sigma(t))[:, None, None]
        x = x * scale
        x0 = torch.cat([self.denoise(x[i : i + 1], t[i].item()) for i in range(len(x))])
        alpha, sigma = self.schedule.alpha(t)[:, None, None], self.schedule.sigma(t)[:, None, None]
        return self.prediction.target(self.schedule, x0, (x - alpha * x0) / sigma, t)


@pytest.mark.parametrize("schedule", [VPCosine(), Rectified()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("prediction", PREDICTIONS, ids=lambda p: type(p).__name__)
def test_the_minimum_of_the_loss_is_the_bayes_risk(prediction, schedule):
    """The exact denoiser reaches E[(b - a sigma/alpha)^2-weighted posterior variance], and any other does worse."""
    variance, tokens = 0.25, torch.zeros(800, 1, 1, dtype=torch.float64)
    gaussian = Gaussian(
        schedule, torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), variance, dtype=torch.float64)
    )
    x0 = torch.randn(800, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * variance**0.5
    density = LogitNormal(std=0.5)
    diffusion = Diffusion(Exact(gaussian, schedule, prediction), schedule, prediction)
    draws = Draws(torch.Generator().manual_seed(1))
    t, eps = density.quantile(draws.stratified(800)[0]).double(), draws.normal(800, 1, 1).double()
    losses = diffusion.loss(x0, eps, t, tokens).flatten()
    # y - E[y | x_t] = (a - b alpha / sigma) (x0 - E[x0 | x_t]), whose variance is the posterior's.
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    a, b = prediction.row(schedule, t)
    risk = (a - b * alpha / sigma) ** 2 * variance * sigma**2 / (alpha**2 * variance + sigma**2)
    standard_error = (losses - risk).std() / 800**0.5
    assert abs((losses - risk).mean()) < 4 * standard_error
    worse = Gaussian(schedule, gaussian.mean + 0.3, gaussian.variance)
    spoiled = Diffusion(Exact(worse, schedule, prediction), schedule, prediction)
    assert spoiled.loss(x0, eps, t, tokens).mean() > losses.mean()


@pytest.mark.parametrize("density", [Uniform(), LogitNormal(0.5, 0.8)], ids=["uniform", "logit-normal"])
def test_times_are_stratified_and_follow_the_density(density):
    times = density.quantile(Draws(torch.Generator().manual_seed(0)).stratified(1000)[0]).sort().values
    expected = density.quantile((torch.arange(1000) + 0.5) / 1000)
    assert (times - expected).abs().max() < 0.02
    assert times.min() >= 0
    assert times.max() <= 1
    again = density.quantile(Draws(torch.Generator().manual_seed(0)).stratified(1000)[0]).sort().values
    assert torch.equal(times, again)


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=lambda p: type(p).__name__)
def test_given_equals_forward(prediction):
    schedule = VPCosine()
    gaussian = Gaussian(schedule, torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64) / 3)
    diffusion = Diffusion(Exact(gaussian, schedule, prediction), schedule, prediction)
    x, tokens = torch.randn(3, 4, 2, dtype=torch.float64), torch.zeros(3, 1, 1, dtype=torch.float64)
    bound = diffusion.given(tokens)(x, 0.4)
    torch.testing.assert_close(bound, diffusion(x, torch.full((3,), 0.4, dtype=torch.float64), tokens))
    torch.testing.assert_close(bound, gaussian(x, 0.4))
