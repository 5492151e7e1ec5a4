"""More than a thousand broken and hostile files: each ends in an error that names it, and harms nobody."""

import json
import os
import pickle
import selectors
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hostile import Poison, wholes
from hostile_corpus import Maker, corpus

from poise.data import DataError, Feature, open_dataset, quarantine
from poise.data.parquet import Parquet

for _name in ("pyarrow", "av", "PIL", "numcodecs"):
    pytest.importorskip(_name, reason=f"{_name} is missing: pip install 'poise[hdf5,lerobot,video,images,zarr]'")
h5py = pytest.importorskip("h5py", reason="h5py is missing: pip install 'poise[hdf5]'")

WORKERS = 2
PATIENCE, START = 20.0, 120.0  # seconds that a worker may say nothing, on a machine that does other things too
SECONDS, MEMORY = 2.0, 300e6
OLD = 10**9  # nanoseconds: a time of access that the next one replaces


class Ran(NamedTuple):
    """What became of the corpus: for every case its outcome, for every format what a whole file gives."""

    maker: Maker
    outcomes: dict[int, dict[str, Any]]
    expected: dict[str, Any]
    grown: list[float]  # bytes, of each worker


class Worker:
    """A process that reads every WORKERS-th file, and another one for the rest if it hangs or dies."""

    def __init__(self, folder: Path, maker: Maker, numbers: list[int]) -> None:
        self.folder, self.maker, self.numbers = folder, maker, numbers
        self.outcomes: dict[int, dict[str, Any]] = {}
        self.expected: dict[str, Any] = {}
        self.peaks: list[int] = []
        self.start()

    def start(self) -> None:
        left = [n for n in self.numbers if n not in self.outcomes]
        paths = {format: str(path) for format, path in self.maker.wholes.items()}
        plan = {"wholes": paths, "cases": [self.maker.cases[n] for n in left]}
        (self.folder / "plan.json").write_text(json.dumps(plan))
        paths = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, str(Path(__file__).with_name("hostile.py")), str(self.folder / "plan.json")]
        self.process = subprocess.Popen(
            command, cwd=self.folder, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE
        )
        self.left, self.current = left, None

    def hear(self, line: bytes) -> None:
        said = json.loads(line)
        if "whole" in said:
            self.expected[said["whole"]] = said["found"]
            self.base = said["memory"]
        elif "begins" in said:
            self.current = self.left[said["begins"]]
        else:
            self.outcomes[self.left[said["ends"]]] = said
            self.peaks.append(said["memory"] - self.base)

    def run(self) -> None:
        """Until every file has an outcome."""
        while len(self.outcomes) < len(self.numbers):
            self._listen()
            if len(self.outcomes) < len(self.numbers):
                self.process.kill()
                status = self.process.wait()
                assert self.current is not None, f"the reader stopped with status {status} before the first file"
                self.outcomes[self.current] = {"error": "hang or crash", "said": f"status {status}", "named": False}
                self.start()
        self.process.wait()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream, selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            waiting = b""
            while selector.select(START if self.current is None else PATIENCE):
                found = os.read(stream.fileno(), 2**16)
                if not found:
                    return
                *lines, waiting = (waiting + found).split(b"\n")
                for line in lines:
                    self.hear(line)


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Ran:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "wholes").mkdir()
    (folder / "cases").mkdir()
    maker = corpus(folder / "cases", wholes(folder / "wholes"))
    for file in (*_outside(maker), folder):
        os.utime(file, ns=(OLD, file.stat().st_mtime_ns))
    workers = []
    for number in range(WORKERS):
        (folder / f"worker {number}").mkdir()
        workers.append(Worker(folder / f"worker {number}", maker, [*range(number, len(maker.cases), WORKERS)]))
    with ThreadPoolExecutor(WORKERS) as threads:
        list(threads.map(Worker.run, workers))
    outcomes = {number: one for worker in workers for number, one in worker.outcomes.items()}
    return Ran(maker, outcomes, workers[0].expected, [max(worker.peaks) for worker in workers])


def _outside(maker: Maker) -> list[Path]:
    return [file for file in maker.outside.rglob("*") if file.is_file()]


def _told(ran: Ran, number: int) -> str:
    case, outcome = ran.maker.cases[number], ran.outcomes[number]
    return f"{case.format}, {case.kind}, {case.path}: {outcome['error']}: {outcome.get('said') or outcome['found']}"


def test_every_file_ends_in_an_error_that_names_it_or_reads_as_declared(ran):
    wrong = []
    for number, case in enumerate(ran.maker.cases):
        outcome = ran.outcomes[number]
        harmless = case.format == "pickle" and case.kind in ("pickle payload", "deep pickle")
        read = (
            outcome["error"] is None and not case.sure and (harmless or outcome["found"] == ran.expected[case.format])
        )
        if not (outcome["named"] if outcome["error"] else read):
            wrong.append(_told(ran, number))
    assert not wrong, "\n".join(wrong)


