"""Our policies as checkpoints of LeRobot's DiffusionPolicy, as LeRobot 0.4 and later load them.

What LeRobot cannot say is found by reading back what was said: the description that we import must be the policy's.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poise.data import Limits, Unscaled
from poise.interop.chain import PREDICTIONS, SCHEDULES
from poise.interop.lerobot import WEIGHTS
from poise.interop.lerobot_config import ACTION, ENVIRONMENT, STATE, config_of
from poise.interop.lerobot_statistics import EPSILON, POSTPROCESSOR, PREPROCESSOR
from poise.interop.published import Outline, positions
from poise.nn import Steps, UNet1D
from poise.plain import to_plain
from poise.policies import DiffusionPolicy, PolicySpec
from poise.policies.saving import write_tensors
from poise.schedules import Tabulated

_NEAR = 1e-4  # share of a beta; diffusers rounds them to float32
_FREE = {"density", "draws", "observation_scaling", "scalings", "action_scaling", "schedule", "grid", "begin"}
_FREE |= {"weighting", "coupling"}


def export_lerobot(policy: DiffusionPolicy, path: str | Path) -> Path:
    r"""Write the folder `pretrained_model` of a LeRobot policy with the same plans for the same noise.

    The last step of LeRobot's schedulers ends at $\sigma = 0$, ours at the `sigma_min` of the schedule: plans differ
    by that times the noise predicted there. Options of LeRobot's training are left
    to its defaults.

    Args:
        policy: A diffusion policy whose parts all have a counterpart, as those of an imported one have: `UNet1D` under
            `FiLM` that knows the `Steps` of its `Tabulated` schedule; features "observation.state" and
            "observation.environment_state" through `Vector()`, or beside images through the published encoder; a
            `lead` of history - 1; and one of LeRobot's schedulers as its sampler.
        path: The folder, which must not exist.

    Returns:
        The folder.

    Raises:
        ValueError: The first part without a counterpart, or a folder that exists.
    """
    target = Path(path)
    if target.exists():
        raise ValueError(f"export_lerobot got {target}, which exists, expected a new folder: remove it first")
    policy.ready()
    plain = _config(policy.spec)
    outline = config_of(target / "config.json", plain).outline(target / WEIGHTS)
    _check(policy, outline.policy)
    aside = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        aside.mkdir(parents=True)
        (aside / "config.json").write_text(json.dumps(plain, indent=4))
        write_tensors(_tensors(policy, outline), aside / WEIGHTS, {"format": "pt"})
        _write_processors(aside, policy, plain)
        aside.replace(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _need(fits: bool, part: str, got: object, expected: object) -> None:
    if not fits:
        raise ValueError(f"export_lerobot got {part}={got}, which LeRobot has no counterpart of, expected {expected}")


def _config(spec: PolicySpec) -> dict[str, Any]:
    """What `config.json` can say of a policy; what it cannot is not in it."""
    plain = to_plain(spec)
    network, images = plain["network"], plain["encoder"].get("images", {})
    crops = [a for a in plain["augmentations"] if a["type"] == "Crop"]
    predictions = {prediction: name for name, prediction in PREDICTIONS.items()}
    _need(spec.prediction in predictions, "prediction", spec.prediction, "Epsilon() or Clean()")
    return {
        "type": "diffusion",
        "n_obs_steps": spec.history,
        "horizon": spec.horizon,
        "n_action_steps": spec.execute,
        "input_features": {name: _feature(spec, name) for name in spec.observations},
        "output_features": {ACTION: {"type": "ACTION", "shape": [spec.action]}},
        "normalization_mapping": _modes(spec),
        "pretrained_backbone_weights": None,
        "vision_backbone": f"resnet{images.get('backbone', {}).get('depth', 18)}",
        "resize_shape": None,
        "crop_ratio": 1.0,
        "crop_shape": [crops[0]["height"], crops[0]["width"]] if crops else None,
        "use_group_norm": images.get("backbone", {}).get("norm", {}).get("type") != "FrozenBatchNorm",
        "spatial_softmax_num_keypoints": images.get("pooling", {}).get("keypoints", 32),
        "use_separate_rgb_encoder_per_camera": not images.get("shared", True),
        "down_dims": network.get("channels", [64]),
        "kernel_size": network.get("kernel", 5),
        "n_groups": network.get("groups", 8),
        "diffusion_step_embed_dim": network.get("embedding", 128),
        "use_film_scale_modulation": network.get("conditioning", {}).get("scale", True),
        "noise_scheduler_type": "DDIM" if plain["sampler"]["type"] == "DDIM" else "DDPM",
        **_chain(spec),
        "prediction_type": predictions[spec.prediction],
        "clip_sample": spec.bound is not None,
        "clip_sample_range": spec.bound or 1.0,
        "num_inference_steps": spec.evaluations,
    }


def _feature(spec: PolicySpec, name: str) -> dict[str, Any]:
    shape = spec.observations[name]
    if name in spec.cameras:
        return {"type": "VISUAL", "shape": [shape[2], *shape[:2]]}
    kinds = {STATE: "STATE", ENVIRONMENT: "ENV"}
    expected = f"images, and vectors named {STATE!r} and {ENVIRONMENT!r}"
    _need(name in kinds and len(shape) == 1, "observations", {name: shape}, expected)
    return {"type": kinds[name], "shape": list(shape)}


def _modes(spec: PolicySpec) -> dict[str, str]:
    """Limits where they are what normalises; else mean and deviation, as which any map can be written."""
    scalings = {"STATE": spec.scaling(STATE), "ENV": spec.scaling(ENVIRONMENT), "ACTION": spec.action_scaling}
    modes = {Limits(): "MIN_MAX", Unscaled(): "IDENTITY"}
    return {"VISUAL": "MEAN_STD"} | {kind: modes.get(scaling, "MEAN_STD") for kind, scaling in scalings.items()}


def _chain(spec: PolicySpec) -> dict[str, Any]:
    """The schedule under one of diffusers' names."""
    betas = spec.schedule.betas if isinstance(spec.schedule, Tabulated) else None
    for name, make in SCHEDULES.items() if betas else ():
        assert betas is not None
        candidate = torch.tensor(make(len(betas), betas[0], betas[-1]).betas)
        if torch.allclose(candidate, torch.tensor(betas), rtol=_NEAR, atol=1e-7):
            chain = {"beta_schedule": name, "beta_start": betas[0], "beta_end": betas[-1]}
            return {"num_train_timesteps": len(betas), **chain}
    raise ValueError(
        f"export_lerobot got schedule={spec.schedule}, which LeRobot has no counterpart of, expected a Tabulated one, "
        f"one of {sorted(SCHEDULES)}"
    )


