"""Engines: the same results from processes of this machine and from a Ray cluster of two machines."""

import dataclasses
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from poise.cli import main
from poise.cli.engines import Engine, Local, Outcome, Pinned, Ray, Workers
from poise.cli.evaluate import Chunk
from poise.cli.running import Hardware, Machine, Sampling
from poise.cli.sweep import sweep
from poise.policies.saving import FILE

RECIPE = """
from poise import MLP, Episodes, PolicySpec, Recipe, Task, TrainingSpec
from poise.envs import Map, demonstrate


def read(path):
    data = demonstrate(Map(), 40, seed=0, noise=0.1)
    features = {name: data[name] for name in ("position", "velocity", "goal", "action")}
    return Episodes(features, data["episode_ends"])


recipe = Recipe(
    policy=PolicySpec(
        {"position": (2,), "velocity": (2,), "goal": (2,)}, 2, network=MLP(width=32, depth=1, condition=16)
    ),
    training=TrainingSpec(steps=20, batch=32, warmup=5, validate_every=20),
    task=Task("poise.envs:poise/Navigate-v0", slots=8),
    read=read,
)
"""
SETTING = "POISE_TEST_SETTING"
# Ray leaves the processes of a cluster to the operating system when it has told them to end.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """This file can be imported on workers, which are processes of clusters that begin here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
        yield


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """That of a cluster of two machines with one core each, which are processes here."""
    pytest.importorskip("ray", reason="the extra cluster is not installed")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster.address
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def connected(address) -> Iterator[str]:
    """The same, with one connection for several tests, so that they share workers."""
    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    yield address
    ray.shutdown()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.py"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def checkpoint(recipe, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    poise("train", recipe, "--out", out)
    return out


def poise(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["poise", *map(str, arguments)])
        main()


def tried(item: int) -> tuple[int, int, str, str | None, int]:
    """What an item makes of itself and of what it finds around it; some items end badly."""
    if item == 3:
        raise ValueError("three\nis too many")
    if item == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    drawn = int(np.random.default_rng(item).integers(10**9))
    return item, drawn, str(Path.cwd()), os.environ.get(SETTING), os.getpid()


def held(folder: Path) -> None:
    """Say that one is there, and stay."""
    (folder / str(os.getpid())).touch()
    time.sleep(60)


def test_ctrl_c_ends_what_runs_here(tmp_path):
    interrupted(Local(2), tmp_path)


def test_ctrl_c_ends_what_runs_and_the_cluster_of_the_command(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="the extra cluster is not installed")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = children()
    interrupted(Workers(2, "ray").start(), tmp_path)
    wait_until(lambda: not children() - before)


def interrupted(engine: Engine, folder: Path) -> None:
    def interrupt() -> None:
        while len(list(folder.iterdir())) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt), closing(engine.map(held, [folder] * 3)) as outcomes:
        print(next(outcomes))
    begun = [Path("/proc") / path.name for path in folder.iterdir()]
    assert len(begun) == 2
    wait_until(lambda: not any(path.exists() for path in begun))
    assert signal.getsignal(signal.SIGINT) is handler


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def children() -> set[str]:
    """Processes that this one has begun and that live."""
    command = ["ps", "-o", "pid=,stat=,args=", "--ppid", str(os.getpid())]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[0] for line in lines if "ps -o" not in line and "Z" not in line.split()[1]}


