import json
import math
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poise.cli.fitting import Job, fit
from poise.data import Episodes, Windows
from poise.nn import Transformer
from poise.plain import concrete
from poise.policies import DiffusionPolicy, PolicySpec
from poise.training import TrainingSpec
from poise.training.trackers import Tracker
from poise.training.trackers.json_lines import cut
from poise.training.trackers.tool import Tool
from poise.training.trackers.tracker import flat

ABOUT = {"recipe": "push.py", "training": {"type": "TrainingSpec", "steps": 30}}
LIBRARIES = {"TensorBoard": "tensorboard", "WeightsAndBiases": "wandb", "MLflow": "mlflow", "Trackio": "trackio"}


def figures(step: int, salt: float = 0.0) -> dict[str, Any]:
    """What a training reports at a step; `salt` tells what a process wrote that was killed afterwards."""
    levels = [(6.9, step + 0.25 + salt), (-6.9, step + 0.5 + salt)]
    return {"loss": step + salt, "success": None, "levels": levels, "shares": {"data": 0.125}}


def report(name: str, run: Path, step: int = 0, end: str = "close") -> None:
    """A process of a training, from the step on; what a first one reports after step 30 no checkpoint kept."""
    trackers = [concrete(Tracker)[kind]() for kind in dict.fromkeys(("JsonLines", name))]
    for tracker in trackers:
        tracker.open(run, ABOUT, step)
    for at in (10, 20, 30, 40, 50, 60):
        for tracker in trackers if at > step else ():
            tracker.log(at, figures(at, salt=1000.0 if at > 30 and not step else 0.0))
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    for tracker in trackers:
        tracker.close()


def elsewhere(code: str) -> subprocess.CompletedProcess[str]:
    """Code that uses this file, in a process of its own, which ends as a training does."""
    code = f"from pathlib import Path\nfrom test_trackers import *\n{code}"
    other = {"PYTEST_CURRENT_TEST", "CI", "GITHUB_ACTIONS", "WANDB_MODE", "MLFLOW_TRACKING_URI"}  # tools look at them
    other |= {name for kind in concrete(Tracker).values() for name in kind.QUIET}  # set by other tests
    environment = {name: value for name, value in os.environ.items() if name not in other}
    here = Path(__file__).parent
    return subprocess.run([sys.executable, "-c", code], cwd=here, env=environment, capture_output=True, text=True)


def stopped_and_resumed(name: str, run: Path, end: str) -> None:
    """Six reports, of which a checkpoint kept three; then another process reports from there on."""
    run.mkdir()
    first = elsewhere(f"report({name!r}, Path({str(run)!r}), end={end!r})")
    assert first.returncode == (-signal.SIGKILL if end == "kill" else 0), first.stderr
    second = elsewhere(f"report({name!r}, Path({str(run)!r}), 30)")
    assert second.returncode == 0, second.stderr
    assert "failed" not in second.stderr


ALL = [(step, step) for step in (10, 20, 30, 40, 50, 60)]
ENDS = pytest.mark.parametrize("end", ["kill", "close"])


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
    stopped_and_resumed("JsonLines", tmp_path / "run", "kill")
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
@ENDS
def test_tensorboard_shows_every_step_once(tmp_path, end):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def shown(name: str) -> list[tuple[int, float]]:
        events = EventAccumulator(str(tmp_path / "run/tensorboard"))
        events.Reload()
        assert set(events.Tags()["scalars"]) == {"loss", "levels/0", "levels/1", "shares/data"}
        assert "about/text_summary" in events.Tags()["tensors"]
        return [(event.step, event.value) for event in events.Scalars(name)]

    stopped_and_resumed("TensorBoard", tmp_path / "run", end)
    assert shown("loss") == ALL
    assert shown("levels/1") == [(step, value + 0.5) for step, value in ALL]
    anew = concrete(Tracker)["TensorBoard"]()
    anew.open(tmp_path / "run", ABOUT, 0)
    anew.log(5, figures(5))
    anew.close()
    assert shown("loss") == [(5, 5)]


@pytest.mark.filterwarnings("ignore")  # the library's own
@ENDS
def test_mlflow_keeps_one_run_in_a_database_of_its_own(tmp_path, end):
    """It forgets no point, so that those which the first process was ahead by are not repeated."""
    tracking = pytest.importorskip("mlflow.tracking", reason="the extra mlflow is not installed")
    stopped_and_resumed("MLflow", tmp_path / "run", end)
    client = tracking.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/run/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("poise").experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert set(run.data.metrics) == {"loss", "levels/0", "levels/1", "shares/data"}
    points = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss")]
    assert points == [(step, value + 1000 * (step > 30)) for step, value in ALL]
    (about,) = (tmp_path / "run/mlflow").rglob("about.json")
    assert json.loads(about.read_text()) == ABOUT


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_mlflow_runs_while_a_stopped_training_goes_on(tmp_path, monkeypatch):
    tracking = pytest.importorskip("mlflow.tracking", reason="the extra mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    report("MLflow", tmp_path)
    tracker = concrete(Tracker)["MLflow"]()
    tracker.open(tmp_path, ABOUT, 30)
    client = tracking.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert client.get_run((tmp_path / "mlflow.id").read_text()).info.status == "RUNNING"
    tracker.close()


@pytest.mark.filterwarnings("ignore")  # the library's own
@ENDS
def test_trackio_keeps_one_run_on_this_machine(tmp_path, monkeypatch, end):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="the extra trackio is not installed")
    stopped_and_resumed("Trackio", tmp_path / "run", end)
    read = "from trackio.sqlite_storage import SQLiteStorage as kept\n"  # whose place is settled at the import
    read += "print(json.dumps({name: kept.get_logs('poise', name) for name in kept.get_runs('poise')}))"
    ((name, lines),) = json.loads(elsewhere(read).stdout).items()
    assert name == (tmp_path / "run/trackio.id").read_text()
    assert [(line["step"], line["loss"]) for line in lines] == ALL
    assert lines[0]["levels/1"] == 10.5


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


