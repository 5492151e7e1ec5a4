"""The rows of `benchmarks/latency.py` that need more than PyTorch."""

import importlib
import importlib.util
from pathlib import Path

import pytest
import torch

from poise.nn import MLP
from poise.policies import PolicySpec

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SPEC = PolicySpec({"state": (2,)}, 2, network=MLP(16, 1, 8), evaluations=1)


@pytest.fixture
def latency(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("latency")


@torch.inference_mode()
def test_the_exported_plan_is_a_row_beside_the_peers_eager_one(latency):
    rows = latency.onnx_rows(SPEC, 2)
    assert rows.keys() <= set(latency.PLANS) & latency.ROWS.keys()
    assert 0 < rows["onnx"]() < 1e4


def test_without_onnxruntime_the_row_is_left_out_and_the_reason_told(latency, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *of: None if name == "onnxruntime" else find(name, *of)
    )
    assert latency.onnx_rows(SPEC, 2) == {}
    said = capsys.readouterr().err
    assert said.startswith("no row of the exported plan: ")
    assert "pip install 'poise[onnx]'" in said
