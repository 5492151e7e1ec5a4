r"""Distillation: a student that plans in one to three evaluations what its teacher plans in many.

With $\Phi(x_t, t)$ the end of the teacher's own path through $x_t$, under its sampler, bound, temperature and guidance,
the student is trained to

$$ \min_f\; E\, \| \alpha_0 f(x_t, t) - \Phi(x_t, t) \|^2, \qquad t \in \{t_0, \tau\}, $$

at the beginning $t_0$ of the path and at one more of its states, drawn anew for every window. The pairs of noise and
end are those of Luhman, Luhman 2021 (arXiv 2101.02388); regressed at all levels they make a consistency function (Song
et al. 2023, arXiv 2303.01469), which `Consistency` samples in any number of evaluations.
"""

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from poise.data import Batch, Windows
from poise.draws import Draws
from poise.policies import Consistency, DiffusionPolicy
from poise.predictions import Velocity
from poise.sampling import State, UniformTime, gaussian
from poise.typing import Noise, Observation

_STEEPEST = 10.0  # change of x0 with the network's output that a student can learn: epsilon has sigma / alpha
_COMPARED = 512  # windows, evenly spread


def student_of(teacher: DiffusionPolicy, evaluations: int = 1) -> DiffusionPolicy:
    """A student with the weights of its teacher, to be trained with `Distillation`, saved and loaded like any policy.

    Where the teacher predicts what is divided by a small alpha, such as the noise, the student predicts `Velocity`.

    Args:
        teacher: Trained policy.
        evaluations: Network evaluations a plan, at first; `using(evaluations=...)` changes them.
    """
    spec = teacher.spec
    slope = spec.prediction.inverse(spec.schedule, torch.tensor(spec.begin, dtype=torch.float64))[1].abs()
    prediction = spec.prediction if slope < _STEEPEST else Velocity()
    changes = {"prediction": prediction, "sampler": Consistency(), "grid": UniformTime(), "evaluations": evaluations}
    student = DiffusionPolicy(dataclasses.replace(spec, **changes)).to(teacher.action_normaliser.scale.device)
    student.load_state_dict(teacher.state_dict())
    return student


class Distillation:
    """The loss of a student, for `train(learner, windows, loss=Distillation(learner.policy, teacher))`.

    The student learns the law of plans at its teacher's temperature, and samples it at no other. Neither dropout nor
    changes of images are at work: both see the same. Features that may be absent are absent in their share of batches.

    Args:
        student: Policy in training.
        teacher: Policy with a deterministic sampler, as it shall be imitated: see `DiffusionPolicy.using`.
    """

    def __init__(self, student: DiffusionPolicy, teacher: DiffusionPolicy) -> None:
        self.student, self.teacher = student, teacher.eval()

    def __call__(self, batch: Batch, draws: Draws) -> Tensor:
        """Squared error of the ends in normalised units, `(B, horizon, action)`.

        Raises:
            ValueError: A teacher whose sampler draws noise on the way.
        """
        spec, student = self.student.spec, self.student.eval()
        eps, observation = draws.normal(len(batch.actions), spec.horizon, spec.action), self._seen(batch, draws)
        with torch.no_grad(), torch.autocast(eps.device.type, enabled=False):  # whose ends are what is true
            states = list(self.teacher.path(observation, _only(eps)))
        first, end = states[0], states[-1].x
        other = draws.integers(len(states) - 1, len(end)).to(end.device)
        rows = torch.arange(len(end), device=end.device)
        x = torch.cat([first.x, torch.stack([state.x for state in states])[other, rows]])
        times = torch.tensor([state.t for state in states], device=end.device)
        t = torch.cat([times[:1].expand(len(end)), times[other]])
        ends = spec.schedule.at(0.0).alpha * student.diffusion(x, t, student.tokens(observation).repeat(2, 1, 1))
        return (ends.unflatten(0, (2, -1)) - end).square().mean(0)

    def _seen(self, batch: Batch, draws: Draws) -> Observation:
        hidden = {name for name, share in self.student.spec.optional.items() if draws.once() < share}
        return {name: values for name, values in batch.observation.items() if name not in hidden}


def gap(policy: DiffusionPolicy, teacher: DiffusionPolicy, windows: Windows, seed: int = 0) -> float:
    """Root mean square distance of plans to those that the teacher makes of the same noise, in normalised units.

    Args:
        policy: A student, or the teacher with fewer evaluations.
        teacher: Whose plans are the standard.
        windows: Observations, of which up to 512 are taken.
        seed: Of the noise.
    """
    chosen = torch.linspace(0, len(windows) - 1, min(len(windows), _COMPARED)).round().long().to(windows.device)
    observation = windows[chosen].observation
    generator = torch.Generator(windows.device)
    with torch.no_grad():
        paths = (one.path(observation, gaussian(generator.manual_seed(seed))) for one in (policy, teacher))
        mine, theirs = (_last(states).x for states in paths)
    return (mine - theirs).square().mean().sqrt().item()


def _last(states: Iterable[State]) -> State:
    *_, last = states
    return last


def _only(eps: Tensor) -> Noise:
    """A source of noise for the beginning, and of none for the way."""
    left = iter((eps,))

    def draw(x: Tensor, t: float, s: float) -> Tensor:
        for eps in left:
            return eps.to(x)
        raise ValueError(
            f"Distillation got a teacher whose sampler draws noise on the way from t = {t:.4g} to {s:.4g}, expected a "
            "deterministic one, whose plan is a function of its first noise: choose one by teacher.using(DPMSolverPP())"
        )

    return draw


__all__ = ["Distillation", "gap", "student_of"]
