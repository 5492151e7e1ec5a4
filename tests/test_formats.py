"""Formats of demonstrations, against the libraries that they come from."""

import itertools
import json
import os
import shutil
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from poise.data import DataError, Episodes, Facts, Role, Windows, known_formats, open_dataset, read, write
from poise.data.flat import in_memory
from poise.testing.formats import check_format

STEPS = 17
ROW = np.arange(STEPS, dtype=np.float32)
ENDS = np.array([5, 8, 17])


@pytest.fixture
def episodes() -> Episodes:
    """Three episodes of 5, 3 and 9 steps whose values name their row."""
    facts = Facts(10.0, roles={"state": Role.OBSERVATION, "action": Role.ACTION})
    return Episodes({"state": np.stack([ROW, -ROW], 1), "action": ROW[:, None] + 100}, ENDS, facts=facts)


@pytest.mark.parametrize("name", [name for name, one in known_formats().items() if one.written])
def test_formats_that_are_written_keep_their_promises(name, tmp_path):
    try:
        check_format(known_formats()[name], tmp_path)
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", [name for name, one in known_formats().items() if not one.written])
def test_formats_that_are_only_read_say_so(name, tmp_path, episodes):
    with pytest.raises(ValueError, match=f"{name} is only read"):
        write(tmp_path / "data", episodes, known_formats()[name])
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("module", "suffix", "extra"), [("numcodecs", ".zarr", "zarr"), ("h5py", ".hdf5", "hdf5")])
def test_a_missing_extra_is_named(monkeypatch, tmp_path, episodes, module, suffix, extra):
    pytest.importorskip(module)
    write(tmp_path / f"data{suffix}", episodes)
    monkeypatch.setitem(sys.modules, module, None)
    for attempt in (lambda: read(tmp_path / f"data{suffix}"), lambda: write(tmp_path / f"other{suffix}", episodes)):
        with pytest.raises(
            ImportError, match=rf"the extra '{extra}' \(import of {module} halted.*\): pip install 'poise\[{extra}\]'"
        ):
            attempt()
    assert len([*tmp_path.iterdir()]) == 1


@pytest.mark.parametrize("name", [name for name, one in known_formats().items() if one.written])
def test_datasets_without_episodes_and_ragged_ones_are_refused(name, tmp_path, episodes):
    format, contents = known_formats()[name], in_memory(episodes).contents
    try:
        with (
            pytest.raises(ValueError, match="got no episode to write, expected"),
            format.create(tmp_path / "a", contents),
        ):
            pass
    except ImportError as error:
        pytest.skip(str(error))
    for rows in ({"state": ROW[:3, None], "action": ROW[:2, None]}, {"state": ROW[:0, None], "action": ROW[:0, None]}):
        with (
            pytest.raises(ValueError, match=r"got an episode of \[.*\] rows, expected one number of all features"),
            format.create(tmp_path / "a", contents) as sink,
        ):
            sink.append(rows)
    assert not [*tmp_path.iterdir()]


def test_single_numbers_a_row_become_columns(tmp_path):
    flat = Episodes({"actions": ROW, "rewards": ROW, "x": ROW}, ENDS)
    for suffix in (".npz", ".zarr", ".hdf5"):
        write(tmp_path / f"data{suffix}", flat)
        found = read(tmp_path / f"data{suffix}").features
        assert {name: array.shape for name, array in found.items()} == dict.fromkeys(flat.features, (STEPS, 1))


# zarr ---------------------------------------------------------------------------------------------


@pytest.fixture
def zarr():
    return pytest.importorskip("zarr")


def buffer(zarr, path, arrays, compressor=None, chunks=None, order="C", ends=ENDS) -> None:
    """A replay buffer by zarr itself."""
    root = zarr.open_group(path, mode="w", zarr_format=2)
    for name, values in {**{f"data/{k}": v for k, v in arrays.items()}, "meta/episode_ends": np.array(ends)}.items():
        config = {"write_empty_chunks": True, "order": order}
        size = {} if chunks is None or "meta" in name else {"chunks": chunks[: values.ndim]}
        kind = {"shape": values.shape, "dtype": values.dtype, "order": order}
        root.create_array(name, **kind, **size, compressors=compressor, config=config)[...] = values


