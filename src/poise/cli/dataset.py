"""`poise dataset VERB`: what is in demonstrations, whether they are sound, and other forms of them."""

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from poise.cli.evaluate import write_json
from poise.data import Finding, Format, Severity, Source, known_formats, open_dataset, recognised
from poise.data import convert as convert_dataset
from poise.data.doctor import About, examine
from poise.data.reading import format_of
from poise.data.statistics import is_image, statistics
from poise.evaluation.dataset_page import write_page
from poise.evaluation.replay import Replay
from poise.evaluation.replay import replay as replay_episodes
from poise.recipe import load_recipe

_PACKED = "recording"  # the format that is read from the disk as it is needed

Dataset = Annotated[Path, tyro.conf.Positional]


def info(source: Dataset) -> None:
    """Print what is in a dataset: format, episodes, features, tasks, subsets, duration and size.

        poise dataset info pusht.zarr

    Args:
        source: A dataset of any format.
    """
    with open_dataset(source) as opened:
        contents, facts = opened.contents, opened.contents.facts
        steps = int(contents.lengths.sum())
        print(f"{source}: {recognised(source).name}, {_size(source) / 2**20:,.1f} MiB")
        print(f"episodes  {len(opened):,} of {contents.lengths.min()} to {contents.lengths.max()} steps")
        lasts = "" if facts.rate is None else f", {steps / facts.rate / 60:,.1f} minutes at {facts.rate:g} Hz"
        print(f"steps     {steps:,}{lasts or ', at an unknown rate'}")
        if facts.robot:
            print(f"robot     {facts.robot}")
        for name, episodes in contents.subsets.items():
            print(f"subset    {name}: {len(episodes)} episodes")
        for task, count in Counter(contents.tasks).most_common(10):
            print(f"task      {task!r}: {count} episodes")
        print()
        rows = []
        for name, look in contents.features.items():
            kind = f"{look.dtype}{', video' if look.video else ''}"
            role = facts.roles[name].value if name in facts.roles else ""
            rows.append((name, kind, str(look.shape), role, ", ".join(facts.names.get(name, ()))))
        _print_table(("feature", "type", "shape", "for", "dimensions"), rows)


def validate(source: Dataset, json: Path | None = None, horizon: int = 16, strict: bool = False) -> None:
    """Examine a dataset, and say what is wrong where and what to do. Exit status 1 if there are errors.

        poise dataset validate pusht.zarr --horizon 16 --json findings.json

    Args:
        source: A dataset of any format.
        json: File for the findings.
        horizon: Steps of action that a policy will plan; shorter episodes are a finding.
        strict: Warnings count as errors.
    """
    with open_dataset(source) as opened:
        findings = list(examine(opened, horizon))
        size = {"episodes": len(opened), "steps": int(opened.contents.lengths.sum())}
    counts = Counter(finding.severity for finding in findings)
    errors, warnings = counts[Severity.ERROR], counts[Severity.WARNING]
    _print_findings(findings)
    print(f"{size['episodes']:,} episodes, {size['steps']:,} steps; errors: {errors}, warnings: {warnings}")
    if json:
        listed = [finding._asdict() for finding in findings]
        results = {"source": str(source), **size, "errors": errors, "warnings": warnings, "findings": listed}
        write_json(json, results)
    if errors or (strict and warnings):
        raise SystemExit(1)


def stats(source: Dataset, json: Path | None = None, features: tuple[str, ...] = ()) -> None:
    """Print exact statistics of every dimension over all rows: extremes, quantiles, mean and deviation.

        poise dataset stats pusht.zarr --features state action --json stats.json

    Args:
        source: A dataset of any format.
        json: File for the statistics.
        features: Names; without them all.
    """
    with open_dataset(source) as opened:
        names = _features(opened, features)
        found, about = statistics(opened, names), About(opened.contents, 1)
    rows: list[Sequence[str]] = []
    for name in names:
        image = is_image(about.contents.features[name])
        labels = [f"{name}[channel {k}]" for k in range(len(found[name].count))] if image else about.labels(name)
        for label, *values in zip(labels, *found[name].named().values(), strict=True):
            rows.append((label, *(f"{value:.6g}" for value in values)))
    _print_table(("", "count", "min", "max", "mean", "std", "q01", "q10", "q50", "q90", "q99"), rows)
    if json:
        write_json(json, {name: one.plain() for name, one in found.items()})


def convert(
    source: Dataset,
    destination: Annotated[Path, tyro.conf.Positional],
    format: str | None = None,
    features: tuple[str, ...] = (),
    rate: float | None = None,
    workers: int = 0,
) -> None:
    """Write a dataset in another format, one episode at a time.

        poise dataset convert pusht.zarr pusht_lerobot --format lerobot --rate 10

    Args:
        source: A dataset of any format.
        destination: What is written; it must not exist.
        format: Name of the format; without it, that of the suffix of the destination.
        features: Names of what is written; without them all.
        rate: Rows a second, instead of those that the source says, if it says any.
        workers: Processes that decode films.
    """
    chosen = chosen_format(destination, format)
    with open_dataset(source) as opened:
        if rate is not None:
            opened.contents = replace(opened.contents, facts=replace(opened.contents.facts, rate=rate))
        convert_dataset(opened, destination, chosen, _features(opened, features), workers)
    print(f"wrote {destination} ({chosen.name}, {_size(destination) / 2**20:,.1f} MiB)")


