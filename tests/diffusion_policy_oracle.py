"""Run by an interpreter that has diffusion_policy and robomimic: makes real policies, and plans with them.

python diffusion_policy_oracle.py FOLDER CASE...

Writes of every case `CASE.ckpt` or `CASE.pth`, laid out as their trainers do, and `CASE.safetensors`: an observation
batch in our layout (images uint8, channels last), the noises in the order that the scheduler drew them, the plans from
now on, and the same in normalised units.
"""

import copy
import importlib.machinery
import json
import sys
import types
from collections import OrderedDict
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file

BATCH, ACTION = 2, 3


def stub(name, **members):
    """Stands for a package that is only imported."""
    try:
        __import__(name)
    except ImportError:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        module.__dict__.update(members)
        sys.modules[name] = module


stub("zarr", Array=type("Array", (), {}))
for package in ("tensorboardX", "imageio", "psutil", "egl_probe", "transformers", "matplotlib", "matplotlib.pyplot",
                "matplotlib.cm"):  # fmt: skip
    stub(package)

import dill  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

SCHEDULER = {"num_train_timesteps": 100, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "squaredcos_cap_v2",
             "clip_sample": True, "prediction_type": "epsilon"}  # fmt: skip
DDPM = {"_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler", **SCHEDULER, "variance_type": "fixed_small"}
DDIM = {"_target_": "diffusers.schedulers.scheduling_ddim.DDIMScheduler", **SCHEDULER, "set_alpha_to_one": True,
        "steps_offset": 0}  # fmt: skip
CLASSES = "diffusion_policy.policy.diffusion_"
UNET_MODEL = {"_target_": "diffusion_policy.model.diffusion.conditional_unet1d.ConditionalUnet1D", "input_dim": ACTION,
              "local_cond_dim": None, "diffusion_step_embed_dim": 32, "down_dims": [16, 32, 64], "kernel_size": 5,
              "n_groups": 8, "cond_predict_scale": True}  # fmt: skip
DECODER = {"n_layer": 2, "n_head": 4, "n_emb": 32, "p_drop_emb": 0.0, "p_drop_attn": 0.3, "causal_attn": True,
           "time_as_cond": True, "obs_as_cond": True, "n_cond_layers": 0}  # fmt: skip
META = {"obs": {"wrist": {"shape": [3, 84, 72], "type": "rgb"}, "quat": {"shape": [4]},
                "agentview": {"shape": [3, 84, 72], "type": "rgb"}, "eef": {"shape": [3], "type": "low_dim"}},
        "action": {"shape": [ACTION]}}  # fmt: skip
SMALL = {"diffusion_step_embed_dim": 32, "down_dims": [16, 32], "kernel_size": 5, "n_groups": 8,
         "cond_predict_scale": True}  # fmt: skip
EYES = {"_target_": "diffusion_policy.model.vision.multi_image_obs_encoder.MultiImageObsEncoder", "shape_meta": META,
        "rgb_model": {"_target_": "diffusion_policy.model.vision.model_getter.get_resnet", "name": "resnet18",
                      "weights": None},
        "resize_shape": None, "crop_shape": [76, 64], "random_crop": True, "use_group_norm": True,
        "share_rgb_model": False, "imagenet_norm": True}  # fmt: skip


def low(**changes):
    history = changes.get("n_obs_steps", 2)
    model = UNET_MODEL | {"global_cond_dim": 7 * history} | changes.pop("model", {})
    plain = {"_target_": CLASSES + "unet_lowdim_policy.DiffusionUnetLowdimPolicy", "model": model,
             "noise_scheduler": DDPM, "horizon": 16, "obs_dim": 7, "action_dim": ACTION, "n_action_steps": 8,
             "n_obs_steps": 2, "num_inference_steps": 100, "obs_as_local_cond": False, "obs_as_global_cond": True,
             "pred_action_steps_only": False, "oa_step_convention": True}  # fmt: skip
    return plain | changes


def decoder(horizon, history, **changes):
    model = {"_target_": "diffusion_policy.model.diffusion.transformer_for_diffusion.TransformerForDiffusion",
             "input_dim": ACTION, "output_dim": ACTION, "horizon": horizon, "n_obs_steps": history,
             "cond_dim": 7, **DECODER, **changes.pop("model", {})}  # fmt: skip
    plain = {"_target_": CLASSES + "transformer_lowdim_policy.DiffusionTransformerLowdimPolicy", "model": model,
             "noise_scheduler": DDPM, "horizon": horizon, "obs_dim": 7, "action_dim": ACTION, "n_action_steps": 2,
             "n_obs_steps": history, "num_inference_steps": 100, "obs_as_cond": True,
             "pred_action_steps_only": False}  # fmt: skip
    return plain | changes


