import json
import math
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poise.plain import concrete
from poise.training.trackers import Tracker
from poise.training.trackers.json_lines import cut
from poise.training.trackers.tracker import flat

ABOUT = {"recipe": "push.py", "training": {"type": "TrainingSpec", "steps": 30}}
LIBRARIES = {"TensorBoard": "tensorboard", "WeightsAndBiases": "wandb", "MLflow": "mlflow", "Trackio": "trackio"}


def figures(step: int, salt: float = 0.0) -> dict[str, Any]:
    """What a training reports at a step; `salt` tells what a process wrote that was killed afterwards."""
    levels = [(6.9, step + 0.25 + salt), (-6.9, step + 0.5 + salt)]
    return {"loss": step + salt, "success": None, "levels": levels, "shares": {"data": 0.125}}


def killed_and_resumed(name: str, run: Path) -> None:
    """Six reports, of which a checkpoint kept three; then three others from there on."""
    run.mkdir()
    first, second = concrete(Tracker)[name](), concrete(Tracker)[name]()
    first.open(run, ABOUT, 0)
    for step in (10, 20, 30, 40, 50, 60):
        first.log(step, figures(step, salt=1000.0 if step > 30 else 0.0))
    first.close()
    second.open(run, ABOUT, 30)
    for step in (40, 50, 60):
        second.log(step, figures(step))
    second.close()


def test_every_tool_is_found_by_name():
    assert set(concrete(Tracker)) == {"JsonLines", *LIBRARIES}


def test_figures_become_numbers_by_name():
    figures = {
        "loss": 2,
        "success": None,
        "levels": [(6.9, 0.5), (3.1, 0.25)],
        "ids": [7, 8],
        "shares": {"data": 0.125},
    }
    expected = {"loss": 2.0, "levels/0": 0.5, "levels/1": 0.25, "ids/0": 7.0, "ids/1": 8.0, "shares/data": 0.125}
    assert flat(figures) == expected
    assert flat({}) == {}
    assert math.isnan(flat({"loss": math.nan})["loss"])


@pytest.mark.parametrize("name", sorted(LIBRARIES))
def test_a_missing_library_names_its_extra(name, tmp_path, monkeypatch):
    extra = LIBRARIES[name]
    monkeypatch.setitem(sys.modules, extra, None)
    for module in [m for m in sys.modules if m.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, module)
    tracker = concrete(Tracker)[name]()
    with pytest.raises(ImportError, match=rf"^{name} needs the extra '{extra}' .*: pip install 'poise\[{extra}\]'$"):
        tracker.open(tmp_path, {}, 0)
    with pytest.raises(ImportError, match=f"extra '{extra}'"):
        tracker.check()
    tracker.close()


def test_lines_of_json_forget_what_came_after_the_step(tmp_path):
    killed_and_resumed("JsonLines", tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [10, 20, 30, 40, 50, 60]


def test_lines_of_json_have_no_numbers_that_json_lacks(tmp_path):
    tracker = concrete(Tracker)["JsonLines"]()
    tracker.open(tmp_path, ABOUT, 0)
    tracker.log(1, {"loss": math.nan, "levels": ((6.9, math.inf), (3.1, 0.5)), "shares": {"data": -math.inf}, "n": 2})
    tracker.close()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = json.loads(line, parse_constant=refuse)
    assert found == {"step": 1, "loss": None, "levels": [[6.9, None], [3.1, 0.5]], "shares": {"data": None}, "n": 2}


def test_a_file_is_cut_in_one_go(tmp_path, monkeypatch):
    """A process that dies on the way leaves all of it; so does a full disk. A line that was cut off is left out."""
    file = tmp_path / "lines.jsonl"
    whole = "".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)) + '{"ste'
    file.write_text(whole)

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        cut(file, 2)
    assert file.read_text() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["lines.jsonl"]
    monkeypatch.undo()
    cut(file, 2)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2]
    cut(file, 0)
    assert not file.read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what TensorBoard imports
def test_tensorboard_shows_every_step_once(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def shown(name: str) -> list[tuple[int, float]]:
        events = EventAccumulator(str(tmp_path / "run/tensorboard"))
        events.Reload()
        assert set(events.Tags()["scalars"]) == {"loss", "levels/0", "levels/1", "shares/data"}
        assert "about/text_summary" in events.Tags()["tensors"]
        return [(event.step, event.value) for event in events.Scalars(name)]

    killed_and_resumed("TensorBoard", tmp_path / "run")
    assert shown("loss") == [(step, step) for step in (10, 20, 30, 40, 50, 60)]
    assert shown("levels/1") == [(step, step + 0.5) for step in (10, 20, 30, 40, 50, 60)]
    anew = concrete(Tracker)["TensorBoard"]()
    anew.open(tmp_path / "run", ABOUT, 0)
    anew.log(5, figures(5))
    anew.close()
    assert shown("loss") == [(5, 5)]


def points(found: list[tuple[int, float]]) -> set[tuple[int, float]]:
    """Of the resumed run; tools that forget nothing also show what the killed one wrote."""
    return {(step, value) for step, value in found if value < 1000}


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_mlflow_keeps_one_run_in_a_database_of_its_own(tmp_path, monkeypatch):
    tracking = pytest.importorskip("mlflow.tracking", reason="the extra mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    killed_and_resumed("MLflow", tmp_path / "run")
    client = tracking.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/run/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("poise").experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.metrics == {"loss": 60, "levels/0": 60.25, "levels/1": 60.5, "shares/data": 0.125}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert points([(m.step, m.value) for m in history]) == {(s, s) for s in (10, 20, 30, 40, 50, 60)}
    (about,) = (tmp_path / "run/mlflow").rglob("about.json")
    assert json.loads(about.read_text()) == ABOUT


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_trackio_keeps_one_run_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="the extra trackio is not installed")
    from trackio.sqlite_storage import SQLiteStorage

    killed_and_resumed("Trackio", tmp_path / "run")
    (name,) = SQLiteStorage.get_runs("poise")
    assert name == (tmp_path / "run/trackio.id").read_text()
    found = [(line["step"], line["loss"]) for line in SQLiteStorage.get_logs("poise", name)]
    assert points(found) == {(s, s) for s in (10, 20, 30, 40, 50, 60)}
    assert SQLiteStorage.get_logs("poise", name)[0]["levels/1"] == 10.5


def records(log: bytes) -> Iterator[bytes]:
    """What a log of LevelDB's format holds, after the 7 bytes that are wandb's own."""
    at, whole = 7, b""
    while at + 7 <= len(log):
        if 32768 - at % 32768 < 7:  # the rest of a block that has no place for a header
            at += 32768 - at % 32768
        length, kind = struct.unpack("<HB", log[at + 4 : at + 7])
        whole += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield whole
            whole = b""


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_wandb_writes_offline_under_one_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.delenv("WANDB_MODE", raising=False)
    killed_and_resumed("WeightsAndBiases", tmp_path / "run")
    before, after = sorted((tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb"))
    assert before.name == after.name == f"run-{(tmp_path / 'run/wandb.id').read_text()}.wandb"

    def written(file: Path) -> list[tuple[int, float]]:
        found = []
        for data in records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                found.append((int(items["_step"]), float(items["loss"])))
        return found

    assert points(written(before)) == {(10, 10), (20, 20), (30, 30)}
    assert written(after) == [(40, 40), (50, 50), (60, 60)]
