"""`poise train RECIPE`: learn a policy from demonstrations."""

import json
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tqdm import tqdm

from poise.cli.fields import choose_classes
from poise.data import Windows
from poise.nn import load_backbone
from poise.plain import concrete
from poise.policies import DiffusionPolicy, NearestNeighbour, Policy, PolicySpec
from poise.recipe import Recipe, load_recipe
from poise.training import EMA, Progress, TrainingSpec, train

_USAGE = """usage: poise train RECIPE [--data PATH] [--out DIR] [OPTIONS]

Learn a policy from demonstrations. RECIPE is a Python file that ends in 'recipe = Recipe(...)'; its fields are the
options: poise train RECIPE --help lists them. A field that holds an object also takes the name of another class.

    poise train recipes/pusht.py --data pusht_cchi_v7_replay.zarr --training.minutes 5
    poise train recipes/pusht.py --data pusht_cchi_v7_replay.zarr --policy.network UNet1D
"""


@dataclass(frozen=True)
class Run:
    """Learn a policy from demonstrations; every field of the recipe is an option.

    Attributes:
        recipe: The recipe file's.
        data: Demonstrations, in the format that the recipe reads.
        out: Where the checkpoint and the metrics are written.
        method: Class of the policy: DiffusionPolicy, or a baseline.
        weights: Safetensors of published weights that the backbones of the encoder begin with; see `load_backbone`.
        device: Where to train, such as cpu or cuda.
        threads: CPU threads; None leaves PyTorch's choice.
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path
    data: Path | None = None
    method: str = DiffusionPolicy.__name__
    weights: Path | None = None
    device: str = "cpu"
    threads: int | None = None


def train_recipe(arguments: list[str]) -> None:
    """Parse the command line after `poise train` and run it."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return
    path = Path(arguments[0])
    run = parse_run(path, load_recipe(path), arguments[1:])
    kinds = concrete(Policy)
    if run.method not in kinds:
        raise ValueError(f"got the method {run.method!r}, expected one of {sorted(kinds)}")
    if run.threads:
        torch.set_num_threads(run.threads)
    windows = run.recipe.parts(run.data, run.device)
    episodes, samples = [part.episodes for part in windows], [len(part) for part in windows]
    print(f"{episodes[0]} + {episodes[1]} episodes, {samples[0]} training and {samples[1]} validation windows")
    notes = {
        "recipe": str(path),
        "data": str(run.data),
        "demonstrations": {"training": episodes[0], "validation": episodes[1], "windows": samples[0]},
        "machine": machine(),
        "training": run.recipe.training,
    }
    kind, spec = kinds[run.method], run.recipe.policy
    file = fit(kind, spec, run.recipe.training, windows, run.out, notes, run.weights)
    print(f"wrote {file}\nnext: poise evaluate {run.out} --recipe {path}")


def parse_run(path: Path, recipe: Recipe, arguments: list[str]) -> Run:
    """The run that the arguments after the recipe ask for.

    Raises:
        ValueError: The name of a class that does not fit its field.
        SystemExit: What else is wrong, which is printed, or --help.
    """
    chosen, rest = choose_classes(recipe, arguments)
    default = Run(chosen, Path("out") / path.stem)
    return tyro.cli(Run, default=default, args=rest, prog=f"poise train {path}", config=(tyro.conf.SuppressFixed,))


def fit(
    kind: type[Policy],
    spec: PolicySpec,
    training: TrainingSpec,
    windows: tuple[Windows, Windows | None],
    out: Path,
    notes: dict,
    weights: Path | None = None,
) -> Path:
    """Train with a progress bar and metrics in `metrics.jsonl`; Ctrl-C stops early and keeps what was learned.

    Returns:
        The checkpoint of the averaged policy.
    """
    torch.manual_seed(training.seed)
    policy = kind(spec).to(windows[0].device)
    policy.fit(windows[0])
    if weights:
        load_backbone(policy, weights)
    out.mkdir(parents=True, exist_ok=True)
    if isinstance(policy, NearestNeighbour):
        policy.remember(windows[0])
        return policy.save(out, notes)
    average = EMA(policy, training.ema_power, training.ema_maximum)
    last = None
    try:
        for now in _reported(train(policy, windows[0], training, average, windows[1]), out / "metrics.jsonl", kind):
            last = now
    except KeyboardInterrupt:
        print("interrupted: saving what was learned", file=sys.stderr)
    return average.policy.save(out, {**notes, "progress": asdict(last) if last else None})


def _reported(progress: Iterator[Progress], metrics: Path, kind: type[Policy]) -> Iterator[Progress]:
    """Pass progress on, through a bar on the terminal and a line of JSON every 50 steps and every validation."""
    losses, validation, shown = [], None, 0.0
    with metrics.open("w") as lines, tqdm(total=100, desc=kind.__name__, bar_format=_BAR, mininterval=0.5) as bar:
        for now in progress:
            losses.append(now.loss)
            validation = now.validation if now.validation is not None else validation
            if now.step % 50 == 0 or now.validation is not None:
                mean = sum(losses) / len(losses)
                lines.write(json.dumps({**asdict(now), "loss": mean}) + "\n")
                lines.flush()
                losses = []
                rate = now.samples / now.seconds
                held_out = "" if validation is None else f", validation {validation:.4f}"
                bar.set_postfix_str(f"step {now.step}, loss {mean:.4f}{held_out}, {rate:,.0f} samples/s")
            bar.update(100 * now.fraction - shown)
            shown = 100 * now.fraction
            yield now


_BAR = "{desc} {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left{postfix}"


def machine() -> str:
    """What figures depend on, in words."""
    return (
        f"{processor()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    )


def processor() -> str:
    """Number and name of the cores."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()


__all__ = ["Run", "fit", "machine", "parse_run", "processor", "train_recipe"]
