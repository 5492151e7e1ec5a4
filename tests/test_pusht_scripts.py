"""The benchmarks of Push-T: what their rows run, and that cells that were measured before are found again."""

import importlib.util
import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from poise.evaluation import Task
from poise.nn import MLP
from poise.policies import DiffusionPolicy, PolicySpec, RecedingHorizon, WarmStart
from poise.recipe import Recipe
from poise.training import TrainingSpec

SPEC = PolicySpec({"x": (1,)}, 1, horizon=8, execute=4, network=MLP(16, 1, condition=8), evaluations=10)


def load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


horizons, pusht = load("horizons"), load("pusht")


@pytest.fixture
def policy() -> DiffusionPolicy:
    policy = DiffusionPolicy(SPEC).eval()
    for name in ("x", "action"):
        policy.set_constants(name, torch.ones(1), torch.zeros(1))
    return policy


def test_cold_rows_spend_what_warm_ones_do_without_a_warm_start(policy):
    asked = Namespace(executes=(), execute=4, delays=(), decays=(), begins=(0.8,), warm=(2,), evaluations=(2, 3))
    rows = list(horizons.plan_of_rows(asked, SPEC.horizon))
    assert [row.name for row in rows] == ["cold, 2 evals", "cold, 3 evals", "warm, begin 0.8, 2 evals"]
    calls, kinds = [], (RecedingHorizon, RecedingHorizon, WarmStart)
    policy.diffusion.get_submodule("network").register_forward_hook(lambda *_: calls.append(1))
    for row, kind, first, second in zip(rows, kinds, (2, 3, 10), (2, 3, 2), strict=True):
        control = row.control(policy, 1)
        assert isinstance(control, kind)
        calls.clear()
        for _ in range(SPEC.execute):
            control.act({"x": torch.zeros(1, 1).numpy()})
        assert len(calls) == first
        control.act({"x": torch.zeros(1, 1).numpy()})
        assert len(calls) == first + second


def test_cells_of_before_are_those_of_the_recipe_and_others_are_apart(tmp_path):
    study = pusht.Study(tmp_path, tmp_path, tmp_path, None, range(100, 103))
    row = {"policy": "mlp-flow", "sampler": "DDIM", "evaluations": 10, "checkpoint": "", "first": 100, "episodes": 3}
    figures = {"success": [0.5, 0.25, 0.75], "reward": [0.9, 0.8, 1.0]}
    old, new = {**row, **figures}, {**row, **figures, "begin": 0.95, "temperature": 1.0, "success": [1.0, 0.5, 1.0]}
    (tmp_path / "cells.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (old, new)))
    usual, other = pusht.Cell("mlp-flow", "DDIM", 10), pusht.Cell("mlp-flow", "DDIM", 10, 0.95, 1.0)
    assert pusht.known(study) == {usual: old, other: new}
    others = {usual._replace(begin=0.9), usual._replace(temperature=1.0)}
    assert set(pusht.missing_cells(study, [usual, other, *others])) == others
    assert "| 10 | 50 % (25 to 75), 0.900 |" in pusht.table(pusht.known(study), pusht.title(usual), ["DDIM"])
    said = pusht.table(pusht.known(study), pusht.title(other), ["DDIM"])
    assert said.startswith("| mlp-flow from t = 0.95 at temperature 1 | DDIM |")
    assert "| 10 | 100 % (50 to 100), 0.900 |" in said


@pytest.mark.parametrize(("asked", "expected"), [((None, None), (1.0, 0.5)), ((0.95, 1.0), (0.95, 1.0))])
def test_a_cell_runs_with_its_begin_and_temperature_or_the_recipes(asked, expected, policy, tmp_path, monkeypatch):
    recipe = Recipe(
        pusht.dataclasses.replace(SPEC, temperature=0.5), TrainingSpec(steps=1), Task("None-v0"), lambda path: None
    )
    policy.save(tmp_path / "mlp-epsilon")
    ran = []
    monkeypatch.setattr(pusht, "load_recipe", lambda path: recipe)
    monkeypatch.setattr(pusht, "rollout", lambda chosen, task, seeds: ran.append(chosen.spec) or [])
    monkeypatch.setattr(pusht, "wilson", lambda won, count: None)
    monkeypatch.setattr(pusht, "bootstrap", lambda rewards: None)
    threads = torch.get_num_threads()
    row = pusht.run_one(
        pusht.Study(tmp_path, tmp_path, tmp_path, None, range(3)), pusht.Cell("mlp-epsilon", "DDIM", 2, *asked)
    )
    torch.set_num_threads(threads)
    assert (ran[0].begin, ran[0].temperature, ran[0].evaluations) == (*expected, 2)
    assert (row["begin"], row["temperature"]) == asked
