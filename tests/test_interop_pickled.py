"""Checkpoints of diffusion_policy and robomimic: against published architectures written here, and the real ones."""

import copy
import json
import math
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from poise.cli import main
from poise.data import DataError, Limits, Pixels, Unscaled
from poise.interop import diffusion_policy, import_diffusion_policy, import_policy, import_robomimic, robomimic
from poise.interop.diffusion_policy_config import described_by
from poise.interop.fields import Fields
from poise.interop.published import Affine, settle_core
from poise.interop.quarantine import Unpickled
from poise.nn import CNN, AveragePool, SmallCNN
from poise.policies import DiffusionPolicy, RecedingHorizon, load
from poise.sampling import DDIM, DPMSolverPP, per_sample
from poise.schedules import Tabulated

SCRIPT = Path(__file__).parent / "diffusion_policy_oracle.py"
REAL = ("low", "low_later", "low_steps", "decoder", "decoder_long", "decoder_free", "hybrid", "hybrid_batch",
        "hybrid_decoder", "multi", "multi_shared", "robomimic", "robomimic_images")  # fmt: skip
SCHEDULER = {"_target_": "diffusers.schedulers.scheduling_ddim.DDIMScheduler", "num_train_timesteps": 20,
             "beta_schedule": "squaredcos_cap_v2", "clip_sample": True, "prediction_type": "epsilon"}  # fmt: skip
POLICY = {"_target_": "diffusion_policy.policy.diffusion_unet_lowdim_policy.DiffusionUnetLowdimPolicy",
          "noise_scheduler": SCHEDULER, "horizon": 8, "obs_dim": 3, "action_dim": 2, "n_action_steps": 4,
          "n_obs_steps": 2, "num_inference_steps": 4, "obs_as_global_cond": True, "oa_step_convention": True,
          "model": {"_target_": "x.ConditionalUnet1D", "input_dim": 2, "global_cond_dim": 6, "down_dims": [8, 16],
                    "diffusion_step_embed_dim": 8, "kernel_size": 3, "cond_predict_scale": True}}  # fmt: skip
DECODER = {"_target_": "x.TransformerForDiffusion", "input_dim": 2, "output_dim": 2, "horizon": 8, "n_obs_steps": 2,
           "cond_dim": 3, "n_layer": 2, "n_head": 2, "n_emb": 16, "causal_attn": True, "time_as_cond": True,
           "obs_as_cond": True, "p_drop_attn": 0.1}  # fmt: skip
TRANSFORMER = {k: v for k, v in POLICY.items() if k not in ("obs_as_global_cond", "oa_step_convention")} | {
    "_target_": "x.DiffusionTransformerLowdimPolicy", "obs_as_cond": True, "model": DECODER}  # fmt: skip
OBSERVED = {"scale": torch.tensor([0.5, 2.0, 1.0]), "offset": torch.tensor([0.1, -1.0, 0.0])}
ACTED = {"scale": torch.tensor([0.25, 4.0]), "offset": torch.tensor([-0.5, 0.75])}


# --- published networks ----------------------------------------------------------------------------------------------


def waves(step, width):
    frequencies = torch.exp(torch.arange(width // 2) * -(math.log(10000) / (width // 2 - 1)))
    angle = torch.tensor([float(step)])[:, None] * frequencies
    return torch.cat([angle.sin(), angle.cos()], -1)


class Decoder(nn.Module):
    """The transformer of diffusion_policy, by torch's own decoder."""

    def __init__(self, causal=True):
        super().__init__()
        self.input_emb, self.cond_obs_emb = nn.Linear(2, 16), nn.Linear(3, 16)
        self.pos_emb, self.cond_pos_emb = nn.Parameter(torch.randn(1, 8, 16)), nn.Parameter(torch.randn(1, 3, 16))
        self.encoder = nn.Sequential(nn.Linear(16, 64), nn.Mish(), nn.Linear(64, 16))
        layer = nn.TransformerDecoderLayer(16, 2, 64, 0.0, "gelu", batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)
        self.ln_f, self.head = nn.LayerNorm(16), nn.Linear(16, 2)
        self._dummy_variable = nn.Parameter()
        self.mask = self.memory_mask = None
        if causal:
            del self.mask, self.memory_mask
            step = torch.arange(8)[:, None]
            for name, visible in (("mask", step >= step.T), ("memory_mask", step >= torch.arange(3) - 1)):
                self.register_buffer(name, torch.zeros(visible.shape).masked_fill(~visible, -torch.inf))

    def forward(self, x, step, seen):
        level = waves(step, 16).expand(len(x), -1)[:, None]
        memory = self.encoder(torch.cat([level, self.cond_obs_emb(seen)], 1) + self.cond_pos_emb)
        h = self.decoder(self.input_emb(x) + self.pos_emb, memory, self.mask, self.memory_mask)
        return self.head(self.ln_f(h))


class Block(nn.Module):
    def __init__(self, inputs, outputs, condition):
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"block": self.part(i, outputs)}) for i in (inputs, outputs))
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(condition, 2 * outputs))
        self.residual_conv = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    @staticmethod
    def part(inputs, outputs, kernel=3):
        return nn.Sequential(
            nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2), nn.GroupNorm(8, outputs), nn.Mish()
        )

    def forward(self, x, c):
        scale, bias = self.cond_encoder(c)[..., None].chunk(2, 1)
        return self.blocks[1]["block"](scale * self.blocks[0]["block"](x) + bias) + self.residual_conv(x)


