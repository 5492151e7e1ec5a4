"""Datasets of LeRobot: read and written by us and by itself, statistics, and files that lie.

With POISE_PEERS (a virtual environment of LeRobot 0.4.4) the real LeRobot writes and reads; POISE_PEERS_PATH names
folders that its interpreter looks into first (torchvision 0.25.0), and POISE_LEROBOT_033 one of LeRobot 0.3.3 with
`datasets` 3.6.0 and `jsonlines`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from poise.data import DataError, Episodes, Facts, Role, Windows, open_dataset, read
from poise.data.flat import in_memory
from poise.data.formats import lerobot_write
from poise.data.formats.lerobot import LeRobot, LeRobotVideo
from poise.data.formats.lerobot_v2 import LeRobotV2
from poise.data.formats.npz import Npz
from poise.data.parquet import Parquet
from poise.data.reading import convert, recognised, write
from poise.data.video import FilmWriter

pa = pytest.importorskip("pyarrow", reason="pyarrow is missing: pip install 'poise[lerobot]'")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is missing: pip install 'poise[lerobot]'")
pytest.importorskip("av", reason="PyAV is missing: pip install 'poise[video]'")
pytest.importorskip("PIL", reason="Pillow is missing: pip install 'poise[images]'")

LENGTHS, ENDS, STEPS = (5, 7, 6), np.array([5, 12, 18]), 18
TASKS = ("push the T", "öffne die Tür", "push the T")
PICTURE = "observation.images.top"
DELTAS = {"observation.state": [-0.1, 0.0], "action": [-0.1, 0.0, 0.1, 0.2]}


def picture(count: int, height: int = 64, width: int = 72) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    frames = [np.stack([3 * x + 5 * k, 3 * y, np.full_like(x, 9 * k)], -1) for k in range(count)]
    return np.array(frames).astype(np.uint8)


def sample(scale: float = 1.0) -> Episodes:
    random = np.random.default_rng(0)
    arrays = {
        "observation.state": random.normal(size=(STEPS, 2)).astype("f4") * np.float32(scale),
        "action": random.normal(size=(STEPS, 2)).astype("f4"),
        "next.reward": random.normal(size=(STEPS, 1)).astype("f4"),
        "next.success": random.random((STEPS, 1)) > 0.5,
        "observation.matrix": random.normal(size=(STEPS, 2, 3)),
        "count": random.integers(0, 2**40, (STEPS, 1)),
        PICTURE: picture(STEPS),
    }
    roles = dict.fromkeys(("observation.state", "observation.matrix", PICTURE), Role.OBSERVATION)
    roles |= {"action": Role.ACTION, "next.reward": Role.REWARD}
    return Episodes(arrays, ENDS, TASKS, Facts(10.0, "pusht", roles, {"action": ("x", "y")}))


def same(found: Episodes, expected: Episodes, but: tuple[str, ...] = ()) -> None:
    assert [*found.features] == [*expected.features]
    for name, array in expected.features.items():
        again = found.features[name]
        assert (again.dtype, again.shape) == (array.dtype, array.shape), name
        assert name in but or np.array_equal(again, array), name
    assert found.ends.tolist() == expected.ends.tolist()


def codes(path: Path) -> list[tuple]:
    with open_dataset(path) as source:
        return [(one.code, one.feature, one.episode, one.frame) for one in source.findings()]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write(tmp_path / "images", sample(), LeRobot())
    return tmp_path / "images"


@pytest.fixture
def films(tmp_path: Path) -> Path:
    write(tmp_path / "films", sample(), LeRobotVideo())
    return tmp_path / "films"


def test_png_keeps_every_bit_and_fact(images):
    found = read(images)
    same(found, sample())
    assert (found.tasks, found.facts) == (TASKS, sample().facts)
    assert recognised(images) == LeRobot()
    assert codes(images) == []
    with open_dataset(images) as source:
        assert source.contents.subsets == {"train": (0, 1, 2)}
        assert [*source.rows(1, ["action", "count"])] == ["action", "count"]


def test_films_differ_a_little(films):
    found = read(films)
    same(found, sample(), but=(PICTURE,))
    change = np.abs(found.features[PICTURE].astype(int) - picture(STEPS))
    assert 0 < change.mean() < 3
    assert codes(films) == []
    with open_dataset(films) as source:
        assert source.contents.features[PICTURE].video
        for episode in (2, 0, 1):  # in any order
            rows = source.rows(episode, [PICTURE])[PICTURE]
            assert np.array_equal(rows, found.features[PICTURE][ENDS[episode] - LENGTHS[episode] : ENDS[episode]])


def test_images_that_are_no_films_stay_png(tmp_path):
    random = np.random.default_rng(0)
    shapes = {"touch": (64, 64, 1), "mask": (64, 64, 4), "small": (64, 63, 3)}
    arrays = {name: random.integers(0, 256, (4, *shape), dtype=np.uint8) for name, shape in shapes.items()}
    episodes = Episodes(arrays, np.array([1, 4]), (), Facts(10.0))
    write(tmp_path / "d", episodes, LeRobotVideo())
    same(read(tmp_path / "d"), episodes)


def test_files_roll_and_folders_fill(tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot_write, "DATA_MEGABYTES", 0.006)
    monkeypatch.setattr(lerobot_write, "VIDEO_MEGABYTES", 0.003)
    monkeypatch.setattr(lerobot_write, "_CHUNK", 2)
    monkeypatch.setattr(lerobot_write, "_BUFFERED", 2)
    whole = sample()
    for _ in range(3):
        whole = whole + whole
    write(tmp_path / "d", whole, LeRobotVideo())
    data = sorted(str(file.relative_to(tmp_path / "d/data")) for file in (tmp_path / "d/data").rglob("*.parquet"))
    assert data[:3] == ["chunk-000/file-000.parquet", "chunk-000/file-001.parquet", "chunk-001/file-000.parquet"]
    assert len([*(tmp_path / "d/videos").rglob("*.mp4")]) > 1
    groups = [pq.ParquetFile(tmp_path / "d/data" / file).metadata.num_row_groups for file in data]
    assert sum(groups) == len(whole)
    assert max(groups) > 1
    same(read(tmp_path / "d"), whole, but=(PICTURE,))
    same(
        read(tmp_path / "d", ["count", "action"]),
        Episodes({k: whole.features[k] for k in ("count", "action")}, whole.ends),
    )
    assert codes(tmp_path / "d") == []


def test_one_row_group_of_many_episodes_is_read_too(images):
    """As converters and pandas write it."""
    for file in images.glob("data/*/*.parquet"):
        pq.write_table(pq.read_table(file), file)
        assert pq.ParquetFile(file).metadata.num_row_groups == 1
    same(read(images), sample())
    with open_dataset(images) as source:
        for episode in (2, 0):
            part = slice(ENDS[episode] - LENGTHS[episode], ENDS[episode])
            rows = source.rows(episode, ["action", PICTURE])
            assert np.array_equal(rows["action"], sample().features["action"][part])
            assert np.array_equal(rows[PICTURE], sample().features[PICTURE][part])


def test_statistics_are_those_of_all_rows(images):
    stats, arrays = json.loads((images / "meta/stats.json").read_text()), sample().features
    assert set(stats) == {*arrays, "timestamp", "frame_index", "episode_index", "index", "task_index"}
    assert stats["task_index"]["mean"] == pytest.approx([7 / 18])
    assert stats["index"]["max"] == [17]
    for name, array in arrays.items():
        values = array.astype(float) if name != PICTURE else array.reshape(-1, 3) / 255
        shape = array.shape[1:] if name != PICTURE else (3, 1, 1)
        expected = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
        expected |= {f"q{q:02}": np.quantile(values, q / 100, axis=0) for q in (1, 10, 50, 90, 99)}
        assert stats[name].pop("count") == [STEPS]
        for key, value in expected.items():
            np.testing.assert_allclose(stats[name][key], value.reshape(shape), rtol=1e-12, atol=1e-12)
    assert stats["next.success"]["max"] == [True]
    table = pq.read_table(images / "meta/episodes/chunk-000/file-000.parquet").to_pydict()
    second = arrays["action"][5:12].astype(float)
    np.testing.assert_allclose(table["stats/action/q90"][1], np.quantile(second, 0.9, axis=0), rtol=1e-12)
    assert table["stats/action/count"] == [[n] for n in LENGTHS]


def test_roles_that_names_do_not_tell_and_subsets_of_any_shape(tmp_path):
    arrays = {"pose": np.zeros((4, 2), "f4"), "action": np.ones((4, 2), "f4"), "observation.x": np.ones((4, 1))}
    episodes = Episodes(
        arrays, np.array([1, 2, 3, 4]), (), Facts(12.5, None, {"pose": Role.GOAL, "action": Role.ACTION})
    )
    source = in_memory(episodes)
    contents = source.contents
    object.__setattr__(contents, "subsets", {"train": (0, 2, 3), "valid": (1,)})
    convert(source, tmp_path / "d", LeRobot())
    with open_dataset(tmp_path / "d") as found:
        assert found.contents.facts == episodes.facts
        assert found.contents.subsets == {"train": (0, 2, 3), "valid": (1,)}
        assert found.contents.tasks == ()
    info = json.loads((tmp_path / "d/meta/info.json").read_text())
    assert info["splits"] == {"train": "0:1,2:4", "valid": "1:2"}
    assert info["fps"] == 12.5


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("task_index", np.zeros((4, 1), int), "got a feature 'task_index', a name that it uses itself: rename"),
        ("a/b", np.zeros((4, 1)), "got the name 'a/b', expected printable characters, none of /"),
        ("deep", np.zeros((4, 1, 1, 1, 1, 1, 1)), "'deep' of shape .*, expected 1 to 5 sizes above 0"),
        ("two", np.zeros((4, 8, 8, 2), np.uint8), r"images 'two' of shape \(8, 8, 2\), expected 1, 3 or 4 channels"),
    ],
)
def test_features_that_it_cannot_hold(tmp_path, name, array, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "d", Episodes({name: array}, np.array([4]), (), Facts(10.0)), LeRobot())
    assert not [*tmp_path.iterdir()]


def test_a_rate_is_needed(tmp_path):
    episodes = Episodes({"action": np.zeros((4, 2))}, np.array([4]))
    with pytest.raises(ValueError, match=r"lerobot needs a rate, .* give rows a second by LeRobot\(rate=...\)"):
        write(tmp_path / "d", episodes, LeRobot())
    assert not [*tmp_path.iterdir()]
    write(tmp_path / "d", episodes, LeRobot(rate=20.0))
    assert read(tmp_path / "d").facts.rate == 20.0


def test_the_old_format_is_only_read(tmp_path):
    with pytest.raises(ValueError, match="lerobot-v2 is only read, .* choose lerobot"):
        write(tmp_path / "d", sample(), LeRobotV2())


def test_missing_packages_name_the_extra(images, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert recognised(images) == LeRobot()
    with pytest.raises(
        ImportError,
        match=r"Parquet needs the extra 'lerobot' \(import of pyarrow halted.*\): pip install 'poise\[lerobot\]'",
    ):
        read(images)
    with pytest.raises(ImportError, match=r"Parquet needs the extra 'lerobot'"):
        write(images.with_name("new"), sample(), LeRobot())
    assert [*images.parent.iterdir()] == [images]


# --- version 2 ---


def write_v2(root: Path, version: str, video: bool) -> None:
    """As LeRobot 0.3 lays it out, by pyarrow alone."""
    episodes = sample()
    features = {
        name: {"dtype": a.dtype.name, "shape": [*a.shape[1:]], "names": None} for name, a in episodes.features.items()
    }
    features["action"]["names"] = {"motors": ["x", "y"]}
    kind = "video" if video else "image"
    features[PICTURE] = {"dtype": kind, "shape": [3, 64, 72], "names": ["channels", "height", "width"]}
    features["note"] = {"dtype": "string", "shape": [1], "names": None}
    for name, dtype in (
        ("timestamp", "float32"),
        ("frame_index", "int64"),
        ("episode_index", "int64"),
        ("index", "int64"),
    ):
        features[name] = {"dtype": dtype, "shape": [1], "names": None}
    root.joinpath("meta").mkdir(parents=True)
    tasks = [*dict.fromkeys(TASKS)]
    for k, (first, end) in enumerate(zip(episodes.starts, episodes.ends, strict=True)):
        rows = {name: array[first:end] for name, array in episodes.features.items()}
        columns = {
            name: pa.array(array.tolist() if array.shape[1:] != (1,) else array[:, 0])
            for name, array in rows.items()
            if name != PICTURE
        }
        for name in ("observation.state", "action"):
            columns[name] = pa.array(rows[name].tolist(), pa.list_(pa.float32(), 2))
        steps = np.arange(end - first)
        if video:
            film = FilmWriter(root / f"videos/chunk-00{k // 2}/{PICTURE}/episode_{k:06d}.mp4", 10.0, (64, 72))
            film.append(rows[PICTURE])
            film.close()
        else:
            coded = [{"bytes": lerobot_write.encode_png(one), "path": None} for one in rows[PICTURE]]
            columns[PICTURE] = pa.array(coded, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        columns["note"] = pa.array(["text"] * len(steps))
        columns |= {"timestamp": pa.array((steps / 10).astype("f4")), "frame_index": steps, "index": first + steps}
        columns |= {"episode_index": np.full(len(steps), k), "task_index": np.full(len(steps), tasks.index(TASKS[k]))}
        file = root / f"data/chunk-00{k // 2}/episode_{k:06d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), file)
        with root.joinpath("meta/episodes.jsonl").open("a") as lines:
            lines.write(json.dumps({"episode_index": k, "tasks": [TASKS[k]], "length": len(steps)}) + "\n")
    texts = [json.dumps({"task_index": k, "task": task}) for k, task in enumerate(tasks)]
    root.joinpath("meta/tasks.jsonl").write_text("\n".join(texts) + "\n")
    data, films = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet", None
    if video:
        films = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    info = {"codebase_version": version, "robot_type": "pusht", "total_episodes": 3, "total_frames": STEPS, "fps": 10}
    info |= {"chunks_size": 2, "data_path": data, "video_path": films, "features": features, "splits": {"train": "0:2"}}
    root.joinpath("meta/info.json").write_text(json.dumps(info))


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
@pytest.mark.parametrize("video", [False, True])
def test_version_2_is_read_without_a_conversion(tmp_path, version, video):
    write_v2(tmp_path / "old", version, video)
    assert recognised(tmp_path / "old") == LeRobotV2()
    found = read(tmp_path / "old")
    same(found, sample(), but=(PICTURE,) if video else ())
    assert np.abs(found.features[PICTURE].astype(int) - picture(STEPS)).mean() < 3
    assert (found.tasks, found.facts) == (TASKS, sample().facts)
    assert len(read(tmp_path / "old", ["action"], subset="train")) == 2
    assert codes(tmp_path / "old") == [("missing-statistics", None, None, None)]
    with open_dataset(tmp_path / "old") as source:
        convert(source, tmp_path / "new", LeRobot())
    same(read(tmp_path / "new"), found)


# --- files that lie ---


def edit_info(root: Path, **changes) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    for key, value in changes.items():
        info[key] = value
    (root / "meta/info.json").write_text(json.dumps(info))


def edit_feature(root: Path, name: str, **changes) -> None:
    features = json.loads((root / "meta/info.json").read_text())["features"]
    features[name] |= changes
    edit_info(root, features=features)


def edit_table(root: Path, pattern: str, name: str, values) -> None:
    """Replace a column of the first file, or drop it; a function is given what is there."""
    file = sorted(root.glob(pattern))[0]
    table = pq.read_table(file)
    place = table.column_names.index(name)
    values = values(table.column(name).to_pylist()) if callable(values) else values
    kept = table.remove_column(place)
    pq.write_table(kept if values is None else kept.add_column(place, name, pa.array(values)), file, row_group_size=6)


def add_row(root: Path) -> None:
    """The last row of the first file twice."""
    file = sorted(root.glob(DATA))[0]
    table = pq.read_table(file)
    pq.write_table(pa.concat_tables([table, table.slice(STEPS - 1)]), file)


DATA, EPISODES, TABLE = "data/*/*.parquet", "meta/episodes/*/*.parquet", "meta/tasks.parquet"
LIES = {
    "rows": (add_row, "rows: are 19, expected 18, the lengths of episodes 0 to 2"),
    "version": (lambda d: edit_info(d, codebase_version="v1.6"), r"info\.json: codebase_version: is 'v1\.6'"),
    "no fps": (lambda d: edit_info(d, fps=0), r"info\.json: fps: is 0, expected frames a second above 0"),
    "endless fps": (lambda d: edit_info(d, fps=10**400), r"info\.json: fps"),
    "no features": (lambda d: edit_info(d, features={}), r"info\.json: features: are \[\]"),
    "features": (lambda d: edit_info(d, features=[["action", {}]]), r"info\.json: lacks or garbles"),
    "total": (lambda d: edit_info(d, total_frames=19), "lengths that sum to 18, expected 19"),
    "episodes": (lambda d: edit_info(d, total_episodes=2), "has 3 episodes, .* expected 2"),
    "object": (lambda d: edit_feature(d, "action", dtype="object"), "action: has the dtype 'object'"),
    "width": (lambda d: edit_feature(d, "action", shape=[3]), r"action: is a column of fixed_size_list.*\(3,\)"),
    "huge": (lambda d: edit_feature(d, "action", shape=[2**40]), "features: take .* GiB of"),
    "dtype": (lambda d: edit_feature(d, "count", dtype="int32"), "count: is a column of int64, expected int32"),
    "info": (lambda d: edit_feature(d, "action", info=[1], shape=[-1]), r"action: has the shape \(-1,\)"),
    "path": (lambda d: edit_info(d, data_path="../{chunk_index:03d}/x.parquet"), "data_path: got the path .* inside"),
    "absolute": (lambda d: edit_info(d, data_path="/etc/passwd"), "data_path: got the path '/etc/passwd'"),
    "wide path": (lambda d: edit_info(d, data_path="{chunk_index:0999999999d}"), "does not exist"),
    "attribute": (lambda d: edit_info(d, data_path="{chunk_index.__class__}"), "does not exist"),
    "other field": (lambda d: edit_info(d, data_path="{video_key}"), r"data_path: names 'video_key', expected \['ch"),
    "index": (lambda d: edit_table(d, DATA, "index", np.arange(STEPS)[::-1]), "index: is 17 in row 0, expected 0"),
    "frames": (lambda d: edit_table(d, DATA, "frame_index", np.arange(STEPS)), "frame_index: is 5 in row 5"),
    "episode": (lambda d: edit_table(d, DATA, "episode_index", np.ones(STEPS, int)), "episode_index: is 1 in row 0"),
    "absent": (lambda d: edit_table(d, DATA, "action", None), "action: is no column of"),
    "texts": (lambda d: edit_table(d, DATA, "count", ["x"] * STEPS), "count: is a column of string, expected int64"),
    "empty": (lambda d: edit_table(d, DATA, "count", lambda v: [None, *v[1:]]), "count: has 1 empty cells"),
    "ragged": (
        lambda d: edit_table(d, DATA, "observation.matrix", lambda v: [[[1.0] * 4, [1.0] * 2], *v[1:]]),
        r"observation.matrix: has rows of other widths than \(2, 3\)",
    ),
    "fewer": (
        lambda d: edit_table(d, DATA, "observation.matrix", lambda v: [[[1.0]], *v[1:]]),
        r"observation.matrix: holds 31 numbers in 6 rows, expected rows of \(2, 3\)",
    ),
    "picture": (lambda d: edit_table(d, DATA, PICTURE, [{"bytes": b"no", "path": "x"}] * STEPS), "top.* is broken"),
    "elsewhere": (
        lambda d: edit_table(d, DATA, PICTURE, [{"bytes": b"", "path": "/etc/passwd"}, {"bytes": None}] * 9),
        "top.* (is broken|has no image in row)",
    ),
    "gap": (lambda d: edit_table(d, EPISODES, "episode_index", [0, 2, 3]), "episode_index: is 2 in row 1, expected 1"),
    "length": (lambda d: edit_table(d, EPISODES, "length", [5, 8, 5]), "dataset_from_index: is 12 in row 2"),
    "shared": (lambda d: edit_table(d, EPISODES, "data/file_index", [0, 1, 0]), "file_index: goes back after"),
    "negative": (lambda d: edit_table(d, EPISODES, "data/file_index", [-1, 0, 0]), "file_index: has values below 0"),
    "no tasks": (lambda d: edit_table(d, TABLE, "task", None), r"task: is no column of \['task_index'\]"),
    "task order": (lambda d: edit_table(d, TABLE, "task_index", [1, 0]), r"task_index: is \[1, 0\], expected 0, 1"),
    "no table": (lambda d: (d / TABLE).unlink(), r"tasks\.parquet: file: does not exist"),
    "no data": (lambda d: shutil.rmtree(d / "data"), r"file-000\.parquet: file: does not exist"),
    "no episodes": (lambda d: shutil.rmtree(d / "meta/episodes"), "meta/episodes: holds no Parquet file"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_found(images, lie):
    change, message = LIES[lie]
    change(images)
    with pytest.raises(DataError, match=message):
        read(images)


@pytest.mark.parametrize("link", ["meta/info.json", "meta/tasks.parquet", "data/chunk-000", "meta/episodes"])
def test_links_out_of_the_folder_are_not_followed(images, link):
    shutil.move(images / link, images.parent / "elsewhere")
    (images / link).symlink_to(images.parent / "elsewhere")
    with pytest.raises(DataError, match="(expected one inside of this folder|meta/episodes)"):
        read(images)


def test_one_long_cell_that_stands_for_many_rows(tmp_path):
    """A dictionary lets 50 kB stand for 20 GB: texts are counted as they come, images decoded a few at a time."""
    rows = pa.array(np.zeros(20000, np.int32))
    texts = pa.DictionaryArray.from_arrays(rows, pa.array(["x" * 2**20]))
    blobs = pa.DictionaryArray.from_arrays(rows, pa.array([b"x" * 2**20]))
    table = pa.table({"task": texts, "image": pa.StructArray.from_arrays([blobs], ["bytes"])})
    pq.write_table(table, tmp_path / "f.parquet", store_schema=False)
    assert (tmp_path / "f.parquet").stat().st_size < 300_000
    file = Parquet(tmp_path / "f.parquet")
    with pytest.raises(DataError, match="task: holds more than .* bytes of texts in a file of"):
        file.texts("task")
    assert [len(one) for one in file.images("image", 5, 8)] == [2**20] * 3
    assert pa.default_memory_pool().max_memory() < 2**29


def test_bytes_that_flip_are_a_data_error_or_change_nothing_else(images):
    random, refused = np.random.default_rng(0), 0
    files = [*images.rglob("*.parquet"), images / "meta/info.json"]
    for trial in range(60):
        file = files[trial % len(files)]
        data = file.read_bytes()
        broken = bytearray(data)
        for place in random.integers(0, len(data), 8):
            broken[place] ^= 1 << random.integers(8)
        file.write_bytes(broken)
        try:
            read(images)
        except DataError:
            refused += 1
        finally:
            file.write_bytes(data)
    assert refused > 30


# --- what the doctor asks ---


def test_findings(films):
    (films / "meta/stats.json").write_text("{}")
    edit_table(films, EPISODES, "tasks", [["other", TASKS[0]], [TASKS[1]], [TASKS[2]]])
    edit_table(films, DATA, "timestamp", lambda v: [*v[:7], v[7] + 0.02, *v[8:]])
    table = pq.read_table(films / TABLE).replace_schema_metadata(None)
    pq.write_table(table.rename_columns(["task_index", "__index_level_0__"]), films / TABLE)
    edit_table(films, DATA, "timestamp", lambda v: pa.array(v, pa.float32()))
    edit_info(films, splits={"train": "0:9", "valid": "1:2"})
    assert codes(films) == [
        ("missing-statistics", None, None, None),
        ("tasks-index", None, None, None),
        ("splits", None, None, None),
        ("several-tasks", None, 0, None),
        ("timestamps", "timestamp", 1, 2),
    ]
    assert read(films).tasks == TASKS
    with open_dataset(films) as source:
        assert source.contents.subsets == {"valid": (1,)}


def test_a_film_that_is_too_short_is_found_and_refused(films):
    film = FilmWriter(films / f"videos/{PICTURE}/chunk-000/file-000.mp4", 10.0, (64, 72))
    film.append(picture(STEPS)[:15])
    film.close()
    assert codes(films) == [("video-length", PICTURE, 2, None)]
    with open_dataset(films) as source:
        assert len(source.rows(1, [PICTURE])[PICTURE]) == 7
        with pytest.raises(DataError, match=f"{PICTURE}, episode 2: has no frame at 1.500 s, the one of row 3 of 6"):
            source.rows(2, [PICTURE])


# --- the real LeRobot ---


def run_oracle(jobs: list, *ahead: str) -> None:
    peers = os.environ.get("POISE_PEERS")
    if not peers:
        pytest.skip("POISE_PEERS is not set: the virtual environment in which LeRobot 0.4.4 is installed")
    path = os.pathsep.join([*ahead, os.environ.get("POISE_PEERS_PATH", "")])
    command = [f"{peers}/bin/python", str(Path(__file__).with_name("lerobot_oracle.py")), json.dumps(jobs)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    if "has no VideoReader" in done.stderr:
        pytest.skip(done.stderr)
    assert not done.returncode, done.stderr[-3000:]


def given(folder: Path) -> str:
    """The sample as the oracle writes it."""
    np.savez(folder / "in.npz", **sample().features, lengths=LENGTHS, tasks=TASKS)
    return str(folder / "in.npz")


def agree(found: Episodes, items: dict) -> None:
    """Every feature of every row, as the real reader gives it: floats of 32 bits, images (C, H, W) from 0 to 1."""
    for name, array in found.features.items():
        theirs = items[name][:, 1] if name in DELTAS else items[name]
        ours = array.astype("f4") if array.dtype == np.float64 else array
        if name == PICTURE:
            ours = np.moveaxis(array, -1, 1).astype("f4") / np.float32(255)
        assert theirs.dtype == ours.dtype, name
        assert np.array_equal(theirs.reshape(ours.shape), ours), name
    assert [str(task) for task in items["task"]] == [TASKS[k] for k in items["episode_index"]]
    assert items["index"].tolist() == [*range(STEPS)]
    np.testing.assert_allclose(items["timestamp"], items["frame_index"] / 10, atol=1e-6)


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict]]:
    """Datasets that we and the real LeRobot wrote -> where they are, and their items as the real one reads them."""
    folder = tmp_path_factory.mktemp("parity")
    write(folder / "our-image", sample(), LeRobot())
    write(folder / "our-video", sample(), LeRobotVideo())
    jobs = [["write", given(folder), str(folder / f"its-{kind}"), kind] for kind in ("image", "video")]
    names = [f"{who}-{kind}" for who in ("our", "its") for kind in ("image", "video")]
    run_oracle(jobs + [["read", str(folder / name), str(folder / f"{name}.npz"), DELTAS] for name in names])
    return {name: (folder / name, dict(np.load(folder / f"{name}.npz"))) for name in names}


@pytest.mark.parametrize("name", ["our-image", "our-video", "its-image", "its-video"])
def test_the_real_lerobot_reads_what_we_read(parity, name):
    path, items = parity[name]
    found = read(path)
    same(found, sample(), but=(PICTURE,) if "video" in name else ())
    agree(found, items)
    assert found.facts.rate == 10
    assert found.facts.roles == sample().facts.roles
    assert codes(path) == []


def test_the_real_lerobot_reads_our_statistics(parity):
    items, action = parity["our-video"][1], sample().features["action"].astype(float)
    np.testing.assert_allclose(items["stats/action/q10"], np.quantile(action, 0.1, axis=0), rtol=1e-12)
    assert items[f"stats/{PICTURE}/mean"].shape == (3, 1, 1)


def test_windows_are_those_of_delta_timestamps(parity):
    path, items = parity["our-image"]
    windows = Windows(read(path, ["observation.state", "action"]), ("observation.state",), 2, 4, 3, lead=1)
    assert len(windows) == STEPS
    batch = windows[torch.arange(STEPS)]
    assert np.array_equal(batch.observation["observation.state"].numpy(), items["observation.state"])
    assert np.array_equal(batch.actions.numpy(), items["action"])
    assert np.array_equal(~batch.real.numpy(), items["action_is_pad"])
    assert items["action_is_pad"][5].tolist() == [True, False, False, False]
    assert items["action_is_pad"][4].tolist() == [False, False, True, True]


@pytest.mark.parametrize("kind", ["image", "video"])
def test_the_real_version_2_is_read_as_it_reads_itself(tmp_path, kind):
    old = os.environ.get("POISE_LEROBOT_033")
    if not old:
        pytest.skip("POISE_LEROBOT_033 is not set: a folder of LeRobot 0.3.3 with datasets 3.6.0 and jsonlines")
    jobs = [["write", given(tmp_path), str(tmp_path / "old"), kind]]
    run_oracle([*jobs, ["read", str(tmp_path / "old"), str(tmp_path / "old.npz"), DELTAS]], old)
    found = read(tmp_path / "old")
    assert recognised(tmp_path / "old") == LeRobotV2()
    same(found, sample(), but=(PICTURE,) if kind == "video" else ())
    agree(found, dict(np.load(tmp_path / "old.npz")))
    assert codes(tmp_path / "old") == []


def test_push_t_goes_there_and_back(pusht_path, tmp_path):
    pytest.importorskip("zarr", reason="zarr is missing: pip install 'poise[zarr]'")
    with open_dataset(pusht_path) as source:
        convert(source, tmp_path / "lerobot", LeRobot(rate=10.0), ["state", "action"])
    with open_dataset(tmp_path / "lerobot") as source:
        convert(source, tmp_path / "back.npz", Npz())
    first, last = read(pusht_path, ["state", "action"]), read(tmp_path / "back.npz")
    same(last, first)
    assert (len(last), last.steps, last.facts.rate) == (206, 25650, 10.0)
