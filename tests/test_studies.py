"""The two studies of `poise applications`: policies of fewer demonstrations, and what disturbs policies."""

import json
import re
from functools import partial

import numpy as np
import pytest
from test_control import at, counting

from poise.cli.applications import applications_suite
from poise.cli.engines import Local, Pinned
from poise.cli.studies import Fewer, Studies
from poise.cli.suite import Case, Effort
from poise.evaluation.disturbances import STRENGTHS, Disturbed, disturbance, recovery
from poise.evaluation.studies_page import disturbance_figure, disturbance_table, efficiency_figure, sections
from poise.policies import RecedingHorizon

SHOWN = {"x": np.float32([[-1.0], [3.0]]), "action": np.float32([[10.0], [14.0]])}


def driven(control, steps: int, seed: int = 0, robots: int = 1) -> np.ndarray:
    """What is executed for the observations 0, 1, 2, ..., `(steps, robots)`."""
    controller = control(counting(history=1), robots)
    controller.reset([seed] * robots)
    return np.array([controller.act(at(*[float(step)] * robots))[:, 0] for step in range(steps)])


def under(kind: str, strength: float, **more) -> np.ndarray:
    return driven(disturbance(kind, strength, SHOWN, (0,)), **more)


PLAIN = partial(driven, RecedingHorizon)


def test_a_wrong_start_is_an_action_of_the_demonstrations_for_so_many_steps():
    found = under("start", 3, steps=9)[:, 0]
    assert found[0] in (10, 14)
    assert (found[:3] == found[0]).all()
    np.testing.assert_array_equal(found[3:], PLAIN(9)[3:, 0])
    assert {under("start", 1, steps=1, seed=seed).item() for seed in range(20)} == {10, 14}


def test_a_push_is_one_vector_of_the_length_that_is_said_for_five_steps():
    off = under("push", 1.5, steps=40) - PLAIN(40)
    (pushed,) = np.nonzero(off[:, 0])
    assert len(pushed) == 5
    assert (np.diff(pushed) == 1).all()
    assert 5 <= pushed[0] < 25
    np.testing.assert_allclose(np.abs(off[pushed]), 1.5 * 2.0, rtol=1e-6)  # the deviation of 10 and 14 is 2
    assert len({under("push", 1.0, steps=40, seed=seed).tobytes() for seed in range(9)}) > 5


def test_noise_has_the_deviation_that_is_said_and_is_on_what_is_seen():
    class Mirror:
        robots, fresh = 1, np.ones(1, bool)

        def reset(self, seeds, which=None):
            pass

        def act(self, observation, which=None, age=None):
            return observation["x"]

    noisy = Disturbed(Mirror(), {"x": 0.5 * SHOWN["x"].std(0)})
    noisy.reset([3])
    values = np.array([noisy.act(at(7.0)).item() for _ in range(4000)])
    assert values.mean() == pytest.approx(7.0, abs=5 * 1.0 / np.sqrt(4000))
    assert values.std() == pytest.approx(1.0, rel=5 / np.sqrt(2 * 4000))
    noisy.reset([3])
    assert [noisy.act(at(7.0)).item() for _ in range(9)] == values[:9].tolist()


