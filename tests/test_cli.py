import importlib
import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from poise.cli import main
from poise.nn import SmallCNN
from poise.nn.encoders.backbones import Trunk
from poise.policies import DiffusionPolicy, Policy, Safety, load, load_checkpoint

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
    training=TrainingSpec(steps=30, batch=32, warmup=5, validate_every=10),
    task=Task("poise.envs:poise/Navigate-v0", slots=4),
    read=read,
)
"""


def run(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["poise", *map(str, arguments)])
    main()


def refused(monkeypatch, capsys, *arguments: object) -> str:
    """What a command that must fail says on stderr."""
    with pytest.raises(SystemExit) as exit_:
        run(monkeypatch, *arguments)
    assert exit_.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "small.py"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def checkpoint(recipe, tmp_path, monkeypatch) -> Path:
    run(monkeypatch, "train", recipe, "--out", tmp_path / "run")
    return tmp_path / "run"


def test_train_evaluate_inspect(checkpoint, recipe, monkeypatch, capsys, tmp_path):
    metrics = [json.loads(line) for line in (checkpoint / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [10, 20, 30]
    assert all(np.isfinite([m["loss"], m["validation"]]).all() for m in metrics)

    file = tmp_path / "results.json"
    options = ("--episodes", 6, "--seed", 7, "--sampler", "DDPM", "--evaluations", 4, "--json", file)
    run(monkeypatch, "evaluate", checkpoint, "--recipe", recipe, *options)
    out = capsys.readouterr().out
    assert "6 episodes" in out
    assert "4 network evaluations" in out
    results = json.loads(file.read_text())
    assert set(results) == {"policies", "seconds", "machine"}
    figures = results["policies"]["DiffusionPolicy"]
    assert (figures["evaluations"], figures["episodes"]) == (4, 6)

    pytest.importorskip("av", reason="the extra video is not installed")
    page, video = tmp_path / "page.html", tmp_path / "film.mp4"
    run(monkeypatch, "evaluate", checkpoint, "--recipe", recipe, "--episodes", 3, "--html", page, "--video", video)
    assert "95 % Wilson interval" in page.read_text()
    assert "data:video/mp4;base64" in page.read_text()
    assert video.stat().st_size > 1000

    run(monkeypatch, "inspect", checkpoint)
    out = capsys.readouterr().out
    assert "DiffusionPolicy" in out
    assert '"steps": 30' in out


def test_training_and_evaluation_take_place_on_the_device(recipe, checkpoint, monkeypatch, tmp_path):
    verb, found = importlib.import_module("poise.cli.fitting"), []
    monkeypatch.setattr(Policy, "save", lambda policy, out, notes: out)

    def watched(learner, windows, *rest, **options):
        found.extend([learner.device.type, windows.actions.device.type])
        return iter(())

    monkeypatch.setattr(verb, "train", watched)
    for step in ("fit", "ready"):  # which look at numbers, of which that device has none
        monkeypatch.setattr(DiffusionPolicy, step, lambda *arguments: None)
    monkeypatch.setattr(Safety, "fit", lambda *arguments: Safety((0.0,), (1.0,)))
    run(monkeypatch, "train", recipe, "--out", tmp_path / "meta", "--device", "meta")
    assert found == ["meta", "meta"]
    with pytest.raises(RuntimeError, match="meta"):
        run(monkeypatch, "evaluate", checkpoint, "--recipe", recipe, "--episodes", 1, "--device", "meta")


def test_the_environment_needs_no_recipe_where_names_agree(checkpoint, monkeypatch, capsys):
    run(monkeypatch, "evaluate", checkpoint, "--environment", "poise.envs:poise/Navigate-v0", "--episodes", 2)
    assert "2 episodes" in capsys.readouterr().out


def test_fields_of_the_recipe_are_options(recipe, monkeypatch, tmp_path):
    options = ("--training.steps", 5, "--policy.network.width", 16, "--policy.execute", 4)
    run(monkeypatch, "train", recipe, "--out", tmp_path / "other", *options)
    spec = load(tmp_path / "other").spec
    assert (spec.network.width, spec.execute) == (16, 4)


@pytest.mark.parametrize("method", ["Regression", "NearestNeighbour"])
def test_baselines_are_trained_and_evaluated_by_the_same_commands(recipe, method, monkeypatch, capsys, tmp_path):
    run(monkeypatch, "train", recipe, "--out", tmp_path / "base", "--method", method)
    run(monkeypatch, "evaluate", tmp_path / "base", "--recipe", recipe, "--episodes", 2)
    assert "2 episodes" in capsys.readouterr().out
    assert "expected a DiffusionPolicy" in refused(
        monkeypatch, capsys, "evaluate", tmp_path / "base", "--recipe", recipe, "--sampler", "DDIM"
    )


def test_interrupting_leaves_a_usable_checkpoint(recipe, monkeypatch, tmp_path, capsys):
    verb = importlib.import_module("poise.cli.fitting")
    plain = verb.train

    def interrupted(*arguments, **options):
        for progress in plain(*arguments, **options):
            if progress.step == 7:
                signal.raise_signal(signal.SIGINT)
            yield progress

    monkeypatch.setattr(verb, "train", interrupted)
    run(monkeypatch, "train", recipe, "--out", tmp_path / "cut")
    assert "stopped at step 7: poise train --resume" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "cut").notes["progress"]["step"] == 7
    monkeypatch.undo()
    run(monkeypatch, "train", "--resume", tmp_path / "cut")
    assert load_checkpoint(tmp_path / "cut").notes["progress"]["step"] == 30


def test_mistakes_end_in_one_line(checkpoint, recipe, monkeypatch, capsys, tmp_path):
    none = tmp_path / "none"
    assert "none does not exist" in refused(monkeypatch, capsys, "evaluate", none, "--recipe", recipe)
    assert "expected --recipe RECIPE or --environment ID" in refused(monkeypatch, capsys, "evaluate", checkpoint)
    unknown = refused(monkeypatch, capsys, "evaluate", checkpoint, "--environment", "Nowhere-v0")
    assert "got the environment 'Nowhere-v0'" in unknown
    sampler = refused(monkeypatch, capsys, "evaluate", checkpoint, "--recipe", recipe, "--sampler", "ddim")
    assert "got the sampler 'ddim', expected one of ['AdaptiveDPMSolver', 'AdaptiveSDE'" in sampler
    assert "Traceback" not in sampler
    assert "does not exist, expected a Python file" in refused(monkeypatch, capsys, "train", none)
    (tmp_path / "empty.py").write_text("x = 1")
    assert "defines no recipe" in refused(monkeypatch, capsys, "train", tmp_path / "empty.py")
    method = refused(monkeypatch, capsys, "train", recipe, "--method", "Magic")
    assert "got the method 'Magic', expected one of" in method
    assert "'DiffusionPolicy', " in method


def test_who_asks_for_replay_is_told_of_replan(monkeypatch, capsys):
    """`poise dataset replay` runs actions again; a record of serving is planned again."""
    said = refused(monkeypatch, capsys, "replay", "out/run", "out/pusht")
    assert "got the verb 'replay', expected one of " in said
    assert said.endswith("did you mean poise replan?\n")


def test_help_teaches(recipe, monkeypatch, capsys):
    run(monkeypatch, "train", "--help")
    assert "poise train RECIPE" in capsys.readouterr().out
    for arguments, expected in (
        (["--help"], "Try a policy in closed loop"),
        (["evaluate", "--help"], "Network evaluations a plan"),
        (["train", str(recipe), "--help"], "Share of the episodes held out"),
    ):
        with pytest.raises(SystemExit) as exit_:
            run(monkeypatch, *arguments)
        assert exit_.value.code == 0
        assert expected in capsys.readouterr().out


def test_the_demo_from_end_to_end(monkeypatch, tmp_path):
    pytest.importorskip("av", reason="the extra video is not installed")
    from poise.nn import MLP
    from poise.training import TrainingSpec

    verb = importlib.import_module("poise.cli.demo")
    monkeypatch.setattr(verb, "TRAINING", TrainingSpec(steps=20, batch=32, validate_every=10))
    spec = verb.SPEC.__class__(verb.SPEC.observations, 2, network=MLP(width=16, depth=1, condition=8))
    monkeypatch.setattr(verb, "SPEC", spec)
    monkeypatch.setattr(verb, "SWEEP", (2,))
    run(monkeypatch, "demo", "--out", tmp_path / "demo", "--episodes", 8, "--demonstrations", 40, "--threads", 1)
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert {"report.html", "results.json", "video.mp4", "routes.png", "denoising.png", "tradeoff.png"} <= names
    results = json.loads((tmp_path / "demo/results.json").read_text())
    assert set(results["policies"]) == {"diffusion", "regression", "nearest neighbour"}
    assert {row["sampler"] for row in results["sweep"]} == {"DDIM", "DPMSolverPP", "Heun", "DDPM"}
    assert results["seconds"] > 0
    assert set(results["paired"]) == {"regression", "nearest neighbour"}


def test_training_begins_with_the_weights_that_are_given(tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "eyes.py"
    text = RECIPE.replace("import MLP,", "import CNN, MLP, Joint, SmallCNN,")
    text = text.replace(
        "    return Episodes(",
        '    features["camera"] = np.zeros((data["episode_ends"][-1], 16, 16, 3), np.uint8)\n    return Episodes(',
    )
    text = text.replace(
        '"goal": (2,)}, 2,', '"goal": (2,), "camera": (16, 16, 3)}, 2, encoder=Joint(CNN(SmallCNN((16,)))),'
    )
    text = text.replace("steps=30", "steps=2, learning_rate=0.0")
    recipe.write_text(text)
    trunk = SmallCNN((16,)).build(3)
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter)
    published = {name: tensor.contiguous() for name, tensor in trunk.module.state_dict().items()}
    save_file(published, tmp_path / "published.safetensors")
    run(monkeypatch, "train", recipe, "--out", tmp_path / "run", "--weights", tmp_path / "published.safetensors")
    encoder = load(tmp_path / "run").encoder
    (found,) = (module for module in encoder.modules() if isinstance(module, Trunk))
    for name, tensor in published.items():
        torch.testing.assert_close(found.module.state_dict()[name], tensor)
    save_file({"other": torch.ones(1)}, tmp_path / "other.safetensors")
    said = refused(
        monkeypatch, capsys, "train", recipe, "--out", tmp_path / "no", "--weights", tmp_path / "other.safetensors"
    )
    assert "other" in said