def sendable(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What `wandb sync` would send of a run: its points, by the folder that they are in."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted((run / "wandb").glob("offline-run-*/run-*.wandb")):
        points = found[file.parent.name] = []
        for data in records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                points.append((int(items["_step"]), float(items["loss"])))
    return found


@pytest.mark.filterwarnings("ignore")  # the library's own
@ENDS
def test_wandb_writes_one_file_offline(tmp_path, end):
    """Of two files for one run, `wandb sync` would number what they both have anew."""
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    stopped_and_resumed("WeightsAndBiases", tmp_path / "run", end)
    ((folder, points),) = sendable(tmp_path / "run").items()
    assert folder.endswith(f"-{(tmp_path / 'run/wandb.id').read_text()}")
    assert points == ALL


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_what_wandb_has_sent_stays_and_the_whole_becomes_another_run(tmp_path):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    elsewhere(f"report('WeightsAndBiases', Path({str(tmp_path)!r}))")
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    file.with_name(f"{file.name}.synced").touch()  # as `wandb sync` does
    elsewhere(f"report('WeightsAndBiases', Path({str(tmp_path)!r}), 30, 'kill')")
    elsewhere(f"report('WeightsAndBiases', Path({str(tmp_path)!r}), 30)")
    found = sendable(tmp_path)
    assert len(found.pop(file.parent.name)) == 6
    ((folder, points),) = found.items()
    assert points == ALL
    assert not file.name.startswith(f"run-{folder.split('-')[-1]}")


NAMES_LOOKED_UP = """
import atexit, socket
asked = []
def lookup(host, *rest, look=socket.getaddrinfo, **named):
    if host in ("localhost", "127.0.0.1"):
        return look(host, *rest, **named)
    asked.append(host)
    raise socket.gaierror(-2, "no network here")
socket.getaddrinfo = lookup
atexit.register(lambda: print("asked", *asked))  # the first one runs last
"""


@pytest.mark.parametrize("name", sorted(LIBRARIES))
def test_no_tool_reaches_for_the_network(name, tmp_path, monkeypatch):
    """Not even for the name of the user, nor to tell its makers that it is used."""
    pytest.importorskip(LIBRARIES[name], reason=f"the extra {LIBRARIES[name]} is not installed")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    proof = "try: socket.getaddrinfo('proof.invalid', 443)\nexcept OSError: pass"
    done = elsewhere(f"{NAMES_LOOKED_UP}\nreport({name!r}, Path({str(tmp_path)!r}))\n{proof}")
    assert done.stdout.splitlines()[-1] == "asked proof.invalid", done.stderr


class _Frail(Tool):
    """Keeps points in a list, and fails where it is told to."""

    def __init__(self, fails: str = "", has: int = 0) -> None:
        super().__init__()
        self.fails, self.has, self.points = fails, has, []

    def _do(self, what: str) -> None:
        if what == self.fails:
            raise RuntimeError(f"no {what}")

    def _begin(self, run: Path, about: Mapping[str, Any], step: int) -> int:
        self._do("begin")
        return self.has + 1

    def _send(self, step: int, values: Mapping[str, float]) -> None:
        self._do(f"send {step}")
        self.points.append((step, values["loss"]))

    def _end(self) -> None:
        self._do("end")


def test_a_tool_gets_what_it_lacks_once(tmp_path):
    """It had the first two reports when the process died, and the checkpoint is of step 30; or it was even ahead."""
    report("JsonLines", tmp_path)
    for has, expected in ((20, ALL[2:]), (50, ALL[5:])):
        cut(tmp_path / "metrics.jsonl", 30)
        tool = _Frail(has=has)
        tool.open(tmp_path, ABOUT, 30)
        for step in (40, 50, 60):
            tool.log(step, figures(step))
        assert tool.points == expected


def test_a_tool_that_cannot_begin_ends_a_new_training_and_no_resumed_one(tmp_path, capsys):
    with pytest.raises(
        ValueError, match=r"^_Frail cannot begin a run \(no begin\), .* or train without --track _Frail$"
    ):
        _Frail("begin").open(tmp_path, ABOUT, 0)
    report("JsonLines", tmp_path)
    tool = _Frail("begin")
    tool.open(tmp_path, ABOUT, 30)
    tool.log(40, figures(40))
    tool.close()
    assert not tool.points
    assert capsys.readouterr().err.count("_Frail failed and gets no more figures (no begin)") == 1


@pytest.mark.parametrize("fails", ["send 2", "end"])
def test_a_training_outlives_its_tools(tmp_path, capsys, fails):
    rows = np.random.default_rng(0).normal(size=(40, 1)).astype(np.float32)
    windows = Windows(Episodes({"side": rows, "action": rows}, np.array([20, 40])), ("side",), 1, 2, 1)
    network = Transformer(width=16, heads=2, depth=1)
    spec = PolicySpec({"side": (1,)}, 1, history=1, horizon=2, execute=1, network=network)
    tool = _Frail(fails)
    training = TrainingSpec(steps=4, batch=8, warmup=1, validate_every=1)
    fit(Job(DiffusionPolicy, spec, training, tmp_path, {}, trackers=(tool,)), (windows, windows))
    assert (tmp_path / "policy.safetensors").is_file()
    reported = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert reported == [1, 2, 3, 4]
    assert [step for step, _ in tool.points] == ([1] if fails == "send 2" else reported)
    assert capsys.readouterr().err.count(f"_Frail failed and gets no more figures (no {fails})") == 1
