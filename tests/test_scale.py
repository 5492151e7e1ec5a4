"""Two processes that share a training equal one; this file is also the program that they run."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from poise import load
from poise.cli import main
from poise.data import Episodes, Windows
from poise.nn import MLP, UNet1D
from poise.policies import DiffusionPolicy, PolicySpec
from poise.training import Checkpoints, Learner, Processes, TrainingSpec, train
from poise.training.scale import Distributed, joined

NETWORK = MLP(width=16, depth=2, condition=8)
SPEC = PolicySpec({"side": (1,)}, 1, history=1, horizon=2, execute=1, network=NETWORK)
PLAIN = TrainingSpec(steps=20, batch=32, warmup=5, learning_rate=3e-3)
CASES = {
    "plain": PLAIN,
    "masked": dataclasses.replace(PLAIN, mask_padding=True),
    "parts": dataclasses.replace(PLAIN, accumulate=2, batch=39),
    "masked parts": dataclasses.replace(PLAIN, mask_padding=True, accumulate=2),
    "skipped": PLAIN,
    "unet": dataclasses.replace(PLAIN, learning_rate=1e-3),
}
UNET = UNet1D(channels=(16, 32), groups=4, embedding=16)  # on a CPU it is trained by products of our own
SHARDED = ("plain", "masked parts")
BAD, CUT = (3, 11), 8  # steps whose loss one process finds not finite; where a run is stopped


def learner(
    training: TrainingSpec, processes: Processes | None = None, spec: PolicySpec = SPEC
) -> tuple[Learner, Windows]:
    rows = np.random.default_rng(0).normal(size=(200, 1)).astype(np.float32)
    windows = Windows(Episodes({"side": rows, "action": rows}, np.arange(4, 201, 4)), ("side",), 1, spec.horizon, 1)
    torch.manual_seed(0)
    policy = DiffusionPolicy(spec)
    policy.fit(windows)
    return Learner(policy, training, processes), windows


def trained(name: str, processes: Processes | None = None) -> dict[str, torch.Tensor]:
    spec = dataclasses.replace(SPEC, horizon=4, network=UNET) if name == "unet" else SPEC
    found, windows = learner(CASES[name], processes, spec)
    rank = found.processes.rank if processes else 1  # alone it finds what the second of two would

    def spoiled(*given):
        """At one step the gradient is not finite, at the other the loss alone."""
        good, bad = found.policy.loss(*given), rank == 1 and found.step in BAD
        return good * torch.nan if bad and found.step == BAD[0] else good + (torch.inf if bad else 0.0)

    losses = [now.loss for now in train(found, windows, loss=spoiled if name == "skipped" else None)]
    return {**state(found), "losses": torch.tensor(losses)}


def state(found: Learner) -> dict[str, torch.Tensor]:
    average = {f"average.{name}": value for name, value in found.averaged().state_dict().items()}
    return {**found.tensors(), **average, "updates": torch.tensor(found.average.updates)}


def cut(run: Path, processes: Processes | None = None) -> None:
    found, windows = learner(PLAIN, processes)
    for now in train(found, windows):
        if now.step == CUT:
            Checkpoints(run).save(found, {})
            return


def resumed(run: Path, processes: Processes | None = None) -> dict[str, torch.Tensor]:
    found, windows = learner(PLAIN, processes)
    assert Checkpoints(run).resume(found) is not None
    assert found.step == CUT
    for _ in train(found, windows):
        pass
    return state(found)


def observed(processes: Processes) -> dict[str, object]:
    """What this process sees of shards, clocks and the global generator."""
    found, windows = learner(dataclasses.replace(PLAIN, steps=10**9, minutes=0.1), processes)
    found.seconds, drawn = 5.5 * processes.rank, []
    for _ in train(
        found, windows, loss=lambda *given: (drawn.append(torch.rand(()).item()), found.policy.loss(*given))[1]
    ):
        pass
    local = [getattr(p, "_local_tensor", p).numel() for p in found.policy.parameters()]
    held = [getattr(p, "_local_tensor", p).numel() for p in found.average.policy.parameters()]
    return {"steps": found.step, "seconds": found.seconds, "drawn": drawn[:5], "local": sum(local), "held": sum(held)}


def share(out: Path, names: list[str]) -> None:
    """What each of the processes does."""
    with joined("cpu") as (processes, _):
        for name in names:
            found = trained(name, processes)
            if processes.rank == 0:
                save_file(found, out / f"{name}.safetensors")
        cut(out / "by two", processes)
        found = resumed(out / "by one", processes)
        if processes.rank == 0:
            save_file(found, out / "reverse.safetensors")
        (out / f"{processes.rank}.json").write_text(json.dumps(observed(processes)))


@contextlib.contextmanager
def launched(*arguments: object, **environment: str) -> Iterator[subprocess.Popen]:
    """Two processes by torchrun; nothing of them is left behind."""
    psutil = pytest.importorskip("psutil")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = os.pathsep.join(p for p in sys.path if p)
    with subprocess.Popen(
        [*command, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            for left in psutil.Process(process.pid).children() if process.poll() is None else ():
                left.kill()
            process.kill()


def by_two(out: Path, names: tuple[str, ...], **environment: str) -> Path:
    pytest.importorskip(
        "accelerate", reason="training by several processes needs accelerate: pip install 'poise[scale]'"
    )
    cut(out / "by one")
    with launched(__file__, out, *names, **environment) as process:
        output = process.communicate(timeout=600)[0]
        assert process.returncode == 0, output
    return out


@pytest.fixture(scope="module")
def copies(tmp_path_factory) -> Path:
    return by_two(tmp_path_factory.mktemp("copies"), tuple(CASES))


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return by_two(
        tmp_path_factory.mktemp("shards"),
        SHARDED,
        ACCELERATE_USE_FSDP="true",
        FSDP_VERSION="2",
        FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP",
        FSDP_TRANSFORMER_CLS_TO_WRAP="_Block",
    )


def same(mine: dict[str, torch.Tensor], other: dict[str, torch.Tensor], within: float) -> None:
    assert set(mine) == set(other)
    for name in set(mine) - {"random.cpu"}:
        told = lambda text, name=name: f"{name}: {text}"  # noqa: E731
        torch.testing.assert_close(mine[name], other[name], atol=within, rtol=0, equal_nan=True, msg=told)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(copies, name):
    """Parameters, average, moments and losses; a step that one of them finds not finite is skipped by both."""
    alone = trained(name)
    same(load_file(copies / f"{name}.safetensors"), alone, 1e-6)
    assert alone["updates"] == PLAIN.steps - (len(BAD) if name == "skipped" else 0)


@pytest.mark.parametrize("name", SHARDED)
def test_two_shards_equal_the_whole(shards, name):
    same(load_file(shards / f"{name}.safetensors"), trained(name), 1e-5)


@pytest.mark.parametrize(("kind", "within"), [("copies", 1e-6), ("shards", 1e-5)])
def test_a_run_goes_on_with_another_number_of_processes(request, kind, within):
    out, whole = request.getfixturevalue(kind), trained("plain")
    whole.pop("losses")
    same(resumed(out / "by two"), whole, within)
    same(load_file(out / "reverse.safetensors"), whole, within)


@pytest.mark.parametrize("kind", ["copies", "shards"])
def test_processes_agree_on_the_end_and_drop_different_units(request, kind):
    """The second one's clock is 5.5 s ahead: it alone must not end."""
    out, parameters = request.getfixturevalue(kind), sum(p.numel() for p in learner(PLAIN)[0].policy.parameters())
    first, second = (json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["steps"] == second["steps"]
    assert first["seconds"] == second["seconds"] >= 6
    assert not set(first["drawn"]) & set(second["drawn"])
    for place in ("local", "held"):
        assert first[place] + second[place] == parameters * (2 if kind == "copies" else 1)
        assert 0.4 < first[place] / (first[place] + second[place]) < 0.6


RECIPE = """
import numpy as np
from poise import MLP, Episodes, PolicySpec, Recipe, Task, TrainingSpec

def demonstrations(path):
    rows = np.random.default_rng(0).normal(size=(600, 1)).astype(np.float32)
    return Episodes({"side": rows, "action": rows}, np.arange(100, 601, 100))

recipe = Recipe(
    policy=PolicySpec({"side": (1,)}, 1, history=1, horizon=2, execute=1, network=MLP(width=16, depth=1, condition=8)),
    training=TrainingSpec(steps=1500, batch=32, save_every=20, validate_every=10**6),
    task=Task("poise.envs:poise/Navigate-v0"),
    read=demonstrations,
    validation=0.2,
)
"""


def stopped(command: list[object], run: Path, at: str) -> str:
    """The output of a run that gets SIGTERM, by torchrun or in the second process alone, after its next checkpoint."""
    psutil = pytest.importorskip("psutil")
    seen = {p.name for p in run.glob("checkpoints/step-*")}
    with launched("-m", "poise", *command) as process:
        while {p.name for p in run.glob("checkpoints/step-*")} <= seen:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        children = psutil.Process(process.pid).children()
        second = next(child for child in children if child.environ()["RANK"] == "1")
        begin = time.monotonic()
        os.kill(process.pid if at == "torchrun" else second.pid, signal.SIGTERM)
        output = process.communicate(timeout=120)[0]
        busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # processes that want a core
        assert time.monotonic() - begin < 10 * busy
        assert not any(child.is_running() for child in children)
    return output


def test_a_signal_ends_all_processes_and_the_run_goes_on(tmp_path, monkeypatch):
    """Sent to one of two first, and to all of a resumed run; then one process goes on alone."""
    pytest.importorskip(
        "accelerate", reason="training by several processes needs accelerate: pip install 'poise[scale]'"
    )
    (tmp_path / "tiny.py").write_text(RECIPE)
    run = tmp_path / "run"
    steps = []
    for command, at in (
        (["train", tmp_path / "tiny.py", "--out", run], "second"),
        (["train", "--resume", run], "torchrun"),
    ):
        output = stopped(command, run, at)
        assert output.count("5 + 1 episodes") == 1
        assert output.count("stopped at step") == 1
        steps.append(int(output.split("stopped at step ")[1].split(":")[0]))
        assert (run / "checkpoints/latest").readlink().name == f"step-{steps[-1]:08d}"
        assert load(run).spec == load(run / "checkpoints/latest").spec
    assert 20 <= steps[0] < steps[1] < 1500
    monkeypatch.setattr(sys, "argv", ["poise", "train", "--resume", str(run)])
    main()
    logged = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert logged == sorted(set(logged))
    assert logged[-1] == 1500


def test_accelerate_launch_starts_the_same_training(tmp_path, monkeypatch):
    """On the CPU of one machine it starts one process."""
    pytest.importorskip(
        "accelerate", reason="training by several processes needs accelerate: pip install 'poise[scale]'"
    )
    (tmp_path / "tiny.py").write_text(RECIPE)
    train_tiny = ["train", str(tmp_path / "tiny.py"), "--training.steps", "30", "--out"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "poise"]
    done = subprocess.run([*launch, *train_tiny, tmp_path / "launched"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(sys, "argv", ["poise", *train_tiny, str(tmp_path / "alone")])
    main()
    found, alone = (load(tmp_path / name).state_dict() for name in ("launched", "alone"))
    same(found, alone, 1e-6)


def test_what_is_missing_or_wrong_is_explained(monkeypatch):
    found, windows = learner(dataclasses.replace(PLAIN, accumulate=33))
    with pytest.raises(
        ValueError, match="batch of 32 for 1 processes that compute 33 parts each, expected at least 33"
    ):
        next(train(found, windows))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    pytest.importorskip(
        "accelerate", reason="training by several processes needs accelerate: pip install 'poise[scale]'"
    )
    with pytest.raises(ValueError, match=r"got FSDP_VERSION=1, expected 2: set it, or ask accelerate config"):
        Distributed("cpu")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP")
    with pytest.raises(ValueError, match=r"got FSDP_AUTO_WRAP_POLICY=SIZE_BASED_WRAP, expected .*NO_WRAP"):
        Distributed("cpu")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with (
        pytest.raises(
            ImportError,
            match=r"by 2 processes needs the extra 'scale' \(import of accelerate .*\): pip install 'poise\[scale\]'",
        ),
        joined("cpu"),
    ):
        pass


if __name__ == "__main__":
    share(Path(sys.argv[1]), sys.argv[2:])