def test_the_published_windows_of_pusht(pusht_path):
    """Horizon 16, two observations, eight executed actions: len - 7 windows an episode, 24,208 in all."""
    data = read(pusht_path, ("state", "action", "keypoint"))
    assert len(Windows(data, ("state",), 2, 16, 8)) == 24_208
    assert (len(data), data.steps) == (206, 25_650)
    np.testing.assert_allclose(data.features["action"][0], [233, 71])
    np.testing.assert_allclose(data.features["state"][0], [222.0, 97.0, 222.9938, 381.5990, 3.0080], atol=1e-4)
    np.testing.assert_allclose(data.features["keypoint"][0, 0], [201.8135, 293.5951], atol=1e-4)
    lengths = data.ends - data.starts
    assert (lengths.min(), np.median(lengths), lengths.max()) == (49, 122, 246)
    assert data.facts.named(Role.ACTION) == ("action",)
    assert data.facts.named(Role.OBSERVATION) == ("keypoint", "state")


def test_pusht_is_read_as_zarr_reads_it(pusht_path, zarr):
    data, theirs = read(pusht_path, ("state", "action", "keypoint")), zarr.open_group(pusht_path, mode="r")
    for name, array in data.features.items():
        np.testing.assert_array_equal(array, theirs[f"data/{name}"][:])


@pytest.mark.parametrize("suffix", [".zarr", ".zarr.zip"])
def test_zarr_reads_what_is_written_and_compression_is_as_published(tmp_path, zarr, suffix):
    from zarr.storage import LocalStore, ZipStore

    image = np.random.default_rng(0).integers(0, 256, (400, 96, 96, 3), np.uint8)
    episodes = Episodes({"img": image, "action": np.arange(800, dtype="f4").reshape(-1, 2)}, np.array([150, 400]))
    path = tmp_path / f"data{suffix}"
    write(path, episodes)
    with ZipStore(path, mode="r") if path.is_file() else LocalStore(path, read_only=True) as store:
        root = zarr.open_group(store, mode="r")
        assert root["meta/episode_ends"][:].tolist() == [150, 400]
        for name, array in episodes.features.items():
            np.testing.assert_array_equal(root[f"data/{name}"][:], array)
        assert root["data/img"].chunks == (2**20 // (96 * 96 * 3), 96, 96, 3)
    if path.is_dir():
        meta = json.loads((path / "data/action/.zarray").read_text())
        assert (meta["zarr_format"], meta["chunks"], meta["dtype"]) == (2, [161, 2], "<f4")
        assert meta["compressor"] == {"blocksize": 0, "clevel": 5, "cname": "zstd", "id": "blosc", "shuffle": 2}


@pytest.mark.parametrize("codec", ["none", "blosc", "zstd", "lz4", "zlib", "gzip", "bz2"])
def test_zarr_buffers_of_every_codec_and_chunking_are_read(tmp_path, zarr, codec):
    import numcodecs

    compressor = None if codec == "none" else numcodecs.get_codec({"id": codec})
    random = np.random.default_rng(0)
    arrays = {
        "state": random.standard_normal((STEPS, 3)).astype(">f8"),
        "keypoint": random.standard_normal((STEPS, 5, 2)).astype("f2"),
        "done": random.integers(0, 2, STEPS).astype(bool),
        "n": random.integers(0, 2**60, (STEPS, 9)),
    }
    for order, chunks in itertools.product("CF", [(4, 2, 1), (40, 7, 3)]):
        buffer(zarr, tmp_path / f"{order}{chunks[0]}.zarr", arrays, compressor, chunks, order)
        found = read(tmp_path / f"{order}{chunks[0]}.zarr").features
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array if array.ndim > 1 else array[:, None])
            assert found[name].dtype == array.dtype.newbyteorder("=")


