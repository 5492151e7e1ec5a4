"""The configuration of a diffusion_policy checkpoint, and the policy that it describes in our words.

Where a field is left out stands the default of their class, as it does there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from poise.data import Crop
from poise.data.untrusted import MAX_FEATURES, DataError
from poise.interop.chain import Chain, complete, read_chain
from poise.interop.fields import Fields, described
from poise.interop.published import GROUPS, SIZE, Outline, core_name, crop, unet_name
from poise.nn import (
    CNN,
    AveragePool,
    CrossAttention,
    EncoderSpec,
    FiLM,
    FrozenBatchNorm,
    GroupNorm,
    Joint,
    NetworkSpec,
    ResNet,
    SpatialSoftmax,
    Steps,
    Transformer,
    UNet1D,
    Vector,
)

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation
_KEYPOINTS, _WIDTH, _POOLED = 32, 64, 512
_RUN = ("_target_", "noise_scheduler", "horizon", "n_action_steps", "n_obs_steps")
_LOW, _MANY = (*_RUN, "model", "obs_dim", "action_dim"), (*_RUN, "shape_meta")
_ANY = {"num_inference_steps": None, "pred_action_steps_only": False}
_UNET = {"diffusion_step_embed_dim": 256, "down_dims": [256, 512, 1024], "n_groups": GROUPS}
_BARE = {**_UNET, "kernel_size": 3, "cond_predict_scale": False, "local_cond_dim": None}
_FULL = {**_UNET, "kernel_size": 5, "cond_predict_scale": True, "obs_as_global_cond": True}
_CORE = {"crop_shape": [76, 76], "obs_encoder_group_norm": False, "eval_fixed_crop": False}
_DECODER = {"n_layer": 12, "n_head": 12, "n_emb": 768, "p_drop_emb": 0.1, "p_drop_attn": 0.1, "causal_attn": False,
            "time_as_cond": True, "obs_as_cond": False, "n_cond_layers": 0}  # fmt: skip
_COMPACT = {**_DECODER, "n_layer": 8, "n_head": 4, "n_emb": 256, "p_drop_attn": 0.3, "causal_attn": True,
            "obs_as_cond": True}  # fmt: skip
_POLICIES: Mapping[str, Mapping[str, Any]] = {
    "DiffusionUnetLowdimPolicy": _ANY | {"obs_as_local_cond": False, "obs_as_global_cond": False,
                                         "oa_step_convention": False},
    "DiffusionTransformerLowdimPolicy": _ANY | {"obs_as_cond": False},
    "DiffusionUnetHybridImagePolicy": _ANY | _FULL | _CORE,
    "DiffusionTransformerHybridImagePolicy": _ANY | _COMPACT | _CORE,
    "DiffusionUnetImagePolicy": _ANY | _FULL | {"obs_encoder": None},
}  # fmt: skip
_EYES = {"shape_meta": None, "rgb_model": None, "resize_shape": None, "crop_shape": None, "random_crop": True,
         "use_group_norm": False, "share_rgb_model": False, "imagenet_norm": False}  # fmt: skip
_DEPTHS = {"resnet18": 18, "resnet34": 34}


@dataclass(frozen=True)
class _Seen:
    """What a policy sees, and how it is encoded."""

    shapes: Mapping[str, tuple[int, ...]]
    action: int
    widths: Mapping[str, int]
    encoder: EncoderSpec = Vector()
    augmentations: tuple[Crop, ...] = ()
    prefix: str = "obs_encoder.obs_nets."
    shared: bool = False
    pooled: bool = False
    imagenet: bool = False

    def eye_name(self, camera: str, name: str) -> str:
        """Their name of a tensor of a camera's encoder."""
        inner = name.removeprefix("trunk.module.") if self.pooled else core_name(name)
        return f"{self.prefix}{'rgb' if self.shared else camera}.{inner}"


