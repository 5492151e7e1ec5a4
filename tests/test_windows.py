import mmap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.data import Episodes, Windows, mapped

DTYPES = ("float32", "float64", "float16", "uint8", "int64", "uint16", "bool")


@pytest.fixture(params=[0, 2**60], ids=["in stretches", "one by one"], autouse=True)
def _both_ways(request, monkeypatch):
    """Large and small batches are copied in two ways, which must not differ."""
    monkeypatch.setattr("poise.data.windows._FEW", request.param)


def episodes_of(lengths, dtype="float32", width=3) -> Episodes:
    """Episodes whose values name their row."""
    steps = sum(lengths)
    state = np.arange(steps * width).reshape(steps, width) % 251
    image = (np.arange(steps * 12).reshape(steps, 2, 2, 3) % 256).astype(np.uint8)
    features = {"state": state.astype(dtype), "image": image, "action": np.arange(steps)[:, None].astype(np.float32)}
    return Episodes(features, np.cumsum(lengths))


def on_disk(episodes, folder, mode="r") -> Episodes:
    """The same episodes, each feature a mapped file."""
    features = {}
    for name, rows in episodes.features.items():
        rows.tofile(folder / name)
        features[name] = np.memmap(folder / name, rows.dtype, mode, shape=rows.shape)
    return Episodes(features, episodes.ends)


def by_definition(episodes, name, row, offsets):
    """Rows `row + offset` of one feature, held within the episode, and which of them are real."""
    k = int(np.searchsorted(episodes.ends, row, side="right"))
    first, last = episodes.starts[k], episodes.ends[k] - 1
    rows = [min(last, max(first, row + offset)) for offset in offsets]
    return episodes.features[name][rows], [first <= row + offset <= last for offset in offsets]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    history=st.integers(1, 5),
    horizon=st.integers(1, 9),
    data=st.data(),
)
def test_windows_follow_their_definition(lengths, history, horizon, data):
    """Every window, for every lead and padding, against a loop over rows."""
    padded, lead = (data.draw(st.integers(0, horizon - 1), name) for name in ("padded", "lead"))
    episodes = episodes_of(lengths)
    ahead = range(-lead, horizon - lead)
    rows = [
        row
        for first, end in zip(episodes.starts, episodes.ends, strict=True)
        for row in range(first, end)
        if row + ahead[-1] - (end - 1) <= padded
    ]
    if not rows:
        with pytest.raises(ValueError, match=rf"expected some of at least {horizon - padded - lead}"):
            Windows(episodes, ("state", "image"), history, horizon, padded, lead=lead)
        return
    windows = Windows(episodes, ("state", "image"), history, horizon, padded, lead=lead)
    assert len(windows) == len(rows)
    batch = windows[torch.arange(len(windows))]
    for w, row in enumerate(rows):
        for name in ("state", "image"):
            expected, _ = by_definition(episodes, name, row, range(1 - history, 1))
            np.testing.assert_array_equal(batch.observation[name][w].numpy(), expected)
        expected, real = by_definition(episodes, "action", row, ahead)
        np.testing.assert_array_equal(batch.actions[w].numpy(), expected)
        assert batch.real[w].tolist() == real


def test_published_windows_begin_at_the_oldest_observation():
    """The masks that LeRobot 0.4.4 gives for episodes of 5, 7 and 6 rows and deltas of -1 to 2 rows."""
    windows = Windows(episodes_of([5, 7, 6]), ("state",), 2, 4, 3, lead=1)
    assert len(windows) == 18
    batch = windows[torch.tensor([5, 4])]
    assert (~batch.real).tolist() == [[True, False, False, False], [False, False, True, True]]
    assert batch.actions[:, :, 0].tolist() == [[5, 5, 6, 7], [3, 4, 4, 4]]


def test_the_published_number_of_windows_with_a_lead():
    """`drop_n_last_frames = horizon - execute - history + 1 = 7` rows an episode start no window."""
    lengths = [30, 49, 100]
    assert len(Windows(episodes_of(lengths), ("state",), 2, 16, 7, lead=1)) == sum(lengths) - 3 * 7


