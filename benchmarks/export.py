"""Latency of a plan by onnxruntime beside PyTorch's eager one on the CPU, float32, from observations to actions.

    python benchmarks/export.py

The policy is that of `latency.py`, the U-Net of 4.5 million parameters with DDIM in 10 evaluations. It is exported
once, and both plan in turns in one process, for one robot and for eight, with the checks and the noise of
`Runtime.plan` and `Policy.plan`. A figure is the median over the rounds, a ratio the median of the rounds' ratios. The
last line of the output is JSON.
"""

import argparse
import json
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from latency import SAME_AS_LEROBOT, fitted, machine, summary
from peers_driver import median_time

from poise.interop import export_onnx
from poise.policies import PolicySpec
from poise.runtime import Runtime
from poise.sampling import per_sample


def rows(spec: PolicySpec, rounds: int, threads: int, batches: tuple[int, ...] = (1, 8), calls: int = 15) -> dict:
    """Milliseconds a plan of onnxruntime (ours) and of PyTorch (peer) by batch size, and what exporting took."""
    policy, observation = fitted(spec)
    report: dict = {"parameters": sum(p.numel() for p in policy.parameters())}
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        exported = export_onnx(policy, Path(folder) / "policy.onnx")
        report |= {"seconds": time.perf_counter() - begin, "bytes": exported.path.stat().st_size}
        report["difference"] = exported.difference
        runtime = Runtime(exported.path, threads)
    for batch in batches:
        seen = {name: values.repeat(batch, *[1] * (values.ndim - 1)) for name, values in observation.items()}
        arrays, seeds = {name: values.numpy() for name, values in seen.items()}, range(batch)
        onnx, eager = list[float](), list[float]()
        for _ in range(rounds):
            onnx.append(1e3 * median_time(lambda a=arrays, s=seeds: runtime.plan(a, s), calls))
            eager.append(1e3 * median_time(lambda o=seen, s=seeds: policy.plan(o, per_sample(s)), calls))
        report[f"batch {batch}"] = summary(onnx, eager)
    return report


def main() -> None:
    """Export, take turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_num_interop_threads(1)
    report = {"machine": machine(), "date": date.today().isoformat(), "threads": arguments.threads}
    report |= rows(SAME_AS_LEROBOT, arguments.rounds, arguments.threads)
    print(f"{report['machine']}, {arguments.threads} threads; {report['parameters']:,} parameters")
    print(
        f"exported in {report['seconds']:.0f} s, {report['bytes'] / 1e6:.1f} MB, differs by {report['difference']:.1e}"
    )
    for name in [name for name in report if name.startswith("batch")]:
        row, (low, high) = report[name], report[name]["ratio_range"]
        print(
            f"{name:8} onnxruntime {row['ours']:.1f} ms, PyTorch {row['peer']:.1f} ms, "
            f"ratio {row['ratio']:.2f} ({low:.2f} to {high:.2f})"
        )
    print(json.dumps(report))


if __name__ == "__main__":
    main()