class UNet(nn.Module):
    """The U-Net of diffusion_policy with two resolutions."""

    def __init__(self, size=3):
        super().__init__()
        condition = 8 + 2 * size
        self.diffusion_step_encoder = nn.Sequential(nn.Identity(), nn.Linear(8, 32), nn.Mish(), nn.Linear(32, 8))
        half = nn.ModuleDict({"conv": nn.Conv1d(8, 8, 3, 2, 1)})
        twice = nn.ModuleDict({"conv": nn.ConvTranspose1d(8, 8, 4, 2, 1)})
        self.down_modules = nn.ModuleList([
            nn.ModuleList([Block(2, 8, condition), Block(8, 8, condition), half]),
            nn.ModuleList([Block(8, 16, condition), Block(16, 16, condition)]),
        ])  # fmt: skip
        self.mid_modules = nn.ModuleList(Block(16, 16, condition) for _ in range(2))
        self.up_modules = nn.ModuleList([nn.ModuleList([Block(32, 8, condition), Block(8, 8, condition), twice])])
        self.final_conv = nn.Sequential(nn.ModuleDict({"block": Block.part(8, 8)}), nn.Conv1d(8, 2, 1))

    def forward(self, x, step, seen):
        c = torch.cat([self.diffusion_step_encoder(waves(step, 8)).expand(len(x), -1), seen.flatten(1)], -1)
        (first, second, half), (third, fourth) = self.down_modules
        skip = second(first(x.mT, c), c)
        deep = fourth(third(half["conv"](skip), c), c)
        h = torch.cat([self.mid_modules[1](self.mid_modules[0](deep, c), c), deep], 1)
        up = self.up_modules[0]
        return self.final_conv[1](self.final_conv[0]["block"](up[2]["conv"](up[1](up[0](h, c), c)))).mT


def published(network, seen, x, observed=OBSERVED, acted=ACTED, steps=4):
    """DDIM of diffusers, from the noise to the plan in the units of the data."""
    chain, stride = Tabulated.squared_cosine(20), 20 // steps
    seen = seen * observed["scale"] + observed["offset"]
    for index in reversed(range(0, 20, stride)):
        here = chain.at((index + 1) / 20)
        noise = network(x, index, seen)
        x0 = ((x - here.sigma * noise) / here.alpha).clamp(-1, 1)
        if index == 0:
            return (x0 - acted["offset"]) / acted["scale"]
        there = chain.at((index + 1 - stride) / 20)
        x = there.alpha * x0 + there.sigma * noise
    raise AssertionError


# --- checkpoints by hand ---------------------------------------------------------------------------------------------


def tensors_of(network, **normalisers):
    found = {f"model.{name}": value.detach() for name, value in network.state_dict().items()}
    for name, constants in ({"obs": OBSERVED, "action": ACTED} | normalisers).items():
        found |= {f"normalizer.params_dict.{name}.{part}": value for part, value in constants.items()}
        found[f"normalizer.params_dict.{name}.input_stats.min"] = torch.zeros(3)
    return found | {"_dummy_variable": torch.zeros(0), "mask_generator._dummy_variable": torch.zeros(0)}


def written(path, policy, tensors, **others):
    tree = {"cfg": {"policy": policy}, "state_dicts": {"ema_model": tensors, **others}, "pickles": {"epoch": b"3"}}
    torch.save(tree, path)
    return path


def read(policy, tensors):
    """As if read from a file."""
    states = {f"state_dicts/ema_model/{name}": value for name, value in tensors.items()}
    return diffusion_policy.from_tree(Path("a.ckpt"), Unpickled(states, {"cfg": {"policy": policy}, "state_dicts": {}}))


def changed(plain, **changes):
    plain = copy.deepcopy(plain)
    for name, value in changes.items():
        *outer, last = name.split("__")
        inner = plain
        for key in outer:
            inner = inner[key]
        inner[last] = value
    return plain