def pack(
    source: Dataset,
    destination: Annotated[Path, tyro.conf.Positional],
    features: tuple[str, ...] = (),
    workers: int = 0,
) -> None:
    """Write a dataset so that training reads it from the disk as it needs it: for data larger than memory, and films.

        poise dataset pack lerobot_dataset packed --workers 4

    Args:
        source: A dataset of any format.
        destination: Folder that is written; it must not exist.
        features: Names of what is written; without them all.
        workers: Processes that decode films.
    """
    convert(source, destination, _PACKED, features, workers=workers)


def plot(source: Dataset, out: Path, episodes: int = 5) -> None:
    """Draw trajectories, distributions, lengths and films of a dataset: pictures, and one page with all of them.

        poise dataset plot pusht.zarr --out plots

    Args:
        source: A dataset of any format.
        out: Folder for the pictures and index.html.
        episodes: Number of episodes drawn over time.
    """
    with open_dataset(source) as opened:
        print(f"wrote {write_page(opened, out, episodes)}")


def replay(
    recipe: Path,
    source: Annotated[Path | None, tyro.conf.Positional] = None,
    episodes: int = 5,
    tolerance: float = 0.1,
    json: Path | None = None,
) -> None:
    """Run recorded actions in the environment of a recipe, from the recorded starts, and say how far they lead astray.

        poise dataset replay pusht.zarr --recipe recipes/pusht.py --episodes 20

    Args:
        recipe: Recipe file whose reader, task and `restart` are used; it is run as a program.
        source: Demonstrations, which the recipe reads; without it, the recipe's own.
        episodes: Number of episodes, from the first on.
        tolerance: Distance up to which a replay follows its recording, in standard deviations of the feature.
        json: File for the deviations over time.
    """
    loaded = load_recipe(recipe)
    data = loaded.read(source)
    chosen = range(min(episodes, len(data)))
    ran = list(tqdm(replay_episodes(loaded.task, data, chosen, tolerance), "replaying", len(chosen), disable=None))
    if not ran:
        raise ValueError(f"got {episodes} episodes to replay, expected at least 1")
    _print_replays(ran)
    if json:
        write_json(json, {"tolerance": tolerance, "episodes": [_plain(one) for one in ran]})


_Verb = Annotated[
    Annotated[Any, tyro.conf.subcommand("info", constructor=info)]
    | Annotated[Any, tyro.conf.subcommand("validate", constructor=validate)]
    | Annotated[Any, tyro.conf.subcommand("stats", constructor=stats)]
    | Annotated[Any, tyro.conf.subcommand("plot", constructor=plot)]
    | Annotated[Any, tyro.conf.subcommand("convert", constructor=convert)]
    | Annotated[Any, tyro.conf.subcommand("pack", constructor=pack)]
    | Annotated[Any, tyro.conf.subcommand("replay", constructor=replay)],
    tyro.conf.arg(name=""),
]


def dataset(verb: _Verb) -> None:
    """Look at demonstrations, examine, draw, convert and replay them: poise dataset VERB --help tells more.

    Args:
        verb: What to do.
    """


def chosen_format(path: Path, name: str | None) -> Format:
    """The format of that name, or of the suffix of a path.

    Raises:
        ValueError: None such.
    """
    if name is None:
        return format_of(path)
    known = known_formats()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        meant = f": did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"got the format {name!r}, expected one of {sorted(known)}{meant}")
    return known[name]


def _features(source: Source, asked: Sequence[str]) -> list[str]:
    known = source.contents.features
    missing = sorted(set(asked) - set(known))
    if missing:
        raise ValueError(f"got the features {missing}, which {source.path} lacks, expected some of {sorted(known)}")
    return list(asked or known)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    return sum(file.stat().st_size for file in files)


def _print_findings(findings: Sequence[Finding]) -> None:
    """Grouped by code, errors first."""
    codes = dict.fromkeys(f.code for f in sorted(findings, key=lambda f: (f.severity is Severity.WARNING, f.code)))
    for code in codes:
        mine = [finding for finding in findings if finding.code == code]
        print(f"{mine[0].severity.upper():<8}{code}")
        for finding in mine:
            words = (("episode ", finding.episode), ("frame ", finding.frame), ("", finding.feature))
            where = ", ".join(f"{word}{one}" for word, one in words if one is not None)
            print(f"    {where or 'all'}: {finding.message}")
        print()


def _print_replays(ran: Sequence[Replay]) -> None:
    names = list(ran[0].deviation)
    rows = []
    for name in names:
        rms, largest = [one.rms(name) for one in ran], [one.largest(name) for one in ran]
        left = [one.left[name] for one in ran]
        early = [step for step in left if step is not None]
        rows.append(
            (
                name,
                f"{np.median(rms):.3g}",
                f"{max(rms):.3g}",
                f"{max(largest):.3g}",
                f"{len(ran) - len(early)} of {len(ran)}",
                f"{np.median(early):g}" if early else "",
            )
        )
    _print_table(("feature", "rms, median", "rms, worst", "largest", "within tolerance", "left at step"), rows)
    known = [one.recorded_reward for one in ran if one.recorded_reward is not None]
    was = f" (recorded {np.mean(known):.3f})" if known else ""
    wins, cut = sum(one.success for one in ran), sum(one.steps < one.recorded for one in ran)
    print(f"\nlargest reward {np.mean([one.reward for one in ran]):.3f}{was}, success {wins} of {len(ran)}")
    if cut:
        print(f"ended before their recording did: {cut}")


def _plain(one: Replay) -> dict[str, Any]:
    return {**vars(one), "deviation": {name: values.tolist() for name, values in one.deviation.items()}}


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


__all__ = ["Dataset", "chosen_format", "convert", "dataset", "info", "pack", "plot", "replay", "stats", "validate"]
