"""Encoders: one contract for all, and what each claims, against closed forms and independent computations."""

import json
import math
import sys
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from poise.data import Episodes, Standard, Windows
from poise.nn import MLP
from poise.nn.encoders import (
    CNN,
    AveragePool,
    Backbone,
    DeepSets,
    FrozenBatchNorm,
    Fusion,
    GroupNorm,
    ImageTransformer,
    Joint,
    Norm,
    Pooling,
    ResNet,
    SmallCNN,
    SpatialSoftmax,
    Timm,
    Vector,
    load_backbone,
    spatial_softmax,
    timm_weights,
)
from poise.nn.encoders.backbones import Trunk
from poise.nn.encoders.image_transformer import places
from poise.nn.spec import Encoder, EncoderSpec
from poise.plain import concrete, from_plain, to_plain
from poise.policies import DiffusionPolicy, PolicySpec, load
from poise.testing import check_encoder
from poise.training import Learner, TrainingSpec, train

TINY = CNN(SmallCNN((16, 32)), SpatialSoftmax(4), width=6)
EXAMPLES = {
    "Vector": [Vector(), Vector(width=12), Vector(angles=("joints",))],
    "DeepSets": [DeepSets(("discs",), 8), DeepSets(("discs", "people"), 8, Vector(angles=("joints",)))],
    "CNN": [TINY, replace(TINY, shared=False, pooling=AveragePool()), replace(TINY, frozen=True, imagenet=True)],
    "ImageTransformer": [ImageTransformer(12, 16, 1, 2), ImageTransformer(16, 16, 2, 4, pooled=False)],
    "Joint": [Joint(TINY), Joint(ImageTransformer(12, 8, 1, 1, pooled=False), Vector(width=5))],
    "Fusion": [Fusion(TINY, width=16, depth=1, heads=2), Fusion(TINY, width=8, depth=1, heads=2, readouts=3)],
}
CAMERAS = {"left": (16, 16, 3), "right": (24, 16, 3)}
STATES = {"arm": (3,), "grip": (1,)}
SETS = {"discs": (4, 3), "people": (2, 5), "joints": (3,)}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def observed(shapes, history=2, batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, history, *shape, generator=generator) for name, shape in shapes.items()}


def built(spec, shapes, history=2):
    return spec.build(shapes, history).eval()


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("spec", [spec for specs in EXAMPLES.values() for spec in specs])
def test_encoders_conform(spec):
    check_encoder(spec, SETS if isinstance(spec, DeepSets) else None)


def test_every_encoder_has_an_example():
    ours = {name for name, kind in concrete(EncoderSpec).items() if kind.__module__.startswith("poise.")}
    assert ours == set(EXAMPLES)


@pytest.mark.parametrize("backbone", [ResNet(18), ResNet(34, FrozenBatchNorm())])
def test_residual_networks_conform(backbone):
    check_encoder(CNN(backbone, width=8), {"camera": (36, 34, 3)})


def test_rotations_conform():
    check_encoder(Vector(rotations=("q", "w", "m", "s")), {"q": (4,), "w": (3,), "m": (3, 3), "s": (6,)})


def test_deep_sets_conform_without_states():
    check_encoder(DeepSets(("discs",), 8), {"discs": (4, 3)})


def test_sets_have_no_order_and_every_element_the_same_weights():
    encoder, observation = built(DeepSets(("discs",), 8), SETS), observed(SETS)
    tokens = encoder(observation)
    assert (encoder.alike, encoder.raw) == ({"discs"}, frozenset())
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(encoder({**observation, "discs": observation["discs"][:, :, order]}), tokens, atol=1e-6)
    moved = {**observation, "people": observation["people"].flip(2)}  # no set here, so places matter
    assert not torch.allclose(encoder(moved), tokens)
    alone = observation["discs"][:, :, :1].expand(-1, -1, 4, -1)
    largest, mean = encoder({**observation, "discs": alone})[..., -16:].chunk(2, -1)
    assert torch.allclose(largest, mean, atol=1e-6)  # four equal elements: what one of them gives
    state = torch.cat([observation["joints"], observation["people"].flatten(2)], -1)
    one = encoder.phi["discs"](torch.cat([state, observation["discs"][:, :, 0]], -1))
    assert torch.allclose(mean, one, atol=1e-6)


