"""The one description of a policy: everything that is needed to build it, as a frozen dataclass."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from poise.data import Augmentation, Limits, Pixels, Scaling
from poise.nn import MLP, EncoderSpec, NetworkSpec, Vector
from poise.objectives import Density, Uniform
from poise.policies.actions import Absolute, ActionSpace
from poise.policies.couplings import Coupling, Independent
from poise.policies.weightings import Unit, Weighting
from poise.predictions import Flow, Prediction
from poise.sampling import DPMSolverPP, Grid, Sampler, UniformTime
from poise.schedules import Rectified, Schedule


@dataclass(frozen=True)
class PolicySpec:
    """What a policy sees, what it plans, and how.

    Attributes:
        observations: Name of each observed feature -> its shape at one time step. Three numbers are an image, (height,
            width, channels), of 8 bits.
        optional: Name of a feature that may be absent at run time, such as a goal or a camera that may fail -> the
            share of training samples that it is hidden in. The encoder then also sees whether it is given.
        action: Number of action dimensions.
        space: What the actions of a plan are measured from.
        history: Observation steps, T_o.
        horizon: Action steps that the network denoises, T_p.
        lead: How many of them come before the current one: they are denoised and then left out of the plan. LeRobot and
            Diffusion Policy plan from the oldest observation on, `lead = history - 1`. Index 0 of a plan is the action
            for the current observation, whatever the lead.
        execute: Action steps run before the next plan, T_a.
        encoder: Observations to tokens.
        network: The denoising network; the regression baseline uses it too.
        schedule: Noise schedule.
        prediction: What the network's output means.
        density: Where on the noise scale the network learns.
        weighting: What an error counts there.
        coupling: Which noise of a batch goes with which plan.
        augmentations: Random changes of the images, one after the other.
        draws: Noise draws a training window, which share one encoding of its observation: worth it where the encoder
            costs more than the network.
        observation_scaling: Normalisation of the observed features; images have `Pixels()`.
        scalings: Name of a feature -> its own normalisation.
        action_scaling: Normalisation of the actions.
        bound: Predicted actions are clamped to plus or minus this, in normalised units; None leaves them.
        sampler: Default sampler; any other runs from the same weights.
        grid: Times that the sampler visits.
        evaluations: Network evaluations a plan.
        begin: Time at which pure noise stands for the plan, in (0, 1]. Below 1 it is the published flaw of beginning
            at a level that is not noise (Lin et al. 2023, arXiv 2305.08891), for policies that run so elsewhere.
        temperature: Factor of the noise; below 1 trades diversity for precision.

    Warns:
        UserWarning: A coupling that is biased where plans are conditioned on observations.

    Raises:
        ValueError: Horizons that do not fit each other, no observation, no action, actions that do not fit their space,
            augmentations that do not fit the images, an option for a feature that does not exist, a bound that leaves
            nothing, or a negative temperature.
    """

    observations: Mapping[str, tuple[int, ...]]
    action: int
    optional: Mapping[str, float] = field(default_factory=dict)
    space: ActionSpace = Absolute()
    history: int = 2
    horizon: int = 16
    lead: int = 0
    execute: int = 8
    encoder: EncoderSpec = Vector()
    network: NetworkSpec = MLP()
    schedule: Schedule = Rectified()
    prediction: Prediction = Flow()
    density: Density = Uniform()
    weighting: Weighting = Unit()
    coupling: Coupling = Independent()
    draws: int = 1
    augmentations: tuple[Augmentation, ...] = ()
    observation_scaling: Scaling = Limits()
    scalings: Mapping[str, Scaling] = field(default_factory=dict)
    action_scaling: Scaling = Limits()
    bound: float | None = 1.0
    sampler: Sampler = DPMSolverPP()
    grid: Grid = UniformTime()
    evaluations: int = 10
    begin: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.execute <= self.planned or self.lead < 0:
            raise ValueError(
                f"PolicySpec got lead={self.lead}, horizon={self.horizon} and execute={self.execute}, expected "
                "1 <= execute <= horizon - lead and a lead of at least 0: a plan must hold every action that is run "
                "before the next one"
            )
        if min(self.history, self.action, self.draws) < 1 or not self.observations:
            raise ValueError(
                f"PolicySpec got history={self.history}, action={self.action}, draws={self.draws} and observations "
                f"{dict(self.observations)}, expected at least one of each"
            )
        if not all(shape and min(shape) >= 1 for shape in self.observations.values()):
            raise ValueError(
                f"PolicySpec got observations {dict(self.observations)}, expected sizes of at least 1: the shape of a "
                "single number is (1,)"
            )
        if (self.bound is not None and self.bound <= 0) or self.temperature < 0 or not 0 < self.begin <= 1:
            raise ValueError(
                f"PolicySpec got bound={self.bound}, temperature={self.temperature} and begin={self.begin}, "
                "expected a bound above 0 or None, and a temperature of at least 0, and to begin at a time in (0, 1]"
            )
        unknown = sorted({*self.optional, *self.scalings} - set(self.observations))
        if unknown or not all(0 <= share < 1 for share in self.optional.values()):
            raise ValueError(
                f"PolicySpec got optional={dict(self.optional)} and scalings={dict(self.scalings)}, expected features "
                f"of {sorted(self.observations)}, and shares from 0 to below 1"
            )
        always = {name: shape for name, shape in self.observations.items() if name not in self.optional}
        self.space.check(always, self.action)
        for augmentation in self.augmentations:
            augmentation.check(self.observations)
        self.coupling.warn()
        _ = self.encoded

    @property
    def planned(self) -> int:
        """Action steps of a plan, from now on: `horizon - lead`."""
        return self.horizon - self.lead

    @property
    def cameras(self) -> tuple[str, ...]:
        """The features that are images."""
        return tuple(name for name, shape in self.observations.items() if len(shape) == 3)

    @property
    def encoded(self) -> dict[str, tuple[int, ...]]:
        """What the encoder sees: the features after augmentation, and a number a feature that may be absent."""
        shapes = dict(self.observations)
        for name in self.cameras:
            height, width, channels = shapes[name]
            for augmentation in self.augmentations:
                if augmentation.applies(name):
                    height, width, channels = augmentation.size((height, width, channels))
            shapes[name] = height, width, channels
        return shapes | {given(name): (1,) for name in self.optional}

    def scaling(self, name: str) -> Scaling:
        """The normalisation of an observed feature."""
        return self.scalings.get(name, Pixels() if name in self.cameras else self.observation_scaling)


def given(name: str) -> str:
    """The name of the number, 1 or 0, that tells the encoder whether an optional feature is there."""
    return f"{name}.given"


__all__ = ["PolicySpec", "given"]