@pytest.mark.parametrize(("codec", "options"), [("jpegxl", {"lossless": True}), ("jpeg2k", {"level": 0})])
def test_umi_images_are_read(tmp_path, zarr, codec, options, monkeypatch):
    codecs = pytest.importorskip("imagecodecs.numcodecs")
    images = np.random.default_rng(0).integers(0, 256, (STEPS, 24, 32, 3), np.uint8)
    compressor = {"jpegxl": codecs.Jpegxl, "jpeg2k": codecs.Jpeg2k}[codec](**options)
    buffer(zarr, tmp_path / "umi.zarr", {"camera0_rgb": images}, None, (1, 24, 32, 3))
    array = tmp_path / "umi.zarr/data/camera0_rgb"
    for row in range(STEPS):  # since zarr 3 hands bytes to codecs, not images
        (array / f"{row}.0.0.0").write_bytes(compressor.encode(images[row : row + 1]))
    declared = {**json.loads((array / ".zarray").read_text()), "compressor": compressor.get_config()}
    (array / ".zarray").write_text(json.dumps(declared))
    found = read(tmp_path / "umi.zarr")
    np.testing.assert_array_equal(found.features["camera0_rgb"], images)
    assert found.facts.named(Role.OBSERVATION) == ("camera0_rgb",)
    other = {**declared, "chunks": [1, 25, 32, 3], "shape": [STEPS, 25, 32, 3]}
    (array / ".zarray").write_text(json.dumps(other))
    found = {"jpegxl": r"\(24, 32, 3\)", "jpeg2k": "24 x 32, expected"}[codec]  # of the latter before it is decoded
    with pytest.raises(DataError, match=rf"camera0_rgb/0.0.0.0: is broken .*{found}"):
        read(tmp_path / "umi.zarr")
    (array / ".zarray").write_text(json.dumps(declared))
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(
        ImportError, match=r"the extra 'umi' \(import of imagecodecs halted.*\): pip install 'poise\[umi\]'"
    ):
        read(tmp_path / "umi.zarr")


def spoiled(tmp_path, zarr, episodes, change, declare) -> Path:
    """A buffer with `change` made to its arrays and `declare` to the `.zarray` of its actions."""
    import numcodecs

    arrays, ends = dict(episodes.features), [*ENDS]
    change(arrays, ends)
    buffer(zarr, tmp_path / "bad.zarr", arrays, numcodecs.Blosc(), ends=ends)
    if "action" in arrays:
        meta = tmp_path / "bad.zarr/data/action/.zarray"
        meta.write_text(json.dumps({**json.loads(meta.read_text()), **declare}))
    return tmp_path / "bad.zarr"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, e: a.update(action=np.zeros((16, 1), "f4")), r"lengths \{'action': 16, 'state': 17\}, expected"),
        (lambda a, e: e.__setitem__(1, 4), "meta/episode_ends: .*expected strictly increasing"),
        (lambda a, e: e.__setitem__(2, 16), "got ends up to 16 for features of lengths"),
        (lambda a, e: a.update(state=np.full((17, 2), np.nan)), "NaN or infinity in feature 'state' at row 0"),
        (lambda a, e: a.pop("state"), r"holds \['action'\], expected also \['state'\]"),
        (lambda a, e: a.clear(), "holds the folders .*expected data and meta"),
    ],
    ids=["lengths", "order", "last end", "nan", "missing feature", "empty"],
)
def test_bad_replay_buffers_are_explained(tmp_path, zarr, episodes, change, message):
    with pytest.raises(DataError, match=message) as caught:
        read(spoiled(tmp_path, zarr, episodes, change, {}), ("state", "action"))
    assert "bad.zarr" in str(caught.value)


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        ({"shape": [10**12, 1]}, "declares 4000000000000 bytes"),
        ({"chunks": [10**12, 1]}, "declares 4000000000000 bytes"),
        ({"shape": [17, -1]}, "expected at most 8 sizes of 0 or more"),
        ({"chunks": [0, 1]}, "expected as many sizes of 1 or more"),
        ({"chunks": [True, 1]}, "expected as many sizes of 1 or more"),
        ({"dtype": "|O"}, "expected integers, floats or truth values"),
        ({"dtype": [["a", "<f4"]]}, "expected integers, floats or truth values"),
        ({"compressor": {"id": "pickle"}}, "got the compressor 'pickle', expected one of"),
        ({"compressor": {"id": "json2"}}, "got the compressor 'json2', expected one of"),
        ({"compressor": "blosc"}, "data/action/.zarray: is broken"),
        ({"filters": [{"id": "pickle"}]}, "filters .*pickle.*expected version 2"),
        ({"zarr_format": 3}, "got version 3"),
        ({"dtype": "<f8"}, "header of a chunk declares 68 bytes, expected 136"),
        ({"shape": [34, 1]}, "data/action/1.0: is missing among 1 chunks"),
        ({"order": "Z"}, "order 'Z'"),
        ({"dimension_separator": "/"}, "separator '/'"),
    ],
)
def test_hostile_declarations_of_zarr_are_refused(tmp_path, zarr, episodes, declare, message):
    path = spoiled(tmp_path, zarr, episodes, lambda a, e: None, declare)
    with pytest.raises(DataError, match=message), open_dataset(path) as source:
        source.rows(0, ["action"])


