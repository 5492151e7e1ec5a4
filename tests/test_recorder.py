import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from poise.data import DataError, Episodes, Facts, Feature, Role, convert, open_dataset, read, write
from poise.data.formats.npz import Npz
from poise.data.formats.recording import Recording
from poise.data.recorder import Recorder

KILL = Path(__file__).parents[1] / "benchmarks" / "recorder_kill.py"
FACTS = Facts(10.0, "arm", {"action": Role.ACTION, "state": Role.OBSERVATION}, {"action": ("x", "y")})


def step(number: int) -> dict:
    """A step whose values name it; the image has another type and the reward is a single number."""
    return {
        "state": np.array([number, -number, 0.5], np.float32),
        "image": np.full((4, 4, 3), number % 256, np.uint8),
        "action": np.array([number, 1], np.float64),
        "reward": np.float32(number),
    }


def record(recorder: Recorder, first: int, count: int) -> dict:
    steps = [step(first + i) for i in range(count)]
    for one in steps:
        recorder.add(one)
    return {name: np.stack([np.atleast_1d(one[name]) for one in steps]) for name in steps[0]}


def assert_same(episodes: Episodes, expected: list[dict]) -> None:
    assert (episodes.ends - episodes.starts).tolist() == [len(one["action"]) for one in expected]
    for name, rows in episodes.features.items():
        whole = np.concatenate([one[name] for one in expected])
        assert rows.dtype == whole.dtype
        np.testing.assert_array_equal(rows, whole)


def test_what_is_recorded_is_read(tmp_path):
    path = tmp_path / "demonstrations"
    with Recorder(path, FACTS) as recorder:
        one = record(recorder, 0, 5)
        recorder.save_episode("push")
        record(recorder, 50, 3)
        recorder.discard_episode()
        two = record(recorder, 100, 2)
        recorder.save_episode()
        assert (recorder.episodes, recorder.steps) == (2, 0)
    episodes = read(path)
    assert_same(episodes, [one, two])
    assert episodes.tasks == ("push", "")
    assert episodes.facts == FACTS
    assert isinstance(episodes.features["image"], np.memmap)
    assert [*open_dataset(path).findings()] == []
    assert (path / "0.bin").read_bytes() == np.concatenate([one["state"], two["state"]]).tobytes()


def test_a_recording_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "demonstrations"
    expected = []
    for number in range(4):
        with Recorder(path, FACTS if number == 0 else None) as recorder:
            assert recorder.episodes == number
            expected.append(record(recorder, 100 * number, 3 + number))
            recorder.save_episode(f"task {number}")
        assert_same(read(path), expected)
    assert read(path).tasks == ("task 0", "task 1", "task 2", "task 3")


def test_readers_see_the_saved_episodes_while_recording_goes_on(tmp_path):
    with Recorder(tmp_path / "live", FACTS) as recorder:
        one = record(recorder, 0, 5)
        recorder.save_episode()
        before = read(tmp_path / "live")
        two = record(recorder, 10, 4)
        assert_same(read(tmp_path / "live"), [one])
        assert [f.code for f in open_dataset(tmp_path / "live").findings()] == ["unfinished"] * 4
        recorder.save_episode()
        assert_same(before, [one])
        assert_same(read(tmp_path / "live"), [one, two])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": np.zeros(3)}, r"'state' of float64 \(3,\), expected float32 \(3,\) as in all steps before"),
        ({"state": np.zeros(4, "f4")}, r"'state' of float32 \(4,\), expected float32 \(3,\)"),
        (
            {"reward": np.float32("nan")},
            "NaN or infinity in feature 'reward', expected finite numbers: check the sensor",
        ),
        ({"action": np.array([np.inf, 0])}, "NaN or infinity in feature 'action'"),
        ({"force": np.zeros(1)}, r"features \['action', 'force', 'image', 'reward', 'state'\], expected \['action'"),
    ],
    ids=["dtype", "shape", "nan", "infinity", "feature"],
)
def test_steps_that_change_are_refused_and_not_added(tmp_path, change, message):
    for resumed in (False, True):
        with Recorder(tmp_path / "d") as recorder:
            kept = record(recorder, 0, 2)
            with pytest.raises(ValueError, match=message):
                recorder.add({**step(2), **change})
            assert recorder.steps == 2
            if not resumed:
                recorder.save_episode()
            else:
                recorder.discard_episode()
    assert_same(read(tmp_path / "d"), [kept])


