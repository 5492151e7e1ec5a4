import dataclasses
import math

import numpy as np
import pytest
import torch

from poise.data import Episodes, Windows
from poise.denoisers import Diffusion
from poise.draws import Draws
from poise.nn import MLP, Network
from poise.objectives import LogitNormal
from poise.plain import concrete
from poise.policies import EDM, DiffusionPolicy, LogitNormalWeight, MinSNR, PolicySpec, Unit, Weighting
from poise.predictions import Clean, Epsilon, Flow, Score, Velocity
from poise.schedules import Karras, Rectified, VPCosine, VPLinear

PREDICTIONS = [Epsilon(), Clean(), Velocity(), Flow(), Score()]
OF_CLEAN = [MinSNR(), MinSNR(1.0), EDM(), EDM(1.3), LogitNormalWeight(), LogitNormalWeight(0.4, 0.7)]
TIMES = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
SPEC = PolicySpec({"side": (1,)}, 1, history=1, horizon=2, execute=1, network=MLP(width=8, depth=1, condition=4))


class Fixed(Network):
    """The network whose x0 is a fixed function of x_t and the level, whatever the prediction."""

    def __init__(self, schedule, prediction):
        super().__init__()
        self.schedule, self.prediction = schedule, prediction

    def prepare(self, tokens):
        return tokens

    def forward(self, x, log_snr, prepared):
        t = self.schedule.time(log_snr)
        alpha, sigma = (c[:, None, None] for c in (self.schedule.alpha(t), self.schedule.sigma(t)))
        x = x * torch.hypot(alpha, sigma)
        x0 = torch.tanh(x) + 0.3 * log_snr[:, None, None]
        return self.prediction.target(self.schedule, x0, (x - alpha * x0) / sigma, t)


@pytest.mark.parametrize("schedule", [VPCosine(), Rectified(), Karras()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("weighting", OF_CLEAN, ids=str)
def test_the_weighted_loss_of_a_denoiser_is_one_number_for_every_prediction(weighting, schedule):
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(19, 3, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    alpha, sigma = schedule.alpha(TIMES)[:, None, None], schedule.sigma(TIMES)[:, None, None]
    error = torch.tanh(alpha * x0 + sigma * eps) + 0.3 * schedule.log_snr(TIMES)[:, None, None] - x0
    expected = weighting.clean(schedule, TIMES)[:, None, None] * error.square()
    for prediction in PREDICTIONS:
        diffusion = Diffusion(Fixed(schedule, prediction), schedule, prediction)
        losses = diffusion.loss(x0, eps, TIMES, torch.zeros(19, 1, 1))
        factor = weighting.factor(prediction, schedule, TIMES)[:, None, None]
        torch.testing.assert_close(factor * losses, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", [VPCosine(), VPLinear()], ids=lambda s: type(s).__name__)
def test_min_snr_is_as_published_on_variance_preserving_schedules(schedule):
    snr = (schedule.alpha(TIMES) / schedule.sigma(TIMES)).square()
    clamped = snr.clamp_max(5.0)
    assert (snr > 5).any()
    assert (snr < 5).any()
    for prediction, published in ((Epsilon(), clamped / snr), (Clean(), clamped), (Velocity(), clamped / (snr + 1))):
        torch.testing.assert_close(MinSNR(5.0).factor(prediction, schedule, TIMES), published, rtol=1e-9, atol=0)


def test_edm_weighs_the_output_of_the_preconditioned_network_with_one():
    schedule, data = Karras(), 0.5
    sigma = schedule.sigma(TIMES)
    c_out = sigma * data / torch.sqrt(sigma.square() + data**2)
    torch.testing.assert_close(EDM(data).clean(schedule, TIMES) * c_out.square(), torch.ones(19).double())
    published = (sigma.square() + data**2) / (sigma * data).square()
    torch.testing.assert_close(EDM(data).factor(Clean(), schedule, TIMES), published)


@pytest.mark.parametrize("schedule", [VPCosine(), Rectified(), Karras()], ids=lambda s: type(s).__name__)
def test_velocity_has_the_weighting_of_edm_for_data_of_unit_deviation(schedule):
    torch.testing.assert_close(EDM(1.0).factor(Velocity(), schedule, TIMES), torch.ones(19).double())


def test_the_logit_normal_weight_is_the_density_of_times_on_a_straight_line():
    """By quadrature: the mean over uniform times of factor x loss is that over logit-normal times of the loss."""
    schedule, (mean, std) = Rectified(margin=0.0), (0.4, 0.7)
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    loss = torch.cos(3 * u) + u.square()
    weighted = (LogitNormalWeight(mean, std).factor(Flow(), schedule, u) * loss).mean()
    t = LogitNormal(mean, std).quantile(u)
    torch.testing.assert_close(weighted, (torch.cos(3 * t) + t.square()).mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("level", [1e-4, 1 - 1e-4])
@pytest.mark.parametrize("weighting", [kind() for kind in concrete(Weighting).values()], ids=str)
def test_weights_are_finite_near_both_ends(weighting, level):
    for prediction in PREDICTIONS:
        for schedule in (VPCosine(), Rectified(), Karras()):
            assert weighting.factor(prediction, schedule, torch.tensor([level])).isfinite().all()


@pytest.mark.parametrize("weighting", [Unit(), MinSNR(), EDM(1.0)], ids=str)
def test_a_policy_learns_by_its_weighting(weighting):
    """The loss of a policy is the plain one times the factor at the times that were drawn."""
    side = np.linspace(0.2, 1, 50, dtype=np.float32)[:, None]
    windows = Windows(Episodes({"side": side, "action": side}, np.arange(1, 51)), ("side",), 1, 2, 1)
    plain = DiffusionPolicy(dataclasses.replace(SPEC, draws=3))
    plain.fit(windows)
    weighted = DiffusionPolicy(dataclasses.replace(plain.spec, weighting=weighting))
    weighted.load_state_dict(plain.state_dict())
    batch, level = windows[torch.arange(50)], 0.3
    draws = lambda: Draws(torch.Generator().manual_seed(0), level=level)  # noqa: E731
    factor = weighting.factor(SPEC.prediction, SPEC.schedule, torch.tensor(level)).item()
    assert (factor == 1) == (weighting == Unit())
    torch.testing.assert_close(weighted.loss(batch, draws()), factor * plain.loss(batch, draws()))


@pytest.mark.parametrize("make", [lambda: MinSNR(0), lambda: EDM(-1.0), lambda: LogitNormalWeight(std=math.inf)])
def test_bad_weightings_are_explained(make):
    with pytest.raises(
        ValueError, match=r"(MinSNR got gamma=0|EDM got sigma_data=-1.0|got std=inf), expected a finite"
    ):
        make()