def test_bombs_in_chunks_are_not_inflated(tmp_path, zarr, episodes):
    """Each declares 68 bytes, and decoders would give gigabytes, or fail at it."""
    import bz2

    bomb, large = bytes(2**23), 2**40
    compressed = {
        "zlib": zlib.compress(bomb),
        "bz2": bz2.compress(bomb),
        "zstd": b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", large) + bytes(16),
        "lz4": struct.pack("<I", 2**31 - 1) + bytes(16),
        "blosc": struct.pack("<BBBBIII", 2, 1, 1, 4, 2**31 - 1, 2**20, 32) + bytes(16),
    }
    for codec, data in compressed.items():
        path = spoiled(tmp_path, zarr, episodes, lambda a, e: None, {"compressor": {"id": codec}})
        (path / "data/action/0.0").write_bytes(data)
        with pytest.raises(DataError, match=r"data/action/0.0: (is broken.*expected 68|has .* for a chunk of 68)"):
            read(path)


def test_links_out_of_a_buffer_are_refused(tmp_path, episodes):
    pytest.importorskip("numcodecs")
    write(tmp_path / "secret.zarr", episodes)
    for name in ("data", "data/action", "data/action/0.0", "data/action/.zarray", ".zattrs"):
        path = tmp_path / "link.zarr"
        shutil.copytree(tmp_path / "secret.zarr", path)
        (shutil.rmtree if (path / name).is_dir() else os.unlink)(path / name)
        (path / name).symlink_to(tmp_path / "secret.zarr" / name)
        with pytest.raises(DataError, match="expected one inside of this folder"):
            read(path)
        shutil.rmtree(path)


