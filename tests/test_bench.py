"""`poise bench`: the figures of a plan against what is known of them."""

import json
import sys
import time

import numpy as np
import pytest
import torch
import tyro

from poise.cli import bench as module
from poise.cli import memory
from poise.cli.bench import Speed, bench, figures, operations, speed_of, times
from poise.cli.memory import peak_memory
from poise.cli.running import Hardware
from poise.data import Episodes, Windows
from poise.nn import MLP
from poise.policies import DiffusionPolicy, PolicySpec, Regression
from poise.policies.saving import save_checkpoint
from poise.sampling import Heun

SPEC = PolicySpec({"o": (3,)}, 2, horizon=4, execute=2, network=MLP(width=16, depth=1, condition=8), evaluations=4)


def saved(path, kind=DiffusionPolicy):
    torch.manual_seed(0)
    policy, generator = kind(SPEC), np.random.default_rng(0)
    rows = {"o": generator.normal(size=(32, 3)), "action": generator.normal(size=(32, 2))}
    policy.fit(Windows(Episodes(rows, np.array([32])), ("o",), 2, 4, 0))
    return save_checkpoint(path, policy)


def run(*arguments):
    tyro.cli(bench, prog="poise bench", args=list(map(str, arguments)))


def test_every_combination_is_a_row(tmp_path, capsys):
    path, file = saved(tmp_path), tmp_path / "out" / "bench.json"
    before = torch.get_num_threads()
    arguments = ["--samplers", "DDIM", "Heun", "--evaluations", 2, 3, "--batches", 1, 2, "--threads", 1]
    run(path, *arguments, "--repeats", 2, "--json", file)
    assert torch.get_num_threads() == before
    results, printed = json.loads(file.read_text()), capsys.readouterr().out
    rows = results["rows"]
    assert [(r["sampler"], r["counted"], r["batch"]) for r in rows] == [
        (name, spent, batch) for name in ("DDIM", "Heun") for spent in (2, 3) for batch in (1, 2)
    ]
    assert {(r["threads"], r["way"]) for r in rows} == {(1, "eager")}
    for row in rows:
        assert 0 < row["median_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["floor_ms"] > 0
        assert row["encoder_share"] > 0
        assert row["network_share"] > 0
        assert row["memory_mib"] is None or 10 < row["memory_mib"] < 1e5
    assert len(printed.splitlines()) == 1 + len(rows) + 1
    assert "GB/s" in printed


def test_by_default_it_is_the_checkpoints_sampler_also_compiled(tmp_path, monkeypatch):
    """The compiled policy takes the place beside the eager one; that it plans the same is another file's test."""
    asked = []
    monkeypatch.setattr(module, "compiled", lambda policy, batches, *kind: asked.append((batches, *kind)) or policy)
    monkeypatch.setattr(module, "has_bfloat16", lambda device: True)
    file = tmp_path / "bench.json"
    run(saved(tmp_path), "--compile", "--bfloat16", "--repeats", 1, "--json", file)
    rows = json.loads(file.read_text())["rows"]
    assert [(r["sampler"], r["counted"], r["way"]) for r in rows] == [
        ("DPMSolverPP", 4, "eager"), ("DPMSolverPP", 4, "compiled"), ("DPMSolverPP", 4, "bfloat16")
    ]  # fmt: skip
    assert asked == [((1,),), ((1,), torch.bfloat16)]


def test_quantiles_and_rates_are_those_of_the_seconds():
    row = figures([i / 1000 for i in range(1, 102)], execute=8)
    assert row == pytest.approx(
        {"median_ms": 51, "p95_ms": 96, "p99_ms": 100, "plans_per_s": 1 / 0.051, "control_hz": 8 / 0.096}
    )


def test_the_first_calls_do_not_count():
    calls = []

    def slow_at_first():
        calls.append(1)
        time.sleep(0.05 if len(calls) <= 3 else 0)

    assert len(times(slow_at_first, 4)) == 4
    assert len(calls) == 7


def test_the_floor_is_the_larger_of_reading_and_computing():
    speed = Speed(bandwidth=10.0, arithmetic=100.0)
    assert speed.floor(50, 100) == 5
    assert speed.floor(50, 1000) == 10
    measured = speed_of(torch.device("cpu"))
    assert 1e8 < measured.bandwidth < 1e13
    assert 1e8 < measured.arithmetic < 1e15


@pytest.mark.parametrize("batch", [1, 3])
def test_operations_are_two_a_weight_and_row(batch):
    policy = DiffusionPolicy(SPEC).eval()
    layers = [m for m in policy.diffusion.network.modules() if isinstance(m, torch.nn.Linear)]
    once = {policy.diffusion.network.entrance_observation, policy.diffusion.network.condition_observation}
    weights = sum(layer.weight.numel() for layer in layers if layer not in once)
    assert operations(policy, batch) == 2 * batch * weights


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets an earlier peak")
def test_the_peak_is_that_of_the_call_alone():
    def held(mebibytes):
        return peak_memory(lambda: torch.ones(mebibytes, 2**18).sum().item(), torch.device("cpu"))

    _, before = held(1)
    total, large = held(200)
    _, after = held(1)
    if before is None or large is None or after is None:
        pytest.skip("this machine does not tell the peak of a process")
    assert total == 200 * 2**18
    assert large - before == pytest.approx(200, abs=40)
    assert large - after == pytest.approx(200, abs=40)


def test_where_no_one_tells_the_peak_none_is_made_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "_FORGET", tmp_path / "no" / "clear_refs")
    assert peak_memory(lambda: 7, torch.device("cpu")) == (7, None)
    file = tmp_path / "bench.json"
    run(saved(tmp_path), "--repeats", 1, "--json", file)
    assert json.loads(file.read_text())["rows"][0]["memory_mib"] is None
    head, row, *_ = capsys.readouterr().out.splitlines()
    assert head.endswith("    MiB")
    assert row.endswith(" -")
    assert len(head) == len(row)


def test_what_cannot_be_timed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="bench got a Regression, expected a DiffusionPolicy"):
        run(saved(tmp_path / "r", Regression))
    path = saved(tmp_path / "d")
    with pytest.raises(ValueError, match="got the sampler 'DDMI', expected one of"):
        run(path, "--samplers", "DDMI")
    with pytest.raises(ValueError, match="expected --repeats, --batches, ... of at least 1"):
        run(path, "--repeats", 0)
    with pytest.raises(ValueError, match=f"{Heun.__name__} got a budget of 0 evaluations|of at least 1"):
        run(path, "--samplers", "Heun", "--evaluations", 0)


def test_a_device_that_is_not_there_is_named_with_what_is(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    message = "got --device cuda, expected one of cpu, which PyTorch"
    with pytest.raises(ValueError, match=message):
        run(saved(tmp_path), "--device", "cuda")
    with pytest.raises(ValueError, match=message):
        Hardware("cuda").take(DiffusionPolicy(SPEC))


def test_bfloat16_is_not_timed_where_there_are_no_instructions_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    with pytest.raises(ValueError, match="got --bfloat16 for a cpu without instructions for it: leave it out"):
        run(saved(tmp_path), "--bfloat16")


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        run("--help")
    words = " ".join(capsys.readouterr().out.split())
    assert "control rate" in words
    assert "--bfloat16" in words