def seen(name, **changes):
    plain = {"_target_": CLASSES + name, "shape_meta": META, "noise_scheduler": DDIM, "horizon": 16,
             "n_action_steps": 8, "n_obs_steps": 2, "num_inference_steps": 10}  # fmt: skip
    return plain | changes


CORE = {"crop_shape": [76, 64], "obs_encoder_group_norm": True, "eval_fixed_crop": True}
HYBRID, MULTI = "unet_hybrid_image_policy.DiffusionUnetHybridImagePolicy", "unet_image_policy.DiffusionUnetImagePolicy"
CASES = {
    "low": low(),
    "low_later": low(oa_step_convention=False, n_obs_steps=3, noise_scheduler=DDIM, num_inference_steps=8,
                     model={"kernel_size": 3, "cond_predict_scale": False, "down_dims": [16, 32]}),
    "low_steps": low(pred_action_steps_only=True, noise_scheduler=DDPM | {"prediction_type": "sample",
                     "beta_schedule": "linear", "num_train_timesteps": 50}, num_inference_steps=None),
    "decoder": decoder(10, 2),
    "decoder_long": decoder(5, 3, noise_scheduler=DDIM, num_inference_steps=7, n_action_steps=1),
    "decoder_free": decoder(8, 2, model={"causal_attn": False, "n_head": 2}, noise_scheduler=DDIM,
                            num_inference_steps=16),
    "hybrid": seen(HYBRID, **SMALL, **CORE, obs_as_global_cond=True),
    "hybrid_batch": seen(HYBRID, **SMALL, crop_shape=None, obs_encoder_group_norm=False, eval_fixed_crop=False),
    "hybrid_decoder": seen("transformer_hybrid_image_policy.DiffusionTransformerHybridImagePolicy", **CORE,
                           **{name: value for name, value in DECODER.items() if name != "obs_as_cond"}),
    "multi": seen(MULTI, **SMALL, obs_encoder=EYES),
    "multi_shared": seen(MULTI, **SMALL, obs_encoder=EYES | {"share_rgb_model": True, "random_crop": False,
                                                             "imagenet_norm": False}),
}  # fmt: skip


def built(plain):
    """The object that hydra would make of a configuration."""
    if not isinstance(plain, dict) or "_target_" not in plain:
        return plain
    module, _, name = plain["_target_"].rpartition(".")
    deep = {"shape_meta"}
    members = {key: value if key in deep else built(value) for key, value in plain.items() if key != "_target_"}
    return getattr(__import__(module, fromlist=[name]), name)(**members)


