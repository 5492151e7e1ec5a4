import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from poise.cli import main
from poise.cli.collect import collect
from poise.data import Episodes, Facts, Role, read, write

RECIPE = Path(__file__).parents[1] / "recipes/applications/navigate.py"


def run(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["poise", "dataset", *map(str, arguments)])
    main()


def status(monkeypatch, *arguments: object) -> int | str:
    """Exit status of a command; one that returns has 0."""
    with pytest.raises(SystemExit) as exit_:
        sys.exit(run(monkeypatch, *arguments))
    return exit_.value.code or 0


@pytest.fixture
def episodes() -> Episodes:
    rng = np.random.default_rng(0)
    time = np.concatenate([np.arange(n) / 10 for n in (30, 25)])
    state = np.stack([np.sin(time), np.cos(time)], 1) + 0.01 * rng.standard_normal((55, 2))
    rows = {
        "state": state.astype(np.float32),
        "action": state + 0.01 * rng.standard_normal((55, 2)),
        "camera": rng.integers(0, 256, (55, 6, 8, 3), np.uint8),
    }
    facts = Facts(
        10.0,
        "arm",
        {"state": Role.OBSERVATION, "camera": Role.OBSERVATION, "action": Role.ACTION},
        {"state": ("reach", "lift")},
    )
    return Episodes(rows, np.array([30, 55]), ("push <it>", "pull"), facts)


@pytest.fixture
def clean(episodes, tmp_path) -> Path:
    write(tmp_path / "clean.npz", episodes)
    return tmp_path / "clean.npz"


@pytest.fixture
def broken(episodes, tmp_path) -> Path:
    """Past the checks of `Episodes`."""
    state = episodes.features["state"].copy()
    state[33, 1] = np.nan
    np.savez(tmp_path / "broken.npz", state=state, action=episodes.features["action"], episode_ends=episodes.ends)
    return tmp_path / "broken.npz"


def test_info_says_what_is_in_a_dataset(clean, monkeypatch, capsys):
    run(monkeypatch, "info", clean)
    said = capsys.readouterr().out
    for part in (
        "clean.npz: npz, 0.0 MiB",
        "episodes  2 of 25 to 30 steps",
        "steps     55, 0.1 minutes at 10 Hz",
        "robot     arm",
        "task      'pull': 1 episodes",
        "state    float32  (2,)       observation  reach, lift",
        "camera   uint8    (6, 8, 3)  observation",
        "action   float64  (2,)       action",
    ):
        assert part in said


def test_validate_tells_clean_data_from_broken_ones_by_its_exit_status(clean, broken, tmp_path, monkeypatch, capsys):
    assert status(monkeypatch, "validate", clean) == 0
    assert capsys.readouterr().out == "2 episodes, 55 steps; errors: 0, warnings: 0\n"
    assert status(monkeypatch, "validate", broken, "--json", tmp_path / "findings.json", "--horizon", 26) == 1
    said = capsys.readouterr().out
    assert "ERROR   nan\n    episode 1, frame 3, state: state[1] is NaN or infinite in 1 rows" in said
    assert "WARNING short\n    episode 1, frame 0: the episode has 25 rows" in said
    assert said.index("nan") < said.index("short"), "errors come first"
    results = json.loads((tmp_path / "findings.json").read_text())
    assert (results["errors"], results["warnings"], results["steps"]) == (1, 1, 55)
    (nan,) = (finding for finding in results["findings"] if finding["code"] == "nan")
    assert nan.pop("message").startswith("state[1] is NaN")
    assert nan == {"code": "nan", "severity": "error", "feature": "state", "episode": 1, "frame": 3}


def test_warnings_alone_fail_only_a_strict_validation(clean, monkeypatch, capsys):
    assert status(monkeypatch, "validate", clean, "--horizon", 26) == 0
    assert status(monkeypatch, "validate", clean, "--horizon", 26, "--strict") == 1
    assert "WARNING short" in capsys.readouterr().out


def test_stats_prints_every_dimension_and_writes_them(clean, episodes, tmp_path, monkeypatch, capsys):
    run(monkeypatch, "stats", clean, "--json", tmp_path / "stats.json")
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()[1:]][:2] == ["state[reach]", "state[lift]"]
    assert "camera[channel 2]" in said.replace("  ", " ")
    found = json.loads((tmp_path / "stats.json").read_text())
    np.testing.assert_allclose(found["action"]["q90"], np.quantile(episodes.features["action"], 0.9, axis=0))
    assert found["camera"]["count"] == [55 * 6 * 8] * 3
    run(monkeypatch, "stats", clean, "--features", "action")
    assert "state" not in capsys.readouterr().out
    assert status(monkeypatch, "stats", clean, "--features", "acton") == 2
    assert "got the features ['acton'], which" in capsys.readouterr().err