def test_the_corpus_is_large_and_varied(ran):
    typed = [case for number, case in enumerate(ran.maker.cases) if ran.outcomes[number]["error"]]
    formats, kinds = Counter(case.format for case in typed), Counter(case.kind for case in typed)
    print(f"{len(typed)} of {len(ran.maker.cases)} files end in errors", *formats.items(), *kinds.items(), sep="\n")
    assert len(typed) >= 500
    assert min(formats.values()) >= 5
    assert set(formats) == set(ran.maker.wholes)
    assert len(kinds) >= 30


def test_none_takes_long_or_much_memory(ran):
    slow = [_told(ran, n) for n, one in ran.outcomes.items() if one.get("seconds", 0.0) >= SECONDS]
    assert not slow, "\n".join(slow)
    assert 0 < max(ran.grown) < MEMORY
    assert max(one["others"] - one["memory"] for one in ran.outcomes.values()) < MEMORY


def test_nothing_is_executed_and_nothing_outside_is_read(ran, tmp_path):
    pickle.loads(pickle.dumps(Poison(tmp_path / "canary")))
    assert (tmp_path / "canary").exists(), "the files are hostile indeed"
    assert not ran.maker.canary.exists()
    assert not [*ran.maker.root.parent.glob("worker*/canary")]
    touched = [file for file in _outside(ran.maker) if file.stat().st_atime_ns != OLD]
    assert not touched


def test_reading_a_file_outside_would_be_seen(tmp_path):
    file = tmp_path / "file"
    file.write_text("secret")
    os.utime(file, ns=(OLD, file.stat().st_mtime_ns))
    file.read_text()
    if file.stat().st_atime_ns == OLD:
        pytest.skip("this file system keeps no times of access: that nothing outside is read shows by errors alone")


# --- pages of Parquet files ---


def varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def test_a_page_that_becomes_more_than_the_footer_says_is_not_decompressed(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, looks = tmp_path / "a.parquet", {"x": Feature(np.dtype("i8"), (1,))}
    numbers = np.random.default_rng(0).integers(0, 2**60, 8000)
    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table({"x": numbers}), path, **options)
    assert np.array_equal(Parquet(path).arrays(looks)["x"][:, 0], numbers)
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    data, first = bytearray(path.read_bytes()), column.data_page_offset
    bomb = pa.compress(bytes(2**28), codec="zstd", asbytes=True)
    after = data.index(b"\x2c", first + 4)  # the count of values and their encodings, which follow the sizes
    page = (
        b"\x15\x00"
        + b"".join(b"\x15" + varint(2 * n) for n in (2**28, len(bomb)))
        + data[after : data.index(bomb[:4])]
        + bomb
    )
    data[first : first + len(page)] = page
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"x: pages: .*they become 268435456 bytes, where the footer declares 6"):
        Parquet(path).arrays(looks)


# --- the process that tries HDF5 files --------------------------------------------------------------------------------


@pytest.fixture
def demonstrations(tmp_path) -> Path:
    (tmp_path / "wholes").mkdir()
    return wholes(tmp_path / "wholes")["robomimic"]


def test_a_file_is_tried_once_until_it_changes(demonstrations, monkeypatch):
    starts = []
    run = subprocess.run
    monkeypatch.setattr(quarantine.subprocess, "run", lambda *a, **k: starts.append(a) or run(*a, **k))
    for _ in range(3):
        open_dataset(demonstrations).__exit__(None, None, None)
    assert len(starts) == 1
    with h5py.File(demonstrations, "a") as file:
        file["data/demo_0"].attrs["more"] = 3
    os.utime(demonstrations, ns=(OLD, OLD))
    open_dataset(demonstrations).__exit__(None, None, None)
    assert len(starts) == 2


def test_a_file_that_hangs_the_library_is_an_error_and_what_is_not_read_may_be_anything(demonstrations):
    with h5py.File(demonstrations, "a") as file:
        file["data"].attrs["far"] = h5py.Empty("f4")
        file["data/loop"] = h5py.SoftLink("/data/loop")
        file["elsewhere"] = h5py.ExternalLink("/nowhere", "/x")
        del file["data/loop"]
        file["around"] = file["/"]
        file["times"] = h5py.Empty("f8")
    with open_dataset(demonstrations) as source:
        assert len(source) == 2
    data = bytearray(demonstrations.read_bytes())
    place = data.index(b"GCOL") + 16
    while data[place]:  # the object after the last one of this heap is the free space: say that it has no bytes
        place += 16 + -(-int.from_bytes(data[place + 8 : place + 16], "little") // 8) * 8
    data[place + 8 : place + 16] = bytes(8)
    demonstrations.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.hdf5: file: broke its reader, which is safe from it: restore the file"):
        open_dataset(demonstrations)
