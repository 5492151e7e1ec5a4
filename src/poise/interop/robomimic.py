"""Checkpoints of robomimic's diffusion policy (Mandlekar et al. 2021, arXiv 2108.03298, robomimic 0.4 and later)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poise.data import Crop
from poise.data.untrusted import DataError, parsed
from poise.interop.chain import MAX_STEPS, Chain, read_scheduler
from poise.interop.fields import MAX_SIZE, Fields, described
from poise.interop.published import GROUPS, Affine, Outline, crop, unet_name, weights
from poise.interop.quarantine import Unpickled, unpickled
from poise.nn import CNN, FiLM, GroupNorm, Joint, ResNet, SpatialSoftmax, Steps, UNet1D, Vector
from poise.policies import Checkpoint, PolicySpec

_NETWORK, _CORES = "policy.noise_pred_net.", "policy.obs_encoder.nets.obs.obs_nets."
_CORE: Mapping[str, Any] = {"feature_dimension": 64, "backbone_class": "ResNet18Conv", "pool_class": "SpatialSoftmax",
                            "flatten": True, "backbone_kwargs": {}, "pool_kwargs": {}}  # fmt: skip
_POOL: Mapping[str, Any] = {"num_kp": 32}
_ALIKE = ("temperature", "learnable_temperature", "noise_std")  # in the tensors, or of training


def import_robomimic(path: str | Path) -> Checkpoint:
    r"""A diffusion policy of robomimic as ours, with the same plans for the same noise; it runs under every sampler.

    Of the weights the average is taken where there is one. Low-dimensional features and images through ResNet-18 and
    spatial softmax; images are uint8 `(height, width, channels)` here. Actions are in [-1, 1] unless the checkpoint
    has statistics of them. Its sampler is the scheduler of the checkpoint, whose last step ends at $\sigma = 0$, ours
    at 1e-9. Nothing in the file is executed.

    Args:
        path: The `.pth`.

    Raises:
        FileNotFoundError: No such file.
        DataError: A broken or hostile file, another algorithm or a part without counterpart, which it names, or a
            tensor that is missing, surplus or of another shape.
    """
    return from_tree(Path(path), unpickled(path))


def from_tree(path: Path, got: Unpickled) -> Checkpoint:
    """As `import_robomimic`, of a file that is read already."""
    root = Fields.of(path, "checkpoint", got.rest)
    root.word("algo_name", ("diffusion_policy",))
    config = Fields.of(path, "config", parsed(path, root.text("config").encode(), "config"))
    tensors = weights(path, got.tensors, "model", ("ema", "nets"))
    outline = _outline(root.inner("shape_metadata"), config, tensors)
    affine = _normalisers(root, config.inner("train"), outline)
    return outline.placed(tensors, affine, "robomimic")


def _outline(meta: Fields, config: Fields, tensors: Mapping[str, Tensor]) -> Outline:
    shapes, encoders = _shapes(meta, config.inner("observation")), config.inner("observation").inner("encoder")
    images = [shape for shape in shapes.values() if len(shape) == 3]
    algorithm = config.inner("algo")
    horizons, chain = algorithm.inner("horizon"), _chain(algorithm)
    eye, width, cropped = _eye(encoders.inner("rgb"), images) if images else (None, 0, ())
    if len(images) < len(shapes):
        encoders.inner("low_dim").must("core_class", None, "low-dimensional features as they are")
    history = horizons.integer("observation_horizon", 1000)
    horizon = horizons.integer("prediction_horizon", 10_000)
    network = _unet(algorithm.inner("unet"), chain, tensors)
    with described(config.path, "configuration"):
        spec = PolicySpec(
            observations=shapes,
            action=meta.integer("ac_dim", MAX_SIZE),
            history=history,
            horizon=horizon,
            lead=history - 1,
            execute=min(horizons.integer("action_horizon", 10_000), horizon - history + 1),
            encoder=Joint(eye) if eye else Vector(),
            network=network,
            augmentations=cropped,
        )
        spec = chain.under(spec)
    return Outline(
        path=config.path,
        policy=spec,
        widths={name: width if len(shape) == 3 else shape[0] for name, shape in shapes.items()},
        network_name=lambda name: f"{_NETWORK}{unet_name(name)}",
        eyes={name: f"{_CORES}{name}." for name in spec.cameras},
    )


def _shapes(meta: Fields, observation: Fields) -> dict[str, tuple[int, ...]]:
    """The shapes of what the policy sees, in the order of its network, images with the channels last."""
    kinds, every = observation.inner("modalities").inner("obs"), meta.inner("all_shapes")
    low, images = (kinds.names(kind) if kinds.values.get(kind) else [] for kind in ("low_dim", "rgb"))
    for kind in kinds.values:
        if kind not in ("low_dim", "rgb") and kinds.values[kind]:
            kinds.refuse(kind, "no features: we have no encoder for this kind")
    found = {name: every.shape(name, name in images) for name in every.values if name in (*low, *images)}
    absent = sorted({*low, *images} - set(found))
    if absent or not found:
        raise DataError(meta.path, meta.where, f"lacks the shapes of {absent[:5]}, expected those of all observations")
    return found


def _chain(algorithm: Fields) -> Chain:
    kind = "ddpm" if algorithm.inner("ddpm").flag("enabled") else "ddim"
    fields = algorithm.inner(kind)
    if not fields.flag("enabled"):
        fields.refuse("enabled", "true, or ddpm enabled")
    mine = {name: v for name, v in fields.values.items() if name not in ("enabled", "num_inference_timesteps")}
    steps = fields.integer("num_inference_timesteps", MAX_STEPS)
    return read_scheduler(Fields(fields.path, fields.where, mine), kind.upper(), steps)


def _unet(fields: Fields, chain: Chain, tensors: Mapping[str, Tensor]) -> UNet1D:
    """The U-Net with the sizes of its tensors, for robomimic does not hand on those of the configuration."""
    fields.must("enabled", True, "robomimic has no other network")
    fields.must("n_groups", GROUPS, "its network has so many whatever is set")
    channels = []
    while (name := f"{_NETWORK}down_modules.{len(channels)}.0.blocks.0.block.0.weight") in tensors:
        channels.append(_size(fields, tensors, name, 3))
    embedding = _size(fields, tensors, f"{_NETWORK}diffusion_step_encoder.3.weight", 2)
    first = tensors.get(f"{_NETWORK}down_modules.0.0.blocks.0.block.0.weight", torch.ones(1))
    with described(fields.path, fields.where):
        return UNet1D(
            channels=tuple(channels), kernel=first.shape[-1], groups=GROUPS, embedding=embedding,
            conditioning=FiLM(), level=Steps(chain.schedule),
        )  # fmt: skip


def _size(fields: Fields, tensors: Mapping[str, Tensor], name: str, dimensions: int) -> int:
    tensor = tensors.get(name)
    if tensor is None or tensor.ndim != dimensions or not 1 <= len(tensor) <= MAX_SIZE:
        got = "is missing" if tensor is None else f"has the shape {tuple(tensor.shape)}"
        raise DataError(fields.path, name, f"{got}, expected {dimensions} dimensions")
    return len(tensor)


def _eye(fields: Fields, images: list[tuple[int, ...]]) -> tuple[CNN, int, tuple[Crop, ...]]:
    """The encoder of the images, its width, and their crop."""
    fields.word("core_class", ("VisualCore",))
    core = fields.inner("core_kwargs").complete(_CORE)
    core.word("backbone_class", ("ResNet18Conv",))
    core.word("pool_class", ("SpatialSoftmax",))
    core.must("flatten", True, "the network takes vectors")
    core.inner("backbone_kwargs").complete({"pretrained": False})
    pool = core.inner("pool_kwargs").complete(_POOL, _ALIKE)
    width, cropped = core.integer("feature_dimension", MAX_SIZE), ()
    if fields.values.get("obs_randomizer_class") is not None:
        fields.word("obs_randomizer_class", ("CropRandomizer",))
        sizes = {"crop_height": 76, "crop_width": 76, "num_crops": 1}
        window = fields.inner("obs_randomizer_kwargs").complete(sizes)
        shape = [window.values["crop_height"], window.values["crop_width"]]
        cropped = crop(Fields(fields.path, window.where, {"crop_shape": shape}), images, rounded=False)
    eye = CNN(ResNet(18, GroupNorm()), SpatialSoftmax(pool.integer("num_kp", 4096)), width, shared=False, relu=True)
    return eye, width, cropped


def _normalisers(root: Fields, train: Fields, outline: Outline) -> dict[str, Affine]:
    """Statistics x = scale y + offset where the checkpoint has them; else pixels from 0 to 1, and units of the data."""
    found = {}
    seen = _optional(root, "obs_normalization_stats")
    for name, shape in outline.policy.observations.items():
        ones, image = torch.ones(shape[-1], dtype=torch.float64), name in outline.cameras
        affine = Affine(ones / 255 if image else ones, 0 * ones)
        if seen is not None:
            scale, offset = _statistics(seen.inner(name))
            if image and (bool((scale != 1).any()) or bool(offset.any())):
                raise DataError(root.path, f"{seen.where}: {name}", "normalises each pixel, expected one scale for all")
            affine = affine if image else _undone(seen, name, scale, offset, shape[-1])
        found[name] = affine
    ones = torch.ones(outline.policy.action, dtype=torch.float64)
    found["action"], acted = Affine(ones, 0 * ones), _optional(root, "action_normalization_stats")
    if acted is not None:
        keys, formats = train.names("action_keys"), train.inner("action_config")
        if not keys or any(key not in acted.values for key in keys):
            train.refuse("action_keys", f"a list of names among {sorted(acted.values)[:5]}")
        for key in keys:
            formats.inner(key).must("format", None, "we do not convert the rotations of actions")
        parts = [torch.cat(part) for part in zip(*(_statistics(acted.inner(key)) for key in keys), strict=True)]
        found["action"] = _undone(acted, "action", parts[0], parts[1], outline.policy.action)
    return found


def _optional(root: Fields, name: str) -> Fields | None:
    return None if root.values.get(name) is None else root.inner(name)


def _statistics(fields: Fields) -> tuple[Tensor, Tensor]:
    """Scale and offset as flat vectors."""
    pair = []
    for name in ("scale", "offset"):
        try:
            value = torch.tensor(fields.values.get(name), dtype=torch.float64).flatten()
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise DataError(fields.path, f"{fields.where}: {name}", f"is no table of numbers ({error})") from error
        pair.append(value)
    return pair[0], pair[1]


def _undone(fields: Fields, name: str, scale: Tensor, offset: Tensor, size: int) -> Affine:
    fits = len(scale) == len(offset) == size and bool((scale > 0).all())
    if not fits or not bool(torch.isfinite(torch.cat([scale, offset])).all()):
        problem = f"has {len(scale)} scales and {len(offset)} offsets, or such that are no finite numbers"
        raise DataError(fields.path, f"{fields.where}: {name}", f"{problem}, expected {size} each, scales above 0")
    return Affine(1 / scale, -offset / scale)


__all__ = ["from_tree", "import_robomimic"]