def test_elements_of_a_set_share_the_constants_of_their_normalisation():
    discs = np.random.default_rng(0).normal([1.0, 20.0], [2.0, 0.5], (40, 3, 2))
    episodes = Episodes({"discs": discs.astype(np.float32), "action": discs[:, 0].astype(np.float32)}, np.array([40]))
    spec = PolicySpec(
        {"discs": (3, 2)}, 2, history=1, encoder=DeepSets(("discs",), 8), observation_scaling=Standard(),
        network=MLP(width=16, depth=1, condition=8),
    )  # fmt: skip
    policy = DiffusionPolicy(spec)
    policy.fit(Windows(episodes, ("discs",), 1, spec.horizon, 7))
    scale, offset = policy.constants("discs")
    flat = torch.as_tensor(discs).float().flatten(0, 1)
    torch.testing.assert_close(scale, 1 / flat.std(0))
    torch.testing.assert_close(offset, -flat.mean(0) / flat.std(0))
    plan = policy.plan({"discs": torch.as_tensor(discs[:1, None]).float()})
    assert plan.shape == (1, spec.planned, 2)


@dataclass(frozen=True)
class _Broken(EncoderSpec):
    """States in one token, but for one defect."""

    defect: str

    def build(self, shapes, history):
        if any(len(shape) == 3 for shape in shapes.values()):
            raise ValueError("expected states")
        return _BrokenEncoder(self.defect, sum(math.prod(shape) for shape in shapes.values()))


class _BrokenEncoder(Encoder):
    def __init__(self, defect, features):
        super().__init__()
        self.defect, self.tokens = defect, (2, features + (defect == "shape"))
        self.offset, self.secret = torch.nn.Parameter(torch.randn(features)), torch.randn(features)
        self.shift = lambda tokens: tokens + self.offset

    def forward(self, observation):
        tokens = torch.cat([values.flatten(2) for values in observation.values()], -1)
        changes = {
            "step": lambda: torch.cat([tokens[:, :1], tokens[:, :1]], 1) + self.offset,
            "batch": lambda: tokens - tokens.mean(0) + self.offset,
            "gradient": lambda: tokens + 0 * self.offset,
            "state": lambda: tokens + self.offset + self.secret,
            "shape": lambda: tokens + self.offset,
            "device": lambda: tokens + self.offset + torch.zeros(1, len(self.offset)),
            "copy": lambda: self.shift(tokens),
        }
        return changes[self.defect]()


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        ("step", "step 1 of 'joints' does not matter"),
        ("batch", "depend on the batch"),
        ("gradient", r"no gradient reaches \['offset'\]"),
        ("state", "the state dict is not all"),
        ("shape", "declared"),
        ("device", "fails for another device"),
        ("copy", "a deep copy changes with its original"),
    ],
)
def test_the_conformance_test_sees_defects(defect, message):
    with pytest.raises(AssertionError, match=message):
        check_encoder(_Broken(defect))


def test_an_encoder_that_takes_nothing_does_not_conform():
    with pytest.raises(AssertionError, match="name its features in shapes"):
        check_encoder(Vector(rotations=("pose",)))


@pytest.mark.parametrize("spec", [spec for specs in EXAMPLES.values() for spec in specs])
def test_specs_travel_as_json(spec):
    known = concrete(EncoderSpec, Backbone, Pooling, Norm)
    again = from_plain(json.loads(json.dumps(to_plain(spec))), known)
    assert again == spec
    assert type(again) is type(spec)


def test_spatial_softmax_finds_a_peak():
    for height, width in ((5, 5), (4, 7)):
        for i, j in ((0, 0), (2, 3), (height - 1, width - 1)):
            maps = torch.zeros(1, 1, height, width)
            maps[0, 0, i, j] = 100.0
            x, y = spatial_softmax(maps).flatten().tolist()
            assert (x, y) == pytest.approx((2 * j / (width - 1) - 1, 2 * i / (height - 1) - 1), abs=1e-6)