def replay(noises):
    left = list(noises)
    return lambda x, t, s: left.pop(0) if left else torch.zeros_like(x)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return UNet().eval()


@pytest.fixture
def low(network, tmp_path):
    return written(tmp_path / "low.ckpt", POLICY, tensors_of(network))


@torch.no_grad()
@pytest.mark.parametrize(("policy", "begins"), [
    (POLICY, 1),
    (changed(POLICY, oa_step_convention=False), 2),
    (changed(POLICY, horizon=12, n_action_steps=8, pred_action_steps_only=True), 0),
])  # fmt: skip
def test_plans_of_the_unet_are_those_of_the_published_network(policy, begins, network, tmp_path):
    got = import_diffusion_policy(written(tmp_path / "a.ckpt", policy, tensors_of(network))).policy
    seen, x = torch.randn(3, 2, 3), torch.randn(3, 8, 2)
    expected = published(network, seen, x)[:, begins:]
    torch.testing.assert_close(got.plan({"obs": seen}, replay([x])), expected, rtol=0, atol=1e-4)
    assert ((expected * ACTED["scale"] + ACTED["offset"]).abs() < 0.999).float().mean() > 0.2
    assert got.spec.execute == min(policy["n_action_steps"], 8 - begins)


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_plans_of_the_transformer_are_those_of_torchs_decoder(causal, tmp_path):
    torch.manual_seed(1)
    network = Decoder(causal).eval()
    path = written(tmp_path / "a.ckpt", changed(TRANSFORMER, model__causal_attn=causal), tensors_of(network))
    got = import_diffusion_policy(path).policy
    seen, x = torch.randn(3, 2, 3), torch.randn(3, 8, 2)
    expected = published(network, seen, x)
    torch.testing.assert_close(got.plan({"obs": seen}, replay([x])), expected[:, 1:], rtol=0, atol=1e-4)
    other = import_diffusion_policy(written(path, changed(TRANSFORMER, model__causal_attn=False), {
        k: v for k, v in tensors_of(network).items() if not k.endswith("mask")})).policy  # fmt: skip
    same = torch.allclose(other.plan({"obs": seen}, replay([x])), expected[:, 1:], atol=1e-3)
    assert same is not causal


def test_states_of_modules_carry_attributes(network, tmp_path):
    state = network.state_dict(prefix="model.")
    assert state._metadata
    for name, value in tensors_of(network).items():
        state.setdefault(name, value)
    assert import_diffusion_policy(written(tmp_path / "a.ckpt", POLICY, state)).policy


def test_the_average_is_preferred_and_the_last_weights_will_do(network, tmp_path):
    tensors = tensors_of(network)
    blank = {name: torch.zeros_like(value) for name, value in tensors.items()}
    torch.save({"cfg": {"policy": POLICY}, "state_dicts": {"model": blank, "ema_model": tensors}}, tmp_path / "both")
    torch.save({"cfg": {"policy": POLICY}, "state_dicts": {"model": tensors}}, tmp_path / "one")
    for name in ("both", "one"):
        policy = import_diffusion_policy(tmp_path / name).policy
        bias = policy.state_dict()["diffusion.network.final_conv.1.bias"]
        assert torch.equal(bias, network.final_conv[1].bias)
    torch.save({"cfg": {"policy": POLICY}, "state_dicts": {"optimizer": {}}}, tmp_path / "none")
    with pytest.raises(DataError, match="state_dicts: holds neither ema_model nor model"):
        import_diffusion_policy(tmp_path / "none")


def test_imported_policies_are_ordinary_ones(low, tmp_path):
    policy, notes = import_diffusion_policy(low)
    again = load(policy.save(tmp_path / "saved", notes))
    seen = {"obs": torch.randn(2, 2, 3)}
    assert again.spec == policy.spec
    assert torch.equal(again.plan(seen, per_sample([1, 2])), policy.plan(seen, per_sample([1, 2])))
    assert policy.spec.scaling("obs") == Limits()
    assert policy.using(sampler=DPMSolverPP()).plan(seen).isfinite().all()
    assert RecedingHorizon(again).act({"obs": seen["obs"][:1, -1].numpy()}).shape == (1, 2)


def test_features_that_the_policy_does_not_see_are_named(network, tmp_path):
    spare = {"keypoint": {"scale": torch.ones(1), "offset": torch.zeros(1)}}
    assert import_diffusion_policy(written(tmp_path / "a", POLICY, tensors_of(network, **spare))).notes == {
        "imported": "diffusion_policy",
        "unused": ["keypoint"],
    }


