r"""Normalisation of LeRobot, from its processor files (0.4 and later) or from within its weights (0.3), as ours.

A mode is an affine map by statistics of the data,

$$ y = \frac{2\,(x - l)}{h - l} - 1 \quad\text{or}\quad y = \frac{x - m}{s + 10^{-8}}, $$

with limits (l, h) the extremes or quantiles. Where LeRobot lets a feature pass that has no mode or no statistics, ours
is an error; where it divides the constant dimension of an observation by 1e-8, ours keeps its unit.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from poise.data import Limits, Quantile, Scaling, Standard, Unscaled
from poise.data.untrusted import DataError, read_json
from poise.interop.fields import Fields
from poise.interop.lerobot_config import ACTION, KINDS, Config, Feature, features, file_of
from poise.interop.published import Affine
from poise.interop.tensors import read_tensors

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
EPSILON = 1e-8
_MODES: Mapping[str, tuple[tuple[str, ...], Scaling]] = {
    "MIN_MAX": (("min", "max"), Limits()),
    "MEAN_STD": (("mean", "std"), Standard()),
    "QUANTILES": (("q01", "q99"), Quantile(0.01, 0.99)),
    "QUANTILE10": (("q10", "q90"), Quantile(0.1, 0.9)),
    "IDENTITY": ((), Unscaled()),
}
_BEFORE = {"rename_observations_processor", "to_batch_processor", "device_processor", "normalizer_processor"}
_AFTER = {"unnormalizer_processor", "device_processor"}
# For a dimension that never moved: an observation keeps its unit, an action hardly leaves its value.
_SEEN, _DONE = 2.0, 1e-4


@dataclass(frozen=True)
class Statistics:
    """Modes and statistics of the features.

    Attributes:
        path: Their file.
        modes: Type of a feature -> its mode.
        values: `name.statistic` -> tensor.
        epsilon: Added to the standard deviation of an observation.
        passed: Names that are left as they are.
    """

    path: Path
    modes: Mapping[str, str]
    values: Mapping[str, Tensor]
    epsilon: float = EPSILON
    passed: Collection[str] = ()

    def affine(self, name: str, feature: Feature, identity: Collection[str]) -> Affine:
        """The map of one feature.

        Args:
            name: Of the feature.
            feature: Its type and shape.
            identity: Names that may lack a mode or statistics, and stay as they are.

        Raises:
            DataError: No mode, no statistics, or such that make no map.
        """
        mode = None if name in self.passed else self.modes.get(feature.kind)
        wanted, rule = _MODES[mode] if mode else ((), Unscaled())
        stated = mode is not None and all(f"{name}.{statistic}" in self.values for statistic in wanted)
        if not stated and name not in identity:
            lacks = f"statistics {wanted} for {mode}" if mode else f"mode for its type {feature.kind}"
            lacks = "place in normalize_observation_keys" if name in self.passed else lacks
            raise DataError(
                self.path, name, f"has no {lacks}, and LeRobot would pass it on in the units of the data: if it was "
                "trained so, import it with this feature among identity"
            )  # fmt: skip
        if wanted and stated:
            pair = [self._statistic(f"{name}.{statistic}", feature) for statistic in wanted]
            scale, offset = self._map(name, mode == "MEAN_STD", *pair)
        else:
            scale, offset = (torch.full((feature.shape[-1],), v, dtype=torch.float64) for v in (1.0, 0.0))
            rule = Unscaled()
        return Affine(scale / 255 if feature.kind == "VISUAL" else scale, offset, rule)  # theirs sees pixels up to 1

    def _map(self, name: str, standard: bool, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and offset from mean and deviation, or from limits."""
        least, epsilon = (_DONE, 0.0) if name == ACTION else (_SEEN, self.epsilon)
        spread = second if standard else (second - first) / 2
        if bool((spread < 0).any()):
            raise DataError(self.path, name, "has a negative standard deviation or range, expected 0 or more")
        epsilon = epsilon if standard else 0.0
        scale = 1 / torch.where(spread == 0, least / 2, spread + epsilon)
        return scale, -scale * first - (0.0 if standard else 1.0)

    def _statistic(self, key: str, feature: Feature) -> Tensor:
        value = self.values[key]
        if value.numel() != feature.shape[-1] or not value.is_floating_point() or not torch.isfinite(value).all():
            problem = f"got the shape {tuple(value.shape)} of {value.dtype}, or numbers that are not finite"
            raise DataError(self.path, key, f"{problem}, expected {feature.shape[-1]} finite floats")
        return value.double().flatten()


