"""The suite of applications: recipes, the smoke run, its page and results, and what is said where something lacks."""

import dataclasses
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from poise import Task, load_checkpoint, load_recipe
from poise.applications import applications, find
from poise.cli import applications as verb
from poise.cli import main, suite
from poise.cli.applications import applications_suite
from poise.cli.collect import collect
from poise.cli.engines import Pinned
from poise.cli.resumable import figures
from poise.cli.suite import Case, Effort
from poise.evaluation.applications_page import overview, verdict, write_applications
from poise.policies import DiffusionPolicy, Regression

RECIPES = Path(__file__).parents[1] / "recipes" / "applications"


class Still:
    """Never moves."""

    stage = "rest"

    def reset(self, env, seed):
        pass

    def act(self, observation):
        return np.zeros(2, np.float32)


@pytest.fixture(scope="module")
def smoked(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("suite")
    applications_suite(("navigate",), smoke=True, out=out)
    return out / "smoke"


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def row(value: float, low: float, high: float, entropies=(None, None), note=None) -> dict:
    common = {"success": 0.9, "success_low": 0.8, "success_high": 0.95, "measures": {}, "minutes": 1.0, "rate_hz": 50.0}
    policies = {
        name: {**common, "mode_entropy": entropy}
        for name, entropy in zip(("diffusion", "regression"), entropies, strict=True)
    }
    difference = {"value": value, "low": low, "high": high}
    told = {"name": "toy", "area": "toys", "about": "Play.", "demonstrations": 7, "note": note}
    return {
        **told,
        "policies": policies,
        "expert": {**common, "mode_entropy": None},
        "rivals": {},
        "difference": difference,
    }


def test_every_application_has_a_recipe_file_and_every_file_an_application():
    assert {file.stem for file in RECIPES.glob("*.py")} == set(applications())
    for name, application in applications().items():
        recipe = load_recipe(RECIPES / f"{name}.py")
        assert recipe.policy == application.recipe().policy
        assert recipe.task == application.task
        assert recipe.read.args == (application,)


def test_a_recipe_learns_from_what_was_collected_and_asks_for_it_otherwise(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["train", str(RECIPES / "navigate.py"), "--training.steps", "2", "--training.batch", "8"]
    monkeypatch.setattr(sys, "argv", ["poise", *arguments])
    with pytest.raises(SystemExit):
        main()
    assert "expected demonstrations of navigate: poise collect navigate" in capsys.readouterr().err
    collect("navigate", episodes=4)
    monkeypatch.setattr(sys, "argv", ["poise", *arguments, "--overwrite"])
    main()
    assert load_checkpoint("out/navigate").notes["demonstrations"]["training"] == 3


def test_the_page_and_the_table_say_what_was_measured(smoked):
    (found,) = results(smoked)["applications"]
    assert found["name"] == "navigate"
    assert found["demonstrations"] == 12
    assert found["policies"]["diffusion"]["episodes"] == len(found["won"]["diffusion"]) == 2
    assert found["expert"]["success"] == 1.0
    diffusion = found["policies"]["diffusion"]
    assert diffusion["rate_hz"] == pytest.approx(1e3 * 8 / diffusion["plan_ms_p95"])
    (cells,) = overview([found]).rows
    assert cells[0] == "navigate"
    assert cells[1] == f"{100 * diffusion['success']:.1f} %"
    assert cells[5:7] == ("100.0 %", "12")
    page = (smoked / "report.html").read_text()
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", body) == list(cells)
    assert f"| {' | '.join(cells)} |" in (smoked / "results.md").read_text()
    assert verdict(found) in page
    assert "data:video/mp4" in page
    assert "One episode of the diffusion policy" in page
    kinds = [type(load_checkpoint(smoked / "navigate" / name).policy) for name in ("diffusion", "regression")]
    assert kinds == [DiffusionPolicy, Regression]
    specs = [load_checkpoint(smoked / "navigate" / name).policy.spec for name in ("diffusion", "regression")]
    assert specs[0] == specs[1]


def test_what_is_finished_is_not_run_again_unless_something_changed(smoked, capsys):
    file = smoked / "navigate" / "run.json"
    before, table = file.stat().st_mtime_ns, (smoked / "results.md").read_text()
    applications_suite(("navigate",), smoke=True, out=smoked.parent)
    assert file.stat().st_mtime_ns == before
    assert (smoked / "results.md").read_text() == table
    data = Pinned.of(smoked / "navigate" / "demonstrations.npz")
    case = Case("navigate", data, smoked / "navigate", Effort(steps=5, batch=32, episodes=2, pictures=8))
    assert figures(case) is not None
    assert figures(dataclasses.replace(case, effort=Effort(steps=6, batch=32, episodes=2, pictures=8))) is None
    assert figures(dataclasses.replace(case, data=Pinned(data.path, "another"))) is None


def test_tasks_whose_extra_is_missing_are_skipped_and_those_that_fail_are_told(tmp_path, monkeypatch, capsys):
    navigate = find("navigate")
    toys = {
        "far": dataclasses.replace(navigate, name="far", task=Task("nothing_here:far-v0", extra="manipulation")),
        "still": dataclasses.replace(navigate, name="still", expert=Still),
    }
    monkeypatch.setattr(verb, "find", toys.__getitem__)
    with pytest.raises(SystemExit) as exit_:
        applications_suite(("far", "still"), smoke=True, out=tmp_path)
    assert exit_.value.code == 1
    said = capsys.readouterr()
    assert "far: skipped, for The environment 'nothing_here:far-v0' needs a package that is missing" in said.out
    assert "pip install 'poise[manipulation]'" in said.out
    assert "still: the expert of still succeeded in 0 of 20 attempts" in said.out
    assert "seed 0 in stage 'rest'" in said.out
    assert "poise: failed: still; logs are under" in said.err
    assert set(results(tmp_path / "smoke")["missing"]) == {"far", "still"}
    assert "seed 0 in stage &#x27;rest&#x27;" in (tmp_path / "smoke" / "report.html").read_text()


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (row(0.4, 0.3, 0.5), "Diffusion succeeds more often than regression on the same network (+40.0 points, 95 %"),
        (row(-0.2, -0.3, -0.1), "Regression on the same network succeeds more often than diffusion (−20.0 points"),
        (row(0.01, -0.02, 0.04), "as good as these episodes can tell (+1.0 points, 95 % interval −2.0 to +4.0, paired"),
        (row(0.0, -0.1, 0.1, (0.9, 0.1)), "It takes fewer ways: mode entropy 0.10 against 0.90."),
    ],
)
def test_the_page_says_where_regression_is_as_good(tmp_path, found, words):
    assert words in verdict(found)
    found["note"] = "There is no film: no renderer"
    write_applications(tmp_path / "page.html", [found], {"toy": tmp_path}, {"other": "skipped"}, "small print")
    page = (tmp_path / "page.html").read_text()
    assert words in page
    assert ("Regression is as good or better on toy." in page) == (found["difference"]["low"] <= 0)
    assert "There is no film: no renderer" in page
    assert "<video" not in page
    assert "other: skipped" in page


def test_where_there_is_no_renderer_the_figures_stand_and_a_note_says_why(tmp_path, monkeypatch):
    def film(*_):
        raise ImportError("no renderer: apt-get install libosmesa6")
        yield

    monkeypatch.setattr(suite, "film", film)
    case = Case("navigate", Pinned(tmp_path, ""), tmp_path, Effort())
    episode = SimpleNamespace(seed=0, success=True, actions=np.zeros((9, 2)))
    note = suite.filmed(case, None, [episode])  # pyright: ignore[reportArgumentType]
    assert note == "There is no film: no renderer: apt-get install libosmesa6"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["navigat"], "did you mean 'navigate'?"),
        (["navigate", "--minutes", "0"], "got --minutes 0.0, expected more than 0"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["poise", "applications", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code in (1, 2)
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_list_names_every_task_and_how_to_collect(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    applications_suite(list=True)
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == list(applications())
    assert all(line.endswith(f"[poise collect {name}]") for line, name in zip(said, applications(), strict=True))
