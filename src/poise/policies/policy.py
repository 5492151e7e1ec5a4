"""Policies: stateless maps from a batch of observation histories to a batch of plans.

Run-time state (histories, what is left of a plan) lives in the wrappers of `poise.policies.control`, so one policy
object serves any number of robots.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from poise.data import Batch, Normaliser, Unscaled, Windows
from poise.data.mapped import relieve
from poise.draws import Draws
from poise.policies.saving import save_checkpoint
from poise.policies.spec import PolicySpec, given
from poise.sampling import State
from poise.typing import Actions, Noise, Observation, Tokens

_FITTED = 200_000  # windows, evenly spread, that the statistics of actions come from
_PIXELS = 1_000_000  # likewise, for those of a camera
_AT_ONCE = 50_000
_PARTS = 8  # of a batch, that a forgetful training encodes one after the other


class Policy(nn.Module, ABC):
    """An observation history `(B, history, ...)` in the units of the data, to a plan `(B, planned, action)` in them.

    Args:
        spec: Description of the policy.

    Attributes:
        forgetful: Whether training keeps nothing of what the encoder computes and computes it again for the gradient,
            a part of the batch at a time: a third more time there, and the memory of large batches of images.
    """

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__()
        self.spec = spec
        # A module's name must not hold a dot, a feature's may.
        self._keys = {name: name.replace(".", "/") for name in spec.observations}
        self._shapes = spec.encoded
        encoder = spec.encoder.build(self._shapes, spec.history)
        rowwise = {*spec.cameras, *encoder.alike}
        shapes = {name: shape[-1:] if name in rowwise else shape for name, shape in spec.observations.items()}
        self.observation_normalisers = nn.ModuleDict(
            {key: Normaliser(name, tuple(shapes[name])) for name, key in self._keys.items()}
        )
        self.action_normaliser = Normaliser("action", (spec.action,))
        self.encoder = encoder
        self.forgetful = False
        self._ready = False  # whether every feature was found to have statistics

    def fit(self, windows: Windows) -> None:
        """Take the constants of normalisation from demonstrations.

        Raises:
            ValueError: A feature that the demonstrations lack, or of another shape than the spec says.
        """
        spec, rows = self.spec, {**windows.observations, "action": windows.actions}
        for name, shape in {**spec.observations, "action": (spec.action,)}.items():
            if name not in rows:
                raise ValueError(
                    f"fit got demonstrations with the features {sorted(rows)}, expected also {name!r}: name it among "
                    "the observed features of Windows, or leave it out of the spec's observations"
                )
            got = tuple(rows[name].shape[1:])
            if got != tuple(shape):
                raise ValueError(
                    f"fit got demonstrations whose feature {name!r} has the shape {got}, expected {tuple(shape)}: "
                    f"{_remedy(got, tuple(shape)) or 'change the spec, or record the data so'}"
                )
        for name in spec.observations:
            values = rows[name].flatten(0, -2) if name in spec.cameras else rows[name]
            few = _taken(values, _spread(len(values), _PIXELS)) if name in spec.cameras else values
            self._normaliser(name).fit(few, Unscaled() if name in self.encoder.raw else spec.scaling(name))
        batch = evenly(windows)
        self.action_normaliser.fit(spec.space.encode(batch.actions, batch.observation)[batch.real], spec.action_scaling)

    def _normaliser(self, name: str) -> Normaliser:
        module = self.observation_normalisers[self._keys[name]]
        assert isinstance(module, Normaliser)
        return module

    def set_constants(self, name: str, scale: Tensor, offset: Tensor) -> None:
        """Take the constants of normalisation of an observed feature, or of "action", from elsewhere than data."""
        for mine, new in zip(self.constants(name), (scale, offset), strict=True):
            mine.copy_(new)

    def constants(self, name: str) -> tuple[Tensor, Tensor]:
        """Scale and offset of an observed feature, or of "action"."""
        normaliser = self.action_normaliser if name == "action" else self._normaliser(name)
        return normaliser.scale, normaliser.offset

    def normalised(self, observation: Observation, draws: Draws | None = None) -> dict[str, Tensor]:
        """The observed features as the encoder sees them: in normalised units, images cropped, absent features zero.

        In training mode images are changed and optional features hidden at random.

        Args:
            observation: Name -> `(B, history, ...)`.
            draws: Of what is random in training.
        """
        some, seen = next(iter(observation.values())), {}
        for name in self.spec.observations:
            if name in observation:
                seen[name] = self._normaliser(name)(self._augmented(name, observation[name], draws))
            else:
                seen[name] = self.action_normaliser.scale.new_zeros(*some.shape[:2], *self._shapes[name])
            if name in self.spec.optional:
                here = self._given(name, name in observation, some.shape[0], draws)
                seen[name] = seen[name] * here.reshape(-1, *[1] * (seen[name].ndim - 1))
                seen[given(name)] = here[:, None, None].expand(-1, some.shape[1], 1)
        return seen

    def _augmented(self, name: str, x: Tensor, draws: Draws | None) -> Tensor:
        for augmentation in self.spec.augmentations if name in self.spec.cameras else ():
            if augmentation.applies(name):
                x = augmentation.train(x, draws or Draws()) if self.training else augmentation.run(x)
        return x

    def _given(self, name: str, there: bool, batch: int, draws: Draws | None) -> Tensor:
        """One where an optional feature is to be seen, `(B,)`."""
        ones = self.action_normaliser.scale.new_ones(batch)
        if not self.training:
            return ones * there
        drawn = (draws or Draws()).uniform(batch).to(ones.device)
        return ones * there * (drawn >= self.spec.optional[name])

    def tokens(self, observation: Observation, draws: Draws | None = None) -> Tokens:
        """The encoded observation history; the arguments are those of `normalised`."""
        with self._exact():
            seen = self.normalised(observation, draws)
        if self.forgetful and self.training:
            return self._forgotten(seen)
        return self.encoder(seen)

    def _forgotten(self, seen: Mapping[str, Tensor]) -> Tokens:
        """Tokens whose parts are computed again for the gradient, one after the other: a whole batch would be there."""
        size = -(-len(next(iter(seen.values()))) // _PARTS)
        parts = zip(*(values.split(size) for values in seen.values()), strict=True)
        some = (dict(zip(seen, part, strict=True)) for part in parts)
        return torch.cat([checkpoint(self.encoder, part, use_reentrant=False) for part in some])

    def _exact(self) -> torch.autocast:
        """No autocast: bfloat16 would round colours by levels of grey, and targets in space by millimetres."""
        kind = self.action_normaliser.scale.device.type
        return torch.autocast(kind if torch.amp.is_autocast_available(kind) else "cpu", enabled=False)

    def ready(self) -> None:
        """Raise unless every feature has statistics.

        Raises:
            ValueError: Names the feature without any.
        """
        for name in self.spec.observations:
            self._normaliser(name).check()
        self.action_normaliser.check()
        self._ready = True

    def _once_ready(self) -> None:
        """`ready` until it passes, for what runs at every step."""
        if not self._ready:
            self.ready()

    def save(self, path: str | Path, notes: Mapping[str, Any] | None = None) -> Path:
        """Write a checkpoint that `poise.load` reads; the file is complete or it is not there.

        Args:
            path: A file that ends in `.safetensors`, or a folder in which `policy.safetensors` is written.
            notes: JSON data to keep with it.

        Returns:
            The file.

        Raises:
            ValueError: A feature without statistics.
            OSError: The disk is full, or broken.
        """
        self.ready()
        return save_checkpoint(path, self, notes)

    def check(self, observation: Observation) -> None:
        """Raise unless the observation has every feature that is not optional, in its shape, finite, in one batch.

        Raises:
            ValueError: Says which feature, what it got and what it expected; or which has no statistics.
        """
        self._once_ready()
        for name, shape in self.spec.observations.items():
            if name not in observation:
                if name in self.spec.optional and observation:
                    continue
                raise ValueError(
                    f"The policy got the features {sorted(observation)}, expected also {name!r}, which is missing: "
                    f"give observation[{name!r}], or list it in PolicySpec.optional and train again"
                )
            got, expected = tuple(observation[name].shape), (self.spec.history, *shape)
            if got[1:] != expected:
                remedy = got[1:2] == expected[:1] and _remedy(got[2:], expected[1:])
                raise ValueError(
                    f"The policy got feature {name!r} of shape {got}, expected "
                    f"(batch, {', '.join(map(str, expected))}): "
                    f"{remedy or 'a batch of histories, oldest step first'}"
                )
            if name in self.spec.cameras:
                if observation[name].dtype != torch.uint8:
                    raise ValueError(
                        f"The policy got images {name!r} of {observation[name].dtype}, expected torch.uint8 from 0 to "
                        "255"
                    )
            elif not bool(torch.isfinite(observation[name]).all()):
                raise ValueError(
                    f"The policy got NaN or infinity in feature {name!r}, expected finite numbers: "
                    "check the sensor, and hold the robot meanwhile"
                )
        sizes = {name: len(observation[name]) for name in self.spec.observations if name in observation}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"The policy got batches of {sizes} rows, expected one number: a row of each for a robot")

    def blank(self, batch: int) -> dict[str, Tensor]:
        """An observation of zeros, `(batch, history, ...)` a feature: for what is timed or compiled."""
        spec, device = self.spec, self.action_normaliser.scale.device
        return {
            name: torch.zeros(
                batch, spec.history, *shape, device=device, dtype=torch.uint8 if name in spec.cameras else None
            )
            for name, shape in spec.observations.items()
        }

    def encoded(self, batch: Batch) -> Actions:
        """The actions of a batch, from `lead` steps before now on, as the policy learns them, in normalised units.

        Raises:
            ValueError: A feature without statistics.
        """
        self._once_ready()
        with self._exact():
            return self.action_normaliser(self.spec.space.encode(batch.actions, batch.observation))

    def decoded(self, actions: Actions, observation: Observation) -> Actions:
        """Learned plans `(B, horizon, action)` in the units of the data, from now on: `(B, planned, action)`.

        Without a `lead` it is the inverse of `encoded`.
        """
        return self.spec.space.decode(self.action_normaliser.inverse(actions), observation)[:, self.spec.lead :]

    def bounded(self, actions: Actions) -> Actions:
        """Predicted actions, in normalised units, clamped to the bound of the spec."""
        bound = self.spec.bound
        return actions if bound is None else actions.clamp(-bound, bound)

    @abstractmethod
    def loss(self, batch: Batch, draws: Draws | None = None) -> Tensor:
        """Squared error of every action, `(B, horizon, action)`, in normalised units."""

    @abstractmethod
    def trace(self, observation: Observation, noise: Noise | None = None) -> Iterator[State]:
        """The plan on its way from noise, in the units of the data; the last state is the plan."""

    @torch.inference_mode()
    def plan(self, observation: Observation, noise: Noise | None = None) -> Actions:
        """Plan once for every row of the batch.

        Args:
            observation: Name -> `(B, history, ...)`, oldest step first.
            noise: Source of noise; by default PyTorch's global generator.

        Raises:
            ValueError: A feature that is missing, of a wrong shape, or not finite.
        """
        self.check(observation)
        *_, last = self.trace(observation, noise)
        return last.x


def evenly(windows: Windows) -> Batch:
    """The windows that the statistics of actions come from, without their images."""
    low = [name for name, rows in windows.observations.items() if rows.ndim < 4]
    return windows.gather(_spread(len(windows), _FITTED), low)


def _remedy(got: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """What makes a feature of another shape at one time step fit, where that is known."""
    if len(got) != 3 or len(expected) != 3:
        return ""
    if got == (expected[2], *expected[:2]):
        return "these images have their channels first, move them to the end by images.movedim(-3, -1)"
    return "resize the images, or change the spec's observations and train again" if got[2] == expected[2] else ""


def _taken(rows: Tensor, chosen: Tensor) -> Tensor:
    """Some rows, in order, of which only a part is in memory at a time where they are mapped."""
    taken = []
    for part in chosen.split(_AT_ONCE):
        taken.append(rows[part])
        relieve()
    return torch.cat(taken)


def _spread(count: int, most: int) -> Tensor:
    """Up to so many of the numbers below `count`, evenly spread."""
    return torch.linspace(0, count - 1, min(count, most), dtype=torch.float64).round().long()


__all__ = ["Policy", "evenly"]