NORMALISER = "normalizer.params_dict."
BROKEN = {
    "model.final_conv.1.bias": (None, r"tensors: lacks those for \['diffusion.network.final_conv.1.bias'\]"),
    "model.local_cond_encoder.0.weight": (torch.ones(2), r"has no place for \['model.local_cond_encoder.0.weight'\]"),
    "model.mid_modules.0.blocks.1.block.0.bias": (torch.ones(4), r"has the shape \(4,\), expected \(16,\)"),
    "model.diffusion_step_encoder.1.bias": (torch.full((32,), torch.nan), "not finite"),
    "model.mask": (torch.zeros(8, 8), r"has no place for \['model.mask'\]"),
    f"{NORMALISER}obs.scale": (None, "normalizer.params_dict.obs.scale: is missing, expected 3 finite numbers"),
    f"{NORMALISER}obs.offset": (torch.ones(2), r"has the shape \(2,\).*, expected 3 finite numbers"),
    f"{NORMALISER}action.scale": (torch.zeros(2), "got 0, which nothing undoes"),
    f"{NORMALISER}action.offset": (torch.tensor([0.0, torch.inf]), "or is not finite, expected 2 finite numbers"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_every_tensor_is_placed_or_named(name, network):
    tensor, message = BROKEN[name]
    tensors = tensors_of(network)
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    with pytest.raises(DataError, match=message):
        read(POLICY, tensors)


def test_other_masks_are_refused():
    for name, mask in (("mask", torch.zeros(8, 8)), ("memory_mask", torch.zeros(8)), ("memory_mask", torch.ones(8, 3))):
        tensors = tensors_of(Decoder()) | {f"model.{name}": mask}
        with pytest.raises(DataError, match=f"model.{name}: is another mask than the causal one"):
            read(TRANSFORMER, tensors)


REFUSED = [
    (POLICY, {"_target_": "a.BETLowdimPolicy"}, "_target_: got 'a.BETLowdimPolicy', expected one of"),
    (POLICY, {"obs_as_global_cond": False}, "expected true: we have no local condition, and no inpainting"),
    (POLICY, {"model__local_cond_dim": 3}, "local_cond_dim: got 3, expected null"),
    (POLICY, {"model__n_groups": 4}, "n_groups: got 4, expected 8"),
    (POLICY, {"eta": 0.5}, r"cfg: policy: sets \['eta'\], expected only"),
    (POLICY, {"horizon": "${horizon}"}, r"horizon: got '\${horizon}', expected an integer"),
    (POLICY, {"horizon": 7}, "expected a multiple of 2"),
    (POLICY, {"model__down_dims": [2**40]}, "integers from 1 to 65536"),
    (POLICY, {"model__down_dims": [65536, 65536]}, "has the shape|cannot be built"),
    (POLICY, {"model": 3}, "model: got 3, expected a JSON object"),
    (POLICY, {"num_inference_steps": 21}, "plans in 21 steps under DDIM with num_train_timesteps=20, expected 1 to 20"),
    (POLICY, {"noise_scheduler___target_": "d.DDPMScheduler"}, "plans in 4 steps under DDPM .* expected 20"),
    (POLICY, {"noise_scheduler___target_": "d.PNDMScheduler"}, "noise_scheduler: _target_: got 'd.PNDMScheduler'"),
    (POLICY, {"noise_scheduler__variance_type": "learned"}, "variance_type: got 'learned', expected 'fixed_small'"),
    (POLICY, {"noise_scheduler__steps_offset": 1}, "steps_offset: got 1, expected 0"),
    (POLICY, {"noise_scheduler__prediction_type": "v_prediction"}, r"expected one of \['epsilon', 'sample'\]"),
    (POLICY, {"noise_scheduler__clip_sample_range": 10**400}, "expected a finite number above 0"),
    (POLICY, {"noise_scheduler__trained_betas": [0.1]}, r"sets \['trained_betas'\]"),
    (TRANSFORMER, {"obs_as_cond": False}, "obs_as_cond: got False, expected true: we have no inpainting"),
    (TRANSFORMER, {"pred_action_steps_only": True}, "expected false: its plan would be shorter"),
    (TRANSFORMER, {"model__time_as_cond": False}, "time_as_cond: got False, expected true: our noise level is a token"),
    (TRANSFORMER, {"model__n_cond_layers": 4}, "n_cond_layers: got 4, expected 0: our observation tokens go through"),
    (TRANSFORMER, {"model__n_head": 3}, "cannot be built"),
]  # fmt: skip


@pytest.mark.parametrize(("policy", "changes", "message"), REFUSED)
def test_parts_without_counterpart_are_refused_by_name(policy, changes, message):
    network = UNet() if policy is POLICY else Decoder()
    with pytest.raises(DataError, match=message):
        read(changed(policy, **changes), tensors_of(network))


# --- images ----------------------------------------------------------------------------------------------------------

META = {"obs": {"zeta": {"shape": [3]}, "cam": {"shape": [3, 70, 70], "type": "rgb"}, "alpha": {"shape": [2]}},
        "action": {"shape": [2]}}  # fmt: skip
SIGHT = {k: v for k, v in POLICY.items() if k not in ("model", "obs_dim", "action_dim", "oa_step_convention")} | {
    "shape_meta": META, "down_dims": [8, 16], "diffusion_step_embed_dim": 8, "kernel_size": 3}  # fmt: skip
HYBRID = SIGHT | {"_target_": "x.DiffusionUnetHybridImagePolicy", "crop_shape": [64, 66], "eval_fixed_crop": True,
                  "obs_encoder_group_norm": True}  # fmt: skip
MULTI = SIGHT | {"_target_": "x.DiffusionUnetImagePolicy", "obs_encoder": {
    "_target_": "x.MultiImageObsEncoder", "rgb_model": {"_target_": "x.get_resnet", "name": "resnet18"},
    "crop_shape": [64, 66], "use_group_norm": True, "imagenet_norm": True}}  # fmt: skip
LAYERS = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}


def sight(policy):
    """A policy of ours for a configuration, and the checkpoint's tensors for it but those of the network."""
    outline, _ = described_by(Fields(Path("x"), "cfg: policy", policy))
    plain = {name: Affine(torch.ones(n), torch.zeros(n)) for name, n in (*outline.widths.items(), ("action", 2))}
    plain["cam"] = Affine(torch.ones(3), torch.zeros(3))
    torch.manual_seed(2)
    made, found = DiffusionPolicy(outline.spec(plain)), {}
    for name, value in made.encoder.state_dict().items():
        rest = name.removeprefix("parts.0.eyes.0.")
        if policy is MULTI:
            found[f"obs_encoder.key_model_map.cam.{rest.removeprefix('trunk.module.')}"] = value
            continue
        core = "obs_encoder.obs_nets.cam."
        rest = re.sub(r"^trunk\.module\.(\w+)", lambda m: f"backbone.nets.{LAYERS[m[1]]}", rest)
        rest = rest.replace("pool.keypoints", "pool.nets").replace("project", "nets.3")
        found[core + rest] = value
        if rest.startswith("backbone"):
            found[f"{core}nets.0.{rest.removeprefix('backbone.')}"] = value
    if policy is not MULTI:
        y, x = torch.meshgrid(torch.linspace(-1, 1, 2), torch.linspace(-1, 1, 3), indexing="ij")
        found |= {f"{core}pool.pos_x": x.reshape(1, -1), f"{core}pool.pos_y": y.reshape(1, -1)}
        found |= {f"{core}pool.temperature": torch.ones(1), f"{core}pool.nets.bias": torch.ones(32)}
    return made, found


@torch.no_grad()
@pytest.mark.parametrize(("policy", "order"), [
    (HYBRID, ("zeta", "cam", "alpha")), (MULTI, ("cam", "alpha", "zeta"))], ids=("hybrid", "multi"))  # fmt: skip
def test_image_policies_keep_their_order_and_their_colours(policy, order, tmp_path):
    made, tensors = sight(policy)
    width = 64 if policy is HYBRID else 512
    network = UNet(width + 5).eval()
    image = {"scale": torch.tensor([2.0]), "offset": torch.tensor([-1.0])}
    numbers = {
        name: {"scale": torch.full((n,), 3.0), "offset": torch.zeros(n)} for name, n in (("zeta", 3), ("alpha", 2))
    }
    tensors |= tensors_of(network, cam=image, **numbers)
    tensors = {name: value for name, value in tensors.items() if "params_dict.obs." not in name}
    got = import_diffusion_policy(written(tmp_path / "a.ckpt", policy, tensors)).policy
    seen = {"cam": torch.randint(256, (1, 2, 70, 70, 3), dtype=torch.uint8), "zeta": torch.randn(1, 2, 3),
            "alpha": torch.randn(1, 2, 2)}  # fmt: skip
    top, left = 3, 2  # the centre
    colours = 2 * seen["cam"][:, :, top : top + 64, left : left + 66].float() / 255 - 1
    if policy is MULTI:  # theirs takes the mean of ImageNet from what is in [-1, 1] already
        colours = (colours - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    token = made.eval().encoder.parts[0]({"cam": colours})
    assert token.shape == (1, 2, width)
    parts = {"cam": token, "zeta": 3 * seen["zeta"], "alpha": 3 * seen["alpha"]}
    flat, x = torch.cat([parts[name] for name in order], -1), torch.randn(1, 8, 2)
    same = {"scale": torch.ones(()), "offset": torch.zeros(())}
    expected = published(network, flat, x, observed=same)[:, 1:]
    torch.testing.assert_close(got.plan(seen, replay([x])), expected, rtol=0, atol=1e-4)
    assert isinstance(got.spec.scaling("cam"), Pixels)


IMAGES = [
    (HYBRID, {"eval_fixed_crop": False}, "eval_fixed_crop: got False, expected true: without it each plan"),
    (HYBRID, {"crop_shape": [67, 66]}, r"crop_shape: got \[67, 66\], expected margins that halve alike"),
    (HYBRID, {"crop_shape": [164, 66]}, "cannot be built"),
    (HYBRID, {"shape_meta__obs": {}}, "names 0 features"),
    (HYBRID, {"shape_meta__obs__cam__type": "depth"}, r"cam: type: got 'depth', expected one of \['low_dim', 'rgb'\]"),
    (HYBRID, {"shape_meta__obs__cam__shape": [3, 70]}, "cam: shape: .* expected 3 sizes"),
    (MULTI, {"obs_encoder__resize_shape": [32, 32]}, r"resize_shape: got \[32, 32\], expected null"),
    (MULTI, {"obs_encoder__rgb_model__weights": "r3m"}, "weights: got 'r3m', expected null or weights of torchvision"),
    (MULTI, {"obs_encoder__rgb_model__name": "resnet50"}, r"name: got 'resnet50', expected one of \['resnet18', 'res"),
    (MULTI, {"obs_encoder__rgb_model": {"cam": {}}}, "_target_: is missing, expected a string"),
    (MULTI, {"obs_encoder__new": 1}, r"obs_encoder: sets \['new'\]"),
]  # fmt: skip


@pytest.mark.parametrize(("policy", "changes", "message"), IMAGES)
def test_image_parts_without_counterpart_are_refused_by_name(policy, changes, message):
    constants = {"scale": torch.ones(1), "offset": torch.zeros(1)}
    with pytest.raises(DataError, match=message):
        read(changed(policy, **changes), tensors_of(UNet(), cam=constants, zeta=constants, alpha=constants))


def test_what_is_twice_in_a_core_must_be_the_same_and_a_temperature_is_kept():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 2), torch.linspace(-1, 1, 3), indexing="ij")
    core = {"a.backbone.nets.0.weight": torch.ones(2), "a.nets.0.nets.0.weight": torch.ones(2),
            "a.pool.nets.weight": torch.full((2,), 3.0), "a.nets.1.nets.weight": torch.full((2,), 3.0),
            "a.pool.nets.bias": torch.ones(2), "a.pool.temperature": torch.tensor([0.5]),
            "a.nets.3.bias": torch.ones(1),
            "a.pool.pos_x": x.reshape(1, -1), "a.pool.pos_y": y.reshape(1, -1)}  # fmt: skip
    kept = dict(core)
    settle_core(Path("x"), kept, "a.", (64, 66))
    assert set(kept) == {"a.backbone.nets.0.weight", "a.pool.nets.weight", "a.nets.3.bias"}
    assert torch.equal(kept["a.pool.nets.weight"], torch.full((2,), 6.0))
    for changes, size, message in (
        ({"a.nets.0.nets.0.weight": torch.zeros(2)}, (64, 66), "differs from a.backbone.nets.0.weight"),
        ({"a.pool.temperature": torch.tensor([0.0])}, (64, 66), r"got \[0.0\], expected a number above 0"),
        ({"a.pool.pos_y": x.reshape(1, -1)}, (64, 66), "pos_y: are no coordinates"),
        ({}, (66, 64), "pos_x: are no coordinates"),
        ({}, (32, 192), "pos_x: are no coordinates"),
    ):
        with pytest.raises(DataError, match=message):
            settle_core(Path("x"), {**core, **changes}, "a.", size)