def read_processors(root: Path, config: Config) -> Statistics:
    """The statistics of LeRobot 0.4 and later, beside the weights.

    Raises:
        DataError: A missing or broken file, a processor that is unknown or named by a class, or two files that differ.
    """
    before, after = _steps(root, PREPROCESSOR, _BEFORE), _steps(root, POSTPROCESSOR, _AFTER)
    got = _normaliser(root, before, "normalizer_processor")
    undo = _normaliser(root, after, "unnormalizer_processor")
    declared = features(before["normalizer_processor"].inner("config").inner("features"))
    for name, feature in {**config.inputs, ACTION: config.action}.items():
        if declared.get(name) != feature:
            raise DataError(
                got.path, f"features: {name}", f"got {declared.get(name)}, expected {feature} of config.json"
            )
    done, undone = ({k: v for k, v in s.values.items() if k.startswith(f"{ACTION}.")} for s in (got, undo))
    if not _equal(done, undone):
        raise DataError(undo.path, ACTION, f"differs from that of {PREPROCESSOR}, expected one normalisation")
    if got.modes.get("ACTION") != undo.modes.get("ACTION"):
        raise DataError(undo.path, "norm_map: ACTION", f"differs from that of {PREPROCESSOR}, expected one mode")
    return got


def _steps(root: Path, name: str, known: set[str]) -> dict[str, Fields]:
    path = file_of(root, name, name)
    fields, found = Fields.of(path, name, read_json(path)), {}
    steps = fields.values.get("steps")
    if not isinstance(steps, list):
        fields.refuse("steps", "a list of processors")
    for number, step in enumerate(steps):
        inner = Fields.of(path, f"{name}: steps[{number}]", step)
        if "class" in inner.values or "registry_name" not in inner.values:
            raise DataError(path, inner.where, "names a class to import, which is never done, expected a registry_name")
        kind = inner.word("registry_name", known)
        if kind in found:
            inner.refuse("registry_name", "every processor once")
        found[kind] = inner
    return found


def _normaliser(root: Path, steps: Mapping[str, Fields], kind: str) -> Statistics:
    if kind not in steps:
        raise DataError(root, kind, "is not among the processors, expected one: LeRobot would not normalise at all")
    step, config = steps[kind], steps[kind].inner("config")
    path = file_of(root, step.text("state_file"), f"{step.where}: state_file")
    passed, chosen = set[str](), config.values.get("normalize_observation_keys")
    if chosen is not None:
        passed = set(features(config.inner("features"))) - {ACTION, *config.names("normalize_observation_keys")}
    return Statistics(path, _modes(config.inner("norm_map")), read_tensors(path), config.number("eps"), passed)


def _modes(fields: Fields) -> dict[str, str]:
    """Type of a feature -> mode."""
    return {kind: fields.word(kind, _MODES) for kind in fields.values if kind in KINDS}


def within(path: Path, config: Config, tensors: dict[str, Tensor]) -> Statistics:
    """The statistics of LeRobot up to 0.3, which are taken out of the tensors of the weights.

    Raises:
        DataError: Statistics of actions that differ before and after the network.
    """
    groups: dict[str, dict[str, Tensor]] = {"normalize_inputs": {}, "normalize_targets": {}, "unnormalize_outputs": {}}
    for key in [key for key in tensors if key.split(".")[0] in groups]:
        group, _, rest = key.partition(".")
        groups[group][rest.removeprefix("buffer_")] = tensors.pop(key)
    inputs, targets, values = groups.values()
    if not _equal(targets, values):
        raise DataError(path, "unnormalize_outputs", "differs from normalize_targets, expected one normalisation")
    plain = {name.replace(".", "_"): name for name in config.inputs}
    for rest, value in inputs.items():
        name, _, statistic = rest.partition(".")
        values[f"{plain.get(name, name)}.{statistic}"] = value
    return Statistics(path, _modes(config.fields.inner("normalization_mapping")), values)


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


__all__ = ["EPSILON", "POSTPROCESSOR", "PREPROCESSOR", "Statistics", "read_processors", "within"]
