"""`poise collect`: successes alone, in the order of their seeds, wherever they are driven; and what fails is named."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from poise import read
from poise.applications import find
from poise.applications.application import demonstrations
from poise.cli import main
from poise.cli.collect import collect, gathered, ways
from poise.cli.engines import Workers
from poise.envs.experts.navigate import RouteExpert

# Ray leaves the processes of a cluster to the operating system when it has told them to end.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


class Careless:
    """Drives into the wall on two of five seeds."""

    stage = "drive"

    def __init__(self):
        self._driver = RouteExpert()

    def reset(self, env, seed):
        self._driver.reset(env, seed)
        self.stage = "lost" if seed % 5 in (1, 3) else "drive"

    def act(self, observation):
        action = self._driver.act(observation)
        return action if self.stage == "drive" else np.full_like(action, -1.0)


class Lost(Careless):
    """Drives into the wall on all seeds but every tenth."""

    def reset(self, env, seed):
        super().reset(env, seed)
        self.stage = "lost" if seed % 10 else "drive"


@pytest.fixture
def careless():
    return dataclasses.replace(find("navigate"), name="careless", expert=Careless, noise=0.05)


@pytest.fixture(scope="module")
def collected(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("collected") / "navigate.npz"
    collect("navigate", episodes=12, out=path, seed=3)
    return path


@pytest.mark.parametrize("workers", [Workers(1), Workers(2), Workers(2, "ray")], ids=str)
def test_the_file_is_the_same_wherever_attempts_are_driven(collected, tmp_path, workers):
    if workers.engine == "ray":
        pytest.importorskip("ray", reason="the extra cluster is not installed")
    collect("navigate", episodes=12, out=tmp_path / "navigate.npz", seed=3, workers=workers, chunk=5)
    assert (tmp_path / "navigate.npz").read_bytes() == collected.read_bytes()


def test_what_is_written_says_what_it_is(collected):
    episodes = read(collected)
    assert episodes.tasks == ("navigate",) * 12
    assert episodes.facts.rate == 10.0
    assert {"position", "velocity", "goal", "action", "mode"} == set(episodes.features)
    one = next(iter(gathered(find("navigate"), 1, seed=3).kept))
    assert np.array_equal(episodes.select([0]).features["action"], one.rows["action"])


def test_successes_alone_are_kept_and_the_share_is_reported(careless):
    found = gathered(careless, 6)
    assert [one.seed for one in found.kept] == [0, 2, 4, 5, 7, 9]
    assert [(one.seed, one.stage) for one in found.failed] == [(1, "lost"), (3, "lost"), (6, "lost"), (8, "lost")]
    lines = "\n".join(found.lines)
    assert "kept 6 of 10 attempts (60.0%; 95 % interval 31.3% to 83.2%)" in lines
    assert "failed: seed 1 in stage 'lost', seed 3 in stage 'lost'" in lines
    assert "below, between " in lines


def test_the_shares_of_the_ways_and_how_even_they_are():
    navigate = find("navigate")
    assert ways(navigate, [0, 4, 5, 7]).endswith("above, around 25%. Entropy 1.00 of that of equal shares")
    assert ways(navigate, [0, 0, 7, 7]).endswith("above, around 50%. Entropy 0.50 of that of equal shares")
    assert "not recognised 50%" in ways(navigate, [0, -1])


def test_an_expert_that_mostly_fails_ends_in_an_error_that_names_seeds_and_stages(careless):
    lost = dataclasses.replace(careless, name="lost", expert=Lost)
    with pytest.raises(
        ValueError,
        match=r"the expert of lost succeeded in 2 of 20 attempts, expected at least half of them; failed: "
        r"seed 1 in stage 'lost', .* and 13 more. Lower the --noise",
    ):
        gathered(lost, 10)


def test_every_format_is_written_by_suffix_or_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    collect("navigate", episodes=2)
    assert "next: poise train recipes/applications/navigate.py\n" in capsys.readouterr().out
    collect("navigate", episodes=2, out=Path("folder"), format="recording")
    assert "navigate.py --data folder\n" in capsys.readouterr().out
    first, second = read("out/demonstrations/navigate.npz"), read("folder")
    assert first.tasks == second.tasks
    assert np.array_equal(first.features["action"], second.features["action"])


def test_demonstrations_of_another_task_are_refused(collected, careless, tmp_path, monkeypatch):
    assert len(demonstrations(find("navigate"), collected)) == 12
    with pytest.raises(ValueError, match=r"holds demonstrations of navigate, expected those of careless: poise coll"):
        demonstrations(careless, collected)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected demonstrations of careless: poise collect careless"):
        demonstrations(careless, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["navigat"], "got the task 'navigat', expected one of "),
        (["navigat"], "did you mean 'navigate'?"),
        (["navigate", "--out", "taken.npz"], "taken.npz exists already, expected a new name"),
        (["navigate", "--out", "new.xyz"], "got new.xyz, expected a suffix of"),
        (["navigate", "--out", "new", "--format", "zar"], "did you mean 'zarr'?"),
        (["navigate", "--episodes", "0"], "got 0 episodes in chunks of 25 from seed 0, expected at least 1"),
        (["navigate", "--noise", "-1"], "got a noise of -1.0, expected at least 0"),
        (["navigate", "--seed", "49990"], "expected them below 50000: those from there on are for evaluation"),
        (["navigate", "--address", "here:1"], "expected --engine ray too"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("taken.npz").write_text(json.dumps({}))
    monkeypatch.setattr(sys, "argv", ["poise", "collect", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("poise: ")
    assert message in last
    assert [path.name for path in tmp_path.iterdir()] == ["taken.npz"]


def test_help_names_the_tasks(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["poise", "collect", "--help"])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().out
    assert "navigate" in said.partition("positional arguments")[2].partition("options")[0]
    assert "poise collect navigate --episodes 200" in said