def unlike(module, generator):
    """Move what starts at zero or one: positions, norms, biases, and statistics of batches."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim <= 1 and parameter.numel() > 1 and "normalizer" not in name and "pos_" not in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.running_mean.normal_(std=0.1, generator=generator)
                part.running_var.uniform_(0.5, 2.0, generator=generator)


class Average:
    """The moving average of the diffusers that robomimic was written for."""

    def __init__(self, model, power):
        self.averaged_model, self.power = copy.deepcopy(model), power


class Drawn:
    """Keeps what torch and diffusers draw."""

    def __init__(self, generator):
        self.noises, self.generator = [], generator

    def __call__(self, *size, **options):
        shape = options.get("size") or (size[0] if len(size) == 1 else size)
        self.noises.append(torch.randn(tuple(shape), generator=self.generator))
        return self.noises[-1].clone()

    def tensor(self, shape, **options):
        return self(shape)


def drawing(generator):
    from diffusers.schedulers import scheduling_ddim, scheduling_ddpm

    drawn = Drawn(generator)

    class Torch:
        randn = drawn

        def __getattr__(self, name):
            return getattr(torch, name)

    patches = [mock.patch.object(module, "randn_tensor", drawn.tensor) for module in (scheduling_ddpm, scheduling_ddim)]
    return drawn, patches, Torch()


def normaliser(plain, generator):
    from diffusion_policy.common.normalize_util import get_image_range_normalizer
    from diffusion_policy.model.common.normalizer import LinearNormalizer, SingleFieldLinearNormalizer

    made = LinearNormalizer()
    shapes = plain.get("shape_meta", {}).get("obs") or {"obs": {"shape": [plain.get("obs_dim")]}}
    for number, (name, one) in enumerate((*shapes.items(), ("action", {"shape": [ACTION]}))):
        if len(one["shape"]) == 3:
            made[name] = get_image_range_normalizer()
            continue
        data = 100 * torch.rand((500, *one["shape"]), generator=generator) - 30
        data[:, 0] = 5.0  # never moves
        if name == "action":
            data[:, 0] = torch.rand(500, generator=generator)
        single = SingleFieldLinearNormalizer()
        single.fit(data, mode="gaussian" if number % 2 else "limits")
        made[name] = single
    made["spare"] = SingleFieldLinearNormalizer.create_identity()
    return made


def observed(shapes, history, generator):
    found = {}
    for name, shape in shapes.items():
        whole = (BATCH, history, *shape)
        if len(shape) == 3:
            whole = (BATCH, history, *shape[1:], shape[0])
            found[name] = torch.randint(256, whole, generator=generator, dtype=torch.uint8)
        else:
            found[name] = 40 * torch.rand(whole, generator=generator) - 10
    return found


def theirs(seen):
    """Images as floats from 0 to 1 with the channels first."""
    return {n: v.movedim(-1, -3).float() / 255 if v.dtype == torch.uint8 else v for n, v in seen.items()}


def workspace(name, folder, number):
    """A policy of diffusion_policy in the file of its workspace."""
    torch.manual_seed(number)
    generator, plain = torch.Generator().manual_seed(100 + number), CASES[name]
    policy = built(plain).eval()
    unlike(policy, generator)
    policy.set_normalizer(normaliser(plain, generator))
    shapes = plain.get("shape_meta", {}).get("obs") or {"obs": {"shape": [plain.get("obs_dim")]}}
    seen = observed({key: one["shape"] for key, one in shapes.items()}, plain["n_obs_steps"], generator)
    drawn, patches, fake = drawing(generator)
    module = sys.modules[type(policy).__module__]
    with patches[0], patches[1], mock.patch.object(module, "torch", fake), torch.no_grad():
        got = policy.predict_action(theirs(seen))
    whole = got["action_pred"]
    start = plain["n_obs_steps"] - (1 if plain.get("oa_step_convention", True) else 0)
    plans = whole if plain.get("pred_action_steps_only") else whole[:, start:]
    assert torch.equal(plans[:, : plain["n_action_steps"]], got["action"])
    normalised = policy.normalizer["action"].normalize(plans)
    save_file(
        {**seen, "noises": torch.stack(drawn.noises), "plans": plans.contiguous(), "normalised": normalised.detach()},
        folder / f"{name}.safetensors",
    )
    model = {key: torch.zeros_like(value) for key, value in policy.state_dict().items()}
    payload = {
        "cfg": OmegaConf.create({"name": "train", "policy": plain, "training": {"use_ema": True}}),
        "state_dicts": {"model": model, "ema_model": policy.state_dict(), "optimizer": {"state": {}}},
        "pickles": {"epoch": dill.dumps(3), "global_step": dill.dumps(7)},
    }
    torch.save(payload, folder / f"{name}.ckpt", pickle_module=dill)


def robomimic(name, folder, number):
    """A diffusion policy of robomimic in the file of its trainer."""
    import robomimic.models.diffusion_policy_nets as nets
    import robomimic.utils.obs_utils as obs_utils
    from robomimic.algo import algo_factory
    from robomimic.config import config_factory
    from robomimic.utils.train_utils import save_model

    generator, small = torch.Generator().manual_seed(100 + number), nets.ConditionalUnet1D
    torch.manual_seed(number)
    images, ddim, stats = name != "robomimic", name != "robomimic", name != "robomimic"
    config = config_factory("diffusion_policy")
    with config.unlocked():
        config.observation.modalities.obs.low_dim = ["quat", "eef"]
        config.observation.modalities.obs.rgb = ["wrist", "agentview"] if images else []
        config.train.hdf5_normalize_obs = stats
        config.algo.optim_params.policy.num_train_batches, config.algo.optim_params.policy.num_epochs = 2, 2
        config.algo.ddpm.enabled, config.algo.ddim.enabled = not ddim, ddim
        if images:
            rgb = config.observation.encoder.rgb
            rgb.core_class, rgb.obs_randomizer_class = "VisualCore", "CropRandomizer"
            rgb.core_kwargs.feature_dimension = 24
            rgb.core_kwargs.backbone_class, rgb.core_kwargs.pool_class = "ResNet18Conv", "SpatialSoftmax"
            rgb.core_kwargs.backbone_kwargs.pretrained = False
            rgb.core_kwargs.backbone_kwargs.input_coord_conv = False
            rgb.core_kwargs.pool_kwargs.num_kp = 9
            rgb.core_kwargs.pool_kwargs.learnable_temperature = False
            rgb.core_kwargs.pool_kwargs.temperature = 0.7
            rgb.core_kwargs.pool_kwargs.noise_std = 0.0
            rgb.obs_randomizer_kwargs.crop_height, rgb.obs_randomizer_kwargs.crop_width = 76, 65
            rgb.obs_randomizer_kwargs.num_crops, rgb.obs_randomizer_kwargs.pos_enc = 1, False
    shapes = {"wrist": [3, 84, 72], "quat": [4], "agentview": [3, 84, 72], "eef": [3]}
    shapes = {key: shape for key, shape in shapes.items() if images or len(shape) == 1}
    obs_utils.initialize_obs_utils_with_config(config)
    nets.ConditionalUnet1D = lambda **k: small(**k, down_dims=[16, 32], diffusion_step_embed_dim=32)
    try:
        sys.modules["robomimic.algo.diffusion_policy"].__dict__["EMAModel"] = Average
        model = algo_factory("diffusion_policy", config, OrderedDict(shapes), ACTION, "cpu")
    finally:
        nets.ConditionalUnet1D = small
    averaged = model.ema.averaged_model if model.ema is not None else model.nets
    unlike(averaged, generator)
    model.set_eval()
    averaged.eval()
    seen = observed(shapes, 2, generator)
    action = {"scale": np.array([[2.0, 3.0, 0.5]], np.float32), "offset": np.array([[0.1, -7.0, 0.0]], np.float32)}
    numbers = {key: {"offset": np.full((1, *shape), 3.0, np.float32), "scale": np.full((1, *shape), 20.0, np.float32)}
               for key, shape in shapes.items() if len(shape) == 1}  # fmt: skip
    same = {key: {"offset": np.zeros((1, *shape), np.float32), "scale": np.ones((1, *shape), np.float32)}
            for key, shape in shapes.items() if len(shape) == 3}  # fmt: skip
    given = theirs(seen)
    if stats:
        given = {k: (v - 3.0) / 20.0 if k in numbers else v for k, v in given.items()}
    drawn, patches, fake = drawing(generator)
    executed = config.algo.horizon.action_horizon
    with config.unlocked():
        config.algo.horizon.action_horizon = 15  # all from now on, to compare them
    with patches[0], patches[1], mock.patch("robomimic.algo.diffusion_policy.torch", fake), torch.no_grad():
        plans = model._get_action_trajectory(given)
    with config.unlocked():
        config.algo.horizon.action_horizon = executed
    meta = {"all_shapes": OrderedDict(shapes), "ac_dim": ACTION, "all_obs_keys": list(shapes), "use_images": images}
    tables = ({**numbers, **same}, {"actions": action}) if stats else (None, None)
    path = str(folder / f"{name}.pth")
    save_model(model, config, {}, meta, path, obs_normalization_stats=tables[0], action_normalization_stats=tables[1])
    real = plans * torch.tensor(action["scale"]) + torch.tensor(action["offset"]) if stats else plans
    save_file({**seen, "noises": torch.stack(drawn.noises), "plans": real.contiguous(),
               "normalised": plans.contiguous()}, folder / f"{name}.safetensors")  # fmt: skip


def main(folder, *names):
    import robomimic.models.base_nets as base
    import robomimic.models.obs_core as core

    base.CropRandomizer = core.CropRandomizer  # where diffusion_policy looks for it, as robomimic 0.2 had it
    for number, name in enumerate(names):
        (robomimic if name.startswith("robomimic") else workspace)(name, Path(folder), number)
        print(json.dumps({"made": name}))


if __name__ == "__main__":
    main(*sys.argv[1:])