def _check(policy: DiffusionPolicy, said: PolicySpec) -> None:
    """Compare the policy with what an import would make of its description."""
    spec = policy.spec
    assert isinstance(said.network, UNet1D)
    assert isinstance(spec.schedule, Tabulated)
    network = dataclasses.replace(said.network, level=Steps(spec.schedule))
    said = dataclasses.replace(said, network=network)
    for field in dataclasses.fields(PolicySpec):
        got, expected = getattr(spec, field.name), getattr(said, field.name)
        _need(field.name in _FREE or got == expected, field.name, got, expected)
    visited, theirs = (s.grid.times(said.schedule, s.evaluations, s.begin) for s in (spec, said))
    same = all(abs(t - s) < 1e-9 for t, s in zip(visited, theirs, strict=True))
    _need(same, "grid", (spec.grid, f"begin={spec.begin}"), (said.grid, f"begin={said.begin}"))
    multiple = 2 ** len(network.channels)
    _need(spec.horizon % multiple == 0, "horizon", spec.horizon, f"a multiple of {multiple} for so many channels")
    _need(policy.guide is None, "guide", policy.guide, None)


def _tensors(policy: DiffusionPolicy, outline: Outline) -> dict[str, Tensor]:
    found = {}
    for name, tensor in policy.state_dict().items():
        theirs, order = outline.their_name(name), outline.order(name, tensor)
        if theirs is not None:
            tensor = tensor.detach().cpu()
            found[theirs] = (tensor if order is None else tensor[:, order.argsort()]).contiguous()
    for camera, prefix in outline.eyes.items():
        height, width, _ = policy.spec.encoded[camera]
        keypoints = len(found[f"{prefix}pool.nets.weight"])
        found[f"{prefix}pool.nets.bias"] = torch.zeros(keypoints)  # which a softmax does not feel
        found[f"{prefix}pool.pos_grid"] = positions((height, width))
    for name in [name for name in found if name.endswith(".running_mean")]:
        found[name.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
    return found


def _write_processors(folder: Path, policy: DiffusionPolicy, config: Mapping[str, Any]) -> None:
    inputs, outputs, modes = (config[key] for key in ("input_features", "output_features", "normalization_mapping"))
    state = {
        f"{name}.{statistic}": value
        for name, feature in {**inputs, **outputs}.items()
        for statistic, value in _statistics(policy, name, feature["type"], modes[feature["type"]]).items()
    }

    def norm(kind: str, features: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        return kind, {"eps": EPSILON, "features": features, "norm_map": modes}

    device = "device_processor", {"device": "cpu", "float_dtype": None}
    before = [
        ("rename_observations_processor", {"rename_map": {}}),
        ("to_batch_processor", {}),
        device,
        norm("normalizer_processor", {**inputs, **outputs}),
    ]
    after = [norm("unnormalizer_processor", outputs), device]
    for file, steps in ((PREPROCESSOR, before), (POSTPROCESSOR, after)):
        stem, plain = file.removesuffix(".json"), []
        for number, (kind, fields) in enumerate(steps):
            step: dict[str, Any] = {"registry_name": kind, "config": fields}
            if "normalizer" in kind:
                step["state_file"] = f"{stem}_step_{number}_{kind}.safetensors"
                write_tensors(state, folder / step["state_file"])
            plain.append(step)
        (folder / file).write_text(json.dumps({"name": stem, "steps": plain}, indent=2))


def _statistics(policy: DiffusionPolicy, name: str, kind: str, mode: str) -> dict[str, Tensor]:
    """Statistics that give our map under a mode, for pixels from 0 to 1."""
    scale, offset = (constant.double().cpu() for constant in policy.constants(name))
    scale = 255 * scale if kind == "VISUAL" else scale
    _need(bool((scale > 0).all()), f"a normalisation of {name!r} with scale", scale.tolist(), "factors above 0")
    if mode == "MIN_MAX":
        found = {"min": (-1 - offset) / scale, "max": (1 - offset) / scale}
    elif mode == "MEAN_STD":
        margin = 0.0 if kind == "ACTION" else EPSILON
        found = {"mean": -offset / scale, "std": (1 / scale - margin).clamp_min(0)}
    else:
        found = {}
    shape = (3, 1, 1) if kind == "VISUAL" else (-1,)
    return {statistic: value.float().reshape(shape).contiguous() for statistic, value in found.items()}


__all__ = ["export_lerobot"]
