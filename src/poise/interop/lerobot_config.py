"""`config.json` of a LeRobot DiffusionPolicy, and the policy that it describes in our words.

No default of LeRobot stands in for a missing field, for they changed between its versions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from poise.data import Crop, Scaling
from poise.data.untrusted import MAX_FEATURES, DataError, inside, read_json
from poise.interop.fields import Fields, described
from poise.nn import CNN, FiLM, FrozenBatchNorm, GroupNorm, Joint, ResNet, SpatialSoftmax, Steps, UNet1D, Vector
from poise.policies import PolicySpec
from poise.predictions import Clean, Epsilon, Prediction
from poise.sampling import DDIM, DDPM, Trailing
from poise.schedules import Tabulated

STATE, ENVIRONMENT, ACTION = "observation.state", "observation.environment_state", "action"
KINDS = {"STATE", "ENV", "VISUAL", "ACTION"}
SIGMA_MIN = 1e-9  # their chains end without noise; so little is none in float32
PREDICTIONS: Mapping[str, Prediction] = {"epsilon": Epsilon(), "sample": Clean()}
SCHEDULES = {
    "squaredcos_cap_v2": lambda steps, start, end: Tabulated.squared_cosine(steps),  # noqa: ARG005
    "linear": Tabulated.linear,
    "scaled_linear": Tabulated.scaled_linear,
}
_GROUPS = 8
_DEPTHS = {"resnet18": 18, "resnet34": 34}
_READ = {
    *("type", "input_features", "output_features", "normalization_mapping", "n_obs_steps", "horizon"),
    *("n_action_steps", "vision_backbone", "resize_shape", "crop_shape", "use_group_norm", "down_dims", "kernel_size"),
    *("spatial_softmax_num_keypoints", "use_separate_rgb_encoder_per_camera", "n_groups", "diffusion_step_embed_dim"),
    *("use_film_scale_modulation", "noise_scheduler_type", "num_train_timesteps", "beta_schedule", "beta_start"),
    *("beta_end", "prediction_type", "clip_sample", "clip_sample_range", "num_inference_steps"),
}
_TRAINING = {  # and running, none of which changes a plan; the ratio of a crop matters after resizing alone
    *("drop_n_last_frames", "crop_ratio", "crop_is_random", "pretrained_backbone_weights", "do_mask_loss_for_padding"),
    *("optimizer_lr", "optimizer_betas", "optimizer_eps", "optimizer_weight_decay", "scheduler_name"),
    *("scheduler_warmup_steps", "compile_model", "compile_mode", "gradient_checkpointing", "device", "use_amp"),
    *("use_peft", "push_to_hub", "repo_id", "private", "tags", "license", "pretrained_path"),
}


@dataclass(frozen=True)
class Feature:
    """An input or output of a LeRobot policy.

    Attributes:
        kind: "STATE", "ENV", "VISUAL" or "ACTION".
        shape: As LeRobot has it: of an image (channels, height, width).
    """

    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Config:
    """What `config.json` says.

    Attributes:
        fields: The file.
        inputs: Name -> feature, in the order of the file, of those that the network sees.
        unused: Names of the inputs that it does not.
        action: The action.
    """

    fields: Fields
    inputs: Mapping[str, Feature]
    unused: tuple[str, ...]
    action: Feature

    @property
    def cameras(self) -> tuple[str, ...]:
        """The images, in the order of the file."""
        return tuple(name for name, feature in self.inputs.items() if feature.kind == "VISUAL")

    @property
    def separate(self) -> bool:
        """Whether every camera has an encoder of its own."""
        return bool(self.cameras) and self.fields.flag("use_separate_rgb_encoder_per_camera")

    @property
    def widths(self) -> dict[str, int]:
        """Name -> width among the inputs of the modulation, in the order of the network."""
        low = {name: feature.shape[0] for name, feature in self.inputs.items() if feature.kind != "VISUAL"}
        keypoints = self.fields.integer("spatial_softmax_num_keypoints", 4096) if self.cameras else 0
        images = dict.fromkeys(self.cameras, 2 * keypoints)
        return {STATE: low.pop(STATE)} | images | low

    def spec(self, scalings: Mapping[str, Scaling]) -> PolicySpec:
        """The policy in our words, with what normalises its features, the action among them.

        Raises:
            DataError: A field that is missing or out of range, or a part that we have no counterpart of.
        """
        fields = self.fields
        shapes = {
            name: (*feature.shape[1:], feature.shape[0]) if feature.kind == "VISUAL" else feature.shape
            for name, feature in self.inputs.items()
        }
        schedule, history = _schedule(fields), fields.integer("n_obs_steps", 1000)
        steps = len(schedule.betas)
        given = fields.values.get("num_inference_steps")
        evaluations = steps if given is None else fields.integer("num_inference_steps", steps)
        bound = fields.number("clip_sample_range") if fields.flag("clip_sample") else None
        samplers = {"DDPM": DDPM(), "DDIM": DDIM(bound=bound)}
        with described(fields.path, fields.where):
            return PolicySpec(
                observations=shapes,
                action=self.action.shape[0],
                history=history,
                horizon=fields.integer("horizon", 10_000),
                lead=history - 1,
                execute=fields.integer("n_action_steps", 10_000),
                encoder=_encoder(fields) if self.cameras else Vector(),
                network=_network(fields, schedule),
                schedule=schedule,
                prediction=fields.choice("prediction_type", PREDICTIONS),
                augmentations=_crop(fields, self.inputs[self.cameras[0]].shape) if self.cameras else (),
                scalings={name: scalings[name] for name in self.inputs},
                action_scaling=scalings[ACTION],
                bound=bound,
                sampler=fields.choice("noise_scheduler_type", samplers),
                # diffusers' "leading" spacing: strides of whole levels that end at the first one
                grid=Trailing(steps, first=1),
                begin=((evaluations - 1) * (steps // evaluations) + 1) / steps,
                evaluations=evaluations,
            )


def read_config(root: Path) -> Config:
    """Read and check `config.json`.

    Raises:
        DataError: No such file, and as `config_of`.
    """
    path = inside(root, "config.json", "config.json")
    return config_of(path, read_json(path))


def config_of(path: Path, plain: Any) -> Config:
    """Check what `config.json` says.

    Raises:
        DataError: Another policy, an unknown field that is set, or features that no network takes.
    """
    fields = Fields.of(path, "config.json", plain)
    fields.choice("type", {"diffusion": True})
    unknown = {name for name, value in fields.values.items() if value not in (None, False)} - _READ - _TRAINING
    if unknown:
        raise DataError(
            path, "config.json", f"sets the unknown fields {sorted(unknown)[:5]}, expected those of LeRobot 0.3 to 0.6"
        )
    inputs, outputs = (features(fields.inner(name)) for name in ("input_features", "output_features"))
    if set(outputs) != {ACTION} or outputs[ACTION].kind != "ACTION":
        fields.refuse("output_features", "'action' of type ACTION alone")
    if STATE not in inputs or inputs[STATE].kind != "STATE":
        fields.refuse("input_features", f"{STATE!r} of type STATE among them")
    environments = [name for name, feature in inputs.items() if feature.kind == "ENV"]
    if environments not in ([], [ENVIRONMENT]):
        fields.refuse("input_features", f"no other of type ENV than {ENVIRONMENT!r}")
    seen = {name: f for name, f in inputs.items() if f.kind in ("VISUAL", "ENV") or name == STATE}
    images = {feature.shape for feature in seen.values() if feature.kind == "VISUAL"}
    if len(seen) < 2 or len(images) > 1 or any(shape[0] != 3 for shape in images):
        fields.refuse("input_features", "an environment state or images, all of one shape (3, height, width)")
    return Config(fields, seen, tuple(sorted(set(inputs) - set(seen))), outputs[ACTION])


def features(fields: Fields) -> dict[str, Feature]:
    """The features of an object of them.

    Raises:
        DataError: Too many, of an unknown type, or of a shape that is none.
    """
    if len(fields.values) > MAX_FEATURES:
        raise DataError(fields.path, fields.where, f"names {len(fields.values)}, expected at most {MAX_FEATURES}")
    found = {}
    for name in fields.values:
        inner = fields.inner(name)
        kind = inner.choice("type", {kind: kind for kind in KINDS})
        count = 3 if kind == "VISUAL" else 1
        shape = inner.integers("shape", 100_000, count)
        if len(shape) != count:
            inner.refuse("shape", f"{count} sizes")
        found[name] = Feature(kind, shape)
    return found


def _schedule(fields: Fields) -> Tabulated:
    """The chain with the rounding of diffusers, which computes 1 - beta in float32."""
    make, steps = fields.choice("beta_schedule", SCHEDULES), fields.integer("num_train_timesteps", 10_000)
    with described(fields.path, fields.where):
        exact = make(steps, fields.number("beta_start"), fields.number("beta_end"))
        alphas = 1 - torch.tensor(exact.betas, dtype=torch.float64).float()
        return Tabulated(tuple((1 - alphas.double()).tolist()), SIGMA_MIN)


def _network(fields: Fields, schedule: Tabulated) -> UNet1D:
    if fields.integer("n_groups", 65_536) != _GROUPS:
        fields.refuse("n_groups", f"{_GROUPS}: whatever is set, the last block of their network has {_GROUPS} groups")
    return UNet1D(
        channels=fields.integers("down_dims", 65_536, 8),
        kernel=fields.integer("kernel_size", 1000),
        groups=_GROUPS,
        embedding=fields.integer("diffusion_step_embed_dim", 65_536),
        conditioning=FiLM(fields.flag("use_film_scale_modulation")),
        level=Steps(schedule),
    )


def _encoder(fields: Fields) -> Joint:
    keypoints = fields.integer("spatial_softmax_num_keypoints", 4096)
    norm = GroupNorm() if fields.flag("use_group_norm") else FrozenBatchNorm()
    return Joint(
        CNN(
            backbone=ResNet(fields.choice("vision_backbone", _DEPTHS), norm),
            pooling=SpatialSoftmax(keypoints),
            width=2 * keypoints,
            shared=not fields.flag("use_separate_rgb_encoder_per_camera"),
            relu=True,
        )
    )


def _crop(fields: Fields, image: tuple[int, ...]) -> tuple[Crop, ...]:
    if fields.values.get("resize_shape") is not None:
        fields.refuse("resize_shape", "null, for we do not resize images: resize them in the data")
    if fields.values.get("crop_shape") is None:
        return ()
    height, width = (*fields.integers("crop_shape", 100_000, 2), 0)[:2]
    # A margin that is odd they halve to the even side, we to the smaller.
    if any((whole - part) % 4 == 3 for whole, part in zip(image[1:], (height, width), strict=True)):
        fields.refuse("crop_shape", "margins that halve alike: an odd one of 3, 7, 11, ... pixels does not")
    return (Crop(height=height, width=width),)


__all__ = [
    "ACTION",
    "ENVIRONMENT",
    "KINDS",
    "PREDICTIONS",
    "SCHEDULES",
    "SIGMA_MIN",
    "STATE",
    "Config",
    "Feature",
    "config_of",
    "features",
    "read_config",
]
