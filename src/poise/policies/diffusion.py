"""The diffusion policy: plans by denoising."""

import copy
import dataclasses
from collections.abc import Callable, Collection, Iterator
from typing import NoReturn

import torch
from torch import Tensor

from poise.data import Batch, Windows
from poise.denoisers import Diffusion
from poise.draws import Draws
from poise.guidance import clipped, guided
from poise.likelihood import Divergence, LogProb, log_prob
from poise.policies.graphs import Graphs
from poise.policies.policy import Policy, evenly
from poise.policies.spec import PolicySpec
from poise.sampling import Grid, RungeKutta, Sampler, State, gaussian, start, tempered, trace
from poise.tensors import like
from poise.typing import Actions, Denoiser, Noise, Observation, Tokens

Guide = Callable[[Denoiser, Observation], Denoiser]
"""`(denoise, observation) -> denoise`: guidance that may depend on what the robot sees."""


class DiffusionPolicy(Policy):
    """A diffusion over plans, conditioned on the observation (Chi et al. 2023, arXiv 2303.04137).

    Attributes:
        loop: What runs the loop from noise to plan instead of Python; `compiled` sets it.
    """

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__(spec)
        network = spec.network.build(spec.horizon, spec.action, self.encoder.tokens)
        self.diffusion = Diffusion(network, spec.schedule, spec.prediction)
        self.guide: Guide | None = None
        self.loop: Graphs | None = None

    def using(
        self,
        sampler: Sampler | None = None,
        grid: Grid | None = None,
        evaluations: int | None = None,
        temperature: float | None = None,
        guide: Guide | None = None,
    ) -> "DiffusionPolicy":
        """The same weights under another sampler, grid, budget, temperature or guidance; what is None stays.

        Args:
            sampler: Any of `poise.sampling`.
            grid: Times that it visits.
            evaluations: Network evaluations a plan.
            temperature: Factor of the noise.
            guide: `(denoise, observation) -> denoise`, such as one of `poise.guidance`, on normalised plans; `decoded`
                takes a plan to the units of the data, in which costs are written. It is not saved with the policy.
        """
        policy = copy.copy(self)
        policy.guide = guide or self.guide
        changes = {"sampler": sampler, "grid": grid, "evaluations": evaluations, "temperature": temperature}
        policy.spec = dataclasses.replace(self.spec, **{k: v for k, v in changes.items() if v is not None})
        return policy

    def compile(self, *args: object, **kwargs: object) -> NoReturn:
        """Refuse what PyTorch would do here, which is nothing: it compiles `forward`, and no plan goes through that.

        Raises:
            NotImplementedError: Always; it names `compiled`.
        """
        raise NotImplementedError(
            "DiffusionPolicy.compile would compile `forward`, which no plan goes through: take "
            "fast = poise.policies.compiled(policy), another policy for plans, or TrainingSpec(compile=True) to train"
        )

    def loss(self, batch: Batch, draws: Draws | None = None) -> Tensor:
        """The weighted denoising loss of `Diffusion.loss` on normalised actions, averaged over the draws of noise."""
        each, draws, x0 = self.spec.draws, draws or Draws(), self.encoded(batch)
        tokens = self.tokens(batch.observation, draws)
        # The whole batch again and again: stratified times of one window then spread over the scale of noise.
        t = self.spec.density.quantile(draws.stratified(len(x0), each)).flatten().to(x0)
        eps = draws.normal(len(x0), each, *x0.shape[1:]).transpose(0, 1).flatten(0, 1).to(x0)
        x0 = x0.repeat(each, 1, 1)
        losses = self.diffusion.loss(x0, self.spec.coupling.pair(x0, eps), t, tokens.repeat(each, 1, 1))
        losses = losses * like(self.spec.weighting.factor(self.spec.prediction, self.spec.schedule, t), losses)
        return losses.unflatten(0, (each, -1)).mean(0)

    def learned(self, previous: Actions, observation: Observation) -> Actions:
        """An earlier plan as one for this observation: `decoded` undone.

        Args:
            previous: `(B, planned, action)` in the units of the data, whose index 0 is now.
            observation: Name -> `(B, history, ...)`.

        Returns:
            `(B, horizon, action)` in normalised units; the steps of a `lead` repeat its first action.
        """
        whole = torch.cat([previous[:, :1].expand(-1, self.spec.lead, -1), previous], dim=1)
        return self.action_normaliser(self.spec.space.encode(whole, observation))

    def denoiser(self, observation: Observation) -> Denoiser:
        """The learned denoiser of normalised plans: what samplers, `encode`, `log_prob` and guidance take."""
        return self.diffusion.given(self.tokens(observation))

    def log_prob(
        self,
        observation: Observation,
        actions: Actions,
        divergence: Divergence | None = None,
        solver: RungeKutta | None = None,
        steps: int = 1,
    ) -> LogProb:
        """The log-density of plans given the observation, in nats, for actions in the units of the data.

        It is that of the learned law: temperature and bound, which change what `plan` samples, do not count.

        Args:
            observation: Name -> `(B, history, ...)`.
            actions: `(B, horizon, action)`, all that the network denoises: with a `lead`, from so many steps before
                now on.
            divergence: As in `poise.likelihood.log_prob`.
            solver: As there.
            steps: As there.

        Raises:
            ValueError: A feature that is missing, of a wrong shape, or not finite; actions of another number of steps.
        """
        self.check(observation)
        if actions.shape[1:] != (self.spec.horizon, self.spec.action):
            raise ValueError(
                f"log_prob got actions of shape {tuple(actions.shape)}, expected "
                f"(batch, {self.spec.horizon}, {self.spec.action}): all steps of the horizon, of which the first "
                f"{self.spec.lead} come before now"
            )
        with torch.no_grad():
            x = self.action_normaliser(self.spec.space.encode(actions, observation))
            denoise = self.denoiser(observation)
        found = log_prob(denoise, self.spec.schedule, x, divergence, solver, steps)
        volume = self.spec.horizon * self.action_normaliser.scale.abs().log().sum()
        return found._replace(value=found.value + volume)

    def spectrum(self, windows: Windows) -> Tensor:
        """Eigenvalues of the covariance of normalised plans, `(horizon * action,)`: what `optimised` fits a grid to."""
        plans = self.encoded(evenly(windows)).flatten(1).double()
        return torch.linalg.eigvalsh(torch.cov(plans.T)).clamp_min(0)

    def trace(self, observation: Observation, noise: Noise | None = None) -> Iterator[State]:
        """The first state is pure noise, the others follow the sampler's steps."""
        return self._decoded(observation, self.path(observation, noise))

    def path(self, observation: Observation, noise: Noise | None = None) -> Iterator[State]:
        """`trace` in normalised units, and with the steps of a `lead`: what a student learns."""
        spec, tokens = self.spec, self.tokens(observation)
        noise = tempered(noise or gaussian(), spec.temperature)
        x = start(spec.schedule, tokens.new_empty(tokens.shape[0], spec.horizon, spec.action), noise)
        return self._denoised(observation, tokens, x, spec.begin, noise)

    @torch.inference_mode()
    def replan(self, observation: Observation, previous: Actions, begin: float, noise: Noise | None = None) -> Actions:
        r"""Plan from an earlier plan instead of pure noise: a warm start.

        $$ x_t = \alpha_t x_0 + \sigma_t \epsilon $$

        with the earlier plan for x0 and t = `begin`; all evaluations are spent between there and t = 0. The temperature
        scales this noise too, and a plan of that temperature so becomes another of the same: with an earlier plan from
        N(m, T^2 v) both sides have the variance that a plan on its way from T times pure noise has at t,
        $T^2 (\alpha_t^2 v + \sigma_t^2)$. Full noise would warm it up. But an earlier plan that is wrong stands out of
        T times the noise as much as out of full noise where $\alpha / \sigma$ is 1/T times as large: at low
        temperatures begin nearer 1.

        Args:
            observation: Name -> `(B, history, ...)`, oldest step first.
            previous: See `learned`.
            begin: Time in (0, 1]; 1 forgets the earlier plan up to what little of it alpha leaves.
            noise: Source of noise; by default PyTorch's global generator.

        Raises:
            ValueError: As `plan`, or a time outside (0, 1].
        """
        self.check(observation)
        noise = tempered(noise or gaussian(), self.spec.temperature)
        level, x0 = self.spec.schedule.at(begin), self.learned(previous, observation)
        x = level.alpha * x0 + level.sigma * noise(x0, begin, begin)
        *_, last = self._denoised(observation, self.tokens(observation), x, begin, noise)
        return self.decoded(last.x, observation)

    def _denoised(
        self, observation: Observation, tokens: Tokens, x: Tensor, begin: float, noise: Noise
    ) -> Iterator[State]:
        """The states from the noisy plan `x` of time `begin` on, in normalised units."""
        spec = self.spec
        if self.loop is None or self.guide is not None or not spec.sampler.evaluations:
            return self._walked(observation, tokens, x, begin, noise)
        kind = spec.sampler, spec.grid, spec.evaluations, begin

        def walk(tokens: Tokens, x: Tensor, noise: Noise) -> Iterator[State]:
            return self._walked(observation, tokens, x, begin, noise)

        return self.loop.states(kind, walk, tokens, x, noise)

    def _walked(
        self, observation: Observation, tokens: Tokens, x: Tensor, begin: float, noise: Noise
    ) -> Iterator[State]:
        spec, denoise, bound = self.spec, self.diffusion.given(tokens), self.spec.bound
        if self.guide is not None:
            denoise = self.guide(denoise, observation)
        if bound is not None and spec.sampler.bound is None:
            denoise = clipped(denoise, -bound, bound)
        samplers = spec.sampler.budget(spec.evaluations)
        times = spec.grid.times(spec.schedule, len(samplers), begin)
        yield State(x, begin, 0)
        for state in trace(denoise, spec.schedule, samplers, times, x, noise):
            # The last state keeps the noise of t = 0, which may step over the bound.
            yield state._replace(x=self.bounded(state.x)) if state.t == 0 else state

    def _decoded(self, observation: Observation, states: Iterator[State]) -> Iterator[State]:
        for state in states:
            yield state._replace(x=self.decoded(state.x, observation))


def emphasised(policy: DiffusionPolicy, features: Collection[str], weight: float) -> Guide:
    """Classifier-free guidance towards optional features, such as a goal, for `DiffusionPolicy.using(guide=...)`.

    Args:
        policy: Trained with these features in `PolicySpec.optional`.
        features: Names of optional features.
        weight: 0 ignores them, 1 changes nothing, more exaggerates them; see `poise.guidance.guided`.

    Raises:
        ValueError: A feature that is not optional, or all that there are.
    """
    wrong = sorted(set(features) - set(policy.spec.optional))
    if wrong or not features or set(features) >= set(policy.spec.observations):
        raise ValueError(
            f"emphasised got the features {sorted(features)}, expected some of the optional ones "
            f"{sorted(policy.spec.optional)}, and not all that is observed: a policy can do without what it was "
            "trained without"
        )

    def guide(denoise: Denoiser, observation: Observation) -> Denoiser:
        rest = {name: values for name, values in observation.items() if name not in features}
        return guided(denoise, policy.denoiser(rest), weight)

    return guide


__all__ = ["DiffusionPolicy", "Guide", "emphasised"]