def described_by(fields: Fields) -> tuple[Outline, bool]:
    """The policy in our words, and whether its images are normalised a second time as those of ImageNet are.

    Raises:
        DataError: A field that is missing, unknown or out of range, or a part that we have no counterpart of.
    """
    kind = _class_of(fields, _POLICIES)
    low, transformer = "Lowdim" in kind, "Transformer" in kind
    fields = complete(fields, _POLICIES[kind], _LOW if low else _MANY)
    inner = fields.inner("model") if low else fields
    chain = _chain(fields)
    seen = _low(fields) if low else _images(fields) if "Hybrid" not in kind else _hybrid(fields)
    if low:
        names = ("_target_", "input_dim", *(("output_dim", "horizon", "n_obs_steps", "cond_dim") if transformer else
                                            ("global_cond_dim",)))  # fmt: skip
        inner = complete(inner, _DECODER if transformer else _BARE, names)
    history, horizon = fields.integer("n_obs_steps", 1000), fields.integer("horizon", 10_000)
    execute = fields.integer("n_action_steps", 10_000)
    # Only of this policy the plan may begin one step later, with the action after the newest observation.
    lead = history - (fields.flag("oa_step_convention") if "oa_step_convention" in _POLICIES[kind] else 1)
    if transformer:
        network = _transformer(fields, inner, chain)
    else:
        network = _unet(fields, inner, chain)
        if fields.flag("pred_action_steps_only"):  # a network of the executed steps alone
            horizon, lead = execute, 0
    outline = Outline(
        path=fields.path, observations=seen.shapes, widths=seen.widths, action=seen.action, history=history,
        horizon=horizon, lead=lead, execute=execute, encoder=seen.encoder, network=network, chain=chain,
        network_name=(lambda name: f"model.{name if transformer else unet_name(name)}"),
        augmentations=seen.augmentations, eye_name=seen.eye_name,
    )  # fmt: skip
    return outline, seen.imagenet


def _class_of(fields: Fields, known: Mapping[str, Any]) -> str:
    """The class that a field names, which is never imported."""
    name = fields.text("_target_").rpartition(".")[2]
    return name if name in known else fields.refuse("_target_", f"one of {sorted(known)}")


def _chain(fields: Fields) -> Chain:
    scheduler = fields.inner("noise_scheduler")
    kind = _class_of(scheduler, {"DDPMScheduler": None, "DDIMScheduler": None})
    count = fields.values.get("num_inference_steps")
    evaluations = None if count is None else fields.integer("num_inference_steps", 10_000)
    return read_chain(scheduler, kind[:4], evaluations)


def _unet(fields: Fields, inner: Fields, chain: Chain) -> UNet1D:
    if not fields.flag("obs_as_global_cond"):
        fields.refuse("obs_as_global_cond", "true: we have no local condition, and no inpainting of observations")
    if inner.values.get("local_cond_dim") is not None:
        inner.refuse("local_cond_dim", "null, for we have no local condition")
    return _network(inner, chain)


def _network(fields: Fields, chain: Chain) -> UNet1D:
    if fields.integer("n_groups", SIZE) != GROUPS:
        fields.refuse("n_groups", f"{GROUPS}: whatever is set, the last block of their network has {GROUPS} groups")
    with described(fields.path, fields.where):
        return UNet1D(
            channels=fields.integers("down_dims", SIZE, 8),
            kernel=fields.integer("kernel_size", 1000),
            groups=GROUPS,
            embedding=fields.integer("diffusion_step_embed_dim", SIZE),
            conditioning=FiLM(fields.flag("cond_predict_scale")),
            level=Steps(chain.schedule),
        )


def _transformer(fields: Fields, inner: Fields, chain: Chain) -> NetworkSpec:
    for where, name, wanted, why in (
        (fields, "obs_as_cond", True, "we have no inpainting of observations"),
        (fields, "pred_action_steps_only", False, "its plan would be shorter than its positions"),
        (inner, "time_as_cond", True, "our noise level is a token that the plan attends to"),
    ):
        if where.flag(name) is not wanted:
            where.refuse(name, f"{str(wanted).lower()}: {why}")
    if inner.values["n_cond_layers"] != 0:
        inner.refuse("n_cond_layers", "0: our observation tokens go through an MLP, not through a transformer")
    causal, heads = inner.flag("causal_attn"), inner.integer("n_head", SIZE)
    dropout = inner.number("p_drop_attn") if inner.values["p_drop_attn"] else 0.0
    with described(fields.path, fields.where):
        return Transformer(
            width=inner.integer("n_emb", SIZE),
            depth=inner.integer("n_layer", 1000),
            heads=heads,
            causal=causal,
            aligned=causal,
            dropout=dropout,
            conditioning=CrossAttention(heads),
            level=Steps(chain.schedule),
        )


