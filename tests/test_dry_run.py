import dataclasses
import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from poise.cli import dry_run, main
from poise.cli.devices import check_device
from poise.cli.dry_run import column, forecast, losses, memory, on_disk, seconds_a_step
from poise.data import Episodes, Windows
from poise.nn import MLP
from poise.policies import DiffusionPolicy, PolicySpec, Regression
from poise.predictions import Epsilon
from poise.training import Checkpoints, Learner, TrainingSpec, train
from poise.training.order import Order

RECIPE = """
import numpy as np
from poise import MLP, Episodes, PolicySpec, Recipe, Task, TrainingSpec
from poise.envs import Map, demonstrate


def read(path):
    data = demonstrate(Map(), 40, seed=0, noise=0.1)
    features = {name: data[name] for name in ("position", "velocity", "goal", "action")}
    return Episodes(features, data["episode_ends"])


recipe = Recipe(
    policy=PolicySpec(
        {"position": (2,), "velocity": (2,), "goal": (2,)}, 2, network=MLP(width=32, depth=1, condition=16)
    ),
    training=TrainingSpec(steps=3000, minutes=0.001, batch=32, warmup=5, keep_last=2, keep_best=1),
    task=Task("poise.envs:poise/Navigate-v0", slots=4),
    read=read,
)
"""
SPEC = PolicySpec({"o": (3,)}, 2, horizon=4, execute=2, network=MLP(width=16, depth=1, condition=8))


def poise(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["poise", *map(str, arguments)])
    main()