def test_convert_writes_the_format_of_the_suffix_or_of_the_name(clean, episodes, tmp_path, monkeypatch, capsys):
    run(monkeypatch, "convert", clean, tmp_path / "copy.npz", "--features", "state", "action")
    copy = read(tmp_path / "copy.npz")
    assert set(copy.features) == {"state", "action"}
    np.testing.assert_array_equal(copy.features["state"], episodes.features["state"])
    assert copy.tasks == episodes.tasks
    run(monkeypatch, "convert", clean, tmp_path / "named", "--format", "npz", "--rate", 25)
    (tmp_path / "named").rename(tmp_path / "named.npz")
    assert read(tmp_path / "named.npz").facts == replace(episodes.facts, rate=25.0)
    assert "named (npz, " in capsys.readouterr().out
    assert status(monkeypatch, "convert", clean, tmp_path / "copy.npz") == 2
    assert "exists, expected a path to write to" in capsys.readouterr().err


def test_convert_knows_a_zip_by_its_inner_suffix_and_makes_folders(clean, tmp_path, monkeypatch, capsys):
    pytest.importorskip("numcodecs")
    run(monkeypatch, "convert", clean, tmp_path / "new/folder/copy.zarr.zip", "--features", "state", "action")
    assert "copy.zarr.zip (zarr, " in capsys.readouterr().out
    run(monkeypatch, "convert", tmp_path / "new/folder/copy.zarr.zip", tmp_path / "other/copy.npz")
    assert set(read(tmp_path / "other/copy.npz").features) == {"state", "action"}


def test_convert_names_the_format_that_was_meant(clean, tmp_path, monkeypatch, capsys):
    assert status(monkeypatch, "convert", clean, tmp_path / "x", "--format", "nzp") == 2
    assert "did you mean 'npz'?" in capsys.readouterr().err
    assert status(monkeypatch, "convert", clean, tmp_path / "x.unknown") == 2
    assert "expected a suffix of ['.hdf5', '.npz', " in capsys.readouterr().err
    assert not list(tmp_path.glob("*x*.unknown"))


def test_pack_writes_a_recording(clean, episodes, tmp_path, monkeypatch):
    run(monkeypatch, "pack", clean, tmp_path / "packed")
    packed = read(tmp_path / "packed")
    for name, values in episodes.features.items():
        np.testing.assert_array_equal(packed.features[name], values)


def test_plot_writes_pictures_and_one_page_that_needs_nothing_else(clean, tmp_path, monkeypatch, capsys):
    run(monkeypatch, "plot", clean, "--out", tmp_path / "plots", "--episodes", 2)
    assert "index.html" in capsys.readouterr().out
    names = {"distributions-action", "distributions-state", "film-camera", "lengths", "trajectories-action"}
    pictures = {path.stem for path in (tmp_path / "plots").glob("*.png")}
    assert pictures == {*names, "trajectories-state"}
    page = (tmp_path / "plots" / "index.html").read_text()
    for part in ("state[reach]", "state[lift]", "episode 0", "episode 1", "prefers-color-scheme: dark", "6 × 8 × 3"):
        assert part in page
    assert page.count("<figure") == 6
    assert "http" not in page.replace("http://www.w3.org", "")
    assert status(monkeypatch, "plot", clean, "--out", tmp_path / "plots", "--episodes", 0) == 2


def test_plot_keeps_names_from_a_file_out_of_its_paths(episodes, tmp_path, monkeypatch):
    np.savez(tmp_path / "names.npz", **{"..\\..\\up <b>": episodes.features["state"], "episode_ends": episodes.ends})
    run(monkeypatch, "plot", tmp_path / "names.npz", "--out", tmp_path / "a" / "b")
    written = [path for path in tmp_path.rglob("*") if path.suffix in (".png", ".html")]
    assert {path.parent for path in written} == {tmp_path / "a" / "b"}
    assert "<b>" not in (tmp_path / "a" / "b" / "index.html").read_text().replace("<b>Figure", "")


def test_plot_draws_data_with_nan(broken, tmp_path, monkeypatch):
    run(monkeypatch, "plot", broken, "--out", tmp_path / "plots")
    assert (tmp_path / "plots" / "distributions-state.png").exists()


def test_replay_reports_the_deviation_and_writes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    collect("navigate", episodes=4)
    arguments = "replay", "--recipe", RECIPE, "--episodes", 2, "--tolerance", 1e-6
    run(monkeypatch, *arguments, "--json", tmp_path / "replay.json")
    said = capsys.readouterr().out
    assert "position  0.0" in said
    assert "0 of 2" in said, "the actions were recorded before noise was added"
    results = json.loads((tmp_path / "replay.json").read_text())
    assert [one["episode"] for one in results["episodes"]] == [0, 1]
    deviation = results["episodes"][0]["deviation"]["position"]
    assert deviation[0] == 0
    assert results["episodes"][0]["left"]["position"] == int(np.flatnonzero(np.array(deviation) > 1e-6)[0])
    assert status(monkeypatch, *arguments, tmp_path / "absent.npz") == 2
    assert "expected demonstrations of navigate" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["info", "validate", "stats", "plot", "convert", "pack", "replay"])
def test_help_teaches_by_an_example(verb, monkeypatch, capsys):
    assert status(monkeypatch, verb, "--help") == 0
    assert f"poise dataset {verb} " in capsys.readouterr().out.split("usage:")[1].split("\n", 2)[2]


def test_a_file_that_is_broken_ends_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.npz").write_bytes(b"PK no archive")
    for verb in ("info", "validate", "stats"):
        assert status(monkeypatch, verb, tmp_path / "bad.npz") == 2
        assert "bad.npz: archive: is broken" in capsys.readouterr().err
