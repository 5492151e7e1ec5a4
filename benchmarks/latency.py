"""Latency of a plan and overhead of the samplers on the CPU, batch 1, beside LeRobot and diffusers.

    python benchmarks/latency.py                                  # ours alone
    python benchmarks/latency.py --peers VENV --kit DIRECTORY     # in turns with the peers installed in VENV
    python benchmarks/latency.py --net medium ...                 # the published size, 63.5 million parameters

Both sides run the same U-Net (the parameters are counted) with the same number of evaluations, in processes that take
turns; ours plans eagerly, compiled, and exported by onnxruntime, the peers' plan is eager in all rows. Rows of ours
with 5 evaluations stand beside the peers' plan with 10. A figure is the median over the rounds, a ratio the median of
the rounds' ratios. Our plan goes from raw observations to raw actions, checks and normalisation included; LeRobot's
chunk starts and ends with normalised tensors. The last line of the output is JSON.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import torch
from peers_driver import median_time

from poise import DDIM, DiffusionPolicy, DPMSolverPP, Episodes, PolicySpec, UNet1D, Windows, load_recipe
from poise.interop import export_onnx
from poise.policies import compiled
from poise.precision import has_bfloat16
from poise.predictions import Epsilon
from poise.runtime import Runtime
from poise.sampling import Sampler, UniformTime, sample
from poise.schedules import Tabulated

HERE = Path(__file__).resolve().parent
SAME_AS_LEROBOT = PolicySpec(
    observations={"state": (2,), "environment": (16,)},
    action=2,
    network=UNet1D(channels=(64, 128, 256)),
    schedule=Tabulated.squared_cosine(100),
    prediction=Epsilon(),
    sampler=DDIM(),
    evaluations=10,
)
NETS = {"small": UNet1D(channels=(64, 128, 256)), "medium": UNet1D(channels=(256, 512, 1024))}
ROWS = {  # name -> (what is timed, its unit)
    "plan": ("plan, U-Net, DDIM 10", "ms"),
    "compiled": ("the same, compiled", "ms"),
    "bfloat16": ("the same, compiled, bfloat16", "ms"),
    "onnx": ("the same, exported, by onnxruntime", "ms"),
    "compiled_few": ("the same, 5 evaluations, compiled", "ms"),
    "network": ("U-Net alone", "ms"),
    "ddim": ("DDIM without network, a step", "us"),
    "dpm_solver": ("DPM-Solver++ 2M without network, a step", "us"),
    "recipe": ("plan, recipes/pusht.py, 10 evaluations", "ms"),
    "recipe_few": ("the same, 5 evaluations", "ms"),
    "recipe_compiled": ("the same, 5 evaluations, compiled", "ms"),
    "recipe_onnx": ("the same, 5 evaluations, by onnxruntime", "ms"),
}
# Ways of ours to plan, beside the peer's eager plan; those of the recipe are of another policy for the same task.
PLANS = "compiled", "bfloat16", "onnx", "compiled_few", "recipe", "recipe_few", "recipe_compiled", "recipe_onnx"


def fitted(spec: PolicySpec) -> tuple[DiffusionPolicy, dict[str, torch.Tensor]]:
    """An untrained policy normalised by random data, and an observation for it."""
    torch.manual_seed(0)
    shapes = {**spec.observations, "action": (spec.action,)}
    features = {name: np.random.default_rng(0).normal(size=(64, *shape)) for name, shape in shapes.items()}
    policy = DiffusionPolicy(spec).eval()
    windows = Windows(Episodes(features, np.array([64])), tuple(spec.observations), spec.history, spec.horizon, 0)
    policy.fit(windows)
    return policy, windows[torch.tensor([0])].observation


def plan_row(spec: PolicySpec, calls: int, weights: torch.dtype | None = None) -> Callable[[], float]:
    """Milliseconds a plan, compiled where a type of weights is given."""
    policy, observation = fitted(spec)
    if weights is not None:
        policy = compiled(policy, weights=weights)
    return lambda: 1e3 * median_time(lambda: policy.plan(observation), calls)


def onnx_rows(spec: PolicySpec, calls: int, name: str = "onnx") -> dict[str, Callable[[], float]]:
    """Milliseconds a plan of the exported policy on PyTorch's number of threads; no row without the extra `onnx`."""
    with torch.inference_mode(False), tempfile.TemporaryDirectory() as folder:  # no program is traced in that mode
        policy, observation = fitted(spec)
        try:
            runtime = Runtime(export_onnx(policy, Path(folder) / "policy.onnx").path, torch.get_num_threads())
        except ImportError as error:
            print(f"no row of the exported plan: {error}", file=sys.stderr)
            return {}
    seen = {name: values.numpy() for name, values in observation.items()}
    return {name: lambda: 1e3 * median_time(lambda: runtime.plan(seen, [0]), calls)}