@pytest.mark.parametrize("dtype", DTYPES)
def test_mapped_features_give_the_same_batches(tmp_path, dtype):
    episodes = episodes_of([9, 4, 1, 20], dtype)
    arguments = (("state", "image"), 3, 5, 4, "action", "cpu", 2)
    ram, disk = Windows(episodes, *arguments), Windows(on_disk(episodes, tmp_path), *arguments)
    every = torch.arange(len(ram))
    for name in ("state", "image"):
        one, two = ram[every].observation[name], disk[every].observation[name]
        assert one.dtype == two.dtype == (torch.uint8 if name == "image" else torch.float32)
        assert torch.equal(one, two)
    assert torch.equal(ram[every].actions, disk[every].actions)
    assert torch.equal(ram[every].real, disk[every].real)


def test_mapped_features_are_not_copied(tmp_path):
    """What is written to the file afterwards is what the tensors hold."""
    episodes = on_disk(episodes_of([9, 4]), tmp_path)
    windows = Windows(episodes, ("state", "image"), 1, 2, 1)
    with (tmp_path / "state").open("r+b") as file:
        file.write(np.float32(77).tobytes())
    with (tmp_path / "image").open("r+b") as file:
        file.write(b"\x4d")
    batch = windows[torch.tensor([0])]
    assert batch.observation["state"][0, 0, 0] == 77
    assert batch.observation["image"].flatten()[0] == 77


def test_batches_are_the_same_when_memory_is_given_back_all_the_time(tmp_path, monkeypatch):
    episodes = episodes_of([50] * 40)
    expected = Windows(episodes, ("state", "image"), 3, 6, 5)
    windows = Windows(on_disk(episodes, tmp_path), ("state", "image"), 3, 6, 5)
    monkeypatch.setattr(mapped, "_BUDGET", 0)
    monkeypatch.setattr("poise.data.windows._AT_ONCE", 7)
    for seed in range(5):
        chosen = torch.randint(len(windows), (64,), generator=torch.Generator().manual_seed(seed))
        one, two = expected[chosen], windows[chosen]
        assert torch.equal(one.observation["image"], two.observation["image"])
        assert torch.equal(one.observation["state"], two.observation["state"])
        assert torch.equal(one.actions, two.actions)


def test_private_changes_to_a_map_are_kept(tmp_path):
    """Copy-on-write maps hold changes that no file has: giving their memory back would lose them."""
    episodes = on_disk(episodes_of([9, 4]), tmp_path, mode="c")
    episodes.features["state"][0, 0] = 77
    assert not mapped.is_mapped(episodes.features["state"])
    mapped.release(episodes.features["state"])
    assert episodes.features["state"][0, 0] == 77
    assert Windows(episodes, ("state",), 1, 2, 1)[torch.tensor([0])].observation["state"][0, 0, 0] == 77


def test_released_pages_leave_the_memory_of_the_process(tmp_path):
    if mapped._resident() == float("inf"):
        pytest.skip("this system does not say how much of its files a process holds")
    np.zeros(64 * 2**20, np.uint8).tofile(tmp_path / "rows")
    rows = np.memmap(tmp_path / "rows", np.uint8, "r", shape=(64, 2**20))
    before = mapped._resident()
    assert rows.sum() == 0
    assert mapped._resident() - before > 60 * 2**20
    mapped.release(rows[3:5])  # a view stands for its file
    assert mapped._resident() - before < 8 * 2**20


def test_maps_are_told_from_arrays(tmp_path):
    rows = np.zeros((8, 4), np.float32)
    rows.tofile(tmp_path / "rows")
    disk = np.memmap(tmp_path / "rows", np.float32, "r", shape=(8, 4))
    assert mapped.is_mapped(disk)
    assert mapped.is_mapped(disk[2:])
    assert not mapped.is_mapped(rows)
    assert not mapped.is_mapped(disk[:, ::2])  # its rows are no stretches of memory
    assert not mapped.is_mapped(disk + 1)
    assert isinstance(mapped._map(disk[1:][2:].reshape(-1)), mmap.mmap)


