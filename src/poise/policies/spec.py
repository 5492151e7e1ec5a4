"""The one description of a policy: everything that is needed to build it, as a frozen dataclass."""

from collections.abc import Mapping
from dataclasses import dataclass

from poise.data import Limits, Scaling
from poise.nn import MLP, EncoderSpec, NetworkSpec, Vector
from poise.objectives import Density, Uniform
from poise.policies.actions import Absolute, ActionSpace
from poise.predictions import Flow, Prediction
from poise.sampling import DPMSolverPP, Grid, Sampler, UniformTime
from poise.schedules import Rectified, Schedule


@dataclass(frozen=True)
class PolicySpec:
    """What a policy sees, what it plans, and how.

    Attributes:
        observations: Name of each observed feature -> its shape at one time step.
        action: Number of action dimensions.
        space: What the actions of a plan are measured from.
        history: Observation steps, T_o.
        horizon: Action steps planned, T_p; index 0 is the action for the current observation.
        execute: Action steps run before the next plan, T_a.
        encoder: Observations to tokens.
        network: The denoising network; the regression baseline uses it too.
        schedule: Noise schedule.
        prediction: What the network's output means.
        density: Where on the noise scale the network learns.
        observation_scaling: Normalisation of the observed features.
        action_scaling: Normalisation of the actions.
        bound: Predicted actions are clamped to plus or minus this, in normalised units; None leaves them.
        sampler: Default sampler; any other runs from the same weights.
        grid: Times that the sampler visits.
        evaluations: Network evaluations a plan.
        temperature: Factor of the noise; below 1 trades diversity for precision.

    Raises:
        ValueError: Horizons that do not fit each other, no observation, or no action.
    """

    observations: Mapping[str, tuple[int, ...]]
    action: int
    space: ActionSpace = Absolute()
    history: int = 2
    horizon: int = 16
    execute: int = 8
    encoder: EncoderSpec = Vector()
    network: NetworkSpec = MLP()
    schedule: Schedule = Rectified()
    prediction: Prediction = Flow()
    density: Density = Uniform()
    observation_scaling: Scaling = Limits()
    action_scaling: Scaling = Limits()
    bound: float | None = 1.0
    sampler: Sampler = DPMSolverPP()
    grid: Grid = UniformTime()
    evaluations: int = 10
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.execute <= self.horizon:
            raise ValueError(
                f"PolicySpec got horizon={self.horizon} and execute={self.execute}, expected 1 <= execute <= horizon: "
                "a plan must hold every action that is run before the next one"
            )
        if self.history < 1 or self.action < 1 or not self.observations:
            raise ValueError(
                f"PolicySpec got history={self.history}, action={self.action} and observations "
                f"{dict(self.observations)}, expected at least one of each"
            )


__all__ = ["PolicySpec"]