@pytest.mark.parametrize("name", ["local", "ray"])
def test_every_item_has_its_outcome_whatever_becomes_of_the_others(name, request, tmp_path, monkeypatch):
    engine = Local(2) if name == "local" else Ray(2, request.getfixturevalue("address"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(SETTING, "of the command")
    outcomes = sorted(engine.map(tried, [5, 4, 3, 2, 1, 0]))
    assert [outcome.number for outcome in outcomes] == list(range(6))
    good = [outcome for outcome in outcomes if outcome.error is None]
    assert [outcome.number for outcome in good] == [0, 3, 4, 5]
    for outcome in good:
        item = 5 - outcome.number
        drawn = int(np.random.default_rng(item).integers(10**9))
        assert outcome.value[:4] == (item, drawn, str(tmp_path), "of the command")
        assert outcome.value[4] != os.getpid()
    assert outcomes[2] == Outcome(2, None, "ValueError: three is too many")
    assert outcomes[1].value is None
    assert "the process was killed" in outcomes[1].error
    assert "such as for want of memory" in outcomes[1].error


def test_a_cluster_must_be_there_and_have_a_machine_that_is_enough(address):
    for lacking in (Ray(1, address, cpus=2), Ray(1, address, gpus=1)):  # the two cores are of two machines
        with pytest.raises(ValueError, match="got a Ray cluster of the machines .*, expected one with at least"):
            next(lacking.map(tried, [1]))
    with pytest.raises(ValueError, match=r"got the Ray address '127.0.0.1:1', where no cluster answers, expected what"):
        next(Ray(1, "127.0.0.1:1").map(tried, [1]))


@pytest.mark.parametrize("name", ["local", "ray"])
def test_episodes_are_the_same_bit_by_bit(name, request, recipe, checkpoint):
    engine = Local(2) if name == "local" else Ray(2, request.getfixturevalue("connected"))
    seeds = range(200, 208)
    weights, program = Pinned.of(checkpoint / FILE), Pinned.of(recipe)
    running = Machine(Hardware(threads=1))
    chunks = [Chunk(weights, Sampling(), running, program, None, seeds[first : first + 3]) for first in (0, 3, 6)]
    outcomes = sorted(engine.map(Chunk.run, chunks), key=lambda outcome: outcome.number)
    assert [outcome.error for outcome in outcomes] == [None] * 3
    for chunk, outcome in zip(chunks, outcomes, strict=True):
        for here, there in zip(chunk.run(), outcome.value, strict=True):
            mine, other = dataclasses.asdict(here), dataclasses.asdict(there)
            assert mine.keys() == other.keys()
            np.testing.assert_equal(other, mine)
    assert len({episode.reward_sum for outcome in outcomes for episode in outcome.value}) == len(seeds)


def test_evaluate_gives_the_same_figures(recipe, checkpoint, connected, tmp_path):
    def figures(name: str, *options: object) -> dict:
        file = tmp_path / f"{name}.json"
        common = ("--recipe", recipe, "--episodes", 8, "--seed", 200, "--threads", 1, "--json", file)
        poise("evaluate", checkpoint, *common, *options)
        return timeless(json.loads(file.read_text()))

    one = figures("one", "--jobs", 1, "--chunk", 3)
    assert figures("two", "--jobs", 2, "--chunk", 3) == one
    assert figures("ray", "--jobs", 2, "--chunk", 3, "--engine", "ray", "--address", connected) == one
    # and what this process gets from all seeds at once, up to the rounding of batched arithmetic
    (plain,), (chunked,) = figures("plain")["policies"].values(), one["policies"].values()
    assert numbers(plain) == pytest.approx(numbers(chunked), rel=1e-3)
    assert plain["episodes"] == 8


def numbers(figures: dict) -> dict:
    """Those that apply, measures beside the others."""
    flat = {**figures, **figures["measures"], "measures": None}
    return {name: value for name, value in flat.items() if value is not None}


def timeless(results: dict) -> dict:
    """Results without what the clock says."""
    (name,) = results["policies"]
    kept = {k: v for k, v in results["policies"][name].items() if k not in ("plan_ms_median", "plan_ms_p95")}
    return {**results, "policies": {name: kept}, "seconds": None}


def test_a_sweep_gives_the_same_table_and_weights(recipe, connected, tmp_path):
    rows, weights = [], []
    for name, workers in (("local", Workers(2)), ("ray", Workers(2, "ray", connected))):
        sweep(recipe, ("policy.network.width=16,24",), tmp_path / name, workers=workers, episodes=4)
        table = json.loads((tmp_path / name / "sweep.json").read_text())["rows"]
        rows.append([{k: v for k, v in row.items() if k != "plan_ms_median"} for row in table])
        files = sorted((tmp_path / name / "runs").glob(f"*/{FILE}"))
        weights.append([digest(file) for file in files])
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2
    assert rows[0][0]["reward_max_mean"] != rows[0][1]["reward_max_mean"]
    assert weights[0] == weights[1]
    assert len(set(weights[0])) == 2


def digest(file: Path) -> str:
    """The sha256 of the tensors, which the file holds beside notes of folders and dates."""
    from safetensors import safe_open

    with safe_open(file, framework="np") as opened:
        tensors = [opened.get_tensor(name).tobytes() for name in sorted(opened.keys())]
    return hashlib.sha256(b"".join(tensors)).hexdigest()


def test_what_workers_lack_is_said(connected, tmp_path, monkeypatch):
    """A module, the recipe, another recipe, the folder: each the error of its item."""
    (tmp_path / "only_here.py").write_text("def f(item):\n    return item\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # pyright: ignore[reportMissingImports]

    (outcome,) = Ray(1).map(only_here.f, [1])
    assert outcome.value is None
    assert "the worker could not begin: " in outcome.error
    assert "No module named 'only_here'" in outcome.error
    assert "expected the modules of this command on every machine" in outcome.error

    file = tmp_path / "recipe.py"
    file.write_text("recipe = 1")
    pinned = Pinned.of(file)
    assert pinned.checked() == file
    file.write_text("recipe = 2")
    gone = dataclasses.replace(pinned, path=tmp_path / "gone.py")
    changed, absent = sorted(Ray(1).map(Pinned.checked, [pinned, gone]))
    assert f"ValueError: {file} on " in changed.error
    assert f"has the sha256 {Pinned.of(file).sha256[:12]}..., expected {pinned.sha256[:12]}..." in changed.error
    assert f"FileNotFoundError: {tmp_path / 'gone.py'} does not exist on " in absent.error
    assert "share its file system with the workers" in absent.error

    monkeypatch.setattr(os, "getcwd", lambda: "/of/the/command")
    (outcome,) = Ray(1).map(tried, [1])
    assert "FileNotFoundError: the folder /of/the/command does not exist on " in outcome.error


def test_chunks_that_fail_are_named_and_nothing_is_written(recipe, checkpoint, tmp_path, capsys):
    deadly = recipe.with_name("deadly.py")
    where = 'task=Task("poise.envs:poise/Navigate-v0", slots=8)'
    assert where in RECIPE
    lost = 'task=Task("poise.envs:poise/Nowhere-v0")'
    deadly.write_text(RECIPE.replace(where, lost))
    options = ("--recipe", deadly, "--episodes", 3, "--seed", 5, "--jobs", 2, "--chunk", 2)
    with pytest.raises(SystemExit) as exit_:
        poise("evaluate", checkpoint, *options, "--json", tmp_path / "none.json")
    assert exit_.value.code == 1
    said = capsys.readouterr().err
    assert "poise: episodes 5 to 6: ValueError: got the environment 'poise.envs:poise/Nowhere-v0'" in said
    assert "poise: episodes 7 to 7: ValueError" in said
    assert "poise: 2 of 2 chunks of episodes failed: nothing is written" in said
    assert not (tmp_path / "none.json").exists()


def test_mistakes_are_found_before_anything_runs(checkpoint, recipe, monkeypatch, capsys):
    with pytest.raises(
        ValueError, match="got --address somewhere for processes of this machine, expected --engine ray"
    ):
        Workers(2, address="somewhere").start()
    for jobs in (0, -1):
        with pytest.raises(ValueError, match=f"got jobs={jobs}, expected at least 1"):
            Workers(jobs).start()
    with pytest.raises(SystemExit):
        poise("evaluate", checkpoint, "--recipe", recipe, "--jobs", 1, "--chunk", 0)
    assert "got --chunk 0, expected at least 1 episode" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        ImportError, match=r"needs the extra 'cluster' \(import of ray halted.*\): pip install 'poise\[cluster\]'"
    ):
        next(Workers(1, "ray").start().map(tried, [1]))
