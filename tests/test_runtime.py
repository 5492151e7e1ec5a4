"""Exported policies without PyTorch and without the rest of poise."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import SMALL, built

import poise.runtime
from poise.interop.onnx_export import export_onnx
from poise.limits import ActionLimits, Guard
from poise.policies import PolicySpec, Regression
from poise.policies import RecedingHorizon as Original
from poise.runtime import RecedingHorizon, Runtime
from poise.sampling import DDPM
from poise.watchdog import repeated

SPEC = PolicySpec(
    {"arm.pose": (3,), "camera": (2, 2, 1)},
    action=2,
    history=3,
    horizon=8,
    execute=3,
    lead=1,
    encoder=poise.Joint(poise.ImageTransformer(patch=2, width=8, depth=1, heads=2)),
    network=poise.Transformer(8, 1, 2),
    sampler=DDPM(),
    evaluations=2,
)
POLICY = built(SPEC)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return export_onnx(POLICY, tmp_path_factory.mktemp("export") / "policy.onnx").path


@pytest.fixture(scope="module")
def runtime(path):
    return Runtime(path, threads=1)


def seen(*leading, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(256, size=(*leading, 2, 2, 1), dtype=np.uint8)
    return {"arm.pose": rng.normal(size=(*leading, 3)), "camera": pixels}


def handed(noise):
    rest = iter(torch.from_numpy(np.concatenate([noise[0][None], noise[1]])))
    return lambda x, t, s: next(rest)


def planned(window, noise):
    """By the policy itself."""
    return POLICY.plan({name: torch.as_tensor(values) for name, values in window.items()}, handed(noise)).numpy()


ALONE = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "poise", "onnx", "onnxscript"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import numpy as np
from runtime import Runtime
given = np.load("given.npz")
observation = {name: given[name] for name in ("arm.pose", "camera")}
np.save("plan.npy", Runtime("policy.onnx").plan(observation, noise=[given["noise"], given["step_noise"]]))
print(json.dumps(sorted(sys.modules)))
"""


def test_one_file_of_code_and_one_of_weights_plan_without_torch_and_poise(path, runtime, tmp_path):
    shutil.copy(path, tmp_path)
    shutil.copy(Path(poise.runtime.__file__), tmp_path)
    observation, noise = seen(4, 3), runtime.noise(range(4))
    np.savez(tmp_path / "given.npz", **observation, noise=noise[0], step_noise=noise[1])
    command = [sys.executable, "-c", ALONE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env={"PYTHONPATH": ""})
    assert not {"torch", "poise"} & {name.split(".")[0] for name in json.loads(done.stdout)}
    expected = planned(observation, noise)
    assert expected.std() > 0.01
    np.testing.assert_allclose(np.load(tmp_path / "plan.npy"), expected, atol=1e-5 * np.ptp(expected))


def test_a_row_depends_on_its_seed_alone(runtime):
    observation = seen(3, 3)
    plans = runtime.plan(observation, seeds=[5, 6, 7])
    alone = runtime.plan({name: values[1:2] for name, values in observation.items()}, seeds=[6])
    np.testing.assert_allclose(alone, plans[1:2], atol=1e-5)
    np.testing.assert_array_equal(runtime.plan(observation, noise=runtime.noise([5, 6, 7])), plans)
    assert np.abs(runtime.plan(observation, seeds=[5, 8, 7]) - plans).max((1, 2)).astype(bool).tolist() == [0, 1, 0]


def test_noise_is_normal_and_of_numpy(runtime):
    start, steps = runtime.noise(np.arange(500))
    assert (start.shape, steps.shape) == ((500, 8, 2), (2, 500, 8, 2))
    drawn = np.random.default_rng(3).standard_normal((3, 8, 2), np.float32)
    np.testing.assert_array_equal(start[3], drawn[0])
    np.testing.assert_array_equal(steps[:, 3], drawn[1:])
    numbers = np.concatenate([start.ravel(), steps.ravel()])
    assert abs(numbers.mean()) < 5 / np.sqrt(numbers.size)
    assert abs(numbers.var() - 1) < 5 * np.sqrt(2 / numbers.size)