def sampler_row(sampler: Sampler, steps: int = 10) -> Callable[[], float]:
    """Microseconds a step, with a denoiser that costs nothing."""
    noise, output, schedule = torch.randn(1, 16, 2), torch.randn(1, 16, 2), Tabulated.squared_cosine(100)
    times = UniformTime().times(schedule, steps)
    return lambda: 1e6 / steps * median_time(lambda: sample(lambda x, t: output, schedule, sampler, times, noise), 200)


def our_rows(net: UNet1D) -> tuple[dict[str, Callable[[], float]], int]:
    """Our side of every row, and the parameters of our U-Net."""
    spec = replace(SAME_AS_LEROBOT, network=net)
    recipe = load_recipe(HERE.parent / "recipes" / "pusht.py").policy
    few = replace(recipe, evaluations=5)
    network = net.build(16, 2, (2, 18)).eval()
    x, log_snr, prepared = torch.randn(1, 16, 2), torch.zeros(1), network.prepare(torch.randn(1, 2, 18))
    rows = {
        "plan": plan_row(spec, 15),
        "compiled": plan_row(spec, 15, torch.float32),
        **({"bfloat16": plan_row(spec, 15, torch.bfloat16)} if has_bfloat16(torch.device("cpu")) else {}),
        **onnx_rows(spec, 15),
        "compiled_few": plan_row(replace(spec, evaluations=5), 15, torch.float32),
        "network": lambda: 1e3 * median_time(lambda: network(x, log_snr, prepared), 100),
        "ddim": sampler_row(DDIM()),
        "dpm_solver": sampler_row(DPMSolverPP()),
        "recipe": plan_row(recipe, 15),
        "recipe_few": plan_row(few, 15),
        "recipe_compiled": plan_row(few, 15, torch.float32),
        **onnx_rows(few, 15, "recipe_onnx"),
    }
    return rows, sum(p.numel() for p in network.parameters())


@contextmanager
def peers(python: Path, kit: Path, threads: int, net: str) -> Iterator[tuple[Callable[[str], float], dict]]:
    """A process of the peers: a function that asks it for a row, and what it loaded."""
    command = [python, HERE / "peers_driver.py", "--kit", kit.resolve(), "--threads", str(threads), "--net", net]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        questions, answers = process.stdin, process.stdout

        def ask(row: str) -> float:
            print(row, file=questions)
            return json.loads(answers.readline())

        yield ask, json.loads(answers.readline())


def summary(ours: list[float], theirs: list[float]) -> dict:
    """Medians over the rounds, and the ratio of ours to theirs with its range."""
    result: dict = {"ours": statistics.median(ours)}
    if theirs:
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        result |= {"peer": statistics.median(theirs), "ratio": statistics.median(ratios)}
        result["ratio_range"] = [min(ratios), max(ratios)]
    return result


def show(results: dict[str, dict]) -> None:
    """The table for people."""
    print(f"{'':42}{'ours':>10}{'peer':>10}{'ratio':>8}  range")
    for name, row in results.items():
        label, unit = ROWS[name]
        line = f"{label:42}{row['ours']:>7.2f} {unit}"
        if "peer" in row:
            low, high = row["ratio_range"]
            line += f"{row['peer']:>7.2f} {unit}{row['ratio']:>8.2f}  {low:.2f} to {high:.2f}"
        print(line)


def machine() -> str:
    """The processor, its cores and the vector instructions that PyTorch uses."""
    info = Path("/proc/cpuinfo")  # on Linux
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")] or [platform.processor()]
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{names[0]}, {os.cpu_count()} cores, {capability}, torch {torch.__version__}"


@torch.inference_mode()
def main() -> None:
    """Take turns, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="virtual environment with the peers")
    parser.add_argument("--kit", type=Path, default=HERE.parent.parent / "shared" / "peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--net", choices=NETS, default="small")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_num_interop_threads(1)
    rows, parameters = our_rows(NETS[arguments.net])
    ours, theirs = {name: [] for name in rows}, {name: [] for name in rows}
    report: dict = {"machine": machine(), "date": date.today().isoformat(), "threads": arguments.threads}
    report |= {"rounds": arguments.rounds, "parameters": {"ours": parameters}}
    if arguments.peers is None:
        for name, row in (pair for _ in range(arguments.rounds) for pair in rows.items()):
            ours[name].append(row())
    else:
        with peers(arguments.peers / "bin" / "python", arguments.kit, arguments.threads, arguments.net) as (
            ask,
            loaded,
        ):
            report["parameters"]["peer"], report["versions"] = loaded["parameters"], loaded["versions"]
            for name, row in (pair for _ in range(arguments.rounds) for pair in rows.items()):
                theirs[name].append(ask("plan" if name in PLANS else name))
                ours[name].append(row())
    report["rows"] = {name: summary(ours[name], theirs[name]) for name in rows}
    print(f"{report['machine']}, {arguments.threads} threads; parameters {report['parameters']}")
    show(report["rows"])
    print(json.dumps(report))


if __name__ == "__main__":
    main()
