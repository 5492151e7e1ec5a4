"""Properties that hold for whatever is drawn: windows, normalisers, formats and statistics."""

import tempfile
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis.extra import numpy as hnp

from poise.data import (
    Contents,
    Episodes,
    Facts,
    Feature,
    Limits,
    Normaliser,
    Pixels,
    Quantile,
    Standard,
    Unscaled,
    Windows,
    known_formats,
    open_dataset,
    read,
)
from poise.data.flat import in_memory
from poise.data.statistics import QUANTILES, statistics

for _name in ("h5py", "pyarrow", "PIL", "numcodecs"):
    pytest.importorskip(_name, reason=f"{_name} is missing: pip install 'poise[hdf5,lerobot,images,zarr]'")

few = settings(max_examples=30, derandomize=True, deadline=None)
lengths = st.lists(st.integers(1, 9), min_size=1, max_size=4)


# --- windows ----------------------------------------------------------------------------------------------------------


@few
@given(lengths, st.integers(1, 4), st.integers(1, 6), st.data())
def test_windows_are_what_their_definition_says(lengths, history, horizon, data):
    padded, lead = (data.draw(st.integers(0, horizon - 1)) for _ in range(2))
    ends = np.cumsum(lengths)
    rows = np.arange(ends[-1])
    episodes = Episodes({"state": np.stack([rows, -rows], 1) * 1.0, "action": rows[:, None] + 0.5}, ends)
    expected = []
    for first, end in pairwise([0, *ends.tolist()]):
        for i in range(first, end):
            ahead = [i - lead + k for k in range(horizon)]
            if sum(row >= end for row in ahead) <= padded:
                seen = [max(first, i - j) for j in reversed(range(history))]
                done = [min(end - 1, max(first, row)) + 0.5 for row in ahead]
                expected.append((seen, done, [first <= row < end for row in ahead]))
    if not expected:
        with pytest.raises(ValueError, match="shorten the horizon or allow more padding"):
            Windows(episodes, ("state",), history, horizon, padded, lead=lead)
        return
    windows = Windows(episodes, ("state",), history, horizon, padded, lead=lead)
    batch = windows[torch.arange(len(windows))]
    assert batch.observation["state"][..., 0].tolist() == [seen for seen, _, _ in expected]
    assert batch.observation["state"][..., 1].tolist() == [[-row for row in seen] for seen, _, _ in expected]
    assert batch.actions[..., 0].tolist() == [done for _, done, _ in expected]
    assert batch.real.tolist() == [real for _, _, real in expected]


# --- normalisers ------------------------------------------------------------------------------------------------------

values = st.floats(-1e3, 1e3, width=32)
tables = hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=values)
scalings = st.sampled_from([Limits(), Standard(), Quantile(), Quantile(0.1, 0.9), Pixels(), Unscaled()])


@few
@given(tables, scalings, st.floats(-1e3, 1e3, width=32))
def test_normalisers_invert_and_constants_never_blow_up(table, scaling, constant):
    table[:, 0] = constant
    data = torch.from_numpy(table)
    normaliser = Normaliser("x", data.shape[1:])
    normaliser.fit(data, scaling)
    normaliser.check()
    units = normaliser(data)
    # Near-constant dimensions of large values lose what float32 has no place for.
    scale = normaliser.scale.abs().clamp_min(1.0)
    tolerance = 1e-5 * (1 + data.abs().max() + normaliser.offset.abs() / normaliser.scale.abs()) * scale
    assert ((normaliser.inverse(units) - data).abs() <= tolerance / normaliser.scale.abs().clamp_max(1.0)).all()
    if not isinstance(scaling, Pixels):
        assert normaliser.scale[0] == 1.0, "of a constant"
        assert normaliser.scale.max() <= 2e4, "of whatever hardly moved"
    if isinstance(scaling, Limits):
        slack = 1e-6 * (1 + normaliser.offset.abs())
        assert (units.abs() <= 1 + slack).all()
        moved = (data.double().max(0).values - data.double().min(0).values) >= 1e-4
        assert (units.max(0).values - 1).abs()[moved].le(slack[moved]).all()
        assert (units.min(0).values + 1).abs()[moved].le(slack[moved]).all()