@torch.no_grad()
def test_a_cnn_without_a_width_gives_what_its_pooling_gives():
    encoder = CNN(SmallCNN((16, 32)), AveragePool(), None).build({"a": (20, 20, 3), "b": (20, 20, 3)}, 2).eval()
    seen = {name: torch.randn(3, 2, 20, 20, 3) for name in "ab"}
    tokens, eye = encoder(seen), encoder.eyes[0]
    assert encoder.tokens == (4, 32)
    maps = eye.trunk(seen["b"][:, 1].permute(0, 3, 1, 2))
    torch.testing.assert_close(tokens[:, 3], maps.mean((2, 3)))
    assert not [name for name in encoder.state_dict() if "project" in name]


# --- robomimic -------------------------------------------------------------------------------------------------------

DIM = {"enabled": True, "num_train_timesteps": 20, "num_inference_timesteps": 4, "beta_schedule": "squaredcos_cap_v2",
       "clip_sample": True, "prediction_type": "epsilon", "set_alpha_to_one": True, "steps_offset": 0}  # fmt: skip
CONFIG = {
    "algo": {"horizon": {"observation_horizon": 2, "action_horizon": 4, "prediction_horizon": 8}, "ddim": DIM,
             "ddpm": {"enabled": False}, "unet": {"enabled": True, "n_groups": 8, "down_dims": [256, 512, 1024]}},
    "observation": {"modalities": {"obs": {"low_dim": ["b", "a"], "rgb": [], "depth": []}},
                    "encoder": {"low_dim": {"core_class": None}, "rgb": {"core_class": "VisualCore"}}},
    "train": {"action_keys": ["actions"], "action_config": {"actions": {"normalization": None}}},
}  # fmt: skip
SHAPES = {"b": [2], "other": [7], "a": [1]}


