"""What training on mapped data must not do: copy it, or hold more of it than the budget."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from poise import DiffusionPolicy, Limits, Normaliser, Pixels, PolicySpec, Quantile, Standard, Unscaled
from poise.data import Episodes, Windows, mapped, read, write
from poise.nn import CNN, MLP, Joint, SmallCNN

MIB = 2**20


def fresh(run) -> dict[str, float]:
    """Numbers that a function returns in a forked process, whose peak of memory begins anew."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not say how much memory a process held at most")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)
            Path("/proc/self/clear_refs").write_text("5")
            os.write(writing, repr(run()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as file:
        text = file.read()
    return {key: float(value) for key, value in (pair.split("=") for pair in text.strip("'").split())}


def held(field: str) -> float:
    """Bytes of memory of this process as the kernel counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def images(folder: Path, steps: int = 8000) -> Path:
    """A recording of 221 MB of images."""
    draw = np.random.default_rng(0)
    features: dict[str, NDArray] = {
        "image": np.resize(draw.integers(0, 256, (50, 96, 96, 3), np.uint8), (steps, 96, 96, 3)),
        "action": draw.normal(size=(steps, 2)).astype(np.float32),
    }
    write(folder / "large.recording", Episodes(features, np.arange(100, steps + 1, 100)))
    return folder / "large.recording"


def test_fitting_and_an_epoch_hold_a_bounded_part_of_the_files(tmp_path):
    """Of 221 MB of images, with a budget of 16 MiB: as when a hundred times as much is trained on."""
    path = images(tmp_path)
    encoder = Joint(images=CNN(backbone=SmallCNN((16, 16)), width=8))
    spec = PolicySpec({"image": (96, 96, 3)}, action=2, encoder=encoder, network=MLP(width=8, depth=1, condition=8))
    policy = DiffusionPolicy(spec)

    def epoch() -> str:
        mapped._BUDGET = mapped._resident() + 16 * MIB
        before = held("VmRSS")
        windows = Windows(read(path), ("image",), 1, 4, 3)
        policy.fit(windows)
        for chosen in torch.randperm(len(windows)).split(64):
            windows[chosen]
        return f"grown={held('VmHWM') - before} files={mapped._resident() - mapped._BUDGET}"

    found = fresh(epoch)
    assert found["grown"] < 120 * MIB  # of which the pixels and actions that statistics come from take the larger part
    assert found["files"] < 8 * MIB  # a batch reads 64 x 28 KB, and pages around them


def test_the_bound_is_what_keeps_it(tmp_path):
    """Without a budget the same epoch holds all of the files: the test above can fail."""
    path = images(tmp_path)

    def epoch() -> str:
        mapped._BUDGET = 2**60
        before = held("VmRSS")
        windows = Windows(read(path), ("image",), 1, 4, 3)
        for chosen in torch.randperm(len(windows)).split(64):
            windows[chosen]
        return f"grown={held('VmHWM') - before}"

    assert fresh(epoch)["grown"] > 200 * MIB


def test_the_index_of_ten_million_windows_is_small():
    """Fewer than three numbers of 8 bytes a row at its peak, and one that stays."""
    steps = 2_000_000  # of a map that takes no memory
    rows = np.broadcast_to(np.zeros((1, 1), np.float32), (steps, 1))

    def made() -> str:
        episodes = Episodes.__new__(Episodes)
        for name, value in {"features": {"action": rows}, "ends": np.arange(125, steps + 1, 125), "tasks": ()}.items():
            object.__setattr__(episodes, name, value)
        before = held("VmRSS")
        windows = Windows(episodes, ("action",), 2, 16, 8)
        peak = held("VmHWM") - before - 2 * windows.actions.nbytes
        return f"peak={peak / steps} kept={(windows._row.nbytes + windows._episode.nbytes) / steps}"

    found = fresh(made)
    assert found["peak"] < 24
    assert found["kept"] <= 8


@pytest.mark.parametrize(
    "scaling", [Limits(), Standard(), Quantile(0.05, 0.9), Unscaled()], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8], ids=str)
def test_constants_are_those_of_all_rows_in_float64(scaling, dtype, monkeypatch):
    """Column by column and chunk by chunk, against NumPy on a whole copy; limits to the last bit."""
    monkeypatch.setattr("poise.data.normalise._CHUNK", 37)
    draw = np.random.default_rng(0)
    data = torch.as_tensor(draw.normal(100, 30, (500, 4)).clip(0, 255)).to(dtype)
    scale, offset = scaling.fit(data)
    rows = data.numpy().astype(np.float64)
    low, high = {
        "Limits": (rows.min(0), rows.max(0)),
        "Standard": (rows.mean(0) - rows.std(0, ddof=1), rows.mean(0) + rows.std(0, ddof=1)),
        "Quantile": tuple(np.quantile(rows, [0.05, 0.9], axis=0)),
        "Unscaled": (-np.ones(4), np.ones(4)),
    }[type(scaling).__name__]
    assert scale.dtype == offset.dtype == torch.float64
    np.testing.assert_allclose(scale.numpy(), 2 / (high - low), rtol=1e-12)
    np.testing.assert_allclose(offset.numpy(), -(low + high) / (high - low), rtol=1e-11, atol=1e-12)
    if isinstance(scaling, Limits):
        assert torch.equal(scale, torch.as_tensor(2 / (high - low)))


def test_constants_of_pixels_need_no_data():
    scale, offset = Pixels((0.4, 0.5, 0.6), (0.2,)).fit(torch.zeros(5, 3, dtype=torch.uint8))
    torch.testing.assert_close(scale, torch.full((3,), 1 / 51, dtype=torch.float64))
    torch.testing.assert_close(offset, torch.tensor([-2.0, -2.5, -3.0], dtype=torch.float64))


def test_a_normaliser_is_fitted_without_a_copy_of_the_data():
    """A copy in float64 would be 96 MB; a column is 16."""
    data = torch.randn(2_000_000, 6)
    normaliser = Normaliser("state", (6,))

    def fitted() -> str:
        before = held("VmRSS")
        normaliser.fit(data, Limits())
        return f"grown={held('VmHWM') - before}"

    assert fresh(fitted)["grown"] < 32 * MIB


def test_mapped_and_resident_data_give_the_same_constants(tmp_path):
    path = images(tmp_path, 300)
    disk = read(path)
    ram = Episodes({name: np.array(rows) for name, rows in disk.features.items()}, disk.ends)
    spec = PolicySpec(
        {"image": (96, 96, 3)},
        action=2,
        encoder=Joint(images=CNN(backbone=SmallCNN((16, 16)), width=8)),
        network=MLP(width=8, depth=1, condition=8),
        scalings={"image": Standard()},
    )
    one, two = DiffusionPolicy(spec), DiffusionPolicy(spec)
    one.fit(Windows(disk, ("image",), 2, 16, 8))
    two.fit(Windows(ram, ("image",), 2, 16, 8))
    for a, b in ((one.action_normaliser, two.action_normaliser), (one._normaliser("image"), two._normaliser("image"))):
        assert torch.equal(a.scale, b.scale)
        assert torch.equal(a.offset, b.offset)
    images_seen = ram.features["image"].reshape(-1, 3)
    np.testing.assert_allclose(one._normaliser("image").scale.numpy(), 1 / images_seen.std(0), rtol=0.01)