# --- formats ----------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(categories=("L", "N", "P", "Zs")), max_size=12)
words = st.text(st.characters(categories=("Ll", "Lo", "Nd")), min_size=1, max_size=8)
types = {"npz": 64, "recording": 64, "zarr": 64, "robomimic": 64, "lerobot": 53}
"""Format -> bits of integers; LeRobot's statistics of them are floats."""


@st.composite
def datasets(draw) -> Contents:
    dtypes = ("?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
    names = draw(st.lists(words, min_size=1, max_size=3, unique=True))
    looks = {"action": Feature(np.dtype("f4"), (draw(st.integers(1, 3)),))}
    for name in names:
        assume(name not in ("action", "actions", "index", "rewards", "dones", "states", "timestamp"))
        shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
        looks[name] = Feature(np.dtype(draw(st.sampled_from(dtypes))), shape)
    count = draw(st.integers(1, 3))
    steps = np.array(draw(st.lists(st.integers(1, 6), min_size=count, max_size=count)))
    tasks = tuple(draw(st.lists(texts, min_size=count, max_size=count)))
    return Contents(looks, steps, Facts(10.0), tasks if any(tasks) else ())


def filled(contents: Contents, seed: int, bits: int) -> dict[str, np.ndarray]:
    """Rows of any bits, without NaN and integers of more bits than are given."""
    random, steps = np.random.default_rng(seed), int(contents.lengths.sum())
    found = {}
    for name, look in contents.features.items():
        size = steps * int(np.prod(look.shape)) * look.dtype.itemsize
        array = np.frombuffer(random.bytes(size), look.dtype if look.dtype.kind != "b" else "u1")
        array = array % 2**bits if look.dtype.kind in "iu" and look.dtype.itemsize * 8 > bits else array
        array = array % 2 == 0 if look.dtype.kind == "b" else array
        array = np.where(np.abs(array) < 1e30, array, 0.5) if look.dtype.kind == "f" else array
        found[name] = array.astype(look.dtype).reshape(steps, *look.shape)
    return found


@pytest.mark.parametrize("name", types)
@settings(max_examples=15, derandomize=True, deadline=None)
@given(st.data())
def test_every_written_format_gives_back_what_it_was_given(name, data):
    contents, format = data.draw(datasets()), known_formats()[name]
    arrays, ends = filled(contents, data.draw(st.integers(0, 2**16)), types[name]), np.cumsum(contents.lengths)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{format.suffix}"
        with format.create(path, contents) as sink:
            for k, (first, end) in enumerate(pairwise([0, *ends.tolist()])):
                rows = {n: array[first:end] for n, array in arrays.items()}
                sink.append(rows, contents.tasks[k] if contents.tasks else "")
        with open_dataset(path) as source:
            assert source.contents.lengths.tolist() == contents.lengths.tolist()
        found = read(path)
    assert found.ends.tolist() == ends.tolist()
    assert set(found.features) == set(arrays)
    for feature, array in arrays.items():
        again = found.features[feature]
        assert (again.dtype, again.shape) == (array.dtype, array.shape)
        assert again.tobytes() == array.tobytes()
    assert "tasks" in format.loses or found.tasks == contents.tasks
    assert "rate" in format.loses or found.facts.rate == 10.0


# --- statistics -------------------------------------------------------------------------------------------------------


@few
@given(lengths, st.sampled_from(["f4", "f8", "i4"]), st.integers(0, 2**16))
def test_statistics_are_those_of_numpy(lengths, dtype, seed):
    ends = np.cumsum(lengths)
    table = (100 * np.random.default_rng(seed).normal(size=(ends[-1], 2))).astype(dtype)
    found = statistics(in_memory(Episodes({"x": table}, ends)))["x"]
    exact = table.astype("f8")
    for name, share in QUANTILES.items():
        np.testing.assert_allclose(found.quantiles[name], np.quantile(exact, share, axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.deviation, exact.std(0), rtol=1e-9, atol=1e-9)
    assert found.minimum.tolist() == exact.min(0).tolist()
    assert found.maximum.tolist() == exact.max(0).tolist()
    assert found.count.tolist() == [len(table)] * 2