def mimicked(network, plain=CONFIG, prefix="ema", shapes=SHAPES, **others):
    tensors = {f"policy.noise_pred_net.{name}": value.detach() for name, value in network.state_dict().items()}
    blank = {name: torch.zeros_like(value) for name, value in tensors.items()}
    tree = {"algo_name": "diffusion_policy", "config": json.dumps(plain), "variable_state": None,
            "shape_metadata": {"all_shapes": shapes, "ac_dim": 2},
            "model": {"nets": blank, prefix: tensors}}  # fmt: skip
    return tree | others


def mimic(tree):
    """As if read from a file."""
    tensors = {f"model/{kind}/{n}": v for kind, part in tree["model"].items() for n, v in part.items()}
    return robomimic.from_tree(Path("a.pth"), Unpickled(tensors, {k: v for k, v in tree.items() if k != "model"}))


def saved(path, tree):
    torch.save(tree, path)
    return path


@torch.no_grad()
@pytest.mark.parametrize("tables", [False, True])
def test_plans_of_robomimic_are_those_of_the_published_network(tables, network, tmp_path):
    seen, x = {"a": torch.randn(3, 2, 1), "b": torch.randn(3, 2, 2)}, torch.randn(3, 8, 2)
    others, observed, acted = {}, {"scale": torch.ones(3), "offset": torch.zeros(3)}, None
    acted = {"scale": torch.ones(2), "offset": torch.zeros(2)}
    if tables:  # x = scale y + offset
        others = {"obs_normalization_stats": {"b": {"scale": [[2.0, 4.0]], "offset": [[1.0, 2.0]]},
                                              "a": {"scale": [[0.5]], "offset": [[3.0]]}},
                  "action_normalization_stats": {"actions": {"scale": [[10.0, 5.0]],
                                                             "offset": [[-1.0, 0.5]]}}}  # fmt: skip
        observed = {"scale": torch.tensor([0.5, 0.25, 2.0]), "offset": torch.tensor([-0.5, -0.5, -6.0])}
        acted = {"scale": torch.tensor([0.1, 0.2]), "offset": torch.tensor([0.1, -0.1])}
    got = import_robomimic(saved(tmp_path / "a.pth", mimicked(network, **others))).policy
    expected = published(network, torch.cat([seen["b"], seen["a"]], -1), x, observed, acted)[:, 1:]
    torch.testing.assert_close(got.plan(seen, replay([x])), expected, rtol=0, atol=1e-4)
    assert got.spec.network.channels == (8, 16)
    assert got.spec.sampler == DDIM(bound=1.0)
    assert got.spec.action_scaling == (Limits() if tables else Unscaled())
    assert got.spec.execute == 4
    assert import_robomimic(saved(tmp_path / "b.pth", mimicked(network, prefix="nets"))).policy


