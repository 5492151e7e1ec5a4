import numpy as np
import pytest
import torch

from poise.data import Episodes, Limits, Normaliser, Standard, Windows, read_npz, write_npz
from poise.data.formats.zarr import read_zarr, write_zarr


@pytest.fixture
def episodes() -> Episodes:
    """Three episodes of 5, 3 and 9 steps whose values name their row."""
    row = np.arange(17, dtype=np.float32)
    return Episodes({"state": np.stack([row, -row], 1), "action": row[:, None] + 100}, np.array([5, 8, 17]))


def test_windows_follow_their_definition_one_by_one(episodes):
    history, horizon, padded = 3, 4, 2
    windows = Windows(episodes, ("state",), history, horizon, padded)
    expected = []
    for first, end in zip(episodes.starts, episodes.ends, strict=True):
        for i in range(first, end):
            if i + horizon - end <= padded:
                past = [max(first, i - j) for j in reversed(range(history))]
                ahead = [min(end - 1, i + k) for k in range(horizon)]
                expected.append((past, ahead, [i + k < end for k in range(horizon)]))
    assert len(windows) == len(expected)
    batch = windows[torch.arange(len(windows))]
    for w, (past, ahead, real) in enumerate(expected):
        assert batch.observation["state"][w, :, 0].tolist() == past
        assert batch.actions[w, :, 0].tolist() == [a + 100 for a in ahead]
        assert batch.real[w].tolist() == real


def test_the_published_number_of_windows(pusht_path):
    """Horizon 16, two observations, eight executed actions: len - 7 windows an episode, 24,208 in all."""
    data = read_zarr(pusht_path, ("state", "action"))
    assert len(Windows(data, ("state",), 2, 16, 8)) == 24_208


def test_pusht_is_read_as_published(pusht_path):
    data = read_zarr(pusht_path, ("state", "action", "keypoint"))
    assert (len(data), data.steps) == (206, 25_650)
    np.testing.assert_allclose(data.features["action"][0], [233, 71])
    np.testing.assert_allclose(data.features["state"][0], [222.0, 97.0, 222.9938, 381.5990, 3.0080], atol=1e-4)
    np.testing.assert_allclose(data.features["keypoint"][0, 0], [201.8135, 293.5951], atol=1e-4)
    lengths = data.ends - data.starts
    assert (lengths.min(), np.median(lengths), lengths.max()) == (49, 122, 246)


def test_the_published_validation_split():
    """`default_rng(42)` holds out episodes 18, 90, 134 and 157 of the 206."""
    names = Episodes({"episode": np.arange(206)}, np.arange(1, 207))
    training, validation = names.split(0.02, seed=42)
    assert validation.features["episode"].tolist() == [18, 90, 134, 157]
    assert sorted([*training.features["episode"], *validation.features["episode"]]) == list(range(206))


def test_select_keeps_episodes_whole_and_in_order(episodes):
    chosen = episodes.select([2, 0])
    assert chosen.ends.tolist() == [9, 14]
    assert chosen.features["state"][:, 0].tolist() == [*range(8, 17), *range(5)]


@pytest.mark.parametrize("suffix", [".npz", ".zarr"])
def test_formats_round_trip(episodes, tmp_path, suffix):
    path = tmp_path / f"data{suffix}"
    write, read = (write_npz, read_npz) if suffix == ".npz" else (write_zarr, read_zarr)
    write(path, episodes)
    again = read(path)
    assert again.ends.tolist() == episodes.ends.tolist()
    for name, values in episodes.features.items():
        np.testing.assert_array_equal(again.features[name], values)
        assert again.features[name].dtype == values.dtype


def test_zarr_is_format_2_with_the_published_compressor(episodes, tmp_path):
    import json

    write_zarr(tmp_path / "data.zarr", episodes)
    meta = json.loads((tmp_path / "data.zarr/data/action/.zarray").read_text())
    assert meta["zarr_format"] == 2
    assert meta["compressor"] == {"blocksize": 0, "clevel": 5, "cname": "zstd", "id": "blosc", "shuffle": 2}


def spoiled(path, change) -> None:
    """A replay buffer with `change` made to its arrays, past every check."""
    import zarr

    row = np.arange(17, dtype=np.float32)
    arrays = {"data/state": np.stack([row, row], 1), "data/action": row[:, None], "meta/episode_ends": [5, 8, 17]}
    change(arrays)
    root = zarr.open_group(path, mode="w", zarr_format=2)
    for name, values in arrays.items():
        values = np.asarray(values)
        root.create_array(name, shape=values.shape, dtype=values.dtype, compressors=None)[:] = values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: a.update({"data/action": np.zeros((16, 1), "f4")}),
            r"lengths \{'state': 17, 'action': 16\}, expected",
        ),
        (lambda a: a.update({"meta/episode_ends": [5, 4, 17]}), r"ends \[ 5  4 17\], expected strictly increasing"),
        (lambda a: a.update({"meta/episode_ends": [5, 8, 16]}), "last end of 16, expected 17"),
        (
            lambda a: a.update({"data/state": np.full((17, 2), np.nan, "f4")}),
            "NaN or infinity in feature 'state' at row 0",
        ),
        (lambda a: a.pop("data/state"), r"holds the features \['action'\], expected also \['state'\]"),
        (lambda a: a.pop("meta/episode_ends"), "expected also 'meta/episode_ends'"),
    ],
    ids=["lengths", "order", "last end", "nan", "missing feature", "missing ends"],
)
def test_bad_replay_buffers_are_explained(tmp_path, change, message):
    spoiled(tmp_path / "bad.zarr", change)
    with pytest.raises(ValueError, match=message):
        read_zarr(tmp_path / "bad.zarr", ("state", "action"))