def _low(fields: Fields) -> _Seen:
    size = fields.integer("obs_dim", SIZE)
    return _Seen({"obs": (size,)}, fields.integer("action_dim", SIZE), {"obs": size})


def _hybrid(fields: Fields) -> _Seen:
    """Images by robomimic's encoder; the features stand in the order of the configuration."""
    shapes, action = _meta(fields)
    images = {name: shape for name, shape in shapes.items() if len(shape) == 3}
    cropped = crop(fields, images.values(), rounded=True)
    if cropped and not fields.flag("eval_fixed_crop"):
        fields.refuse("eval_fixed_crop", "true: without it each plan sees another crop, drawn at random")
    norm = GroupNorm() if fields.flag("obs_encoder_group_norm") else FrozenBatchNorm()
    eye = CNN(ResNet(18, norm), SpatialSoftmax(_KEYPOINTS), _WIDTH, shared=False, relu=True)
    widths = {name: _WIDTH if name in images else shape[0] for name, shape in shapes.items()}
    return _Seen(shapes, action, widths, Joint(eye) if images else Vector(), cropped)


def _images(fields: Fields) -> _Seen:
    """Images by MultiImageObsEncoder; the features stand in the order of their names, images first."""
    shapes, action = _meta(fields)
    inner = fields.inner("obs_encoder")
    _class_of(inner, {"MultiImageObsEncoder": None})
    inner = complete(inner, _EYES, ("_target_",))
    model = inner.inner("rgb_model")
    _class_of(model, {"get_resnet": None})
    if str(model.values.get("weights")).lower() == "r3m":
        model.refuse("weights", "null or weights of torchvision")
    if inner.values["resize_shape"] is not None:
        inner.refuse("resize_shape", "null, for we do not resize images: resize them in the data")
    images = {name: shape for name, shape in sorted(shapes.items()) if len(shape) == 3}
    # Theirs forgets a crop that is not random, and the group norm of a model that is shared.
    cropped = crop(inner, images.values(), rounded=True) if inner.flag("random_crop") else ()
    shared = inner.flag("share_rgb_model")
    norm = GroupNorm() if inner.flag("use_group_norm") and not shared else FrozenBatchNorm()
    eye = CNN(ResNet(model.choice("name", _DEPTHS), norm), AveragePool(), None, shared=shared)
    numbers = {name: shape[0] for name, shape in sorted(shapes.items()) if name not in images}
    return _Seen(
        shapes, action, dict.fromkeys(images, _POOLED) | numbers, Joint(eye) if images else Vector(), cropped,
        "obs_encoder.key_model_map.", shared, pooled=True, imagenet=inner.flag("imagenet_norm"),
    )  # fmt: skip


def _meta(fields: Fields) -> tuple[dict[str, tuple[int, ...]], int]:
    """The shapes in `shape_meta`, images with the channels last, and the size of the action."""
    meta, found = fields.inner("shape_meta"), {}
    observed = meta.inner("obs")
    if not 1 <= len(observed.values) <= MAX_FEATURES:
        raise DataError(fields.path, observed.where, f"names {len(observed.values)} features, expected 1 or more")
    for name in observed.values:
        one = Fields(fields.path, f"{observed.where}: {name}", {"type": "low_dim", **observed.inner(name).values})
        count = one.choice("type", {"low_dim": 1, "rgb": 3})
        shape = one.integers("shape", 100_000, count)
        if len(shape) != count:
            one.refuse("shape", f"{count} sizes")
        found[name] = (*shape[1:], shape[0])
    action = meta.inner("action").integers("shape", SIZE, 1)
    return found, action[0]


__all__ = ["IMAGENET", "described_by"]
