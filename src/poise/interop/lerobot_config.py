"""`config.json` of a LeRobot DiffusionPolicy, and the policy that it describes in our words.

No default of LeRobot stands in for a missing field, for they changed between its versions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from poise.data.untrusted import MAX_FEATURES, DataError, inside
from poise.interop.chain import MAX_STEPS, read_chain
from poise.interop.fields import Fields, described
from poise.interop.published import DEPTHS, Outline, core_name, crop, unet
from poise.nn import CNN, FrozenBatchNorm, GroupNorm, Joint, ResNet, SpatialSoftmax, Vector
from poise.policies import PolicySpec

STATE, ENVIRONMENT, ACTION = "observation.state", "observation.environment_state", "action"
KINDS = {"STATE", "ENV", "VISUAL", "ACTION"}
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


class Feature(NamedTuple):
    """An input or output of a LeRobot policy: its type in upper case, and its shape, of an image (H, W, channels)."""

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
    unused: set[str]
    action: Feature

    def outline(self, path: Path) -> Outline:
        """The policy in our words.

        Args:
            path: The file of its tensors.

        Raises:
            DataError: A field that is missing or out of range, or a part that we have no counterpart of.
        """
        fields, history = self.fields, self.fields.integer("n_obs_steps", 1000)
        shapes = {name: feature.shape for name, feature in self.inputs.items()}
        cameras = [name for name, shape in shapes.items() if len(shape) == 3]
        evaluations = fields.values.get("num_inference_steps")
        if evaluations is not None:
            evaluations = fields.integer("num_inference_steps", fields.integer("num_train_timesteps", MAX_STEPS))
        chain = read_chain(fields, fields.word("noise_scheduler_type", ("DDPM", "DDIM")), evaluations)
        order = [STATE, *cameras, *({ENVIRONMENT} & {*shapes})]
        keypoints = fields.integer("spatial_softmax_num_keypoints", 4096) if cameras else 0
        separate = bool(cameras) and fields.flag("use_separate_rgb_encoder_per_camera")
        with described(fields.path, fields.where):
            spec = PolicySpec(
                observations=shapes,
                action=self.action.shape[0],
                history=history,
                horizon=fields.integer("horizon", 10_000),
                lead=history - 1,
                execute=fields.integer("n_action_steps", 10_000),
                encoder=_encoder(fields, keypoints, separate) if cameras else Vector(),
                network=unet(fields, chain, fields.flag("use_film_scale_modulation")),
                augmentations=crop(fields, [shapes[name] for name in cameras]) if cameras else (),
            )
            spec = chain.under(spec)
        return Outline(
            path=path,
            policy=spec,
            widths={name: 2 * keypoints if name in cameras else shapes[name][0] for name in order},
            network_name=lambda name: f"diffusion.unet.{name}",
            eyes={name: f"diffusion.rgb_encoder.{f'{i}.' if separate else ''}" for i, name in enumerate(cameras)},
            eye_name=lambda name: core_name(name).replace("backbone.nets.", "backbone.").replace("nets.3.", "out."),
        )


def file_of(root: Path, name: str, field: str) -> Path:
    """A file of a policy's folder; in the hub's cache, whose files are links, one of the blobs of the same model.

    Raises:
        DataError: It lies elsewhere.
    """
    here = root.resolve()
    if here.parent.name == "snapshots":
        path = inside(here.parents[1], f"snapshots/{here.name}/{name}", field)
        if path.resolve().parent == here.parents[1] / "blobs":
            return path
    return inside(root, name, field)


def config_of(path: Path, plain: Any) -> Config:
    """Check what `config.json` says.

    Raises:
        DataError: Another policy, an unknown field that is set, or features that no network takes.
    """
    fields = Fields.of(path, "config.json", plain)
    fields.word("type", ("diffusion",))
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
    images, environments = ({n: f for n, f in inputs.items() if f.kind == kind} for kind in ("VISUAL", "ENV"))
    if set(environments) - {ENVIRONMENT}:
        fields.refuse("input_features", f"no other of type ENV than {ENVIRONMENT!r}")
    shapes = {feature.shape for feature in images.values()}
    if not (images or environments) or len(shapes) > 1 or any(shape[2] != 3 for shape in shapes):
        fields.refuse("input_features", "an environment state or images, all of one shape (3, height, width)")
    seen = {name: feature for name, feature in inputs.items() if name in {STATE, *images, *environments}}
    return Config(fields, seen, set(inputs) - set(seen), outputs[ACTION])


def features(fields: Fields) -> dict[str, Feature]:
    """The features of an object of them.

    Raises:
        DataError: Too many, of an unknown type, or of a shape that is none.
    """
    if len(fields.values) > MAX_FEATURES:
        raise DataError(fields.path, fields.where, f"names {len(fields.values)}, expected at most {MAX_FEATURES}")
    kinds = {name: fields.inner(name).word("type", KINDS) for name in fields.values}
    return {name: Feature(kind, fields.inner(name).shape("shape", kind == "VISUAL")) for name, kind in kinds.items()}


def _encoder(fields: Fields, keypoints: int, separate: bool) -> Joint:
    fields.must("resize_shape", None, "we do not resize images, resize them in the data")
    norm = GroupNorm() if fields.flag("use_group_norm") else FrozenBatchNorm()
    backbone = ResNet(fields.choice("vision_backbone", DEPTHS), norm)
    return Joint(CNN(backbone, SpatialSoftmax(keypoints), 2 * keypoints, shared=not separate, relu=True))


__all__ = ["ACTION", "ENVIRONMENT", "KINDS", "STATE", "Config", "Feature", "config_of", "features", "file_of"]