def test_zips_are_explained(tmp_path, episodes):
    pytest.importorskip("numcodecs")
    write(tmp_path / "data.zarr", episodes)
    with zipfile.ZipFile(tmp_path / "nested.zarr.zip", "w") as archive:
        for file in (tmp_path / "data.zarr").rglob("*"):
            archive.write(file, file.relative_to(tmp_path))
    with pytest.raises(DataError, match=r"holds the folders \['data.zarr'\], expected data and meta"):
        read(tmp_path / "nested.zarr.zip")
    with zipfile.ZipFile(tmp_path / "bomb.zarr.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in (tmp_path / "data.zarr").rglob("*"):
            if file != tmp_path / "data.zarr/data/action/.zarray":
                archive.write(file, file.relative_to(tmp_path / "data.zarr"))
        archive.writestr("data/action/.zarray", bytes(2**25))
    with pytest.raises(DataError, match=r"declares 33554432 bytes"):
        read(tmp_path / "bomb.zarr.zip")
    (tmp_path / "none.zarr.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match="zip: is broken"):
        read(tmp_path / "none.zarr.zip")


def test_zarr_3_and_names_that_are_paths_are_explained(tmp_path, zarr, episodes):
    zarr.open_group(tmp_path / "new.zarr", mode="w", zarr_format=3)
    with pytest.raises(DataError, match="is zarr format 3, expected format 2"):
        read(tmp_path / "new.zarr")
    for suffix in (".zarr", ".hdf5"):
        with pytest.raises(ValueError, match=r"got the name '\.\./x', expected printable"):
            write(tmp_path / f"out{suffix}", Episodes({"../x": ROW, "action": ROW}, ENDS))
    assert [*tmp_path.iterdir()] == [tmp_path / "new.zarr"]


# robomimic ----------------------------------------------------------------------------------------


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py")


def demonstrations(h5py, path) -> None:
    """A file as robomimic documents it, whose values name their demonstration."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        kwargs = {"env_name": "Lift", "env_type": 1, "env_kwargs": {"control_freq": 20}}
        data.attrs.update({"total": 9, "env_args": json.dumps(kwargs)})
        for number, steps in ((10, 2), (2, 3), (0, 4)):
            demo = data.create_group(f"demo_{number}")
            demo.attrs.update({"num_samples": steps, "model_file": "<mujoco/>"})
            demo["actions"] = np.full((steps, 7), number, "f8")
            demo["rewards"], demo["dones"] = np.zeros(steps), np.zeros(steps, "i8")
            demo["states"] = np.full((steps, 32), number, "f8")
            demo["action_dict/abs_pos"] = np.full((steps, 3), number, "f4")
            for group in ("obs", "next_obs"):
                demo[f"{group}/object"] = np.full((steps, 10), number, "f8")
                demo[f"{group}/agentview_image"] = np.full((steps, 8, 8, 3), number, "u1")
                demo[f"{group}/states"] = np.full((steps, 2), number, "f4")
        file["mask/train"] = np.array([b"demo_10", b"demo_0"])
        file.create_dataset("mask/valid", data=["demo_2"], dtype=h5py.string_dtype())


def test_demonstrations_of_robomimic_are_read(tmp_path, h5py):
    demonstrations(h5py, tmp_path / "lift.hdf5")
    found = read(tmp_path / "lift.hdf5")
    assert found.ends.tolist() == [4, 7, 9]  # by number: 0, 2, 10
    assert found.features["actions"][[0, 4, 7], 0].tolist() == [0, 2, 10]
    shapes = {name: (array.dtype.str, array.shape[1:]) for name, array in found.features.items()}
    assert shapes == {
        "actions": ("<f8", (7,)),
        "rewards": ("<f8", (1,)),
        "dones": ("<i8", (1,)),
        "states": ("<f8", (32,)),
        "action_dict.abs_pos": ("<f4", (3,)),
        "object": ("<f8", (10,)),
        "agentview_image": ("|u1", (8, 8, 3)),
        "obs.states": ("<f4", (2,)),
    }
    assert (found.facts.robot, found.facts.rate) == ("Lift", 20)
    assert found.facts.named(Role.ACTION) == ("actions", "action_dict.abs_pos")
    assert found.facts.named(Role.OBSERVATION) == ("agentview_image", "object", "obs.states")
    assert read(tmp_path / "lift.hdf5", ["actions"], "train").features["actions"][:, 0].tolist() == [10, 10, 0, 0, 0, 0]
    assert read(tmp_path / "lift.hdf5", ["actions"], "valid").features["actions"][:, 0].tolist() == [2, 2, 2]


def test_written_demonstrations_have_the_layout_of_robomimic(tmp_path, h5py, episodes):
    write(tmp_path / "data.hdf5", episodes)
    with h5py.File(tmp_path / "data.hdf5") as file:
        data = file["data"]
        assert data.attrs["total"] == STEPS
        assert set(json.loads(data.attrs["env_args"])) == {"env_name", "env_type", "env_kwargs"}
        assert sorted(data, key=lambda name: int(name[5:])) == ["demo_0", "demo_1", "demo_2"]
        assert [data[f"demo_{i}"].attrs["num_samples"] for i in range(3)] == [5, 3, 9]
        np.testing.assert_array_equal(data["demo_1/actions"], episodes.features["action"][5:8])
        np.testing.assert_array_equal(data["demo_1/obs/state"], episodes.features["state"][5:8])
    assert set(read(tmp_path / "data.hdf5").features) == {"state", "action"}  # the names that they had
    with pytest.raises(ValueError, match=r"features \['state'\], expected one of the role action, or called 'actions'"):
        write(tmp_path / "none.hdf5", Episodes({"state": ROW}, ENDS))
    assert len([*tmp_path.iterdir()]) == 1


def test_a_converted_file_of_robomimic_keeps_its_arrays(tmp_path, h5py):
    demonstrations(h5py, tmp_path / "lift.hdf5")
    write(tmp_path / "again.hdf5", read(tmp_path / "lift.hdf5"))
    with h5py.File(tmp_path / "lift.hdf5") as one, h5py.File(tmp_path / "again.hdf5") as two:
        for name in ("actions", "rewards", "dones", "states", "action_dict/abs_pos", "obs/object", "obs/states"):
            first, second = one[f"data/demo_2/{name}"], two[f"data/demo_1/{name}"]
            assert (first.shape, first.dtype) == (second.shape, second.dtype)
            np.testing.assert_array_equal(first, second)


HOSTILE = {
    "external link": (lambda h, f: replaced(f, "obs/object", h.ExternalLink("secret.hdf5", "/secret")), "is a link"),
    "soft link": (lambda h, f: replaced(f, "obs/object", h.SoftLink("/data/demo_0/actions")), "is a link"),
    "link to a group": (lambda h, f: replaced(f, "obs", h.ExternalLink("secret.hdf5", "/")), "is a link"),
    "linked demo": (
        lambda h, f: put(f["data"], "demo_3", h.SoftLink("/data/demo_0")),
        "demo_3/actions: is broken.*link",
    ),
    "virtual": (lambda h, f: virtual(h, f), "lies in other files"),
    "external storage": (lambda h, f: outside(f), "lies in other files"),
    "bomb": (lambda h, f: bomb(f), "declares 4000000000000 bytes"),
    "two compressors": (lambda h, f: doubled(h, f), "expected at most one compressor"),
    "words": (lambda h, f: replaced(f, "obs/object", np.array([b"a"] * 4)), "expected integers, floats"),
    "objects": (lambda h, f: replaced(f, "obs/object", ["a"] * 4), "expected integers, floats"),
    "references": (lambda h, f: references(h, f), "expected integers, floats"),
    "single": (lambda h, f: replaced(f, "obs/object", 3.0), "is a single number"),
    "num_samples": (lambda h, f: put(f["data/demo_2"].attrs, "num_samples", 10**12), "num_samples 1000000000000"),
    "many num_samples": (lambda h, f: put(f["data/demo_2"].attrs, "num_samples", [3]), "expected a number"),
    "length": (lambda h, f: replaced(f, "obs/object", np.zeros((9, 10)), 2), r"is float64 \(9, .*expected float64 \(3"),
    "type": (lambda h, f: replaced(f, "obs/object", np.zeros((3, 10), "f4"), 2), "is float32"),
    "missing": (lambda h, f: f.__delitem__("data/demo_2/obs/object"), "expected also 'object'"),
    "no actions": (lambda h, f: f.__delitem__("data/demo_2/actions"), "expected also 'actions'"),
    "no data": (lambda h, f: f.__delitem__("data"), "expected also 'data'"),
    "name of a demo": (lambda h, f: f.create_group("data/demo_x"), r"holds \['demo_x'\], expected demonstrations"),
    "mask": (lambda h, f: put(f["mask"], "bad", np.array([b"demo_7"])), r"mask/bad: names \['demo_7'\]"),
    "mask of numbers": (lambda h, f: put(f["mask"], "bad", np.arange(3)), "mask/bad: is broken.*expected strings"),
    "env_args": (lambda h, f: put(f["data"].attrs, "env_args", "{"), "env_args: is no JSON"),
    "group as array": (lambda h, f: grouped(f), "is no array"),
}


def put(group, name, value) -> None:
    group[name] = value


def grouped(file) -> None:
    del file["data/demo_2/obs/object"]
    file.create_group("data/demo_2/obs/object")


def replaced(file, name, value, demo=0) -> None:
    where = f"data/demo_{demo}/{name}"
    del file[where]
    file[where] = value


def virtual(h5py, file) -> None:
    layout = h5py.VirtualLayout((4, 10), "f8")
    layout[:] = h5py.VirtualSource("secret.hdf5", "secret", (4, 10))
    del file["data/demo_0/obs/object"]
    file.create_virtual_dataset("data/demo_0/obs/object", layout)


def outside(file) -> None:
    del file["data/demo_0/obs/object"]
    file.create_dataset("data/demo_0/obs/object", (4, 10), "f8", external=[("secret.hdf5", 0, 320)])


def bomb(file) -> None:
    del file["data/demo_0/obs/object"]
    file.create_dataset("data/demo_0/obs/object", (4, 10**12), "u1", chunks=(1, 2**20), compression="gzip")


def doubled(h5py, file) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((4, 10))
    plan.set_deflate(9)
    plan.set_deflate(9)
    del file["data/demo_0/obs/object"]
    group = file["data/demo_0/obs"].id
    h5py.h5d.create(group, b"object", h5py.h5t.NATIVE_DOUBLE, h5py.h5s.create_simple((4, 10)), plan)


def references(h5py, file) -> None:
    replaced(file, "obs/object", np.array([file["data"].ref] * 4, h5py.ref_dtype))


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_demonstrations_are_refused(tmp_path, h5py, case):
    with h5py.File(tmp_path / "secret.hdf5", "w") as file:
        file["secret"] = np.zeros((4, 10))
    demonstrations(h5py, tmp_path / "bad.hdf5")
    change, message = HOSTILE[case]
    with h5py.File(tmp_path / "bad.hdf5", "a") as file:
        change(h5py, file)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / "bad.hdf5")
    assert "bad.hdf5: " in str(caught.value)


# Minari -------------------------------------------------------------------------------------------

LOW, HIGH = np.zeros((32, 40, 3), int).tolist(), np.full((32, 40, 3), 255).tolist()
SPACE = {
    "type": "Dict",
    "subspaces": {
        "desired_goal": {"type": "Box", "dtype": "float64", "shape": [2], "low": [-1, -1], "high": [1, 1]},
        "image": {"type": "Box", "dtype": "uint8", "shape": [32, 40, 3], "low": LOW, "high": HIGH},
        "pair": {"type": "Tuple", "subspaces": [{"type": "Discrete", "dtype": "int64", "start": 0, "n": 9}] * 2},
        "mission": {"type": "Text", "max_length": 9, "min_length": 1, "charset": "abc"},
    },
}
ACTION = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-1, -1], "high": [1, 1]}


def jpeg(pixels) -> np.ndarray:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return np.frombuffer(stream.getvalue(), np.uint8)


def pixels(row: int) -> np.ndarray:
    """An image whose compressed size depends on the row."""
    return np.random.default_rng(row).integers(0, 1 + 40 * row, (32, 40, 3), np.uint8)


@pytest.fixture
def minari(tmp_path, h5py) -> Path:
    """A dataset of two episodes of 3 and 2 steps, as Minari stores it, whose values name their row."""
    pytest.importorskip("PIL")
    folder = tmp_path / "pairs-v0"
    (folder / "data").mkdir(parents=True)
    meta = {
        "total_episodes": 2,
        "total_steps": 5,
        "data_format": "hdf5",
        "observation_space": json.dumps(SPACE),
        "action_space": json.dumps(ACTION),
        "env_spec": json.dumps({"id": "Pairs-v0"}),
        "dataset_id": "pairs-v0",
        "minari_version": "0.5.4",
    }
    (folder / "data/metadata.json").write_text(json.dumps(meta))
    with h5py.File(folder / "data/main_data.hdf5", "w") as file:
        for number, steps in enumerate((3, 2)):
            group = file.create_group(f"episode_{number}")
            group.attrs.update({"id": number, "total_steps": steps})
            row = 10 * number + np.arange(steps + 1)
            group["observations/desired_goal"] = np.stack([row, -row], 1).astype("f8")
            group["observations/pair/_index_0"], group["observations/pair/_index_1"] = row, row + 1
            group["observations/mission"] = ["abc"] * (steps + 1)
            frames = [jpeg(pixels(n % 7)) if number == 0 else jpeg(pixels(3)) for n in row]
            kind = h5py.vlen_dtype(np.uint8) if number == 0 else None
            group.create_dataset("observations/image", data=frames, dtype=kind)
            group["actions"] = np.stack([row, row], 1)[:-1].astype("f4")
            group["rewards"] = row[:-1].astype("f8")
            group["terminations"], group["truncations"] = row[:-1] < 0, row[:-1] == row[-2]
            group["infos/extra"] = row
    return folder


def test_datasets_of_minari_are_read_without_the_last_observation(minari):
    for path in (minari, minari / "data", minari / "data/main_data.hdf5"):
        found = read(path)
        rows = [0, 1, 2, 10, 11]
        assert found.ends.tolist() == [3, 5]
        assert found.features["observations.desired_goal"].tolist() == [[n, -n] for n in rows]
        assert found.features["observations.pair._index_1"].tolist() == [[n + 1] for n in rows]
        assert found.features["actions"].tolist() == [[n, n] for n in rows]
        assert found.features["rewards"].tolist() == [[n] for n in rows]
        assert found.features["truncations"].tolist() == [[n in (2, 11)] for n in rows]
    image = found.features["observations.image"]
    assert (image.shape, image.dtype) == ((5, 32, 40, 3), np.uint8)
    assert found.facts.robot == "Pairs-v0"
    assert found.facts.named(Role.GOAL) == ("observations.desired_goal",)
    assert found.facts.named(Role.ACTION) == ("actions",)
    with open_dataset(minari) as source:
        assert [(one.code, one.feature) for one in source.findings()] == [("text", "observations.mission")]


def test_minari_itself_reads_the_same(minari):
    library = pytest.importorskip("minari.dataset.minari_storage")
    pytest.importorskip("minari.dataset._storages.hdf5_storage")
    found = read(minari)
    for number, theirs in enumerate(library.MinariStorage.read(minari / "data").get_episodes([0, 1])):
        ours = found.select([number]).features
        for key in ("actions", "rewards", "terminations", "truncations"):
            np.testing.assert_array_equal(ours[key].squeeze(), np.squeeze(theirs[key]))
        for key in ("desired_goal", "image"):
            np.testing.assert_array_equal(ours[f"observations.{key}"], theirs["observations"][key][:-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_format": "arrow"}, "data_format: is 'arrow', expected 'hdf5'"),
        ({"data_format": "parquet"}, "data_format: is 'parquet', expected 'hdf5'"),
        ({"total_episodes": 3}, "total_episodes: is 3, and the file holds 2"),
        ({"total_episodes": -1}, "total_episodes: is -1"),
        ({"total_steps": 6}, "total_steps: is 6, and the file holds 5"),
        ({"observation_space": None}, "observation_space: is 'None', expected a space"),
        ({"observation_space": "{"}, "observation_space: is no JSON"),
        ({"observation_space": "[]"}, "observation_space: is broken"),
        ({"action_space": '{"type": "Graph"}'}, "got a space 'Graph', expected one of Box"),
        ({"action_space": json.dumps({"type": "Dict", "subspaces": {"../x": ACTION}})}, "got the key '../x'"),
        ({"action_space": json.dumps({"type": "Dict", "subspaces": {"x": ACTION}})}, "actions/x: is broken.*no group"),
        ({"observation_space": json.dumps(SPACE).replace("[32, 40, 3]", "[48, 40, 3]")}, r"expected \(48, 40, 3\)"),
        ({"observation_space": json.dumps(SPACE).replace("[32, 40, 3]", "[99999, 99999, 3]")}, "declares 29999400003"),
        ({"jpeg_encoding": False}, "image: "),
    ],
)
def test_bad_metadata_of_minari_are_explained(minari, change, message):
    meta = minari / "data/metadata.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), **change}))
    with pytest.raises(DataError, match=message) as caught:
        read(minari)
    assert str(minari) in str(caught.value)


def test_bad_episodes_of_minari_are_explained(minari, h5py):
    with h5py.File(minari / "data/main_data.hdf5", "a") as file:
        rewards = file["episode_1/rewards"][:]
        del file["episode_1/rewards"]
        file["episode_1/rewards"] = rewards[:1]
    with pytest.raises(DataError, match=r"episode_1: has rewards \(1,\) and total_steps 2, expected as many rows"):
        read(minari)
    (minari / "data/main_data.hdf5").unlink()
    (minari / "data/main_data.hdf5").symlink_to("/etc/hostname")
    with pytest.raises(DataError, match="expected one inside of this folder"):
        read(minari)


# all ----------------------------------------------------------------------------------------------


def test_paths_that_are_no_data_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist, expected a dataset of one of the formats"):
        read(tmp_path / "none.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(DataError, match=r"holds the folders \[\], expected data and meta"):
        read(tmp_path / "empty.zarr")
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="archive: is broken .BadZipFile"):
        read(tmp_path / "bad.npz")
    np.savez(tmp_path / "no_ends.npz", action=np.zeros(3))
    with pytest.raises(DataError, match="episode_ends: is missing among"):
        read(tmp_path / "no_ends.npz")
    with pytest.raises(DataError, match="format: is none that is known"):
        read(tmp_path)


def test_object_arrays_are_never_unpickled(tmp_path):
    class Canary:
        def __reduce__(self):
            return (Path(tmp_path / "executed").touch, ())

    np.savez(tmp_path / "evil.npz", action=np.array([Canary()], dtype=object), episode_ends=np.array([1]))
    with pytest.raises(DataError, match="action.npy: .*expected integers, floats or truth values"):
        read(tmp_path / "evil.npz")
    assert not (tmp_path / "executed").exists()