MIMICKED = [
    ({"algo_name": "bc"}, {}, "algo_name: got 'bc', expected one of"),
    ({"config": "{"}, {}, "config: is no JSON"),
    ({"config": None}, {}, "config: got None, expected a string"),
    ({"model": {}}, {}, "model: holds neither ema nor nets"),
    ({"shapes": {"a": [1]}}, {}, r"lacks the shapes of \['b'\]"),
    ({"obs_normalization_stats": {"a": {"scale": [1.0], "offset": [0.0]}}}, {}, "stats: b: is missing"),
    ({"action_normalization_stats": {"actions": {"scale": [[1.0]], "offset": [[0.0, 1.0]]}}}, {}, "expected 2 each"),
    ({"action_normalization_stats": {"actions": {"scale": "x"}}}, {}, "scale: is no table of numbers"),
    ({"action_normalization_stats": {"other": {}}}, {}, "action_keys: got .'actions'., expected a list of names among"),
    ({}, {"algo__unet__enabled": False}, "unet: enabled: got False"),
    ({}, {"algo__unet__n_groups": 4}, "n_groups: got 4, expected 8"),
    ({}, {"algo__ddim__enabled": False}, "ddim: enabled: got False, expected true, or ddpm enabled"),
    ({}, {"observation__modalities__obs__depth": ["z"]}, "depth: got .'z'., expected no features"),
    ({}, {"observation__modalities__obs__low_dim": 3}, "low_dim: got 3, expected a list of names"),
    ({"action_normalization_stats": {}}, {"train__action_keys": [["a"]]}, "keys: got .*, expected a list of names"),
    ({}, {"observation__encoder__low_dim__core_class": "MLP"}, "core_class: got 'MLP', expected null"),
    ({}, {"observation__modalities__obs__rgb": ["other"]}, "other: got .7., expected 3 sizes"),
]  # fmt: skip


