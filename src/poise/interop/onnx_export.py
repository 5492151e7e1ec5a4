"""Whole policies as ONNX (extra `onnx`), which `poise.runtime` runs with numpy and onnxruntime alone."""

import hashlib
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poise.interop.program import NOISE, Exported, Program, compared, program
from poise.limits import ActionLimits
from poise.policies import Policy
from poise.runtime import FORMAT, KEY, UNSEALED, Runtime


def export_onnx(policy: Policy, path: str | Path, safety: ActionLimits | None = None) -> Exported:
    """Write a policy as one ONNX file, once onnxruntime's plans are found to be those of the policy.

    Its inputs are the observation histories by their names, `noise` `(B, horizon, action)` and, for stochastic
    samplers, `step_noise` `(draws - 1, B, horizon, action)`; its output is `plan` `(B, planned, action)`. What else is
    to be known lies in its metadata under `poise`, as JSON, with the sha256 of the file.

    Args:
        policy: See `program`.
        path: A file, by custom `.onnx`; it is replaced.
        safety: Limits of what may be sent, which are told in the metadata: `Runtime.facts["safety"]`.

    Raises:
        ImportError: The extra `onnx` is missing.
        ValueError: As `program`, or plans that differ by more than 1e-5 of their range.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"export to ONNX needs {missing} of the extra 'onnx': pip install 'poise[onnx]'")
    made, path = program(policy)._replace(safety=safety), Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _write(made, aside)
        _seal(aside)
        runtime = Runtime(aside)

        def run(observation: Mapping[str, Tensor], noise: Sequence[Tensor]) -> Tensor:
            seen = {name: values.numpy() for name, values in observation.items()}
            return torch.from_numpy(runtime.plan(seen, noise=[part.numpy() for part in noise]))

        difference = compared(made, run)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return Exported(path, made.draws, difference)


def _write(made: Program, path: Path) -> None:
    names = [*made.policy.spec.observations, *NOISE[: made.draws]]
    batch = {0: "batch"}, {1: "batch"}
    shapes = dict.fromkeys(made.policy.spec.observations, batch[0]), *batch[: made.draws]
    try:
        with _quiet():
            converted = torch.onnx.export(
                made.exported,
                input_names=names,
                output_names=["plan"],
                dynamic_shapes=shapes,
                # What the exporter does not know: how a level is looked up in the table of a chain.
                custom_translation_table={torch.ops.aten.searchsorted.Tensor: _searchsorted},
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        problem = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(
            f"a part of this policy has no counterpart in ONNX ({problem}), expected operations that torch.onnx knows: "
            "use others, or --format torch, which holds them all"
        ) from error
    assert converted is not None
    model = converted.model
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():  # the names and lines of our modules, many times over
        node.metadata_props.clear()
    model.metadata_props[KEY] = json.dumps({"format": FORMAT, "sha256": UNSEALED, **made.facts()})
    converted.save(path, external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself, and of packages that it does not find."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _searchsorted(knots: Any, values: Any) -> Any:
    """The number of knots below each value, as nodes of ONNX."""
    from onnxscript import opset18

    op: Any = opset18
    below = op.Less(knots, op.Unsqueeze(values, [-1]))
    return op.ReduceSum(op.Cast(below, to=7), [-1], keepdims=0)  # 7 is int64


def _seal(path: Path) -> None:
    """Put the sha256 of a file in its place."""
    data = path.read_bytes()
    path.write_bytes(data.replace(UNSEALED.encode(), hashlib.sha256(data).hexdigest().encode()))


__all__ = ["export_onnx"]