def test_a_bad_lead_is_explained():
    with pytest.raises(ValueError, match="lead=4, expected a number from 0 to horizon - 1 = 3"):
        Windows(episodes_of([9]), ("state",), 1, 4, 0, lead=4)


def test_indices_are_those_of_tensors():
    windows = Windows(episodes_of([9, 5]), ("state",), 1, 2, 1)
    assert torch.equal(windows[torch.tensor([-1])].actions, windows[torch.tensor([13])].actions)
    with pytest.raises(IndexError):
        windows[torch.tensor([14])]


def test_windows_of_some_episodes_are_those_that_they_have(tmp_path):
    """As if only these had been given, but without a copy."""
    lengths = [5, 3, 9, 4]
    rows = np.arange(sum(lengths), dtype=np.float32)[:, None]
    episodes = Episodes({"state": rows, "action": -rows}, np.cumsum(lengths))
    windows = Windows(episodes, ("state",), 2, 4, 2)
    few, expected = windows.only(np.array([2, 0])), Windows(episodes.select([0, 2]), ("state",), 2, 4, 2)
    assert (len(few), few.episodes) == (len(expected), 2)
    assert few.observations["state"] is windows.observations["state"]
    one, two = few[torch.arange(len(few))], expected[torch.arange(len(expected))]
    assert torch.equal(one.real, two.real)
    for first, second in ((one.actions, two.actions), (one.observation["state"], two.observation["state"])):
        assert torch.equal(first, second)
    with pytest.raises(ValueError, match="expected some that are long enough"):
        Windows(episodes, ("state",), 2, 4, 0).only(np.array([1]))


def test_a_recipe_leaves_mapped_data_in_their_file(tmp_path):
    from poise import PolicySpec, Recipe, Task, TrainingSpec, read, write

    rows = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    write(tmp_path / "a.recording", Episodes({"state": rows, "action": rows}, np.arange(20, 201, 20)))
    spec, task = PolicySpec({"state": (3,)}, action=3, horizon=8, execute=4), Task("none")
    recipe = Recipe(spec, TrainingSpec(), task, read, validation=0.2)
    mapped = recipe.parts(tmp_path / "a.recording")
    assert mapped[0].actions.untyped_storage().nbytes() == rows.nbytes
    write(tmp_path / "a.npz", read(tmp_path / "a.recording"))
    for one, two in zip(mapped, recipe.parts(tmp_path / "a.npz"), strict=True):
        first, second = one[torch.arange(len(one))], two[torch.arange(len(two))]
        assert torch.equal(first.actions, second.actions)
        assert torch.equal(first.observation["state"], second.observation["state"])


def test_a_feature_that_finds_no_place_on_the_device_stays_on_the_host(monkeypatch, capsys):
    """In one line, and with the same batches."""
    features = {"wide": np.random.default_rng(0).normal(size=(20, 500)), "action": np.arange(20.0)[:, None]}
    made = lambda: Windows(Episodes(features, np.array([12, 20])), ("wide",), 2, 4, 3)  # noqa: E731
    expected, plain, moved = made()[torch.arange(20)], torch.Tensor.to, []

    def full(self: torch.Tensor, *arguments: object) -> torch.Tensor:
        if arguments == (torch.device("cpu"),):
            moved.append(self.shape)
            if self.nbytes > 10_000:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, *arguments)

    monkeypatch.setattr(torch.Tensor, "to", full)
    found = made()
    assert moved == [(20, 500), (20, 1)]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("4e-05 GB of the feature 'wide' find no place on cpu: they stay on the host")
    batch = found[torch.arange(20)]
    assert torch.equal(batch.observation["wide"], expected.observation["wide"])
    assert torch.equal(batch.actions, expected.actions)