@pytest.mark.parametrize(("others", "changes", "message"), MIMICKED)
def test_what_robomimic_has_and_we_have_not_is_refused_by_name(others, changes, message, network):
    with pytest.raises(DataError, match=message):
        mimic(mimicked(network, changed(CONFIG, **changes), **others))


def test_names_that_no_feature_can_have_are_refused(network):
    for name in ("action", "pop", ""):
        config = changed(CONFIG, observation__modalities__obs__low_dim=["b", name])
        with pytest.raises(DataError, match=f"observations: names 2 with 0 cameras, and ..{name}.. among them"):
            mimic(mimicked(network, config, shapes={"b": [2], name: [1]}))
    many = [f"c{n}" for n in range(65)]
    config = changed(CONFIG, observation__modalities__obs={"low_dim": [], "rgb": many})
    config["observation"]["encoder"]["rgb"] |= {"core_kwargs": {}}
    with pytest.raises(DataError, match="names 65 with 65 cameras"):
        mimic(mimicked(network, config, shapes={name: [3, 70, 70] for name in many}))


def test_rotations_of_actions_are_not_converted_in_silence(network):
    tables = {"action_normalization_stats": {"actions": {"scale": [[1.0, 1.0]], "offset": [[0.0, 0.0]]}}}
    config = changed(CONFIG, train__action_config={"actions": {"format": "rot_6d"}})
    with pytest.raises(DataError, match="format: got 'rot_6d', expected null"):
        mimic(mimicked(network, config, **tables))


# --- which of them it is ---------------------------------------------------------------------------------------------


def test_the_command_recognises_the_kind(low, network, tmp_path, capsys, monkeypatch):
    for source, kind in ((low, "diffusion_policy"), (saved(tmp_path / "a.pth", mimicked(network)), "robomimic")):
        monkeypatch.setattr("sys.argv", ["poise", "import", str(source), str(tmp_path / kind)])
        main()
        assert "parameters" in capsys.readouterr().out
        assert load(tmp_path / kind).spec.horizon == 8
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(
        DataError, match=r"holds \['state_dict'\], expected cfg and state_dicts, of diffusion_policy, or"
    ):
        import_policy(tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"got identity=\['obs'\] for low.ckpt, expected none: it is LeRobot's"):
        import_policy(low, ["obs"])
    with pytest.raises(FileNotFoundError):
        import_policy(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="config.json: does not exist"):
        import_policy(tmp_path / "folder")


# --- the real ones ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    venv, folders = os.environ.get("POISE_PEERS"), os.environ.get("POISE_DIFFUSION_POLICY")
    if not venv or not folders:
        pytest.skip(
            "set POISE_PEERS to a venv with diffusers and torchvision, and POISE_DIFFUSION_POLICY to the folders of "
            "diffusion_policy, robomimic and what they import, separated by ':', to compare with real policies"
        )
    folder = tmp_path_factory.mktemp("real")
    command = [f"{venv}/bin/python", str(SCRIPT), str(folder), *REAL]
    environment = {**os.environ, "PYTHONPATH": folders, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", REAL)
def test_plans_are_those_of_the_real_policy(name, real):
    policy = import_policy(next(p for p in real.glob(f"{name}.*") if p.suffix != ".safetensors")).policy
    asked = load_file(real / f"{name}.safetensors")
    noises, plans, normalised = (asked.pop(key) for key in ("noises", "plans", "normalised"))
    ours = policy.plan(asked, replay(noises))
    scale, offset = policy.constants("action")
    assert functional.l1_loss(ours, torch.zeros_like(ours)) > 0
    assert ((ours * scale + offset) - normalised).abs().max() < 1e-5 * (normalised.amax() - normalised.amin())
    spans = plans.flatten(0, 1).amax(0) - plans.flatten(0, 1).amin(0)
    assert ((ours - plans).abs() < 1e-5 * spans.clamp(min=1e-3) + 1e-5 * plans.abs().amax((0, 1))).all()
    assert (normalised.abs() < 0.999).float().mean() > 0.1