def test_paths_that_are_no_data_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist, expected a .zarr directory"):
        read_zarr(tmp_path / "none.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(ValueError, match="is not a zarr group"):
        read_zarr(tmp_path / "empty.zarr")
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="not an archive of numeric arrays"):
        read_npz(tmp_path / "bad.npz")
    np.savez(tmp_path / "no_ends.npz", action=np.zeros(3))
    with pytest.raises(ValueError, match="expected also 'episode_ends'"):
        read_npz(tmp_path / "no_ends.npz")


def test_a_missing_extra_is_named(monkeypatch):
    import importlib
    import sys

    monkeypatch.setitem(sys.modules, "zarr", None)
    monkeypatch.delitem(sys.modules, "poise.data.formats.zarr")
    with pytest.raises(ImportError, match=r"needs the extra 'zarr': pip install 'poise\[zarr\]'"):
        importlib.import_module("poise.data.formats.zarr")


def test_object_arrays_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "evil.npz", action=np.array([{"a": 1}], dtype=object), episode_ends=np.array([1]))
    with pytest.raises(ValueError, match="not an archive of numeric arrays"):
        read_npz(tmp_path / "evil.npz")


def test_windows_explain_bad_arguments(episodes):
    with pytest.raises(ValueError, match=r"features \['action', 'state'\], expected also \['force'\]"):
        Windows(episodes, ("force",), 2, 4, 1)
    with pytest.raises(ValueError, match="padded=4, expected a number from 0 to horizon - 1 = 3"):
        Windows(episodes, ("state",), 2, 4, 4)
    with pytest.raises(ValueError, match="at most 9 steps, expected some of at least 30"):
        Windows(episodes, ("state",), 2, 32, 2)
    with pytest.raises(ValueError, match="share=0.99 of 3 episodes"):
        episodes.split(0.99)


@pytest.mark.parametrize("scaling", [Limits(), Standard()], ids=["limits", "standard"])
def test_normalisers_invert_and_leave_constants_alone(scaling):
    data = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 50.0, 1e-6, 0.0])
    data = data + torch.tensor([0.0, 7.0, 3.0, -2.0])
    normaliser = Normaliser("joints", (4,))
    normaliser.fit(data, scaling)
    y = normaliser(data)
    torch.testing.assert_close(normaliser.inverse(y), data, rtol=1e-5, atol=1e-4)
    # Near-constant dimensions: scale one, so that a small drift at run time stays small.
    assert normaliser.scale[2:].tolist() == [1.0, 1.0]
    assert y[:, 2:].abs().max() < 1e-4
    if isinstance(scaling, Limits):
        torch.testing.assert_close(y[:, :2].amin(0), torch.full((2,), -1.0))
        torch.testing.assert_close(y[:, :2].amax(0), torch.full((2,), 1.0))
    else:
        torch.testing.assert_close(y[:, :2].mean(0), torch.zeros(2), rtol=0, atol=1e-5)
        torch.testing.assert_close(y[:, :2].std(0), torch.ones(2))


def test_a_normaliser_without_statistics_is_an_error():
    with pytest.raises(ValueError, match="'joints' has no statistics, expected a scale and an offset"):
        Normaliser("joints", (4,)).check()


def test_episodes_to_add_have_the_same_features(episodes):
    both = episodes + episodes.select([1])
    assert both.ends.tolist() == [5, 8, 17, 20]
    assert both.features["state"][17:, 0].tolist() == [5, 6, 7]
    other = Episodes({"action": episodes.features["action"]}, episodes.ends)
    with pytest.raises(ValueError, match=r"got others with \{'action': \(1,\)\} to add, expected the same names"):
        episodes + other


def test_rows_of_single_numbers_are_refused(episodes):
    flat = Episodes({"state": episodes.features["state"], "action": np.arange(17.0)}, episodes.ends)
    with pytest.raises(ValueError, match=r"features \['action'\] of shape \(steps,\), expected at least \(steps, 1\)"):
        Windows(flat, ("state",), 1, 2, 1)


def test_one_row_counts_as_constant():
    scale, offset = Standard().fit(torch.tensor([[3.0, -2.0]]))
    assert scale.tolist() == [1, 1]
    assert offset.tolist() == [-3, 2]
