"""`poise sweep`, the fields that it varies, and the drawing of fewer demonstrations."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from poise import (
    CNN,
    MLP,
    Episodes,
    Heun,
    PolicySpec,
    Recipe,
    Relative,
    Task,
    TrainingSpec,
    UNet1D,
    load_checkpoint,
)
from poise.cli.engines import Workers
from poise.cli.evaluate import write_json
from poise.cli.fields import choose_classes, fields, nearest, replaced
from poise.cli.sweep import pooled, sweep
from poise.cli.train import parse_run
from poise.evaluation import wilson
from poise.evaluation.sweep_plot import sweep_figure
from poise.nn.encoders import Timm

RECIPE = """
import os
import signal
from pathlib import Path

from poise import MLP, Episodes, PolicySpec, Recipe, Task, TrainingSpec
from poise.envs import Map, demonstrate


def read(path):
    if path is not None and path.exists():
        path.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    data = demonstrate(Map(), 40, seed=0, noise=0.1)
    features = {name: data[name] for name in ("position", "velocity", "goal", "action")}
    return Episodes(features, data["episode_ends"])


recipe = Recipe(
    policy=PolicySpec(
        {"position": (2,), "velocity": (2,), "goal": (2,)}, 2, network=MLP(width=32, depth=1, condition=16)
    ),
    training=TrainingSpec(steps=60, batch=32, warmup=5, validate_every=60),
    task=Task("poise.envs:poise/Navigate-v0", slots=8),
    read=read,
)
"""
WIDTH, TOO_LARGE = "policy.network.width", str(10**20)  # a seed that the parser takes and no generator does


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.py"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def swept(recipe, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("swept")
    sweep(recipe, (f"{WIDTH}=16,24", "training.seed=0,1"), out, episodes=8)
    return out


def folder(out: Path, width: int, seed: int) -> Path:
    return out / "runs" / f"{WIDTH}={width},training.seed={seed}"


def test_the_table_holds_what_the_runs_measured(swept):
    rows = json.loads((swept / "sweep.json").read_text())["rows"]
    assert [row[WIDTH] for row in rows] == ["16", "24"]
    for row in rows:
        figures = []
        for seed in (0, 1):
            results = json.loads((folder(swept, int(row[WIDTH]), seed) / "evaluation.json").read_text())
            figures.append(results["policies"]["DiffusionPolicy"])
        successes = [8 * f["success"] for f in figures]
        assert (row["success"], row["success_low"], row["success_high"]) == wilson(round(sum(successes)), 16)
        assert row["seeds"] == [f["success"] for f in figures]
        assert row["reward_max_mean"] == pytest.approx(np.mean([f["reward_max_mean"] for f in figures]))
        assert row["trials"] == 16
    # seeds and widths reached the trainings
    assert len({row["reward_max_mean"] for row in rows}) == 2
    for width in (16, 24):
        policies = [load_checkpoint(folder(swept, width, seed)) for seed in (0, 1)]
        assert [p.policy.spec.network.width for p in policies] == [width, width]
        assert [p.notes["training"]["seed"] for p in policies] == [0, 1]

    table = list(csv.DictReader((swept / "sweep.csv").read_text().splitlines()))
    assert [float(row["success_high"]) for row in table] == [row["success_high"] for row in rows]
    assert f"| {WIDTH} | success | 95 % interval | seeds" in (swept / "sweep.md").read_text()
    assert "| field | mean success | range | share | best |" in (swept / "sweep.md").read_text()
    assert "Wilson" in (swept / "report.html").read_text()
    assert (swept / "sweep.png").stat().st_size > 5000


def test_it_goes_on_where_it_stopped_and_survives_failures(swept, recipe, capsys):
    files = {(w, s): folder(swept, w, s) / "run.json" for w in (16, 24) for s in (0, 1)}
    before = {key: file.stat().st_mtime_ns for key, file in files.items()}
    stale = json.loads(files[16, 1].read_text())
    files[16, 1].write_text(json.dumps({**stale, "made from": {**stale["made from"], "recipe": "an older one"}}))
    with pytest.raises(SystemExit) as exit_:
        sweep(recipe, (f"{WIDTH}=16,24", f"training.seed=0,1,{TOO_LARGE}"), swept, episodes=8)
    assert exit_.value.code == 1
    said = capsys.readouterr()
    assert "2 of 6 runs failed" in said.err
    assert f"{WIDTH}=24 training.seed={TOO_LARGE}: " in said.err
    assert "unpacking long" in said.err
    assert "| 16 | " in said.out
    repeated = {key for key, file in files.items() if file.stat().st_mtime_ns != before[key]}
    assert repeated == {(16, 1)}
    assert json.loads(files[16, 1].read_text())["figures"]["success"] == stale["figures"]["success"]


def test_values_may_be_longer_than_names_of_files(recipe, tmp_path):
    short = recipe.with_name("short.py")
    short.write_text(recipe.read_text().replace("steps=60", "steps=2"))
    long = "MLP " + " ".join(f"--policy.network.{name} 16" for name in ("width", "condition") * 4)
    values = f"{long} --policy.network.depth 1,{long} --policy.network.depth 2"
    sweep(short, (f"policy.network={values}", "training.batch=8"), tmp_path, episodes=2)
    runs = [json.loads(file.read_text()) for file in (tmp_path / "runs").glob("*/run.json")]
    assert sorted(run["setting"]["policy.network"][-1] for run in runs) == ["1", "2"]
    table = (tmp_path / "sweep.md").read_text()
    assert "| policy.network | success |" in table  # what has one value is no column
    assert "width 16 condition 16 depth 2 |" in table
    assert "--policy" not in table


def test_a_run_that_is_killed_leaves_the_others_alone(recipe, tmp_path, capsys):
    trap = tmp_path / "trap"  # the first run to read it dies as if memory had run out
    trap.touch()
    changed = recipe.with_name("deadly.py")
    changed.write_text(recipe.read_text().replace("steps=60", "steps=2"))
    with pytest.raises(SystemExit):
        sweep(changed, ("training.seed=0,1",), tmp_path / "out", data=trap, workers=Workers(1), episodes=2)
    said = capsys.readouterr().err
    assert "training.seed=0: the process was killed by signal 9, such as for want of memory" in said
    assert "1 of 2 runs failed" in said
    assert len(list((tmp_path / "out" / "runs").glob("*/run.json"))) == 1


@pytest.mark.parametrize("form", ["file", "folder"])
def test_other_demonstrations_under_the_same_name_are_trained_on(recipe, tmp_path, form):
    quick, data = recipe.with_name("quick.py"), tmp_path / "data"
    quick.write_text(recipe.read_text().replace("steps=60", "steps=2").replace("path.exists()", "False"))
    if form == "folder":
        data.mkdir()
    part, times = data / "part" if form == "folder" else data, []
    for content in ("some", "some", "others"):
        if not part.exists() or part.read_text() != content:
            part.write_text(content)
        sweep(quick, ("training.seed=0",), tmp_path / "out", data=data, episodes=2)
        times.append((tmp_path / "out/runs/training.seed=0/run.json").stat().st_mtime_ns)
    assert times[0] == times[1] < times[2]


def test_what_is_written_is_whole_or_as_it_was(tmp_path):
    """A sweep and a comparison that were killed while they wrote go on from these files."""
    write_json(tmp_path / "a.json", {"rows": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"rows": 2, "set": {1}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"rows": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ("policy.netwrk.width=1", "expected a field of the recipe: did you mean 'policy.network.width'?"),
        ("temperature=1", "did you mean 'policy.temperature'?"),
        (
            f"{WIDTH}=8,many",
            f"got the setting {WIDTH}=many, which the recipe does not take: Error parsing --{WIDTH}: inv",
        ),
        ("policy.execute=99", "PolicySpec got lead=0, horizon=16 and execute=99, expected 1 <= execute <= horizon"),
        ("policy.sampler=Henu", r"got policy.sampler=Henu, expected the name of a class: one of \['AdaptiveDPMSolver'"),
        ("read=a", "got the setting read=a, which the recipe does not take: Unrecognized options: --read, a"),
        ("method=Magic", r"got the method 'Magic', expected one of"),
        ("episodes=5,5", "expected FIELD=A,B,... with every field and value once"),
        ("episodes", "got --vary 'episodes', expected FIELD=A,B,..."),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(recipe, tmp_path, vary, message):
    with pytest.raises(ValueError, match=message):
        sweep(recipe, (vary,), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_settings_are_pooled_over_seeds_and_fields_keep_their_names():
    def run(episodes: str, success: float, reward: float) -> dict:
        figures = {"success": success, "reward_max_mean": reward, "plan_ms_median": 2.0, "episodes": 10}
        return {"setting": {"episodes": episodes, "training.seed": "0"}, "figures": figures}

    few, many = pooled([run("25", 0.2, 0.5), run("50", 0.9, 0.8), run("25", 0.4, 0.7)], ["episodes"])
    assert (few["episodes"], few["trials"], few["seeds"], few["reward_max_mean"]) == ("25", 20, [0.2, 0.4], 0.6)
    assert (few["success"], few["success_low"], few["success_high"]) == wilson(6, 20)
    assert (many["episodes"], many["trials"]) == ("50", 10)


def test_the_figure_draws_a_line_a_setting_with_its_intervals():
    rows = [
        {"n": n, "m": m, "success": s, "success_low": s - 0.1, "success_high": s + 0.05, "seeds": [s]}
        for n, m, s in (("25", "A", 0.2), ("50", "A", 0.5), ("25", "B", 0.4), ("50", "B", 0.8))
    ]
    (axes,) = sweep_figure(rows, ["n", "m"]).axes
    drawn = {container.get_label(): container for container in axes.containers}
    assert list(drawn) == ["m A", "m B"]
    assert drawn["m B"].lines[0].get_ydata().tolist() == [0.4, 0.8]
    ends = [np.sort(segment[:, 1]) for segment in drawn["m B"].lines[2][0].get_segments()]
    assert np.allclose(ends, [[0.3, 0.45], [0.7, 0.85]])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["25", "50"]
    with pytest.raises(ValueError, match="got 0 rows"):
        sweep_figure([], ["n"])


def test_names_of_classes_replace_objects_and_the_rest_is_left():
    recipe = small()
    arguments = [
        "--policy.sampler",
        "Heun",
        "--training.steps",
        "7",
        "--policy.network=UNet1D",
        "--policy.network.x",
        "1",
    ]
    changed, rest = choose_classes(recipe, arguments)
    assert rest == ["--training.steps", "7", "--policy.network.x", "1"]
    assert changed == replaced(replaced(recipe, "policy.sampler", Heun()), "policy.network", UNet1D())
    assert recipe.policy.network == MLP(width=8, depth=1)
    with pytest.raises(
        ValueError, match=r"got policy=PolicySpec, .*: give --policy.observations and --policy.action too"
    ):
        choose_classes(recipe, ["--policy", "PolicySpec"])


def test_a_class_takes_what_it_has_no_default_for_from_the_other_arguments():
    recipe = small()
    space = ["--policy.space", "Relative", "--policy.space.feature", "state"]
    for arguments in (space, [*space[2:], *space[:2]], ["--policy.space=Relative", "--policy.space.feature=state"]):
        changed, rest = choose_classes(recipe, arguments)
        assert changed.policy.space == Relative("state")
        assert rest == [word for word in arguments if "feature" in word or word == "state"]
    changed, _ = choose_classes(recipe, [*space, "--policy.space.dimensions", "0", "--training.steps", "7"])
    assert changed.policy.space == Relative("state", (0,))
    run = parse_run(Path("small.py"), recipe, [*space, "--training.steps", "7"])
    assert (run.recipe.policy.space, run.recipe.training.steps) == (Relative("state"), 7)

    cameras = replaced(recipe, "policy", PolicySpec({"wrist": (64, 64, 3)}, 1, encoder=CNN(), network=MLP(8, 1)))
    backbone = ["--policy.encoder.backbone", "Timm", "--policy.encoder.backbone.name", "nonsense"]
    changed, _ = choose_classes(cameras, backbone)
    assert changed.policy.encoder == CNN(Timm("nonsense"))
    with pytest.raises(ValueError, match=r"Timm, whose fields \['name'\] .*: give --policy.encoder.backbone.name too"):
        choose_classes(cameras, backbone[:2])
    with pytest.raises(ValueError, match="Relative actions are measured from the feature 'tool', but"):
        choose_classes(recipe, [*space[:3], "tool"])


def test_fields_have_dotted_names_and_the_nearest_is_found():
    names = {name for name, _, _ in fields(small())}
    assert {"episodes", "policy.network.width", "training.betas", "task.slots"} <= names
    assert nearest("training.sed", names) == "training.seed"


def numbered(path: Path | None) -> Episodes:
    """Fifty episodes of three rows that hold their number."""
    number = np.repeat(np.arange(50.0), 3)[:, None]
    return Episodes({"state": number, "action": number}, 3 * np.arange(1, 51))


def small(**changes) -> Recipe:
    spec = PolicySpec({"state": (1,)}, 1, network=MLP(width=8, depth=1))
    recipe = Recipe(spec, TrainingSpec(steps=1), Task("None-v0"), numbered, validation=0.1)
    return dataclasses.replace(recipe, **changes)


def test_fewer_demonstrations_are_among_more_and_never_held_out():
    drawn = {}
    for count in (1, 5, 20, 45, None):
        training, validation = small(episodes=count).demonstrations(None)
        drawn[count] = set(training.features["state"][::3, 0])
        held_out = set(validation.features["state"][::3, 0])
        assert held_out == set(numbered(None).split(0.1)[1].features["state"][::3, 0])
        assert not drawn[count] & held_out
        assert len(drawn[count]) == (count or 45)
    assert drawn[1] < drawn[5] < drawn[20] < drawn[45] == drawn[None]
    assert drawn[5] != set(sorted(drawn[45])[:5])  # not merely the first ones
    for count in (0, 46):
        with pytest.raises(
            ValueError, match=f"got episodes={count}, expected 1 to 45, the demonstrations that are not"
        ):
            small(episodes=count).demonstrations(None)