def refused(monkeypatch, capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as exit_:
        poise(monkeypatch, *arguments)
    assert exit_.value.code == 2
    return "".join(capsys.readouterr())


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "small.py"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def windows() -> Windows:
    random = np.random.default_rng(0)
    features = {"o": random.normal(size=(60, 3)), "action": random.normal(size=(60, 2))}
    return Windows(Episodes(features, np.array([30, 60])), ("o",), history=2, horizon=4, padded=3)


def learner_of(kind: type, spec: PolicySpec, windows: Windows, **training) -> Learner:
    torch.manual_seed(0)
    policy = kind(spec)
    policy.fit(windows)
    return Learner(policy, TrainingSpec(batch=16, **training))


def test_a_column_of_the_batch():
    # Two windows of two steps of (1, x): the first number never varies.
    found = column("o", torch.tensor([[[1.0, -2.0], [1.0, 0.0]], [[1.0, 3.0], [1.0, 7.0]]]))
    assert (found.low, found.mean, found.high) == (-2.0, 1.5, 7.0)
    assert (found.shape, found.still, found.width) == ((2, 2, 2), 1, 2)


def test_a_forecast_counts_steps_or_minutes():
    spec = TrainingSpec(steps=1000, batch=32)
    free = forecast(spec, windows=640, seconds=0.03)
    assert (free.steps, free.minutes) == (1000, 0.5)
    assert free.rate == pytest.approx(1066.67, abs=0.01)
    assert free.epochs == 50
    short = forecast(dataclasses.replace(spec, minutes=0.25), windows=640, seconds=0.03)
    assert (short.steps, short.minutes, short.epochs) == (500, 0.25, 25)
    assert forecast(dataclasses.replace(spec, minutes=2.0), windows=640, seconds=0.03) == free


def test_memory_and_disk_are_what_a_training_takes(windows, tmp_path):
    learner = learner_of(DiffusionPolicy, SPEC, windows)
    found, count = memory(learner, (windows, None)), sum(p.numel() for p in learner.policy.parameters())
    assert found["data"] == 60 * 3 * 4 + 60 * 2 * 4
    assert memory(learner, (windows, windows)) == found  # shared rows count once
    assert seconds_a_step(learner, windows) > 0
    assert found["parameters"] == found["average"] == 4 * count
    assert found["gradients"] == 4 * count
    moments = [
        learner.optimiser.state[p][name] for p in learner.policy.parameters() for name in ("exp_avg", "exp_avg_sq")
    ]
    assert found["moments"] == sum(moment.nbytes for moment in moments)
    folder = Checkpoints(tmp_path).save(learner, {})
    files = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    names = len(learner.tensors()) + len(learner.average.policy.state_dict())
    assert 0 <= files - on_disk(learner) < 150 * names  # names and shapes


@pytest.mark.parametrize("masked", [False, True])
def test_the_losses_are_those_of_the_first_step_and_of_a_network_of_zeros(masked, windows):
    spec = dataclasses.replace(SPEC, prediction=Epsilon())
    learner = learner_of(DiffusionPolicy, spec, windows, mask_padding=masked)
    batch = windows[Order(len(windows), 16, 0)(0)]
    untrained, zero = losses(learner, batch)
    first = next(train(learner_of(DiffusionPolicy, spec, windows, mask_padding=masked), windows))
    assert untrained == pytest.approx(first.loss, rel=1e-5)
    assert zero == pytest.approx(1, abs=5 * (2 / batch.actions.numel()) ** 0.5)  # the variance of the noise

    learner = learner_of(Regression, SPEC, windows, mask_padding=masked)
    squares = learner.policy.encoded(batch).square()
    expected = squares[batch.real].mean() if masked else squares.mean()
    assert losses(learner, batch)[1] == pytest.approx(expected.item(), rel=1e-5)


def test_a_dry_run_tells_on_one_screen_and_writes_nothing(recipe, monkeypatch, capsys, tmp_path):
    before = {path for path in tmp_path.rglob("*") if "__pycache__" not in str(path)}
    monkeypatch.chdir(tmp_path)
    poise(monkeypatch, "train", recipe, "--out", tmp_path / "run", "--dry-run", "--training.keep-last", 3)
    assert {path for path in tmp_path.rglob("*") if "__pycache__" not in str(path)} == before
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 160
    said = {" ".join(line.split()[:2]): " ".join(line.split()) for line in lines}
    assert "DiffusionPolicy on cpu, 39 + 1 episodes" in lines[0]
    assert said["observes position"].startswith("observes position (32, 2, 2) -0.")
    assert said["observes velocity"].endswith("0 of 2")
    assert "plans action (32, 16, 2)" in said["plans action"]
    (tokens,) = [line for line in lines if line.startswith("tokens")]
    assert tokens.endswith("(32, 2, 6)")
    (weights,) = [line for line in lines if line.startswith("parameters")]
    (taken,) = [line for line in lines if line.startswith("memory")]
    (cost,) = [line for line in lines if line.startswith("time")]
    (disk,) = [line for line in lines if line.startswith("disk")]
    assert "encoder 0, network" in weights
    assert weights.endswith("network 9,888")
    assert "parameters 40 kB, gradients 40 kB, moments 79 kB, average 40 kB" in taken
    assert "of 3,000, when the time is up, validation and saving not counted" in cost
    assert "at most 4 kept: " in disk
    assert disk.endswith(str(tmp_path / "run"))
    if sys.platform == "linux":
        assert re.search(r"this process had [\d.,]+ [MG]B at the peak of these steps$", taken)
    monkeypatch.setattr(dry_run, "peak_memory", lambda run, device: (run(), 200.0))
    poise(monkeypatch, "train", recipe, "--dry-run")
    assert "; this process had 209.7 MB at the peak of these steps\n" in capsys.readouterr().out
    monkeypatch.setattr(dry_run, "peak_memory", lambda run, device: (run(), None))
    poise(monkeypatch, "train", recipe, "--dry-run")
    assert "at the peak" not in capsys.readouterr().out
    poise(monkeypatch, "train", recipe, "--dry-run", "--method", "NearestNeighbour")
    assert "nothing to train" in capsys.readouterr().out


def test_unknown_fields_and_batches_that_are_too_large_are_explained(recipe, monkeypatch, capsys):
    assert "--training.steps" in refused(monkeypatch, capsys, "train", recipe, "--training.stpes", 5)
    assert "--training.learning-rate" in refused(monkeypatch, capsys, "train", recipe, "--learning-rate", 5)
    assert "--policy.network.width" in refused(monkeypatch, capsys, "train", recipe, "--policy.network.widht", 5)
    large = refused(monkeypatch, capsys, "train", recipe, "--dry-run", "--training.batch", 10**6)
    assert "got a batch of 1000000 for" in large
    assert "did you mean poise train?" in refused(monkeypatch, capsys, "trian", recipe)


def test_a_missing_accelerator_is_named_with_what_is_there(recipe, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    said = refused(monkeypatch, capsys, "train", recipe, "--out", tmp_path / "run", "--device", "cuda")
    assert "poise: got --device cuda, expected one of cpu, which PyTorch" in said
    assert "pytorch.org/get-started" in said
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="got --device gpu, expected such as cpu, cuda"):
        check_device("gpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    check_device("cuda:1")
    check_device("cuda")
    with pytest.raises(ValueError, match="expected one of cpu, cuda:0, cuda:1, which"):
        check_device("cuda:2")
    with pytest.raises(ValueError, match="got --device mps"):
        check_device("mps")


def test_a_full_disk_ends_in_one_line(recipe, monkeypatch, capsys, tmp_path):
    fitting = importlib.import_module("poise.cli.train")

    def full(*arguments):
        raise OSError(28, "No space left on device while saving step 5")

    monkeypatch.setattr(fitting, "fit", full)
    said = refused(monkeypatch, capsys, "train", recipe, "--out", tmp_path / "run")
    assert "poise: [Errno 28] No space left on device while saving step 5" in said
