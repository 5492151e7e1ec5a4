"""The configuration of a diffusion_policy checkpoint, and the policy that it describes in our words.

Where a field is left out stands the default of their class, as it does there.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from poise.data import Crop
from poise.data.untrusted import MAX_FEATURES, DataError
from poise.interop.chain import MAX_STEPS, Chain, read_scheduler
from poise.interop.fields import MAX_SIZE, Fields, described
from poise.interop.published import DEPTHS, GROUPS, Outline, core_name, crop, unet, unet_name
from poise.nn import (
    CNN,
    AveragePool,
    CrossAttention,
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
from poise.policies import PolicySpec

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


class _Seen(NamedTuple):
    """What a policy sees, and how it is encoded; `eyes` and `eye_name` as of an `Outline`."""

    shapes: Mapping[str, tuple[int, ...]]
    action: int
    widths: Mapping[str, int]
    eye: CNN | None = None
    augmentations: tuple[Crop, ...] = ()
    eyes: Mapping[str, str] = {}
    eye_name: Callable[[str], str] = core_name
    imagenet: bool = False


def described_by(fields: Fields) -> tuple[Outline, bool]:
    """The policy in our words, and whether its images are normalised a second time as those of ImageNet are.

    Raises:
        DataError: A field that is missing, unknown or out of range, or a part that we have no counterpart of.
    """
    kind = _class_of(fields, _POLICIES)
    low, transformer = "Lowdim" in kind, "Transformer" in kind
    fields = fields.complete(_POLICIES[kind], _LOW if low else _MANY)
    inner = fields.inner("model") if low else fields
    chain = _chain(fields)
    seen = _low(fields) if low else _images(fields) if "Hybrid" not in kind else _hybrid(fields)
    if low:
        names = ("output_dim", "horizon", "n_obs_steps", "cond_dim") if transformer else ("global_cond_dim",)
        inner = inner.complete(_DECODER if transformer else _BARE, ("_target_", "input_dim", *names))
    history, horizon = fields.integer("n_obs_steps", 1000), fields.integer("horizon", 10_000)
    execute = fields.integer("n_action_steps", 10_000)
    # Only of this policy the plan may begin one step later, with the action after the newest observation.
    lead = history - (fields.flag("oa_step_convention") if "oa_step_convention" in _POLICIES[kind] else 1)
    network = _transformer(fields, inner, chain) if transformer else _unet(fields, inner, chain)
    if fields.flag("pred_action_steps_only"):  # a network of the executed steps alone
        horizon, lead = execute, 0
    with described(fields.path, "configuration"):
        spec = PolicySpec(
            observations=seen.shapes, action=seen.action, history=history, horizon=horizon, lead=lead,
            execute=min(execute, horizon - lead), encoder=Joint(seen.eye) if seen.eye else Vector(), network=network,
            augmentations=seen.augmentations,
        )  # fmt: skip
        spec = chain.under(spec)
    rename = str if transformer else unet_name
    outline = Outline(
        fields.path, spec, seen.widths, lambda name: f"model.{rename(name)}", seen.eyes, seen.eye_name
    )  # fmt: skip
    return outline, seen.imagenet


def _class_of(fields: Fields, known: Collection[str]) -> str:
    """The class that a field names, which is never imported."""
    name = fields.text("_target_").rpartition(".")[2]
    return name if name in known else fields.refuse("_target_", f"one of {sorted(known)}")


def _chain(fields: Fields) -> Chain:
    scheduler = fields.inner("noise_scheduler")
    kind = _class_of(scheduler, ("DDPMScheduler", "DDIMScheduler"))
    count = fields.values.get("num_inference_steps")
    evaluations = None if count is None else fields.integer("num_inference_steps", MAX_STEPS)
    return read_scheduler(scheduler, kind[:4], evaluations)


def _unet(fields: Fields, inner: Fields, chain: Chain) -> UNet1D:
    fields.must("obs_as_global_cond", True, "we have no local condition, and no inpainting of observations")
    inner.must("local_cond_dim", None, "we have no local condition")
    with described(inner.path, inner.where):
        return unet(inner, chain, inner.flag("cond_predict_scale"))


def _transformer(fields: Fields, inner: Fields, chain: Chain) -> NetworkSpec:
    fields.must("obs_as_cond", True, "we have no inpainting of observations")
    fields.must("pred_action_steps_only", False, "its plan would be shorter than its positions")
    inner.must("time_as_cond", True, "our noise level is a token that the plan attends to")
    inner.must("n_cond_layers", 0, "our observation tokens go through an MLP, not through a transformer")
    causal, heads = inner.flag("causal_attn"), inner.integer("n_head", MAX_SIZE)
    with described(fields.path, fields.where):
        return Transformer(
            width=inner.integer("n_emb", MAX_SIZE),
            depth=inner.integer("n_layer", 1000),
            heads=heads,
            causal=causal,
            aligned=causal,
            dropout=inner.number("p_drop_attn") if inner.values["p_drop_attn"] else 0.0,
            conditioning=CrossAttention(heads),
            level=Steps(chain.schedule),
        )


def _low(fields: Fields) -> _Seen:
    size = fields.integer("obs_dim", MAX_SIZE)
    return _Seen({"obs": (size,)}, fields.integer("action_dim", MAX_SIZE), {"obs": size})


def _hybrid(fields: Fields) -> _Seen:
    """Images by robomimic's encoder; the features stand in the order of the configuration."""
    shapes, action, images = _meta(fields)
    cropped = crop(fields, [shapes[name] for name in images])
    if cropped:
        fields.must("eval_fixed_crop", True, "without it each plan sees another crop, drawn at random")
    norm = GroupNorm() if fields.flag("obs_encoder_group_norm") else FrozenBatchNorm()
    eye = CNN(ResNet(18, norm), SpatialSoftmax(_KEYPOINTS), _WIDTH, shared=False, relu=True) if images else None
    widths = {name: _WIDTH if name in images else shape[0] for name, shape in shapes.items()}
    return _Seen(shapes, action, widths, eye, cropped, {name: f"obs_encoder.obs_nets.{name}." for name in images})