def test_misuse_is_explained(tmp_path):
    with Recorder(tmp_path / "d", FACTS) as recorder:
        with pytest.raises(ValueError, match="no step since the last episode, expected at least one"):
            recorder.save_episode()
        with pytest.raises(ValueError, match="cannot hold feature 'word'.*dtype 'str128', expected one of numbers"):
            recorder.add({"word": "left"})
        with pytest.raises(ValueError, match="NaN or infinity in feature 'x'"):
            recorder.add({"x": np.nan})
        assert not (tmp_path / "d").exists()
        record(recorder, 0, 1)
        recorder.save_episode()
    with pytest.raises(ValueError, match="recorder of .* was closed: open it anew"):
        recorder.add(step(0))
    with pytest.raises(ValueError, match=r"rate=20.0.*expected Facts\(rate=10.0.*those of its saved episodes"):
        Recorder(tmp_path / "d", Facts(20.0))
    with pytest.raises(ValueError, match="expected .*'state'.*those of its saved episodes"):
        Recorder(tmp_path / "d", features={"x": Feature(np.dtype("f4"), (1,))})
    (tmp_path / "other").mkdir()
    with pytest.raises(
        DataError, match="recording.json: does not exist, expected a recording, or a path where nothing"
    ):
        Recorder(tmp_path / "other")
    with (
        pytest.warns(UserWarning, match="3 steps after the last save_episode.. are not kept"),
        Recorder(tmp_path / "d") as recorder,
    ):
        record(recorder, 0, 3)
    assert len(read(tmp_path / "d")) == 1


def test_two_recorders_of_one_path_are_refused(tmp_path):
    features = {"x": Feature(np.dtype("f4"), (1,))}
    with Recorder(tmp_path / "d", features=features):
        with pytest.raises(BlockingIOError, match="is open in another recorder, expected one at a time"):
            Recorder(tmp_path / "d")
        with pytest.raises(DataError, match="episodes.jsonl: has no complete line, expected at least one episode"):
            read(tmp_path / "d")
    with Recorder(tmp_path / "d", features=features) as recorder:
        recorder.add({"x": np.float32(1)})
        recorder.save_episode()
    assert read(tmp_path / "d").features["x"].tolist() == [[1.0]]


def test_what_a_crash_tears_off_is_ignored_and_cut_off(tmp_path):
    """At every byte of the line that a crash can stop at, and with rows of an episode that was never saved."""
    path = tmp_path / "d"
    with Recorder(path) as recorder:
        one = record(recorder, 0, 5)
        recorder.save_episode()
    index, rows = (path / "episodes.jsonl").read_bytes(), (path / "1.bin").read_bytes()
    for torn in (1, 10, len(index) - 1):
        (path / "episodes.jsonl").write_bytes(index + index[:torn])
        (path / "1.bin").write_bytes(rows + b"\xff" * 77)
        assert_same(read(path), [one])
        with Recorder(path) as recorder:
            assert (path / "episodes.jsonl").read_bytes() == index
            assert (path / "1.bin").read_bytes() == rows
    with Recorder(path) as recorder:
        two = record(recorder, 9, 2)
        recorder.save_episode()
    assert_same(read(path), [one, two])


def test_what_was_synced_is_enough(tmp_path, monkeypatch):
    """A loss of power: of every file only what was synced last survives, of every folder only the names synced last."""
    contents: dict[int, bytes] = {}
    names: dict[str, list[tuple[str, int]]] = {}
    fsync = os.fsync

    def synced(file: int) -> None:
        fsync(file)
        path = Path(os.readlink(f"/proc/self/fd/{file}"))
        if path.is_dir():
            names[str(path.stat().st_ino)] = [(one.name, one.stat().st_ino) for one in path.iterdir()]
        else:
            contents[path.stat().st_ino] = path.read_bytes()

    monkeypatch.setattr(os, "fsync", synced)
    path, expected = tmp_path / "d", []
    with Recorder(path, FACTS) as recorder:
        for number in range(3):
            expected.append(record(recorder, 10 * number, 4))
            recorder.save_episode()
            record(recorder, 500, 2)
            survivor = tmp_path / f"after {number}"
            survivor.mkdir()
            folder = dict(names[str(tmp_path.stat().st_ino)])["d"]
            for name, inode in names[str(folder)]:
                (survivor / name).write_bytes(contents[inode])
            assert_same(read(survivor), expected)
            assert [*open_dataset(survivor).findings()] == []
            recorder.discard_episode()


