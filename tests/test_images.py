"""Policies that see: images, augmentation, features that may be absent, guidance towards a goal, warm starts."""

import colorsys
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from poise.data import Augmentation, ColourJitter, Crop, Episodes, Pixels, Quantile, Standard, Unscaled, Windows
from poise.draws import Draws
from poise.nn import MLP, Encoder, EncoderSpec
from poise.plain import concrete, from_plain, to_plain
from poise.policies import (
    DiffusionPolicy,
    PolicySpec,
    Regression,
    WarmStart,
    emphasised,
    load,
)
from poise.recipe import load_recipe
from poise.sampling import per_sample


@dataclass(frozen=True)
class Flat(EncoderSpec):
    """Everything that is seen, in one row a step: what the policy hands on can be read off its tokens."""

    def build(self, shapes: Mapping[str, tuple[int, ...]], history: int) -> Encoder:
        return _Flat(shapes, history)


class _Flat(Encoder):
    def __init__(self, shapes, history):
        super().__init__()
        self.names = sorted(shapes)
        width = sum(int(np.prod(shapes[name])) for name in self.names)
        self.tokens, self.raw, self.project = (history, width), frozenset({"angle"} & set(shapes)), nn.Identity()

    def forward(self, observation):
        return torch.cat([observation[name].flatten(2) for name in self.names], -1)


WRIST, FRONT = (8, 10, 3), (6, 6, 3)
SPEC = PolicySpec(
    observations={"wrist": WRIST, "front": FRONT, "pose": (2,), "goal": (2,)},
    action=2,
    optional={"goal": 0.5, "front": 0.25},
    horizon=4,
    execute=2,
    encoder=Flat(),
    network=MLP(width=16, depth=1, condition=8),
    augmentations=(Crop(("wrist",), 6, 7), ColourJitter()),
)


def images(rng: np.random.Generator, steps: int, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(0, 256, (steps, *shape), dtype=np.uint8)


@pytest.fixture
def episodes() -> Episodes:
    rng = np.random.default_rng(0)
    low = {name: rng.normal(size=(60, 2)).astype(np.float32) for name in ("pose", "goal", "action")}
    return Episodes({"wrist": images(rng, 60, WRIST), "front": images(rng, 60, FRONT), **low}, np.array([25, 60]))


@pytest.fixture
def windows(episodes) -> Windows:
    return Windows(episodes, tuple(SPEC.observations), SPEC.history, SPEC.horizon, 3)


def fitted(windows: Windows, spec: PolicySpec = SPEC) -> DiffusionPolicy:
    torch.manual_seed(0)
    policy = DiffusionPolicy(spec)
    policy.fit(windows)
    return policy.eval()


def test_windows_keep_images_in_eight_bits(episodes, windows):
    batch = windows[torch.tensor([5, 30])]
    assert batch.observation["wrist"].dtype == torch.uint8
    np.testing.assert_array_equal(batch.observation["wrist"][0], episodes.features["wrist"][[4, 5]])
    floats = {**episodes.features, "wrist": episodes.features["wrist"] / 255}
    with pytest.raises(ValueError, match=r"images 'wrist' of float64, expected uint8 from 0 to 255"):
        Windows(Episodes(floats, episodes.ends), ("wrist",), 1, 4, 3)


def test_the_encoder_sees_cropped_images_from_minus_one_to_one(windows):
    policy, batch = fitted(windows), windows[torch.arange(7)]
    seen = policy.normalised(batch.observation)
    expected = batch.observation["wrist"][:, :, 1:7, 1:8].float() / 127.5 - 1
    torch.testing.assert_close(seen["wrist"], expected)
    torch.testing.assert_close(seen["front"], batch.observation["front"].float() / 127.5 - 1)
    assert SPEC.encoded["wrist"] == (6, 7, 3)
    assert {name: tuple(values.shape[2:]) for name, values in seen.items()} == SPEC.encoded


def test_random_crops_are_windows_of_the_image_common_to_a_history():
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(9), torch.arange(12), indexing="ij")
    image = torch.stack([rows, columns, rows], -1).to(torch.uint8)
    moving = torch.stack([image, image + 100])  # two steps of a history
    cut = Crop((), 5, 6).train(moving.expand(400, 2, 9, 12, 3), Draws(generator))
    assert cut.shape == (400, 2, 5, 6, 3)
    corner = cut[:, 0, 0, 0, :2].long()
    assert set(map(tuple, corner.tolist())) == {
        (i, j) for i in range(5) for j in range(7)
    }  # every place, also the last
    expected = corner[:, None, None] + torch.stack([rows, columns], -1)[:5, :6]
    torch.testing.assert_close(cut[:, 0, ..., :2].long(), expected)
    torch.testing.assert_close(cut[:, 1], cut[:, 0] + 100)


