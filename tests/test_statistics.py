import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from poise.data import Episodes
from poise.data import statistics as module
from poise.data.flat import Flat, in_memory
from poise.data.statistics import QUANTILES, Statistics, statistics

LENGTHS = (3, 200, 17, 41)


def dataset(features, lengths=LENGTHS) -> Flat:
    """Rows past the checks of `Episodes`, which refuse NaN."""
    return Flat(Path("made"), features, np.cumsum(lengths))


def assert_exact(found: Statistics, rows: np.ndarray) -> None:
    """Against NumPy on everything at once, in float64."""
    rows = rows.reshape(len(rows), -1).astype(np.float64)
    shares = list(QUANTILES.values())
    np.testing.assert_array_equal(found.count, len(rows))
    np.testing.assert_array_equal(found.minimum, rows.min(0))
    np.testing.assert_array_equal(found.maximum, rows.max(0))
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.deviation, rows.std(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.stack(list(found.quantiles.values())), np.quantile(rows, shares, axis=0), rtol=1e-12)


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    steps = sum(LENGTHS)
    return {
        "state": rng.lognormal(size=(steps, 3)).astype(np.float32),
        "points": rng.normal(size=(steps, 2, 4)),
        "count": rng.integers(-5, 2**40, (steps, 1)),
        "gripper": rng.random((steps, 1)) < 0.3,
        "image": rng.integers(0, 256, (steps, 5, 4, 3), np.uint8) // np.array([1, 3, 9], np.uint8),
    }


@pytest.mark.parametrize("budget", [2**30, 3000, 1])
def test_statistics_of_numbers_equal_numpy_on_the_concatenation_whatever_fits_into_memory(
    features, budget, monkeypatch
):
    monkeypatch.setattr(module, "_BUDGET", budget)
    found = statistics(dataset(features))
    assert list(found) == list(features)
    for name in ("state", "points", "count", "gripper"):
        assert_exact(found[name], features[name])


def test_statistics_of_images_by_their_histograms_equal_numpy_on_all_pixels_of_a_channel(features):
    found = statistics(dataset(features), ["image"])["image"]
    assert_exact(found, features["image"].reshape(-1, 3))


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_images_of_floats_are_taken_by_their_levels(features, white):
    images = features["image"] * np.float32(white / 255)
    assert_exact(statistics(dataset({"image": images}))["image"], features["image"].reshape(-1, 3))


def test_averages_of_the_quantiles_of_episodes_are_another_number():
    rng = np.random.default_rng(1)
    lengths = (20, 400, 20)
    rows = np.concatenate([rng.normal(centre, 1, (n, 1)) for centre, n in zip((-30, 0, 30), lengths, strict=True)])
    found = statistics(dataset({"x": rows}, lengths))["x"].quantiles
    parts = np.split(rows, np.cumsum(lengths)[:-1])
    averaged = {name: np.mean([np.quantile(part, share) for part in parts]) for name, share in QUANTILES.items()}
    assert found["q99"][0] == pytest.approx(np.quantile(rows, 0.99))
    assert found["q99"][0] > 29
    assert averaged["q99"] < 3, "the outer episodes cancel in the average"


def test_values_that_are_not_finite_are_left_out_and_counted():
    rows = np.arange(10.0)[:, None]
    rows[[2, 5], 0] = np.nan, np.inf
    found = statistics(dataset({"x": rows}, (4, 6)))["x"]
    kept = np.delete(rows, [2, 5], axis=0)
    assert found.count == 8
    assert_exact(found, kept)
    nothing = statistics(dataset({"x": np.full((3, 1), np.nan)}, (3,)))["x"].plain()
    assert nothing["count"] == [0]
    assert nothing["mean"] == [None]
    assert nothing["q50"] == [None]


def test_columns_know_their_episodes_and_their_steps():
    rows = np.array([[0, 5], [1, 7], [10, 5], [12, 5]], np.uint8)
    source = dataset({"x": rows}, (2, 2))
    first, second = module.columns(source, ["x"])
    np.testing.assert_array_equal(first.steps(), [0, 1, 0, 2])
    np.testing.assert_array_equal(second.steps(), [0, 2, 0, 0])
    assert [first.place(k) for k in range(4)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    (last,) = (column for column in module.columns(source, ["x"], [1]) if column.dimension == 0)
    assert last.place(1) == (1, 1)
    assert last.values.tolist() == [10, 12]


def test_the_statistics_are_named_as_in_files_of_lerobot_and_are_json():
    plain = statistics(in_memory(Episodes({"x": np.arange(101.0)[:, None]}, np.array([101]))))["x"].plain()
    assert plain == {
        "count": [101], "min": [0.0], "max": [100.0], "mean": [50.0], "std": [pytest.approx(np.arange(101).std())],
        "q01": [1.0], "q10": [10.0], "q50": [50.0], "q90": [90.0], "q99": [99.0],
    }  # fmt: skip


LARGE = """
import resource
import sys
import numpy as np
from pathlib import Path
from poise.data.flat import Flat
from poise.data.statistics import statistics

rows = np.lib.format.open_memmap(sys.argv[1], mode="r")
source = Flat(Path("made"), {"x": rows}, np.array([4_000_000, 10_000_000]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = statistics(source)["x"]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, found.quantiles["q50"][0], found.mean[0])
"""


def test_ten_million_rows_take_little_more_memory_than_themselves(tmp_path):
    rows = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (10_000_000, 1))
    rows[:] = np.arange(10_000_000, dtype=np.float32)[::-1, None]
    rows.flush()
    said = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path / "x.npy")], capture_output=True, text=True, check=True
    ).stdout.split()
    unit = 1024 if sys.platform != "darwin" else 1
    assert int(said[0]) * unit < 130 * 2**20
    assert float(said[1]) == 4_999_999.5
    assert float(said[2]) == 4_999_999.5
