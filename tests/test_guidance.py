import math

import pytest
import torch
from test_networks import NETWORKS

from poise.denoisers import Diffusion, Gaussian, Mixture
from poise.guidance import classified, clipped, guided, identity, inpainted, prefixed, steered, thresholded, vjp
from poise.nn import MLP
from poise.policies import DiffusionPolicy, PolicySpec
from poise.predictions import Epsilon
from poise.sampling import DDIM, UniformTime, gaussian, per_sample, sample
from poise.schedules import Rectified, VPCosine
from poise.testing import Scaled

DOUBLE = torch.float64
SCHEDULES = [VPCosine(), Rectified(), Scaled(VPCosine())]
by_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


def draw(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def near(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


def normal(schedule, dtype=DOUBLE):
    """The denoiser of N(0, I)."""
    return Gaussian(schedule, torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype))


class Correlated:
    """The exact denoiser of plans (B, T, A) with smooth columns N(0, S): alpha S (alpha^2 S + sigma^2)^-1 x."""

    def __init__(self, schedule, horizon=8, length=2.0, dtype=DOUBLE):
        time = torch.arange(horizon, dtype=DOUBLE)
        self.schedule, self.dtype = schedule, dtype
        self.covariance = 0.95 * torch.exp(-(((time[:, None] - time) / length) ** 2) / 2) + 0.05 * torch.eye(
            horizon, dtype=DOUBLE
        )

    def jacobian(self, t):
        level = self.schedule.at(t)
        noisy = level.alpha**2 * self.covariance + level.sigma**2 * torch.eye(len(self.covariance), dtype=DOUBLE)
        return (level.alpha * self.covariance @ torch.linalg.inv(noisy)).to(self.dtype)

    def __call__(self, x, t):
        return self.jacobian(t) @ x

    def conditional_mean(self, prefix):
        d = prefix.shape[1]
        return self.covariance[d:, :d] @ torch.linalg.inv(self.covariance[:d, :d]) @ prefix


def generate(denoise, schedule, shape, evaluations=50, seed=1):
    level = schedule.at(1.0)
    x = math.hypot(level.alpha, level.sigma) * draw(*shape, seed=seed)
    return sample(denoise, schedule, DDIM(), UniformTime().times(schedule, evaluations), x).x


def test_vjp_is_the_transposed_jacobian():
    """With columns of a matrix that is not symmetric, and a nonlinearity."""
    matrix, x, c = draw(4, 4), draw(3, 4, seed=1), draw(3, 4, seed=2)
    x0, transpose = vjp(lambda x, t: torch.tanh(x @ matrix.T) * t, x, 0.5)
    slope = (1 - torch.tanh(x @ matrix.T) ** 2) * 0.5
    near(x0, torch.tanh(x @ matrix.T) * 0.5)
    near(transpose(c), (slope * c) @ matrix)
    near(transpose(2 * c), 2 * transpose(c))


def test_vjp_returns_detached_tensors_and_leaves_its_input_alone():
    x = draw(2, 3)
    x0, transpose = vjp(lambda x, t: x.square(), x, 0.5)
    assert not x0.requires_grad
    assert not transpose(x0).requires_grad
    assert not x.requires_grad


def test_vjp_may_use_what_was_captured_in_inference_mode():
    matrix = draw(3, 3, seed=1)
    expected = draw(2, 3) @ (matrix @ matrix).T
    with torch.inference_mode():
        matrix = draw(3, 3, seed=1)
        square = (matrix @ matrix).T
        for function in (
            lambda x, t: torch.linalg.multi_dot([x, matrix, matrix]),
            lambda x, t: torch.einsum("bi,ij,jk->bk", x, matrix, matrix),
            lambda x, t: torch.nn.functional.linear(input=x, weight=square),
        ):
            near(vjp(function, draw(2, 3), 0.5)[1](draw(2, 3)), expected)


@by_schedule
def test_classifier_guidance_is_the_exact_posterior(schedule):
    """Prior N(m, v), an observation y = x0 + N(0, r): the posterior is Gaussian too, and so is p(y | x_t)."""
    mean, variance, y, r = draw(3), draw(3, seed=1).exp(), draw(3, seed=2), 0.3
    prior, x = Gaussian(schedule, mean, variance), draw(5, 3, seed=3)
    gain = variance / (variance + r)
    posterior = Gaussian(schedule, mean + gain * (y - mean), gain * r)

    def log_likelihood(x, t):
        level = schedule.at(t)
        left = variance * level.sigma**2 / (level.alpha**2 * variance + level.sigma**2)  # of x0 given x_t
        return (-((y - prior(x, t)) ** 2) / (2 * (left + r))).sum(1)

    for t in (0.05, 0.5, 0.95):
        near(classified(prior, schedule, log_likelihood)(x, t), posterior(x, t), 1e-8)
        shift = posterior(x, t) - prior(x, t)
        near(classified(prior, schedule, log_likelihood, 0.5)(x, t), prior(x, t) + shift / 2, 1e-8)
        assert torch.equal(classified(prior, schedule, log_likelihood, 0.0)(x, t), prior(x, t))


@by_schedule
def test_classifier_free_guidance_is_the_denoiser_of_the_tilted_density(schedule):
    """Of p(x_t) (p(x_t | y) / p(x_t))^w, whose precision and precision times mean are those of p, moved w times."""
    c = Gaussian(schedule, draw(3), torch.full((3,), 0.4, dtype=DOUBLE))
    u, x, w, t = Gaussian(schedule, draw(3, seed=1), torch.full((3,), 0.9, dtype=DOUBLE)), draw(5, 3, seed=2), 1.7, 0.4
    level = schedule.at(t)

    def noisy(g):
        precision = 1 / (level.alpha**2 * g.variance + level.sigma**2)
        return precision, precision * level.alpha * g.mean

    (p_u, h_u), (p_c, h_c) = noisy(u), noisy(c)
    score = (h_u + w * (h_c - h_u)) - (p_u + w * (p_c - p_u)) * x
    near(guided(c, u, w)(x, t), (x + level.sigma**2 * score) / level.alpha)
    assert torch.equal(guided(c, u, 1.0)(x, t), c(x, t))
    assert torch.equal(guided(c, u, 0.0)(x, t), u(x, t))


def test_thresholded_follows_its_formula():
    x0 = torch.tensor([[[0.2, -4.0], [1.0, 2.0]], [[0.5, -0.5], [0.1, 0.9]]], dtype=DOUBLE)
    got = thresholded(lambda x, t: x, quantile=2 / 3, bound=1.0)(x0, 0.5)
    near(got[0], torch.tensor([[0.1, -1.0], [0.5, 1.0]], dtype=DOUBLE))  # sorted 0.2 1 2 4: s = 2
    assert torch.equal(got[1], x0[1])
    near(thresholded(lambda x, t: x, quantile=1.0, bound=0.5)(x0, 0.5)[0], x0[0] / 8)


@by_schedule
def test_inpainting_standard_normal_data_returns_what_is_known(schedule):
    known, x = draw(3, 4, 2), draw(3, 4, 2, seed=1)
    everywhere, half = torch.ones(1, dtype=DOUBLE), torch.tensor(0.5, dtype=DOUBLE)
    for t in (0.01, 0.5, 0.99):
        x0 = normal(schedule)(x, t)
        near(inpainted(normal(schedule), schedule, known, everywhere, math.inf)(x, t), known, 1e-8)
        near(inpainted(normal(schedule), schedule, known, half, math.inf)(x, t), (known + x0) / 2, 1e-8)
        near(inpainted(normal(schedule), schedule, known, 0 * half)(x, t), x0)


@by_schedule
def test_inpainting_and_steering_are_their_formulas(schedule):
    """For a Jacobian that mixes the entries, below the limit and at it."""
    denoise, x, known, mask = Correlated(schedule), draw(3, 8, 2), draw(3, 8, 2, seed=1), draw(8, 1, seed=2).sigmoid()
    for t in (0.3, 0.98):
        level, jacobian, x0 = schedule.at(t), denoise.jacobian(t), denoise(x, t)
        scale = math.hypot(level.alpha, level.sigma)
        for limit in (5.0, math.inf):
            pulled = jacobian.T @ (mask * (known - x0))
            factor = min(limit * scale, scale**2 / level.alpha)
            near(inpainted(denoise, schedule, known, mask, limit)(x, t), x0 + factor * pulled, 1e-8)
            near(
                inpainted(denoise, schedule, known, mask, limit, identity)(x, t),
                x0 + factor / scale * mask * (known - x0),
                1e-8,
            )
            factor = 0.3 * min(limit * scale, level.sigma**2 / level.alpha)
            got = steered(denoise, schedule, lambda x0: (x0**4).sum((1, 2)), 0.3, limit)(x, t)
            near(got, x0 - factor * (jacobian.T @ (4 * x0**3)), 1e-8)


def test_guidance_does_not_depend_on_the_units_of_the_diffusion():
    base, x = VPCosine(), draw(3, 8, 2)
    scaled = Scaled(base, factor=7.0)
    for t in (0.2, 0.8, 0.99):
        for pull in (vjp, identity):
            one, other = (
                steered(
                    inpainted(Correlated(s), s, draw(8, 2, seed=1), torch.tensor(0.7), pull=pull),
                    s,
                    lambda x0: x0.square().sum((1, 2)),
                    pull=pull,
                )(factor * x, t)
                for s, factor in ((base, 1.0), (scaled, 7.0))
            )
            near(one, other, 1e-9)


def test_real_time_chunking_is_reproduced():
    """Its published five steps and beta of 5: velocity + min(beta, (1 - tau) / (tau r^2)) J^T W (Y - x1)."""
    schedule, beta = Rectified(), 5.0
    denoise, x, known, mask = Correlated(schedule), draw(3, 8, 2), draw(3, 8, 2, seed=1), draw(8, 1, seed=2).sigmoid()
    for tau in (0.2, 0.4, 0.6, 0.8, schedule.at(1.0).alpha):
        t = schedule.time(torch.tensor(math.log(tau / (1 - tau)), dtype=DOUBLE)).item()
        x1 = denoise(x, t)
        r2 = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
        shift = denoise.jacobian(t).T @ (mask * (known - x1))
        velocity = (x1 - x) / (1 - tau) + min(beta, (1 - tau) / (tau * r2)) * shift
        got = (inpainted(denoise, schedule, known, mask, limit=beta)(x, t) - x) / (1 - tau)
        near(got, velocity, 1e-5)


@pytest.mark.parametrize("schedule", [VPCosine(), Rectified()], ids=lambda s: type(s).__name__)
def test_sampled_plans_keep_the_prefix_and_follow_it(schedule):
    """From x = 0, since everything is linear: the mean plan for each of 300 prefixes of the data."""
    denoise, d, errors = Correlated(schedule), 3, []
    prefix = torch.linalg.cholesky(denoise.covariance)[:d] @ draw(300, 8, 1)
    exact, times = denoise.conditional_mean(prefix), UniformTime().times(schedule, 50)
    for limit, pull in ((5.0, vjp), (2.0, vjp), (2.0, identity)):
        kept = prefixed(denoise, schedule, prefix, limit=limit, pull=pull)
        plans = sample(kept, schedule, DDIM(), times, torch.zeros(300, 8, 1, dtype=DOUBLE)).x
        near(plans[:, :d], prefix, 0.01)
        errors.append((plans[:, d:] - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    # Approximate, but the Jacobian carries the prefix to the actions after it.
    assert errors[0] < errors[1] < 0.52
    assert errors[1] < 0.85 * errors[2]


def test_prefixed_is_inpainting_with_weights():
    schedule, x, prefix = VPCosine(), draw(3, 6, 2), draw(3, 2, 2, seed=1)
    weights = torch.tensor([1.0, 0.25], dtype=DOUBLE)
    known = torch.cat([prefix, torch.full((3, 4, 2), 9.0, dtype=DOUBLE)], 1)
    mask = torch.tensor([1, 0.25, 0, 0, 0, 0], dtype=DOUBLE)[:, None]
    denoise = Correlated(schedule, 6)
    expected = inpainted(denoise, schedule, known, mask, 1.5)(x, 0.7)
    near(prefixed(denoise, schedule, prefix, weights, 1.5)(x, 0.7), expected)
    hard = inpainted(denoise, schedule, known, mask > 0, 1.5)(x, 0.7)
    near(prefixed(denoise, schedule, prefix, limit=1.5)(x, 0.7), hard)
    near(prefixed(denoise, schedule, prefix[:1], limit=1.5)(x, 0.7)[0], hard[0])
    near(prefixed(denoise, schedule, prefix[:, :0])(x, 0.7), denoise(x, 0.7))


def test_steering_goes_down_the_gradient_of_the_cost():
    """Against finite differences of cost(x0(x_t)), on a mixture, whose Jacobian depends on x."""
    schedule, t, x = VPCosine(), 0.6, draw(4, 3)
    denoise = Mixture(schedule, draw(5, 3, seed=1), 0.3, torch.full((5,), 0.2, dtype=DOUBLE))

    def cost(x0):
        return torch.nn.functional.softplus(x0).pow(2).sum(1)

    level, h = schedule.at(t), 1e-6
    steps = h * torch.eye(3, dtype=DOUBLE)
    slope = torch.stack([(cost(denoise(x + e, t)) - cost(denoise(x - e, t))) / (2 * h) for e in steps], 1)
    got = steered(denoise, schedule, cost, 0.8)(x, t)
    near(got, denoise(x, t) - 0.8 * level.sigma**2 / level.alpha * slope, 1e-7)
    near(steered(denoise, schedule, cost, 0.0)(x, t), denoise(x, t))


@pytest.mark.parametrize("pull", [vjp, identity])
def test_steered_samples_cost_less(pull):
    schedule = VPCosine()
    denoise = Mixture(
        schedule, torch.tensor([[-1.0, 0], [1.0, 0]], dtype=DOUBLE), 0.3, torch.tensor([0.5, 0.5], dtype=DOUBLE)
    )

    def cost(x0):  # an obstacle around (1, 0)
        return torch.relu(0.8 - (x0 - x0.new_tensor([1.0, 0])).norm(dim=1))

    costs = [
        cost(generate(steered(denoise, schedule, cost, w, pull=pull), schedule, (400, 2))).mean() for w in (0.0, 1.0, 5)
    ]
    assert costs[0] > 0.15
    assert costs[1] < 0.8 * costs[0]
    assert costs[2] < 0.3 * costs[0]


def test_guidance_around_guidance_differentiates_through_both():
    """Conditioning on one entry after the other: the outer Jacobian is that of the inner guided denoiser."""
    schedule, x, t = VPCosine(), draw(3, 6, 1), 0.4
    denoise, known = Correlated(schedule, 6), draw(6, 1, seed=1)
    jacobian, factor = denoise.jacobian(t), 1 / schedule.at(t).alpha
    first, last = (torch.nn.functional.one_hot(torch.tensor(i), 6)[:, None].to(DOUBLE) for i in (0, 5))
    inner = inpainted(denoise, schedule, known, first)
    guided_jacobian = jacobian - factor * jacobian.T @ (first * jacobian)
    expected = inner(x, t) + factor * guided_jacobian.T @ (last * (known - inner(x, t)))
    outer = inpainted(inner, schedule, known, last)
    near(outer(x, t), expected, 1e-9)
    with torch.inference_mode():
        near(outer(x, t), expected, 1e-9)

    def cost(x0):
        return (x0**4).sum((1, 2))

    steer = 0.1 * schedule.at(t).sigma ** 2 / schedule.at(t).alpha
    x0 = denoise(x, t)
    inside = x0 - steer * (jacobian.T @ (4 * x0**3))
    error = last * (known - inside)
    # J_inner = J - steer J^T diag(12 x0^2) J.
    pulled = jacobian.T @ (error - steer * 12 * x0**2 * (jacobian @ error))
    near(inpainted(steered(denoise, schedule, cost, 0.1), schedule, known, last)(x, t), inside + factor * pulled, 1e-9)


GUIDED = {
    "thresholded": lambda d, s, y: thresholded(d, 0.9),
    "guided": lambda d, s, y: guided(d, lambda x, t: d(x, t) - 1, 2.0),
    "classified": lambda d, s, y: classified(d, s, lambda x, t: -(x * y).square().sum((1, 2))),
    "steered": lambda d, s, y: steered(d, s, lambda x0: (x0 * y).square().sum((1, 2))),
    "inpainted": lambda d, s, y: inpainted(d, s, y, torch.ones((), dtype=torch.bool)),
    "prefixed": lambda d, s, y: prefixed(d, s, y[None, :2]),
    "composed": lambda d, s, y: clipped(prefixed(steered(d, s, lambda x0: (x0**2).sum((1, 2))), s, y[None, :2]), -1, 1),
}
by_guidance = pytest.mark.parametrize("name", GUIDED)


@by_guidance
@pytest.mark.parametrize("spec", NETWORKS, ids=lambda spec: type(spec).__name__)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_guidance_works_without_gradients_around_it(name, spec, context):
    """Also with a network whose tokens, and a target that, were made in inference mode, as in `Policy.plan`."""
    schedule = VPCosine()
    torch.manual_seed(0)
    diffusion = Diffusion(spec.build(8, 2, (2, 5)), schedule, Epsilon()).double()
    for parameter in diffusion.parameters():  # also the gates, which start at zero
        torch.nn.init.normal_(parameter, std=0.3)

    def run():
        denoise = GUIDED[name](diffusion.given(draw(3, 2, 5)), schedule, draw(8, 2, seed=1))
        return denoise(draw(3, 8, 2, seed=2), 0.5)

    expected = run()
    with context():
        got = run()
    assert not got.requires_grad
    near(got, expected.detach())
    assert all(p.grad is None for p in diffusion.parameters())


@by_guidance
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_independent_and_keep_their_type(name, dtype):
    schedule, x = VPCosine(), draw(4, 8, 2, dtype=dtype)
    denoise = GUIDED[name](Correlated(schedule, dtype=dtype), schedule, draw(8, 2, seed=1, dtype=dtype))
    for t in (0.1, 1.0):
        got = denoise(x, t)
        assert (got.shape, got.dtype) == (x.shape, dtype)
        alone = torch.cat([denoise(row[None], t) for row in x])
        near(got, alone, 1e-12 if dtype is DOUBLE else 1e-5 * got.abs().max().item())


def test_known_entries_may_come_in_another_type():
    schedule, x = VPCosine(), draw(2, 4, 3, dtype=torch.float32)
    denoise, known = normal(schedule, torch.float32), torch.ones(4, 3, dtype=DOUBLE)
    for pull in (vjp, identity):
        assert inpainted(denoise, schedule, known, torch.ones(4, 1), pull=pull)(x, 0.5).dtype is torch.float32


def test_a_stochastic_sampler_reaches_the_known_entries_too():
    schedule, known = VPCosine(), torch.tensor([[0.7], [-0.4], [0.0]], dtype=DOUBLE)
    mask = torch.tensor([[1.0], [1.0], [0.0]], dtype=DOUBLE)
    noise, x = gaussian(torch.Generator().manual_seed(0)), draw(2000, 3, 1, seed=1)
    times = UniformTime().times(schedule, 50)
    denoise = inpainted(normal(schedule), schedule, known, mask)
    got = sample(denoise, schedule, DDIM(eta=1.0), times, x, noise).x
    near(got[:, :2], known[:2].expand(2000, 2, 1), 0.02)
    assert got[:, 2].var().item() == pytest.approx(1, abs=0.1)


def test_bad_arguments_are_explained():
    schedule, x = VPCosine(), draw(2, 4, 3)
    denoise = normal(schedule)
    with pytest.raises(ValueError, match=r"quantile=0, bound=1.0, expected a quantile in \(0, 1\]"):
        thresholded(denoise, 0)
    with pytest.raises(ValueError, match=r"quantile=1.1, bound=1.0, expected a quantile in \(0, 1\]"):
        thresholded(denoise, 1.1)
    with pytest.raises(ValueError, match="bound=-1.0, expected .* a bound above 0, such as"):
        thresholded(denoise, bound=-1.0)
    with pytest.raises(ValueError, match=r"a mask from 0.0 to 2.0, expected values in \[0, 1\]: 1 is known"):
        inpainted(denoise, schedule, x, torch.tensor([0.0, 2.0]))
    with pytest.raises(ValueError, match=r"known of shape \(5, 3\), expected .* over x of shape \(2, 4, 3\): use"):
        inpainted(denoise, schedule, torch.zeros(5, 3), torch.ones(4, 3))(x, 0.5)
    with pytest.raises(ValueError, match=r"mask of shape \(1, 2, 4, 3\), expected one that broadcasts"):
        inpainted(denoise, schedule, x, torch.ones(1, 2, 4, 3))(x, 0.5)
    with pytest.raises(ValueError, match=r"cost returned shape \(2, 4\), expected \(2,\), one number a sample: sum"):
        steered(denoise, schedule, lambda x0: x0.square().sum(-1))(x, 0.5)
    with pytest.raises(ValueError, match=r"log_likelihood returned shape \(\), expected \(2,\)"):
        classified(denoise, schedule, lambda x, t: x.square().sum())(x, 0.5)
    with pytest.raises(ValueError, match="without a gradient, expected a differentiable function of x: remove no_grad"):
        inpainted(lambda x, t: denoise(x.detach(), t), schedule, x, torch.ones(()))(x, 0.5)


@pytest.mark.parametrize("shape", [(2, 5, 3), (3, 2, 3), (2, 2, 4)], ids=["longer", "batch", "action"])
def test_a_prefix_that_does_not_fit_is_explained(shape):
    schedule = VPCosine()
    with pytest.raises(ValueError, match=r"for plans of shape \(2, 4, 3\), expected \(batch, d, action\) .* cut"):
        prefixed(normal(schedule), schedule, torch.zeros(shape))(draw(2, 4, 3), 0.5)


def test_a_malformed_prefix_is_explained():
    schedule = VPCosine()
    for prefix, weights in ((torch.zeros(2, 3), None), (torch.zeros(1, 2, 3), torch.ones(3))):
        with pytest.raises(ValueError, match=r"expected \(batch, d, action\) and \(d,\): give one weight"):
            prefixed(normal(schedule), schedule, prefix, weights)


def a_policy():
    torch.manual_seed(0)
    spec = PolicySpec({"place": (2,)}, action=2, horizon=8, execute=4, bound=None, network=MLP(width=32, depth=2))
    policy = DiffusionPolicy(spec).eval()
    for module in (*policy.observation_normalisers.values(), policy.action_normaliser):
        module.scale.fill_(0.5)
        module.offset.fill_(0.1)
    return policy, {"place": torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(1))}


def test_a_policy_is_steered_in_the_units_of_the_data_and_by_what_it_sees():
    policy, observation = a_policy()

    def cost(plan, seen):
        return 0.3 * (policy.decoded(plan, seen) - seen["place"][:, -1:]).square().flatten(1).sum(1)

    def guide(denoise, seen):
        return steered(denoise, policy.spec.schedule, lambda plan: cost(plan, seen))

    free, guided_plan = (p.plan(observation, per_sample([1, 2, 3])) for p in (policy, policy.using(guide=guide)))
    distance = [(plan - observation["place"][:, -1:]).norm(dim=-1).mean() for plan in (free, guided_plan)]
    assert distance[1] < 0.7 * distance[0]
    again = (
        policy.using(guide=guide).using(evaluations=policy.spec.evaluations).plan(observation, per_sample([1, 2, 3]))
    )
    assert torch.equal(again, guided_plan)
    assert torch.equal(policy.plan(observation, per_sample([1, 2, 3])), free)


def test_a_policy_bounds_the_guided_prediction():
    policy, observation = a_policy()
    policy.spec = PolicySpec({"place": (2,)}, action=2, horizon=8, execute=4, bound=0.5, network=policy.spec.network)
    far = policy.using(guide=lambda denoise, seen: lambda x, t: denoise(x, t) + 100)
    plan = far.action_normaliser(far.plan(observation, per_sample([1, 2, 3])))
    near(plan, torch.full_like(plan, 0.5), 5e-3)  # the noise of t = 0