def test_colour_jitter_is_what_it_says():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(60, 160, (50, 2, 4, 5, 3), generator=generator).to(torch.uint8)
    still = ColourJitter((), 0.0, 0.0, 0.0, 0.0).train(x, Draws(generator))
    torch.testing.assert_close(still, x.float(), atol=1e-3, rtol=0)
    luma = torch.tensor([0.299, 0.587, 0.114])
    bright = ColourJitter((), 0.3, 0.0, 0.0, 0.0).train(x, Draws(generator)) / x
    factor = bright.flatten(1).mean(1)
    torch.testing.assert_close(bright, factor[:, None, None, None, None].expand_as(bright), atol=1e-3, rtol=0)
    assert 0.7 <= factor.min() < 0.8
    assert 1.2 < factor.max() <= 1.3
    contrast = ColourJitter((), 0.0, 0.3, 0.0, 0.0).train(x, Draws(generator))
    torch.testing.assert_close((contrast @ luma).mean((1, 2, 3)), (x.float() @ luma).mean((1, 2, 3)), atol=1e-2, rtol=0)
    spread = contrast.std((1, 2, 3)) / x.float().std((1, 2, 3))
    torch.testing.assert_close(spread, spread[:, :1].expand_as(spread), atol=1e-3, rtol=0)
    assert spread.min() < 0.8
    saturated = ColourJitter((), 0.0, 0.0, 0.3, 0.0).train(x, Draws(generator))
    torch.testing.assert_close(saturated @ luma, x.float() @ luma, atol=1e-2, rtol=0)
    assert (saturated - x).abs().max() > 10


def test_a_third_of_a_turn_of_hue_permutes_the_channels():
    x = torch.tensor([200.0, 100.0, 50.0]).expand(64, 1, 2, 2, 3)
    turned = ColourJitter((), 0.0, 0.0, 0.0, 0.5).train(x, Draws(torch.Generator().manual_seed(0)))[:, 0, 0, 0]
    torch.testing.assert_close(turned.sum(1), torch.full((64,), 350.0), atol=1e-2, rtol=0)
    turns = [colorsys.rgb_to_hsv(*(c / 255).tolist())[0] for c in turned]
    assert max(turns) - min(turns) > 0.9
    third = ColourJitter((), 0.0, 0.0, 0.0, 1 / 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *a, **k: torch.ones(*a))  # the largest angle
        torch.testing.assert_close(
            third.train(x, Draws())[0, 0, 0, 0].sort().values, torch.tensor([50.0, 100.0, 200.0])
        )