def test_spatial_softmax_is_the_expectation():
    assert spatial_softmax(torch.full((2, 3, 4, 6), 7.0)).abs().max() < 1e-6
    weights = torch.tensor([[0.1, 0.2], [0.3, 0.4]])  # x: right less left, y: bottom less top
    torch.testing.assert_close(spatial_softmax(weights.log()[None, None]), torch.tensor([[[0.2, 0.4]]]))
    torch.testing.assert_close(spatial_softmax(weights[None, None, :1].log())[0, 0], torch.tensor([1 / 3, 0.0]))


def test_average_pool_is_the_mean():
    maps = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(AveragePool().build(3)(maps), maps.flatten(2).mean(-1))


def published_shapes(blocks):
    """Names and shapes of torchvision's residual networks of basic blocks."""
    shapes = {"conv1.weight": (64, 3, 7, 7), "fc.weight": (1000, 512), "fc.bias": (1000,)}

    def norm(name, width):
        shapes.update({f"{name}.{key}": (width,) for key in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    norm("bn1", 64)
    for stage, number in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(number):
            name, inputs = f"layer{stage + 1}.{block}", width // 2 if stage and not block else width
            shapes[f"{name}.conv1.weight"], shapes[f"{name}.conv2.weight"] = (width, inputs, 3, 3), (width, width, 3, 3)
            norm(f"{name}.bn1", width)
            norm(f"{name}.bn2", width)
            if inputs != width:
                shapes[f"{name}.downsample.0.weight"] = (width, inputs, 1, 1)
                norm(f"{name}.downsample.1", width)
    return shapes


def published(blocks):
    """Random tensors of those names."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: 0.5 + torch.rand(shape, generator=generator)
        if name.endswith(("running_var", "bn1.weight", "bn2.weight"))
        else 0.05 * torch.randn(shape, generator=generator)
        for name, shape in published_shapes(blocks).items()
    }


def residual_network(tensors, images, blocks):
    """The published network, computed from its tensors by their names, with batch norms at evaluation."""

    def norm(h, name):
        return functional.batch_norm(
            h, *(tensors[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        )

    h = norm(functional.conv2d(images, tensors["conv1.weight"], stride=2, padding=3), "bn1").relu()
    h = functional.max_pool2d(h, 3, 2, 1)
    for stage, number in enumerate(blocks):
        for block in range(number):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            inner = functional.conv2d(h, tensors[f"{name}.conv1.weight"], stride=stride, padding=1)
            inner = functional.conv2d(norm(inner, f"{name}.bn1").relu(), tensors[f"{name}.conv2.weight"], padding=1)
            if f"{name}.downsample.0.weight" in tensors:
                h = norm(
                    functional.conv2d(h, tensors[f"{name}.downsample.0.weight"], stride=stride), f"{name}.downsample.1"
                )
            h = (norm(inner, f"{name}.bn2") + h).relu()
    return h


BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def test_maps_with_channels_last_are_turned():
    images = torch.randn(2, 3, 4, 5)

    class Last(torch.nn.Module):
        def forward(self, images):
            return [images, images.permute(0, 2, 3, 1)]

    torch.testing.assert_close(Trunk(Last(), 3, last=True)(images), images)


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_176_512), (34, 21_284_672)])
def test_residual_networks_have_the_published_tensors(depth, parameters):
    trunk = ResNet(depth, FrozenBatchNorm()).build(3)
    got = {name: tuple(tensor.shape) for name, tensor in trunk.module.state_dict().items()}
    assert got == {
        name: shape
        for name, shape in published_shapes(BLOCKS[depth]).items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }
    assert trunk.channels == 512
    assert count(trunk) == count(ResNet(depth).build(3)) == parameters


@pytest.mark.parametrize("depth", [18, 34])
def test_published_weights_give_the_published_maps(depth):
    tensors, images = published(BLOCKS[depth]), torch.randn(2, 3, 40, 52, dtype=torch.float64)
    encoder = CNN(ResNet(depth, FrozenBatchNorm()), AveragePool(), frozen=True).build({"camera": (40, 52, 3)}, 1)
    load_backbone(encoder, tensors)
    expected = residual_network({name: tensor.double() for name, tensor in tensors.items()}, images, BLOCKS[depth])
    torch.testing.assert_close(encoder.double().train().eyes[0].trunk(images), expected)


def test_group_norms_take_the_factors_of_batch_norms():
    tensors = published(BLOCKS[18])
    encoder = Joint(CNN(ResNet(), shared=False)).build({"a": (64, 64, 3), "b": (64, 48, 3), "arm": (2,)}, 1)
    load_backbone(encoder, tensors)
    trunks = [eye.trunk.module for eye in encoder.parts[0].eyes]
    assert len(trunks) == 2
    for trunk in trunks:
        for name, tensor in trunk.state_dict().items():
            assert torch.equal(tensor, tensors[name])
        assert trunk.bn1.num_groups == 64 // 16
        assert trunk.layer4[1].bn2.num_groups == 512 // 16


def test_weights_of_another_backbone_are_refused(tmp_path):
    encoder = built(replace(TINY, backbone=SmallCNN((16,))), CAMERAS)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    own = dict(encoder.eyes[0].trunk.module.state_dict())
    with pytest.raises(ValueError, match=r"\['1.bias'\] are missing, \['head.weight'\] are surplus"):
        load_backbone(encoder, {n: t + 1 for n, t in own.items() if n != "1.bias"} | {"head.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"'1.bias': '\(7,\), expected \(16,\)'"):
        load_backbone(encoder, {**own, "1.bias": torch.ones(7)})
    with pytest.raises(ValueError, match=r"expected .safetensors.*save_file"):
        load_backbone(encoder, tmp_path / "resnet18.pth")
    with pytest.raises(FileNotFoundError, match=r"none.safetensors does not exist, expected .*: write one by"):
        load_backbone(encoder, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="without a backbone"):
        load_backbone(built(Vector(), STATES), own)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name])
    save_file({name: tensor.contiguous() + 1 for name, tensor in own.items()}, tmp_path / "one.safetensors")
    load_backbone(encoder, tmp_path / "one.safetensors")
    assert torch.equal(encoder.eyes[0].trunk.module[1].bias, before["eyes.0.trunk.module.1.bias"] + 1)


def test_group_norm_treats_groups_and_images_apart():
    maps = torch.randn(2, 32, 5, 5)
    normal = GroupNorm(8).build(32)(maps).unflatten(1, (4, 8)).flatten(2)
    assert normal.mean(-1).abs().max() < 1e-5
    torch.testing.assert_close(normal.var(-1, correction=0), torch.ones(2, 4), rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="size=16 for 24 channels"):
        SmallCNN((24,)).build(3)


def test_the_small_network_is_as_large_as_it_says():
    trunk = SmallCNN((16, 32, 48)).build(4)
    assert count(trunk) == sum(9 * i * o + 2 * o for i, o in ((4, 16), (16, 32), (32, 48)))
    assert trunk(torch.randn(1, 4, 96, 64)).shape == (1, 48, 12, 8)


@pytest.mark.parametrize("spec", [TINY, replace(TINY, shared=False), ImageTransformer(8, 8, 1, 2)])
def test_tokens_are_one_a_camera_oldest_step_first(spec):
    encoder, observation = built(spec, CAMERAS, 3), observed(CAMERAS, 3)
    tokens = encoder(observation)
    assert tokens.shape[1] == 6
    for camera, name in enumerate(CAMERAS):
        for step in range(3):
            moved = observation[name].clone()
            moved[:, step] += torch.randn_like(moved[:, step])
            changed = (encoder({**observation, name: moved}) - tokens).abs().amax((0, 2)) > 1e-6
            assert changed.nonzero().flatten().tolist() == [2 * step + camera]


@pytest.mark.parametrize(
    ("spec", "counts"),
    [
        (Fusion(TINY, width=8, depth=1, heads=2), {"left": 1, "right": 1, "arm": 1, "grip": 1}),
        (
            Fusion(ImageTransformer(8, 8, 1, 2, pooled=False), width=8, depth=1, heads=2),
            {"left": 4, "right": 6, "arm": 1},
        ),
        (ImageTransformer(8, 8, 1, 2, pooled=False), {"left": 4, "right": 6}),
    ],
)
def test_tokens_of_a_step_stand_together_images_first_by_name(spec, counts):
    shapes = {name: {**STATES, **CAMERAS}[name] for name in reversed(counts)}
    encoder, observation = built(spec, shapes, 3), observed(shapes, 3)
    if isinstance(spec, Fusion):
        encoder.attend = torch.nn.Identity()  # else every token heeds all others
    tokens, first = encoder(observation), 0
    for name, number in counts.items():
        for step in range(3):
            moved = observation[name].clone()
            moved[:, step] += torch.randn_like(moved[:, step])
            changed = (encoder({**observation, name: moved}) - tokens).abs().amax((0, 2)) > 1e-6
            begin = step * sum(counts.values()) + first
            assert changed.nonzero().flatten().tolist() == list(range(begin, begin + number))
        first += number


def test_weights_are_shared_or_one_set_a_camera():
    same = {"left": (16, 16, 3), "right": (16, 16, 3)}
    together, apart = built(TINY, same), built(replace(TINY, shared=False), same)
    assert 2 * count(together) == count(apart)
    image = observed({"left": (16, 16, 3)})["left"]
    for encoder, equal in ((together, True), (apart, False)):
        left, right = encoder({"left": image, "right": image}).unflatten(1, (2, 2)).unbind(2)
        assert torch.allclose(left, right) == equal


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_backbone_stays_as_it_is(frozen):
    encoder = built(replace(TINY, frozen=frozen), CAMERAS).train()
    assert encoder.eyes[0].trunk.training != frozen
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=0.01)
    encoder(observed(CAMERAS)).square().sum().backward()
    assert all((p.grad is None) == frozen for p in encoder.eyes[0].trunk.parameters())
    optimiser.step()
    changed = {name for name, tensor in encoder.state_dict().items() if not torch.equal(tensor, before[name])}
    backbone = {name for name in before if ".trunk." in name}
    assert changed == (set(before) - backbone if frozen else set(before))


def test_a_frozen_backbone_survives_training_averaging_and_a_checkpoint(tmp_path):
    encoder = CNN(SmallCNN((16,), FrozenBatchNorm()), SpatialSoftmax(4), 6, frozen=True)
    spec = PolicySpec({"camera": (8, 8, 3)}, 2, encoder=encoder, network=MLP(16, 1), history=1, horizon=4, execute=2)
    pictures = torch.randint(256, (20, 8, 8, 3), dtype=torch.uint8)
    episodes = Episodes({"camera": pictures.numpy(), "action": torch.randn(20, 2).numpy()}, np.array([20]))
    windows, policy = Windows(episodes, ("camera",), 1, 4, 3), DiffusionPolicy(spec)
    policy.fit(windows)
    weights = {name: torch.rand_like(t) for name, t in policy.encoder.eyes[0].trunk.module.state_dict().items()}
    load_backbone(policy, weights)
    learner = Learner(policy, TrainingSpec(steps=3, batch=4))
    before = policy.encoder.eyes[0].project.weight.detach().clone()
    for _ in train(learner, windows):
        pass
    assert not torch.equal(policy.encoder.eyes[0].project.weight, before)
    loaded = load(learner.average.policy.save(tmp_path))
    for kept in (policy, learner.average.policy, loaded):
        trunk = kept.train().encoder.eyes[0].trunk
        assert not any(module.training for module in trunk.modules())
        assert not any(p.requires_grad for p in trunk.parameters())
        assert all(torch.equal(tensor, weights[name]) for name, tensor in trunk.module.state_dict().items())


def test_colours_are_those_that_weights_of_imagenet_expect():
    encoder = CNN(SmallCNN((16,)), AveragePool(), imagenet=True).build({"camera": (8, 8, 3)}, 1)
    pixels = torch.rand(1, 8, 8, 3)
    expected = (pixels - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(encoder.eyes[0].colours(2 * pixels - 1), expected)
    eye = encoder.eyes[0]
    torch.testing.assert_close(
        eye(2 * pixels - 1), eye.project(eye.pool(eye.trunk(expected.permute(0, 3, 1, 2)))), rtol=1e-5, atol=1e-5
    )


def test_the_places_of_patches_are_sines_and_cosines():
    got = places(torch.zeros(1, 8, 3, 5))
    for i, j, k in ((0, 0, 0), (2, 4, 0), (1, 3, 1)):
        frequency = 10000 ** (-k / 2)
        wave = [math.sin(frequency * i), math.cos(frequency * i), math.sin(frequency * j), math.cos(frequency * j)]
        assert [got[2 * part + k, i, j].item() for part in range(4)] == pytest.approx(wave, abs=1e-6)


def test_an_image_transformer_sees_where_a_patch_is():
    encoder, image = built(ImageTransformer(8, 16, 1, 2), {"camera": (16, 24, 3)}, 1), torch.zeros(2, 1, 16, 24, 3)
    image[0, 0, :8, :8] = image[1, 0, 8:, 16:] = torch.rand(8, 8, 3)
    first, second = encoder({"camera": image})
    assert (first - second).abs().max() > 1e-3
    every = built(ImageTransformer(8, 16, 1, 2, pooled=False), CAMERAS, 3)
    assert every.tokens == (3 * (2 * 2 + 3 * 2), 16)


def test_joint_concatenates_what_its_parts_say():
    shapes, observation = {**STATES, **CAMERAS}, observed({**STATES, **CAMERAS})
    encoder = built(Joint(TINY, Vector(angles=("grip",))), shapes)
    images = encoder.parts[0]({name: observation[name] for name in CAMERAS})  # (3, 2 steps x 2 cameras, 6)
    grip = observation["grip"]
    expected = torch.cat([images[:, 0::2], images[:, 1::2], observation["arm"], grip.sin(), grip.cos()], -1)
    torch.testing.assert_close(encoder(observation), expected)
    assert encoder.tokens == (2, 6 + 6 + 3 + 2)
    assert encoder.raw == {"grip"}


def test_joint_takes_either_kind_alone():
    torch.testing.assert_close(
        built(Joint(TINY), STATES)(observed(STATES)), torch.cat(list(observed(STATES).values()), -1)
    )
    assert built(Joint(TINY), CAMERAS).tokens == (2, 12)


def test_fusion_has_a_token_for_everything_and_knows_when_it_was():
    spec, shapes = Fusion(TINY, Vector(rotations=("pose",)), 16, 1, 2, readouts=2), {**STATES, **CAMERAS, "pose": (4,)}
    everything = built(replace(spec, readouts=0), shapes, 3)
    assert everything.tokens == (3 * (2 + 3), 16)
    assert everything.raw == {"pose"}
    encoder, observation = built(spec, shapes), observed(shapes)
    tokens = encoder(observation)
    assert tokens.shape == (3, 2, 16)
    # Without the vectors of steps the readouts could not tell the order of the history.
    backwards = {name: values.flip(1) for name, values in observation.items()}
    assert (encoder(backwards) - tokens).abs().max() > 1e-4
    with torch.no_grad():
        encoder.step.zero_()
    torch.testing.assert_close(encoder(backwards), encoder(observation), rtol=0, atol=1e-5)


def test_fusion_knows_which_feature_is_which():
    encoder = built(Fusion(width=16, depth=1, heads=2, readouts=1), {"a": (2,), "b": (2,)})
    observation = observed({"a": (2,), "b": (2,)})
    encoder.embed[1].load_state_dict(encoder.embed[0].state_dict())
    swapped = {"a": observation["b"], "b": observation["a"]}
    assert (encoder(swapped) - encoder(observation)).abs().max() > 1e-4
    with torch.no_grad():
        encoder.kind.zero_()
    torch.testing.assert_close(encoder(swapped), encoder(observation), rtol=0, atol=1e-5)


def test_layers_of_attention_start_from_different_weights():
    layers = list(built(Fusion(width=8, depth=2, heads=2), STATES).attend)
    assert not torch.equal(layers[0].linear1.weight, layers[1].linear1.weight)


def test_angles_have_no_jump():
    shapes = {"joints": (3,), "speed": (1,)}
    encoder, observation = built(Vector(angles=("joints",)), shapes), observed(shapes)
    tokens = encoder(observation)
    joints, speed = observation["joints"], observation["speed"]
    torch.testing.assert_close(tokens, torch.cat([joints.sin(), joints.cos(), speed], -1))
    turned = joints + torch.tensor([2 * math.pi, -2 * math.pi, 0.0])
    torch.testing.assert_close(encoder({**observation, "joints": turned}), tokens, rtol=0, atol=1e-5)
    assert encoder.raw == {"joints"}
    assert encoder.tokens == (2, 7)


def test_equal_rotations_give_equal_tokens():
    generator = torch.Generator().manual_seed(2)
    quaternion = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64)
    quaternion = quaternion / quaternion.norm(dim=-1, keepdim=True)
    vector, scalar = quaternion[..., :3], quaternion[..., 3:]
    # q e q*, for the axes e
    axes = torch.eye(3, dtype=torch.float64).expand(3, 2, 3, 3)
    cross = 2 * torch.linalg.cross(vector[..., None, :].expand_as(axes), axes, dim=-1)
    turned = axes + scalar[..., None] * cross + torch.linalg.cross(vector[..., None, :].expand_as(axes), cross, dim=-1)
    half = scalar.clamp(-1, 1).arccos()
    same = {
        (4,): [quaternion, -quaternion, 3 * quaternion],
        (3,): [2 * half * vector / half.sin(), (2 * half - 2 * math.pi) * vector / half.sin()],
        (3, 3): [turned.mT],
        (6,): [turned[..., :2, :].flatten(-2)],
    }
    for shape, rotations in same.items():
        encoder = built(Vector(rotations=("pose",)), {"pose": shape})
        assert encoder.tokens == (2, 6)
        assert encoder.raw == {"pose"}
        for rotation in rotations:
            torch.testing.assert_close(encoder({"pose": rotation}), turned[..., :2, :].flatten(-2))


def test_a_hidden_rotation_is_finite():
    for shape in ((4,), (3,), (3, 3), (6,)):
        encoder, pose = built(Vector(rotations=("pose",)), {"pose": shape}), torch.zeros(2, 2, *shape)
        pose[1] = 0.5
        assert torch.isfinite(encoder({"pose": pose})).all()
    assert not built(Vector(rotations=("pose",)), {"pose": (4,)})({"pose": torch.zeros(1, 2, 4)}).any()


def test_the_vector_encoder_keeps_its_tensors():
    names = {f"project.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    assert set(built(Vector(width=4), STATES).state_dict()) == names
    assert not built(Vector(), STATES).state_dict()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Vector().build(CAMERAS, 2), r"Vector got the images .*Joint and Fusion take both"),
        (lambda: CNN().build(STATES, 2), r"CNN got the low-dimensional features .*'arm': \(3,\).*Joint and Fusion"),
        (lambda: ImageTransformer().build({**STATES, **CAMERAS}, 2), "ImageTransformer got the low-dimensional"),
        (lambda: Vector().build({}, 2), "expected low-dimensional features"),
        (lambda: DeepSets(()), "without sets take Vector"),
        (lambda: DeepSets(("arm", "hand")).build(STATES, 2), r"{'arm': \(3,\), 'hand': \(\)}.*elements, numbers"),
        (lambda: DeepSets(("left",)).build(CAMERAS, 2), "DeepSets got the images"),
        (lambda: Vector(angles=("wrist",)).build(STATES, 2), r"\['wrist'\].*among \['arm', 'grip'\]"),
        (lambda: Joint(states=Vector(rotations=("wrist",))).build(CAMERAS, 2), r"\['wrist'\].*no features"),
        (lambda: Fusion(states=Vector(angles=("wrist",))).build(STATES, 2), r"\['wrist'\].*no features"),
        (lambda: Vector(None, ("arm",), ("arm",)).build(STATES, 2), r"\['arm'\] in both"),
        (lambda: Vector(rotations=("grip",)).build(STATES, 2), r"'grip' of shape \(1,\).*a quaternion \(4,\)"),
        (lambda: Joint().build({}, 2), "Joint got no features"),
        (lambda: Fusion().build({}, 2), "Fusion got no features"),
        (lambda: Joint(Fusion(TINY, readouts=3)).build(CAMERAS, 2), "encoder of 3 tokens for 2 history steps"),
        (lambda: CNN(ResNet()).build({"a": (32, 32, 3)}, 2), r"image 'a' of shape \(32, 32, 3\).*1 x 1.*AveragePool"),
        (lambda: CNN().build({"a": (64, 64, 3), "b": (64, 64, 1)}, 2), r"'b': 1.*use shared=False"),
        (lambda: replace(TINY, imagenet=True).build({"a": (64, 64, 1)}, 2), "'a' of 1 channels, expected 3"),
        (lambda: ImageTransformer(10).build(CAMERAS, 2), "16 x 16 pixels, expected multiples of patch=10"),
        (
            lambda: ImageTransformer(width=12, heads=5),
            "^ImageTransformer got width=12 and heads=5, .*: change the one or",
        ),
        (lambda: ImageTransformer(width=6, heads=2), "width=6 and patch=12, .* multiple of 4, .*: change the one"),
        (lambda: Fusion(width=30, heads=4), "^Fusion got width=30 and heads=4, .* a multiple of the heads: change"),
        (lambda: Fusion(readouts=-1), "readouts=-1"),
        (lambda: ResNet(50), r"depth=50, expected one of \[18, 34\]: take one of them, or .* Timm\('resnet50'\)"),
        (
            lambda: GroupNorm(16).build(24),
            r"size=16 for 24 channels, expected a divisor of them: choose GroupNorm\(size",
        ),
        (lambda: SpatialSoftmax(0), "keypoints=0"),
        (lambda: SmallCNN(()), r"channels=\(\)"),
        (lambda: Vector(width=0), "Vector got width=0, expected at least 1, or None"),
        (lambda: CNN(width=0), "CNN got width=0, expected at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    for call in (lambda: Timm("resnet18").build(3), lambda: timm_weights("resnet18")):
        with pytest.raises(
            ImportError, match=r"extra 'vision' \(import of timm halted.*\): pip install 'poise\[vision\]'"
        ):
            call()


def test_an_unknown_backbone_is_told_with_those_close_to_it(monkeypatch):
    """With what `Timm` asks of timm before it builds anything."""
    names = ["resnet18", "resnet50", "vit_tiny_patch16_224"]
    timm, layers = ModuleType("timm"), ModuleType("timm.layers")
    vars(timm).update(layers=layers, is_model=names.__contains__, list_models=lambda: names)
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "timm.layers", layers)
    with pytest.raises(ValueError, match=r"'resnet81', which timm does not know, .* close to it, \['resnet18'"):
        Timm("resnet81").build(3)
    with pytest.raises(
        ValueError, match=r"'nonsense', which timm does not know, .*: timm.list_models\(.*\) lists what"
    ):
        Timm("nonsense").build(3)


@pytest.fixture
def timm():
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # the latter where torchvision does not fit torch
        pytest.skip(f"timm cannot be imported: {error}")
    return timm


def test_backbones_of_timm_are_read_by_name(timm):
    model = timm.create_model("resnet18", pretrained=False).eval()
    torch.nn.init.normal_(model.bn1.running_mean)
    images = torch.randn(2, 3, 64, 64)
    for backbone in (Timm("resnet18"), ResNet(18, FrozenBatchNorm())):
        encoder = CNN(backbone).build({"camera": (64, 64, 3)}, 1)
        load_backbone(encoder, model.state_dict())
        torch.testing.assert_close(encoder.train().eyes[0].trunk(images), model.forward_features(images))
    assert CNN(Timm("swin_tiny_patch4_window7_224"), AveragePool()).build({"camera": (224, 224, 3)}, 1).tokens == (
        1,
        64,
    )
    with pytest.raises(ValueError, match=r"image 'camera' of shape \(96, 96, 3\), which its backbone does not take"):
        CNN(Timm("vit_tiny_patch16_224")).build({"camera": (96, 96, 3)}, 1)