def test_a_baseline_takes_no_noise(tmp_path):
    policy = built(PolicySpec({"arm.pose": (3,)}, 2, horizon=8, network=SMALL), Regression)
    runtime = Runtime(export_onnx(policy, tmp_path / "policy.onnx").path)
    observation = {"arm.pose": seen(2, 2)["arm.pose"]}
    expected = policy.plan({"arm.pose": torch.as_tensor(observation["arm.pose"])}).numpy()
    np.testing.assert_allclose(runtime.plan(observation), expected, atol=1e-5)
    current = {"arm.pose": observation["arm.pose"][:, 1]}
    control, original = RecedingHorizon(runtime, 2), Original(policy, 2)
    np.testing.assert_allclose(control.act(current), original.act(current), atol=1e-5)


def test_the_controller_acts_as_that_of_poise(runtime):
    """Over robots out of step, with histories, resets and the same noise."""
    robots, rng = 3, np.random.default_rng(1)
    sources = [np.random.default_rng(seed) for seed in (10, 11, 12)]

    def plan(memory, chosen):
        noise = runtime.noise([sources[robot] for robot in chosen])
        return planned(memory.window(chosen), noise)

    ours, theirs = RecedingHorizon(runtime, robots), Original(POLICY, robots, plan)
    ours.reset([10, 11, 12])
    theirs.reset([10, 11, 12])
    fresh = 0
    for step in range(20):
        observation, which = seen(robots, seed=step), rng.random(robots) < 0.7
        if step == 9:
            ours.reset([20], np.array([False, True, False]))
            theirs.reset([20], np.array([False, True, False]))
            sources[1] = np.random.default_rng(20)
        got, expected = ours.act(observation, which), theirs.act(observation, which)
        np.testing.assert_allclose(got[which], expected[which], atol=1e-4)
        np.testing.assert_array_equal(ours.fresh, theirs.fresh)
        fresh += ours.fresh.sum()
    assert 12 < fresh < 25  # of about 42 steps, one in three


def limited(runtime, **limits):
    """The runtime of a file that tells limits."""
    told = copy.copy(runtime)
    told.facts = {**runtime.facts, "safety": json.loads(json.dumps(limits))}
    return told


LIMITS = {"low": (-0.5, -0.5), "high": (0.5, 0.5), "change": (0.1, 0.1), "acceleration": (0.05, 0.05)}


def test_the_controller_keeps_the_limits_of_the_file_as_safe_does(runtime):
    """Robots out of step, resets, and a step that ends in an error, in which they hold."""
    told, robots = limited(runtime, **LIMITS), 2
    ours, plain = RecedingHorizon(told, robots), RecedingHorizon(told, robots, safety=False)
    guard = Guard(ActionLimits(**LIMITS), robots, repeated)
    for control in (ours, plain):
        control.reset([3, 4])
    sent, rng = [], np.random.default_rng(0)
    for step in range(30):
        observation, which = seen(robots, seed=step), rng.random(robots) < 0.8
        if step == 12:
            one = np.array([True, False])
            ours.reset([7], one)
            plain.reset([7], one)
            guard.reset(one)
        if step == 20:
            for control in (ours, plain):
                with pytest.raises(ValueError, match="which is missing"):
                    control.act({}, which)
            guard.hold(which)
        guard.send(plain.act(observation, which), which)
        np.testing.assert_array_equal(ours.act(observation, which), guard.last)
        np.testing.assert_array_equal(ours.fresh, plain.fresh)
        sent.append(guard.last)
    assert np.abs(sent).max() <= 0.5
    assert ours.interventions == guard.interventions
    assert ours.interventions["change"] > 5
    assert not plain.interventions


def test_limits_that_do_not_fit_are_refused_and_a_file_without_has_none(runtime, monkeypatch):
    assert not RecedingHorizon(runtime).interventions
    with pytest.raises(ValueError, match="got limits of 1 dimensions for actions of 2: export the policy again"):
        RecedingHorizon(limited(runtime, low=(0.0,), high=(1.0,)))
    monkeypatch.setitem(sys.modules, "poise.limits", None)
    with pytest.raises(ImportError, match=r"pip install --no-deps poise; or do without limits, .*safety=False"):
        RecedingHorizon(limited(runtime, **LIMITS))
    RecedingHorizon(limited(runtime, **LIMITS), safety=False)


