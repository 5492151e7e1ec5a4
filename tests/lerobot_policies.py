"""Run by an interpreter that has LeRobot 0.4: makes real DiffusionPolicies, and plans with those in a folder.

python lerobot_policies.py make FOLDER        a subfolder a case, with `oracle.safetensors` beside the policy
python lerobot_policies.py plan FOLDER...     reads `oracle.safetensors` in each, writes `plans.safetensors`
"""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.diffusion import modeling_diffusion as modeling
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors
from lerobot.processor import PolicyProcessorPipeline
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
from safetensors.torch import load_file, save_file

BATCH, ACTION = 2, 2
LIMITS, MEAN, Q01, Q10 = (NormalizationMode[name] for name in ("MIN_MAX", "MEAN_STD", "QUANTILES", "QUANTILE10"))
SMALL = {"down_dims": (16, 32), "horizon": 16, "n_action_steps": 8}
PICTURES = {"vision_backbone": "resnet18", "spatial_softmax_num_keypoints": 8, "crop_shape": None, **SMALL}
DDIM = {"noise_scheduler_type": "DDIM", "num_inference_steps": 10}
CASES = {
    "numbers": ({"env": 5}, {"down_dims": (16, 32, 64), "horizon": 16}, (LIMITS, LIMITS, LIMITS)),
    "sample": ({"env": 3}, {**SMALL, **DDIM, "prediction_type": "sample", "use_film_scale_modulation": False,
                            "kernel_size": 3, "diffusion_step_embed_dim": 32}, (MEAN, Q01, Q10)),
    "four": ({"env": 4}, {"down_dims": (8, 16, 16, 32), "horizon": 32, "n_obs_steps": 3, **DDIM,
                          "clip_sample_range": 2.0}, (LIMITS, MEAN, MEAN)),
    "unclipped": ({"env": 4}, {**SMALL, "clip_sample": False, "beta_schedule": "linear", "num_train_timesteps": 50,
                               "noise_scheduler_type": "DDIM", "num_inference_steps": 29}, (MEAN, MEAN, MEAN)),
    "thinned": ({"env": 4}, {**SMALL, "num_inference_steps": 7, "n_obs_steps": 1}, (LIMITS, LIMITS, Q01)),
    "image": ({"images": ["top"]}, {**PICTURES, **DDIM}, (LIMITS, LIMITS, LIMITS)),
    "shared": ({"env": 3, "images": ["wrist", "front"]}, {**PICTURES, **DDIM, "use_group_norm": False,
               "crop_shape": (60, 58)}, (LIMITS, MEAN, LIMITS)),
    "separate": ({"images": ["wrist", "front"]}, {**PICTURES, **DDIM, "vision_backbone": "resnet34",
                 "use_separate_rgb_encoder_per_camera": True, "num_inference_steps": 5}, (LIMITS, LIMITS, LIMITS)),
}  # fmt: skip


def statistics(shape, generator):
    low = 100 * torch.randn(shape, generator=generator)
    spread = 1 + 300 * torch.rand(shape, generator=generator)
    found = {"min": low, "max": low + spread, "mean": low + spread / 2, "std": spread / 4}
    return found | {"q01": low + 0.01 * spread, "q10": low + 0.1 * spread,
                    "q90": low + 0.9 * spread, "q99": low + 0.99 * spread}  # fmt: skip


def make(folder):
    for number, (name, (parts, options, (state, env, action))) in enumerate(CASES.items()):
        torch.manual_seed(number)
        generator = torch.Generator().manual_seed(100 + number)
        inputs = {"observation.state": PolicyFeature(FeatureType.STATE, (4,))}
        for camera in parts.get("images", ()):
            inputs[f"observation.images.{camera}"] = PolicyFeature(FeatureType.VISUAL, (3, 64, 96))
        if "env" in parts:
            inputs["observation.environment_state"] = PolicyFeature(FeatureType.ENV, (parts["env"],))
        modes = {"STATE": state, "ENV": env, "ACTION": action, "VISUAL": MEAN}
        config = DiffusionConfig(
            input_features=inputs,
            output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
            normalization_mapping=modes,
            device="cpu",
            **options,
        )
        stats = {n: statistics(f.shape, generator) for n, f in inputs.items() if f.type != FeatureType.VISUAL}
        stats["action"] = statistics((ACTION,), generator)
        stats["index"] = statistics((1,), generator)
        for camera in parts.get("images", ()):
            draw = torch.rand(2, 3, 1, 1, generator=generator)
            stats[f"observation.images.{camera}"] = {"mean": 0.3 + 0.4 * draw[0], "std": 0.1 + 0.2 * draw[1]}
        policy = modeling.DiffusionPolicy(config).eval()
        for module in policy.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1, generator=generator)
                module.running_var.uniform_(0.5, 2.0, generator=generator)
        into = folder / name
        policy.save_pretrained(into)
        for processor in make_diffusion_pre_post_processors(config, stats):
            processor.save_pretrained(into)
        save_file(questions(config, stats, generator), into / "oracle.safetensors")
        plan(into)


def questions(config, stats, generator):
    """Observations in the units of the data, images as 8 bits with the channels last, and the noises."""
    asked = {}
    for name, feature in config.input_features.items():
        shape = (BATCH, config.n_obs_steps, *feature.shape)
        uniform = torch.rand(shape, generator=generator)
        if feature.type == FeatureType.VISUAL:
            asked[name] = (255 * uniform).round().to(torch.uint8).movedim(2, -1).contiguous()
        else:
            asked[name] = stats[name]["min"] + uniform * (stats[name]["max"] - stats[name]["min"])
    steps = config.num_inference_steps or config.num_train_timesteps
    asked["noises"] = torch.randn((steps + 1, BATCH, config.horizon, ACTION), generator=generator)
    return asked


def pipeline(folder, name, **converters):
    return PolicyProcessorPipeline.from_pretrained(folder, config_filename=f"policy_{name}.json", **converters)


@torch.no_grad()
def plan(folder):
    """From the oldest observation on, in normalised units and in those of the data, as loaded from the folder."""
    asked = load_file(folder / "oracle.safetensors")
    policy = modeling.DiffusionPolicy.from_pretrained(folder, strict=True).eval()
    before = pipeline(folder, "preprocessor")
    after = pipeline(folder, "postprocessor", to_transition=policy_action_to_transition,
                     to_output=transition_to_policy_action)  # fmt: skip
    noises = list(asked.pop("noises"))
    steps = []
    for step in range(policy.config.n_obs_steps):
        seen = {name: values[:, step] for name, values in asked.items()}
        seen = {n: v.movedim(-1, 1).float() / 255 if v.dtype == torch.uint8 else v for n, v in seen.items()}
        steps.append(before(seen))
    batch = {name: torch.stack([step[name] for step in steps], 1) for name in asked}
    if policy.config.image_features:
        batch["observation.images"] = torch.stack([batch[key] for key in policy.config.image_features], -4)
    condition = policy.diffusion._prepare_global_conditioning(batch)
    first = noises.pop(0)
    import diffusers.schedulers.scheduling_ddpm as ddpm

    ddpm.randn_tensor = lambda *args, **options: noises.pop(0)  # noqa: ARG005
    whole = policy.diffusion.conditional_sample(BATCH, global_cond=condition, noise=first)
    begin = policy.config.n_obs_steps - 1
    found = {"normalised": whole[:, begin:], "plans": after(whole[:, begin:])}
    save_file({name: value.contiguous() for name, value in found.items()}, folder / "plans.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    verb, *folders = sys.argv[1:]
    for folder in map(Path, folders):
        make(folder) if verb == "make" else plan(folder)