def test_a_delay_is_told_and_a_lag_is_not():
    steps = np.arange(30)
    for kind, late in (("delay", 0), ("lag", 3)):
        found = under(kind, 3, steps=30)[:, 0]  # a thousand times the observation, plus the index in its plan
        due = found // 1000 + found % 1000
        np.testing.assert_array_equal(due[6:], steps[6:] - late)
        assert (found[6:] // 1000 <= steps[6:] - 3).all()


def test_an_unknown_disturbance_is_named():
    with pytest.raises(ValueError, match="got the disturbance 'wind', expected one of "):
        disturbance("wind", 1, SHOWN, (0,))


def test_the_recovery_is_a_ratio_of_rates_over_the_same_seeds():
    before = [True] * 80 + [False] * 20
    assert recovery(before, before) == (1.0, 1.0, 1.0)
    half = recovery([True] * 40 + [False] * 60, before)
    assert half is not None
    assert half.value == 0.5
    assert 0.35 < half.low < 0.45 < 0.55 < half.high < 0.65
    assert recovery([False], [False]) is None


def rows(**more) -> list[dict]:
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    common = {"task": "toy", "success": interval, "difference": {"value": -0.05, "low": -0.1, "high": 0.0}, **more}
    return [
        {**common, "policy": "diffusion"},
        {**common, "policy": "regression", "success": {**interval, "value": 0.9}},
    ]


def test_pages_draw_what_was_measured():
    few = [row for count in (10, 100) for row in rows(demonstrations=count)]
    left = {"recovery": {"value": 0.25, "low": 0.2, "high": 0.3}}
    kinds = [("none", 0.0), *((kind, s) for kind, strengths in STRENGTHS.items() for s in strengths)]
    disturbed = [row for kind, strength in kinds for row in rows(kind=kind, strength=strength, **left)]
    first, second = sections(few, disturbed)
    assert first.table is not None
    assert first.table.rows[1] == (
        "toy",
        "100",
        "50.0 %",
        "40.0 to 60.0",
        "90.0 %",
        "40.0 to 60.0",
        "−5.0 %",
        "−10.0 to 0.0",
    )
    assert second.table is not None
    assert [line[1] for line in second.table.rows][:3] == ["none", "start 2", "start 4"]
    assert second.table.rows[1][-2:] == ("25.0 %", "25.0 %")
    (panel,) = efficiency_figure(few).axes
    assert {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in panel.get_lines()} == {
        "diffusion": [0.5, 0.5],
        "regression": [0.9, 0.9],
    }
    figure = disturbance_figure(disturbed)
    assert [axes.get_title("left") for axes in figure.axes] == list(STRENGTHS)
    for axes, strengths in zip(figure.axes, STRENGTHS.values(), strict=True):
        assert np.asarray(axes.get_lines()[0].get_xdata()).tolist() == [0, *strengths]
    assert "toy" in str(figure.get_label())
    nothing = disturbance_table([{**row, "recovery": None} for row in disturbed])
    assert nothing.rows[0][-2:] == ("–", "–")
    assert [*sections([], [])] == []


def test_the_suite_runs_both_studies_and_goes_on_where_it_stopped(tmp_path, capsys):
    asked = Studies(studies=True, shown=(4, 10, 50))
    applications_suite(("navigate",), smoke=True, out=tmp_path, studies=asked)
    found = json.loads((tmp_path / "smoke" / "results.json").read_text())["studies"]
    assert [(row["demonstrations"], row["policy"]) for row in found["demonstrations"]] == [
        (count, policy) for count in (4, 10) for policy in ("diffusion", "regression")
    ]
    assert len(found["disturbances"]) == 2 * (1 + sum(map(len, STRENGTHS.values())))
    page, table = ((tmp_path / "smoke" / name).read_text() for name in ("report.html", "results.md"))
    for title in ("How many demonstrations?", "What disturbs them?"):
        assert title in page
        assert title in table
    assert len(re.findall(r"^\| navigate \| (?:none|start|noise|delay|lag|push)", table, re.MULTILINE)) == 16
    assert {file.name for file in (tmp_path / "smoke").glob("*.png")} == {*("strips.png", "study-1.png", "study-2.png")}
    folder = tmp_path / "smoke" / "navigate"
    notes = json.loads((folder / "fewer" / "4" / "run.json").read_text())
    assert notes["made from"]["shown"] == 4
    before = (folder / "disturbed" / "run.json").stat().st_mtime_ns
    applications_suite(("navigate",), smoke=True, out=tmp_path, studies=asked)
    assert (folder / "disturbed" / "run.json").stat().st_mtime_ns == before
    capsys.readouterr()


def test_without_the_flag_nothing_is_studied(tmp_path):
    case = Case("navigate", Pinned(tmp_path, ""), tmp_path, Effort())
    assert Studies().run(Local(), [case]) == ({"demonstrations": [], "disturbances": []}, {})
    assert Fewer(case, 4).name == "navigate with 4 demonstrations"