def test_an_observation_that_is_refused_changes_nothing(runtime):
    one, other = RecedingHorizon(runtime), RecedingHorizon(runtime)
    for control in (one, other):
        control.reset([0])
        control.act(seen(1))
    broken = {**seen(1), "arm.pose": np.full((1, 3), np.nan)}
    with pytest.raises(ValueError, match=r"NaN or infinity in feature 'arm.pose', expected finite numbers"):
        one.act(broken)
    for step in range(5):
        np.testing.assert_array_equal(one.act(seen(1, seed=step)), other.act(seen(1, seed=step)))
    both = RecedingHorizon(runtime, 2)
    half = {**seen(2), "arm.pose": np.array([[0.0, 0, 0], [np.nan, 0, 0]])}
    assert np.isfinite(both.act(half, np.array([True, False]))).all()  # that of a robot that does not act may be any


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arm.pose": None}, r"got the features \['camera'\], expected also 'arm.pose'"),
        ({"arm.pose": np.zeros((2, 3, 4))}, r"'arm.pose' of shape \(2, 3, 4\), expected \(batch, 3, 3\)"),
        ({"arm.pose": np.zeros((2, 3))}, r"'arm.pose' of shape \(2, 3\), expected \(batch, 3, 3\)"),
        ({"arm.pose": np.zeros((1, 3, 3))}, r"batches of \{'arm.pose': 1, 'camera': 2\} rows, expected one number"),
        ({"arm.pose": np.full((2, 3, 3), "a")}, r"'arm.pose' of <U1, expected numbers"),
        ({"camera": np.zeros((2, 3, 2, 2, 1))}, r"'camera' of float64, expected uint8 from 0 to 255"),
        ({"arm.pose": np.full((2, 3, 3), np.inf)}, r"NaN or infinity in feature 'arm.pose'"),
        ({"arm.pose": np.full((2, 3, 3), 1e300)}, r"numbers beyond those of float32, 3.4e38, in feature 'arm.pose'"),
    ],
)
def test_observations_that_do_not_fit_are_named(runtime, change, message):
    observation = {name: values for name, values in {**seen(2, 3), **change}.items() if values is not None}
    with pytest.raises(ValueError, match=message):
        runtime.plan(observation, seeds=[0, 1])


def test_noise_that_does_not_fit_is_named(runtime):
    with pytest.raises(ValueError, match=r"got 1 seeds for 2 rows, expected one each, or noise"):
        runtime.plan(seen(2, 3), seeds=[0])
    with pytest.raises(ValueError, match=r"noise of shapes \[\(2, 8, 2\)\], expected \[\(2, 8, 2\), \(2, 2, 8, 2\)\]"):
        runtime.plan(seen(2, 3), noise=runtime.noise([0, 1])[:1])
    with pytest.raises(ValueError, match=r"planned NaN or infinity, expected finite numbers: hold the robot"):
        runtime.plan(seen(2, 3), noise=[np.full_like(part, np.nan) for part in runtime.noise([0, 1])])


def test_files_that_are_no_policy_or_changed_are_refused(path, tmp_path):
    data, copy = path.read_bytes(), tmp_path / "copy.onnx"
    with pytest.raises(FileNotFoundError, match=r"copy.onnx does not exist, expected a file of poise export"):
        Runtime(copy)
    for place in (100, len(data) // 2, len(data) - 100):
        flipped = bytearray(data)
        flipped[place] ^= 1
        copy.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"copy.onnx (differs from what was written|is no policy)"):
            Runtime(copy)
    copy.write_bytes(data[:-1])
    with pytest.raises(ValueError, match=r"differs from what was written, expected its sha256 to hold"):
        Runtime(copy)
    for other in (b"", b"hello", data.replace(b"poise onnx 1", b"poise onnx 2")):
        copy.write_bytes(other)
        with pytest.raises(ValueError, match=r"copy.onnx is no policy in the format 'poise onnx 1'"):
            Runtime(copy)


def test_the_extra_is_named_where_onnxruntime_is_missing(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"need onnxruntime: pip install onnxruntime, or 'poise\[runtime\]'"):
        Runtime(path)