def test_ten_kills_at_random_moments_lose_no_saved_episode(tmp_path):
    result = subprocess.run(
        [sys.executable, KILL, "--kills", "10", "--seed", "0", "--path", tmp_path / "d"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert (told["kills"], told["lost"], told["different"]) == (10, 0, 0)
    assert told["saved"] > 10


def forked(run) -> tuple[int, int]:
    """A process that runs a function with a pipe to write to, and the pipe's other end."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            run(writing)
        finally:
            os._exit(0)
    os.close(writing)
    return child, reading


def test_a_full_disk_keeps_what_was_saved(tmp_path):
    """No file may grow beyond 4 KiB: the fourth kibibyte of the open episode fails, and room for one comes back."""

    def limited(pipe):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        with Recorder(tmp_path / "d") as recorder:
            recorder.add({"x": np.zeros(256, np.float32)})
            recorder.save_episode()
            for number in range(1, 4):
                recorder.add({"x": np.full(256, number, np.float32)})
            try:
                recorder.add({"x": np.full(256, 4, np.float32)})
            except OSError as error:
                os.write(pipe, str(error).encode())
            recorder.discard_episode()
            recorder.add({"x": np.full(256, 9, np.float32)})
            recorder.save_episode()

    child, reading = forked(limited)
    os.waitpid(child, 0)
    with os.fdopen(reading) as file:
        told = file.read()
    assert f"File too large while writing episode 1 of {tmp_path / 'd'}" in told
    assert "the 1 saved ones are safe; free some space and try again" in told
    episodes = read(tmp_path / "d")
    assert episodes.features["x"][:, 0].tolist() == [0, 9]
    assert [*open_dataset(tmp_path / "d").findings()] == []


def test_a_disk_that_fails_while_an_episode_is_saved(tmp_path, monkeypatch):
    """A full disk leaves the episode open; one that lost rows must not save it, as a second sync proves nothing."""
    path = tmp_path / "d"
    with Recorder(path) as recorder:
        one = record(recorder, 0, 2)
        recorder.save_episode()
        two = record(recorder, 5, 2)
        pwrite = os.pwrite

        def full(file, data, first):
            pwrite(file, data[:20], first)
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(OSError, match="No space left on device while writing episode 1") as caught:
                recorder.save_episode()
            assert caught.value.errno == errno.ENOSPC
            with pytest.raises(OSError, match="No space left"):
                recorder.add(step(7))
        assert_same(read(path), [one])
        assert recorder.steps == 2
        recorder.save_episode()
        assert_same(read(path), [one, two])
        record(recorder, 8, 2)
        fsync = os.fsync
        with monkeypatch.context() as patch:

            def lost(file):
                fsync(file)
                if os.readlink(f"/proc/self/fd/{file}").endswith("episodes.jsonl"):
                    raise OSError(errno.EIO, "Input/output error")

            patch.setattr(os, "fsync", lost)
            with pytest.raises(OSError, match="Input/output error"):
                recorder.save_episode()
        assert_same(read(path), [one, two])
        with pytest.raises(ValueError, match="the disk lost rows of this episode, so it cannot be saved: discard it"):
            recorder.save_episode()
        recorder.discard_episode()
        record(recorder, 8, 2)
        recorder.save_episode()
    assert len(read(path)) == 3
    assert [*open_dataset(path).findings()] == []


def sample(lengths=(4, 6)) -> Episodes:
    steps = sum(lengths)
    rows = {
        "state": np.arange(steps, dtype=">f8")[:, None],
        "done": (np.arange(steps) % 2 == 0),
        "image": np.arange(steps * 12).reshape(steps, 2, 2, 3).astype(np.uint8),
    }
    return Episodes(rows, np.cumsum(lengths), ("a", "b"), Facts(5.0, None, {"state": Role.OBSERVATION}))


def test_packing_and_unpacking_change_nothing(tmp_path):
    episodes = sample()
    write(tmp_path / "d.recording", episodes)
    again = read(tmp_path / "d.recording")
    assert (again.ends.tolist(), again.tasks, again.facts) == (episodes.ends.tolist(), episodes.tasks, episodes.facts)
    for name, rows in episodes.features.items():
        np.testing.assert_array_equal(again.features[name], rows.reshape(len(rows), -1, *rows.shape[2:]))
    assert again.features["state"].dtype == np.float64
    with open_dataset(tmp_path / "d.recording") as source:
        assert [*source.findings()] == []
        convert(source, tmp_path / "d.npz", Npz())
    back = read(tmp_path / "d.npz")
    for name, rows in again.features.items():
        np.testing.assert_array_equal(back.features[name], rows)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_packing_that_fails_leaves_nothing(tmp_path):
    contents = open_packed(tmp_path).contents
    rows = {name: np.zeros((2, *look.shape), look.dtype) for name, look in contents.features.items()}
    sink = Recording().create(tmp_path / "e", contents)
    sink.append(rows)
    assert len([*tmp_path.glob(".*")]) == 1
    with pytest.raises(KeyError), sink:
        sink.append({})
    with pytest.raises(ValueError, match="cannot hold feature 'x'.*shape .0,. of a row, expected 1 to 7 sizes above 0"):
        Recording().create(tmp_path / "e", type(contents)({"x": Feature(np.dtype("f4"), (0,))}, contents.lengths))
    assert [p.name for p in tmp_path.iterdir()] == ["d.recording"]


def open_packed(folder):
    write(folder / "d.recording", sample())
    return open_dataset(folder / "d.recording")


def test_a_flipped_bit_is_found(tmp_path):
    """In every file of rows: by the doctor, which names feature and episode."""
    open_packed(tmp_path)
    for number, (name, size) in enumerate((("state", 8), ("done", 1), ("image", 12))):
        file = tmp_path / "d.recording" / f"{number}.bin"
        rows = bytearray(file.read_bytes())
        rows[5 * size] ^= 1  # row 5 is the second row of episode 1
        file.write_bytes(rows)
        (finding,) = open_dataset(tmp_path / "d.recording").findings()
        assert (finding.code, finding.feature, finding.episode) == ("digest", name, 1)
        rows[5 * size] ^= 1
        file.write_bytes(rows)


def header(change):
    def changed(path):
        plain = json.loads((path / "recording.json").read_text())
        change(plain)
        (path / "recording.json").write_text(json.dumps(plain))

    return changed


def line(change):
    def changed(path):
        first, rest = (path / "episodes.jsonl").read_text().split("\n", 1)
        plain = json.loads(first)
        change(plain)
        (path / "episodes.jsonl").write_text(json.dumps(plain) + "\n" + rest)

    return changed


def linked(path):
    outside = path.parent / "secret.bin"
    shutil.move(path / "0.bin", outside)
    (path / "0.bin").symlink_to(outside)


def looped(path):
    (path / "0.bin").unlink()
    (path / "0.bin").symlink_to("0.bin")


def piped(path):
    (path / "0.bin").unlink()
    os.mkfifo(path / "0.bin")


HOSTILE = {
    "no json": (lambda p: (p / "recording.json").write_bytes(b"{"), "recording.json: is no JSON"),
    "list": (lambda p: (p / "recording.json").write_bytes(b"[]"), "recording.json: is not what this format writes"),
    "mark": (
        header(lambda h: h.update(format="recording 9")),
        "format: got 'recording 9', expected 'poise recording 1'",
    ),
    "none": (header(lambda h: h.update(features=[])), "features: got 0 with 0 names, expected 1 to 1000"),
    "twice": (header(lambda h: h["features"].append(h["features"][0])), "got 4 with 3 names"),
    "object": (header(lambda h: h["features"][0].update(dtype="O")), "got the dtype object, expected integers, floats"),
    "order": (header(lambda h: h["features"][0].update(dtype=">f8")), "got the dtype '>f8', expected its plain name"),
    "null": (header(lambda h: h["features"][0].update(dtype=None)), "got the dtype None, expected its plain name"),
    "huge": (
        header(lambda h: h["features"][0].update(shape=[2**30, 2**30])),
        "0.bin: has 80 bytes for feature 'state'",
    ),
    "negative": (header(lambda h: h["features"][0].update(shape=[-1])), r"got the shape \(-1,\) of a row"),
    "truth": (header(lambda h: h["features"][0].update(shape=[True])), r"got the shape \(True,\) of a row"),
    "facts": (header(lambda h: h.update(facts={"rate": -1})), "recording.json: is not what this format writes"),
    "subset": (header(lambda h: h.update(subsets={"train": [2]})), r"subsets: got numbers in \['train'\] beyond"),
    "endless": (header(lambda h: h.update(subsets={"train": [1e999]})), "recording.json: is not what this format"),
    "long": (line(lambda e: e.update(length=10**30)), "line 1: got the length 1000000"),
    "longer": (line(lambda e: e.update(length=2**47)), "0.bin: has 80 bytes for feature 'state', expected at least"),
    "zero": (line(lambda e: e.update(length=0)), "line 1: got the length 0 and 3 digests, expected rows"),
    "digests": (line(lambda e: e.update(sha256=[])), "line 1: got the length 4 and 0 digests, expected rows and 3"),
    "keys": (line(lambda e: e.pop("task")), "line 1: got .* expected length, task and sha256"),
    "text": (lambda p: (p / "episodes.jsonl").write_bytes(b"\xff\xfe\n"), "line 1: is no JSON"),
    "endless line": (lambda p: (p / "episodes.jsonl").write_bytes(b" " * 2**21), "line 1: has more than 1048576 bytes"),
    "short": (
        lambda p: os.truncate(p / "2.bin", 119),
        "2.bin: has 119 bytes for feature 'image', expected at least 120",
    ),
    "missing": (lambda p: (p / "1.bin").unlink(), "1.bin: does not exist, expected the rows of feature 1"),
    "no index": (lambda p: (p / "episodes.jsonl").unlink(), "episodes.jsonl: does not exist"),
    "link": (linked, "0.bin: got the path '0.bin', expected one inside of this folder"),
    "loop": (looped, "0.bin"),
    "pipe": (piped, "0.bin: does not exist, expected the rows"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_broken_and_hostile_recordings_are_refused(tmp_path, name):
    change, message = HOSTILE[name]
    open_packed(tmp_path)
    path = tmp_path / "d.recording"
    change(path)
    begin = time.monotonic()
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert time.monotonic() - begin < 2
    assert str(path) in str(caught.value)
    with pytest.raises(DataError):
        Recorder(path)


def test_names_of_features_are_never_paths(tmp_path):
    rows = {"../../evil": np.zeros((3, 1), np.float32), "a/b\0c": np.ones((3, 1), np.float32)}
    write(tmp_path / "d.recording", Episodes(rows, np.array([3])))
    assert sorted(p.name for p in (tmp_path / "d.recording").iterdir()) == [
        "0.bin",
        "1.bin",
        "episodes.jsonl",
        "recording.json",
    ]
    assert read(tmp_path / "d.recording").features.keys() == rows.keys()


def test_recording_needs_memory_for_one_step_only(tmp_path, monkeypatch):
    """Every step is in the file when `add` returns."""
    with Recorder(tmp_path / "d") as recorder:
        for number in range(1, 4):
            recorder.add({"image": np.zeros((96, 96, 3), np.uint8)})
            assert (tmp_path / "d" / "0.bin").stat().st_size == number * 96 * 96 * 3
        recorder.discard_episode()
    assert (tmp_path / "d" / "0.bin").stat().st_size == 0


def test_locks_end_with_their_process(tmp_path):
    with Recorder(tmp_path / "d", features={"x": Feature(np.dtype("f4"), (1,))}):
        pass

    def hold(pipe):
        with Recorder(tmp_path / "d"):
            os.write(pipe, b"1")
            time.sleep(60)

    child, reading = forked(hold)
    os.read(reading, 1)
    os.close(reading)
    with pytest.raises(BlockingIOError):
        Recorder(tmp_path / "d")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    Recorder(tmp_path / "d").close()
