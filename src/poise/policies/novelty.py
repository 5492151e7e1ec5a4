r"""Novelty: has the robot seen anything like this in its demonstrations? Scores, calibrated to p-values.

A score is any `observation -> (B,)` that grows with strangeness. Held-out demonstrations turn it into a conformal
p-value (Vovk et al. 2005; for finding outliers Bates et al. 2023, arXiv 2104.08279),

$$ p = \frac{1 + \#\{i : c_i \ge s\}}{n + 1}, $$

with s the score and $c_1, \dots, c_n$ those of the held-out windows. For a window that is exchangeable with them,
$P(p \le q) \le q$ whatever the distribution of the score. Windows of one episode resemble each other, so that the
promise is as good as the number of held-out episodes; and the states of a policy are not those of the demonstrators.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from poise.data import Windows
from poise.policies.diffusion import DiffusionPolicy
from poise.policies.policy import Policy
from poise.sampling import RungeKutta, per_sample
from poise.typing import Observation

Score = Callable[[Observation], Tensor]
"""`observation -> (B,)`, larger for stranger ones."""

_CHUNK = 512  # windows at once


@dataclass(frozen=True, eq=False)
class TokenDistance:
    r"""Mahalanobis distance of the encoded observation, all tokens as one vector z of D entries, from training ones.

    $$ s = \sqrt{(z - \mu)^T \Sigma^{-1} (z - \mu)}, \qquad
       \Sigma = (1 - \rho)\, C + \rho\, \frac{\mathrm{tr}\, C}{D}\, I, $$

    with $\mu$ and C the mean and the covariance of training tokens (Lee et al. 2018, arXiv 1807.03888). The shrinkage
    treats directions that hardly varied as if they had varied by a share $\sqrt{\rho}$ of the typical deviation.

    Attributes:
        policy: Whose encoder is used.
        mean: $\mu$, `(D,)`, float64.
        factor: Lower Cholesky factor of $\Sigma$, `(D, D)`.
    """

    policy: Policy
    mean: Tensor
    factor: Tensor

    @staticmethod
    def fit(policy: Policy, windows: Windows, shrinkage: float = 1e-3, most: int = 20_000) -> "TokenDistance":
        r"""From up to `most` evenly spread windows.

        Args:
            policy: Trained policy.
            windows: Those that it was trained on.
            shrinkage: $\rho$, in (0, 1].
            most: Largest number of windows.

        Raises:
            ValueError: A shrinkage outside (0, 1], or tokens that do not vary at all.
        """
        if not 0 < shrinkage <= 1:
            raise ValueError(f"TokenDistance got shrinkage={shrinkage}, expected a number in (0, 1], such as 1e-3")
        rows = torch.cat([_tokens(policy.eval(), seen) for seen in _observations(windows, most)])
        size, covariance = rows.shape[1], torch.cov(rows.T, correction=0).reshape(rows.shape[1], -1)
        average = covariance.trace() / size
        if not average > 0:
            raise ValueError(
                f"TokenDistance got {len(rows)} windows with the same tokens, expected tokens that vary: "
                "check the encoder and the data"
            )
        eye = torch.eye(size, dtype=rows.dtype, device=rows.device)
        shrunk = (1 - shrinkage) * covariance + shrinkage * average * eye
        return TokenDistance(policy, rows.mean(0), torch.linalg.cholesky(shrunk))

    def __call__(self, observation: Observation) -> Tensor:
        """The distance, `(B,)`: about the square root of D for an ordinary observation."""
        gap = (_tokens(self.policy.eval(), observation) - self.mean).T
        return torch.linalg.solve_triangular(self.factor, gap, upper=False).norm(dim=0)


@dataclass(frozen=True, eq=False)
class OutsideRange:
    """Share of the observed numbers, over all features and history steps, outside their quantiles in training.

    A picture counts as the mean and the deviation of each of its channels: what encoders that normalise their features
    are blind to. The score tells nothing of odd combinations of ordinary numbers.

    Attributes:
        cameras: Features that are pictures.
        low: Feature -> lower quantiles of its numbers.
        high: Feature -> upper ones.
    """

    cameras: tuple[str, ...]
    low: Mapping[str, Tensor]
    high: Mapping[str, Tensor]

    @staticmethod
    def fit(policy: Policy, windows: Windows, tail: float = 1e-3, most: int = 5000) -> "OutsideRange":
        """From all rows of the observed features, and from up to `most` pictures.

        Args:
            policy: Says what is observed.
            windows: Those that it was trained on.
            tail: Share of the training rows beyond each end.
            most: Largest number of pictures of each camera.

        Raises:
            ValueError: A tail outside [0, 1/2).
        """
        if not 0 <= tail < 0.5:
            raise ValueError(f"OutsideRange got tail={tail}, expected a share in [0, 0.5), such as 1e-3")
        cameras, low, high = policy.spec.cameras, {}, {}
        for name in policy.spec.observations:
            rows = windows.observations[name]
            if name in cameras:
                rows = torch.cat([_colours(some) for some in rows[:: -(-len(rows) // most)].split(_CHUNK)])
            shares = [tail, 1 - tail]  # of one column after the other, for NumPy sorts a copy
            found = np.stack([np.quantile(column.cpu().numpy(), shares) for column in rows.flatten(1).T], 1)
            low[name], high[name] = torch.as_tensor(found).to(rows).unflatten(1, rows.shape[1:])
        return OutsideRange(cameras, low, high)

    def __call__(self, observation: Observation) -> Tensor:
        """The share, `(B,)`, from 0 to 1."""
        outside = []
        for name in (name for name in self.low if name in observation):  # an optional one may be absent
            values = _colours(observation[name]) if name in self.cameras else observation[name]
            low, high = (side[name].to(values.device) for side in (self.low, self.high))
            outside.append(((values < low) | (values > high)).flatten(1))
        return torch.cat(outside, dim=1).double().mean(1)


@dataclass(frozen=True, eq=False)
class PlanSurprise:
    r"""$-\log p(a | o)$ in nats of the plan a that a diffusion policy makes, from the same noise for every observation.

    It grows where the policy hesitates. It differentiates the network for every entry of a plan, which costs as much
    as hundreds of plans: for logs and alarms, not for every control step.

    Attributes:
        policy: A diffusion policy.
        solver: As in `DiffusionPolicy.log_prob`; a fixed one with few steps will do for a score.
        steps: As there.
        seed: Of the noise that the plan starts from.
    """

    policy: DiffusionPolicy
    solver: RungeKutta | None = None
    steps: int = 1
    seed: int = 0

    def __call__(self, observation: Observation) -> Tensor:
        """The surprise, `(B,)`."""
        rows = len(next(iter(observation.values())))
        plan = self.policy.eval().plan(observation, per_sample([self.seed] * rows))
        return -self.policy.log_prob(observation, plan, solver=self.solver, steps=self.steps).value.double()


class Verdict(NamedTuple):
    """How strange observations are.

    Attributes:
        scores: Name of the score -> `(B,)`.
        p_values: Name of the score -> `(B,)`, uniform or larger for observations like the held-out ones.
        p: `(B,)`, the smallest p-value times the number of scores (Bonferroni): valid however they depend on each
            other. Raise the alarm where it is below the rate of false alarms that you accept.
    """

    scores: dict[str, Tensor]
    p_values: dict[str, Tensor]
    p: Tensor


@dataclass(frozen=True, eq=False)
class Novelty:
    """Scores with what they are on held-out demonstrations; see the formula above.

        novelty = Novelty.fit(policy, windows, held_out)
        alarm = novelty(observation).p < 0.01

    Attributes:
        scores: Name -> score.
        held_out: Name -> scores of the held-out windows, `(n,)`, ascending.
    """

    scores: Mapping[str, Score]
    held_out: Mapping[str, Tensor]

    @staticmethod
    def fit(
        policy: Policy, windows: Windows, held_out: Windows, scores: Mapping[str, Score] | None = None, most: int = 5000
    ) -> "Novelty":
        """Fit the scores on training windows and calibrate them on held-out ones.

        Args:
            policy: Trained policy.
            windows: Those that it was trained on.
            held_out: Of episodes that it was not trained on.
            scores: Other scores; by default `TokenDistance` as "tokens" and `OutsideRange` as "range".
            most: Largest number of held-out windows, evenly spread. The smallest p-value is one over it plus one.
        """
        if scores is None:
            scores = {"tokens": TokenDistance.fit(policy, windows), "range": OutsideRange.fit(policy, windows)}
        seen = list(_observations(held_out, most))
        found = {name: torch.cat([score(o) for o in seen]).cpu().sort().values for name, score in scores.items()}
        return Novelty(dict(scores), found)

    def __call__(self, observation: Observation) -> Verdict:
        """Scores and p-values, on the CPU, of a batch of observation histories in the units of the data."""
        scores = {name: score(observation).cpu() for name, score in self.scores.items()}
        p_values = {name: _p_value(self.held_out[name], values) for name, values in scores.items()}
        smallest = torch.stack(list(p_values.values())).amin(0)
        return Verdict(scores, p_values, (len(scores) * smallest).clamp(max=1.0))


def _p_value(ascending: Tensor, scores: Tensor) -> Tensor:
    count = len(ascending)
    return (1 + count - torch.searchsorted(ascending, scores.to(ascending))).double() / (count + 1)


def _observations(windows: Windows, most: int) -> Iterator[dict[str, Tensor]]:
    chosen = torch.linspace(0, len(windows) - 1, min(most, len(windows))).long()
    return (windows[chunk].observation for chunk in chosen.split(_CHUNK))


def _colours(pictures: Tensor) -> Tensor:
    """Mean and deviation of each channel: `(..., H, W, C)` to `(..., 2 C)`."""
    deviation, mean = torch.std_mean(pictures.float(), dim=(-3, -2))
    return torch.cat([mean, deviation], dim=-1)


@torch.no_grad()
def _tokens(policy: Policy, observation: Observation) -> Tensor:
    device = policy.action_normaliser.scale.device
    here = {name: values.to(device) for name, values in observation.items()}
    policy.check(here)
    return policy.tokens(here).flatten(1).double()


__all__ = ["Novelty", "OutsideRange", "PlanSurprise", "Score", "TokenDistance", "Verdict"]