def test_augmentation_is_random_in_training_and_still_at_run_time(windows):
    policy, batch = fitted(windows), windows[torch.arange(7)]
    run = policy.normalised(batch.observation)
    assert torch.equal(run["wrist"], policy.normalised(batch.observation)["wrist"])
    policy.train()
    one, two, three = (
        policy.normalised(batch.observation, Draws(torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["wrist"], three["wrist"])
    assert torch.equal(one["pose"], run["pose"])


def test_optional_features_are_hidden_in_training_and_may_be_absent(windows):
    policy = fitted(windows).train()
    many = windows[torch.randint(len(windows), (4000,), generator=torch.Generator().manual_seed(0))]
    seen = policy.normalised(many.observation, Draws(torch.Generator().manual_seed(0)))
    for name, share in SPEC.optional.items():
        told = seen[f"{name}.given"][:, 0, 0]
        assert abs(told.mean().item() - (1 - share)) < 4 * (share * (1 - share) / 4000) ** 0.5
        assert (seen[name][told == 0] == 0).all()
    policy.eval()
    here = policy.normalised(many.observation)
    assert (here["goal.given"] == 1).all()
    rest = {name: values for name, values in many.observation.items() if name != "goal"}
    absent = policy.normalised(rest)
    assert (absent["goal"] == 0).all()
    assert (absent["goal.given"] == 0).all()
    assert torch.equal(absent["pose"], here["pose"])
    assert policy.plan({k: v[:3] for k, v in rest.items()}, per_sample([1, 2, 3])).shape == (3, 4, 2)


def test_guidance_towards_a_goal(windows):
    policy, batch = fitted(windows), windows[torch.arange(3)]
    torch.nn.init.normal_(policy.diffusion.network.exit[1].weight)
    seen, seeds = batch.observation, [1, 2, 3]
    without = {name: values for name, values in seen.items() if name != "goal"}
    full, none = policy.plan(seen, per_sample(seeds)), policy.plan(without, per_sample(seeds))
    one, zero = (policy.using(guide=emphasised(policy, ["goal"], w)).plan(seen, per_sample(seeds)) for w in (1.0, 0.0))
    torch.testing.assert_close(one, full)
    torch.testing.assert_close(zero, none)
    assert not torch.allclose(full, none)
    with pytest.raises(ValueError, match=r"got the features \['pose'\], expected some of the optional ones"):
        emphasised(policy, ["pose"], 2.0)
    alone = PolicySpec({"goal": (2,)}, 2, optional={"goal": 0.5}, network=SPEC.network)
    with pytest.raises(ValueError, match=r"got the features \['goal'\], .*, and not all that is observed"):
        emphasised(DiffusionPolicy(alone), ["goal"], 2.0)


def test_a_warm_start_noises_the_earlier_plan(windows):
    policy, batch = fitted(windows).using(evaluations=3), windows[torch.arange(3)]
    previous = batch.actions
    shown = []

    def spy(denoise, observation):
        def call(x, t):
            shown.append((x, t))
            return denoise(x, t)

        return call

    plan = policy.using(guide=spy).replan(batch.observation, previous, 0.4, per_sample([1, 2, 3]))
    eps = torch.stack([torch.randn(4, 2, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2, 3)])
    level = SPEC.schedule.at(0.4)
    x, t = shown[0]
    torch.testing.assert_close(x, level.alpha * policy.action_normaliser(previous) + level.sigma * eps)
    assert (t, len(shown)) == (0.4, 3)
    assert plan.shape == previous.shape
    near = policy.replan(batch.observation, previous.clamp(-0.5, 0.5), 1e-4, per_sample([1, 2, 3]))
    torch.testing.assert_close(near, previous.clamp(-0.5, 0.5), atol=2e-2, rtol=0)


def test_scalings_of_single_features(episodes):
    values = {"pose": episodes.features["pose"], "angle": episodes.features["goal"][:, :1] + 7}
    data = Episodes({**values, "action": episodes.features["action"]}, episodes.ends)
    spec = PolicySpec(
        {"pose": (2,), "angle": (1,)}, 2, horizon=4, execute=2, encoder=Flat(), scalings={"pose": Standard()}
    )
    policy = fitted(Windows(data, ("pose", "angle"), 2, 4, 3), spec)
    rows = {name: torch.as_tensor(array)[:, None] for name, array in values.items()}
    seen = policy.normalised(rows)
    torch.testing.assert_close(seen["pose"][:, 0].std(0), torch.ones(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen["angle"], rows["angle"])  # the encoder takes it as it is


def test_quantiles_and_pixels():
    data = torch.as_tensor(np.random.default_rng(0).normal(size=(1001, 3)))
    scale, offset = Quantile(0.1, 0.9).fit(data)
    ends = torch.quantile(data, torch.tensor([0.1, 0.9], dtype=data.dtype), dim=0) * scale + offset
    torch.testing.assert_close(ends, torch.tensor([[-1.0], [1.0]], dtype=data.dtype).expand(2, 3))
    scale, offset = Pixels((0.1, 0.2, 0.3), (0.5, 0.25, 1.0)).fit(data)
    torch.testing.assert_close(255 * scale + offset, torch.tensor([1.8, 3.2, 0.7], dtype=data.dtype))
    assert torch.equal(torch.stack(Unscaled().fit(data)), torch.tensor([[1.0], [0.0]]).expand(2, 3).double())
    with pytest.raises(ValueError, match="expected 0 <= low < high <= 1"):
        Quantile(0.9, 0.1)
    with pytest.raises(ValueError, match=r"mean=\(0.1, 0.2\) and .* images of 3 channels, expected one number each"):
        Pixels((0.1, 0.2)).fit(data)


def test_policies_that_see_learn_and_travel(windows, tmp_path):
    for kind in (DiffusionPolicy, Regression):
        torch.manual_seed(0)
        policy = kind(SPEC)
        policy.fit(windows)
        loss = policy.train().loss(windows[torch.arange(9)], Draws(torch.Generator().manual_seed(0)))
        again = policy.loss(windows[torch.arange(9)], Draws(torch.Generator().manual_seed(0)))
        assert torch.equal(loss, again)
    policy = fitted(windows)
    loaded = load(policy.save(tmp_path))
    assert loaded.spec == SPEC
    seen = windows[torch.arange(3)].observation
    assert torch.equal(loaded.plan(seen, per_sample([1, 2, 3])), policy.plan(seen, per_sample([1, 2, 3])))


@pytest.mark.parametrize("augmentation", concrete(Augmentation).values())
def test_augmentations_conform(augmentation):
    spec = from_plain(to_plain(augmentation()), concrete(Augmentation))
    assert spec == augmentation()
    x = torch.randint(0, 256, (5, 2, 96, 90, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    size = spec.size((96, 90, 3))
    trained = spec.train(x, Draws(torch.Generator().manual_seed(1)))
    assert trained.shape[2:] == spec.run(x).shape[2:] == size
    assert torch.equal(trained, spec.train(x, Draws(torch.Generator().manual_seed(1))))
    assert not torch.equal(trained[0].float(), spec.train(x, Draws(torch.Generator().manual_seed(2)))[0].float())


def test_draws_of_noise_share_one_encoding(windows):
    batch, calls = windows[torch.arange(9)], []
    many, one = (fitted(windows, dataclasses.replace(SPEC, draws=draws)) for draws in (400, 1))
    many.encoder.register_forward_hook(lambda module, args, out: calls.append(len(out)))
    loss = many.loss(batch, Draws(torch.Generator().manual_seed(0)))
    assert (loss.shape, calls) == ((9, 4, 2), [9])
    generator = torch.Generator().manual_seed(1)
    single = torch.stack([one.loss(batch, Draws(generator)) for _ in range(400)])
    error = 5 * single.std(0) * (2 / 400) ** 0.5
    assert ((loss - single.mean(0)).abs() < error).all()


def test_bad_images_are_explained(windows):
    policy, seen = fitted(windows), windows[torch.arange(2)].observation
    with pytest.raises(ValueError, match=r"expected also 'wrist'"):
        policy.plan({name: values for name, values in seen.items() if name != "wrist"})
    with pytest.raises(ValueError, match=r"\(2, 2, 4, 10, 3\), expected \(batch, 2, 8, 10, 3\): resize the images, or"):
        policy.plan({**seen, "wrist": seen["wrist"][:, :, :4]})
    with pytest.raises(ValueError, match=r"'wrist' of shape \(2, 2, 3, 8, 10\).*channels first, .*movedim\(-3, -1\)"):
        policy.plan({**seen, "wrist": seen["wrist"].movedim(-1, -3)})
    with pytest.raises(ValueError, match=r"'wrist' of shape \(2, 8, 10, 3\), .*: a batch of histories"):
        policy.plan({**seen, "wrist": seen["wrist"][:, 0]})
    larger = dataclasses.replace(SPEC, observations={**SPEC.observations, "wrist": (16, 20, 3)})
    with pytest.raises(
        ValueError, match=r"'wrist' has the shape \(8, 10, 3\), expected \(16, 20, 3\): resize the images"
    ):
        DiffusionPolicy(larger).fit(windows)
    with pytest.raises(ValueError, match="images 'front' of torch.float32, expected torch.uint8"):
        policy.plan({**seen, "front": seen["front"].float()})
    with pytest.raises(ValueError, match="window of 20 x 7 for images of 8 x 10 pixels"):
        dataclasses.replace(SPEC, augmentations=(Crop(("wrist",), 20, 7),))
    with pytest.raises(ValueError, match=r"Crop got the features \['pose'\], expected some of the images"):
        dataclasses.replace(SPEC, augmentations=(Crop(("pose",), 4, 4),))
    with pytest.raises(ValueError, match="ColourJitter got images of 1 channels, expected 3"):
        dataclasses.replace(SPEC, observations={**SPEC.observations, "front": (6, 6, 1)})
    with pytest.raises(ValueError, match="expected features of .* and shares from 0 to below 1"):
        dataclasses.replace(SPEC, optional={"nothing": 0.5})


def test_the_mirror_of_push_t_keeps_the_goal_and_moves_points_with_the_picture():
    recipe = load_recipe(Path(__file__).parents[1] / "recipes" / "pusht_image.py")
    points = np.array([[100.0, 30.0], [500.0, 250.0]])  # x to the right, y downwards
    pictures = np.zeros((2, 96, 96, 3), np.uint8)
    columns, rows = (points * 96 / 512).astype(int).T
    pictures[[0, 1], rows, columns] = 255
    both = recipe.enlarge(Episodes({"image": pictures, "agent": points, "action": points + 1}, np.array([2])))
    assert both.ends.tolist() == [2, 4]
    lit = np.argwhere(both.features["image"][2:].any(-1))
    np.testing.assert_allclose((lit[:, :0:-1] + 0.5) * 512 / 96, both.features["agent"][2:], atol=6)
    np.testing.assert_array_equal(both.features["action"][2:], 512 - (points + 1)[:, ::-1])
    elsewhere = dataclasses.replace(recipe, padded=15).windows(both, "meta")[torch.arange(2, device="meta")]
    assert {elsewhere.actions.device.type, elsewhere.observation["image"].device.type} == {"meta"}


def test_a_warm_start_of_a_policy_fresh_from_training_is_not_random(windows):
    policy = fitted(windows)
    torch.nn.init.normal_(policy.diffusion.network.exit[1].weight)
    seen = {name: values[:, -1].numpy() for name, values in windows[torch.arange(2)].observation.items()}
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        warm = WarmStart(policy.train(), 2, evaluations=2)
        runs.append([warm.act(seen) for _ in range(3)][-1])  # of the second plan
    np.testing.assert_array_equal(*runs)


def test_bfloat16_rounds_neither_colours_nor_targets(windows):
    policy, batch = fitted(windows).train(), windows[torch.arange(9)]
    seen = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            seen.append(policy.tokens(batch.observation, Draws(torch.Generator().manual_seed(0))))
    assert seen[1].dtype == torch.float32
    assert torch.equal(*seen)


def test_the_draws_of_a_window_spread_over_the_scale_of_noise(windows, monkeypatch):
    """Of four, one falls into every quarter of the stratified times."""
    policy, batch, given = fitted(windows, dataclasses.replace(SPEC, draws=4)), windows[torch.arange(9)], []
    original = policy.diffusion.loss
    monkeypatch.setattr(policy.diffusion, "loss", lambda *args: given.append(args) or original(*args))
    policy.loss(batch, Draws(torch.Generator().manual_seed(0)))
    x0, _, t, _ = given[0]
    for plan in policy.encoded(batch):
        times = t[(x0 == plan).all((1, 2))]
        assert (4 * times).long().sort().values.tolist() == [0, 1, 2, 3]


def test_statistics_of_pixels_take_few_of_them_from_everywhere(windows, monkeypatch):
    spec, rows, original = dataclasses.replace(SPEC, scalings={"wrist": Standard()}), [], Standard.fit
    monkeypatch.setattr("poise.policies.policy._PIXELS", 1000)
    monkeypatch.setattr(Standard, "fit", lambda self, data: rows.append(data) or original(self, data))
    policy = fitted(windows, spec)
    assert [tuple(data.shape) for data in rows] == [(1000, 3)]
    pixels = windows.observations["wrist"].flatten(0, 2).double()
    assert torch.equal(rows[0][[0, -1]], pixels[[0, -1]])
    normal = policy.observation_normalisers["wrist"](pixels.float())
    assert normal.mean(0).abs().max() < 5 / 1000**0.5
    assert (normal.std(0) - 1).abs().max() < 5 / 2000**0.5