def _images(fields: Fields) -> _Seen:
    """Images by MultiImageObsEncoder; the features stand in the order of their names, images first."""
    shapes, action, images = _meta(fields)
    inner = fields.inner("obs_encoder")
    _class_of(inner, ("MultiImageObsEncoder",))
    inner = inner.complete(_EYES, ("_target_",))
    model = inner.inner("rgb_model")
    _class_of(model, ("get_resnet",))
    if str(model.values.get("weights")).lower() == "r3m":
        model.refuse("weights", "null or weights of torchvision")
    inner.must("resize_shape", None, "we do not resize images, resize them in the data")
    # Theirs forgets a crop that is not random, and the group norm of a model that is shared.
    cropped = crop(inner, [shapes[name] for name in images]) if inner.flag("random_crop") else ()
    shared = inner.flag("share_rgb_model")
    norm = GroupNorm() if inner.flag("use_group_norm") and not shared else FrozenBatchNorm()
    eye = CNN(ResNet(model.choice("name", DEPTHS), norm), AveragePool(), None, shared=shared) if images else None
    widths = dict.fromkeys(images, _POOLED) | {n: shape[0] for n, shape in sorted(shapes.items()) if n not in images}
    eyes = {name: f"obs_encoder.key_model_map.{'rgb' if shared else name}." for name in images}
    trunk = "trunk.module."
    return _Seen(
        shapes, action, widths, eye, cropped, eyes, lambda name: name.removeprefix(trunk), inner.flag("imagenet_norm")
    )


def _meta(fields: Fields) -> tuple[dict[str, tuple[int, ...]], int, list[str]]:
    """The shapes in `shape_meta`, the size of the action, and the names of the images in order."""
    meta, found = fields.inner("shape_meta"), {}
    observed = meta.inner("obs")
    if not 1 <= len(observed.values) <= MAX_FEATURES:
        problem = f"names {len(observed.values)} features, expected 1 to {MAX_FEATURES}"
        raise DataError(fields.path, observed.where, problem)
    for name in observed.values:
        one = Fields(fields.path, f"{observed.where}: {name}", {"type": "low_dim", **observed.inner(name).values})
        found[name] = one.shape("shape", one.word("type", ("low_dim", "rgb")) == "rgb")
    images = sorted(name for name, shape in found.items() if len(shape) == 3)
    return found, meta.inner("action").integers("shape", MAX_SIZE, 1)[0], images


__all__ = ["IMAGENET", "described_by"]
