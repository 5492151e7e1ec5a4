"""`poise collect TASK`: demonstrations of an application by its scripted expert."""

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from poise.applications import Application, Driven, Driver, applications, find
from poise.applications.driving import joined
from poise.cli.dataset import chosen_format
from poise.cli.engines import Engine, Workers
from poise.data import write
from poise.evaluation import entropy, wilson

_EVALUATION = 50_000  # seeds from here on are for evaluations
_FEW = 20  # attempts before an expert is judged
_NAMED = 5  # failures that are named


@dataclass(frozen=True)
class Attempts:
    """Some attempts, for a process of their own.

    Attributes:
        task: Name of the application.
        noise: As `Driver` takes it.
        seeds: Of the attempts.
    """

    task: str
    noise: float | None
    seeds: range

    def run(self) -> list[Driven]:
        """The attempts, as this process drives them."""
        return list(attempts(find(self.task), self.noise, self.seeds))


@dataclass(frozen=True)
class Collected:
    """What came of consecutive seeds, up to the last one that was needed.

    Attributes:
        application: What was demonstrated.
        kept: The successes.
        failed: The other attempts.
    """

    application: Application
    kept: tuple[Driven, ...]
    failed: tuple[Driven, ...]

    @property
    def lines(self) -> Iterator[str]:
        """For people: the share that succeeded, where some failed, and the ways that were taken."""
        attempts, lengths = len(self.kept) + len(self.failed), [len(one.rows["action"]) for one in self.kept]
        share = wilson(len(self.kept), attempts)
        yield (
            f"kept {len(self.kept)} of {attempts} attempts ({share.value:.1%}; 95 % interval {share.low:.1%} to "
            f"{share.high:.1%}), {min(lengths)} to {max(lengths)} steps at {self.application.rate:g} Hz"
        )
        if self.failed:
            yield f"failed: {ended(self.failed)}"
        if self.application.modes:
            yield f"modes: {ways(self.application, [-1 if one.mode is None else one.mode for one in self.kept])}"


def collect(
    task: Annotated[str, tyro.conf.Positional, tyro.conf.arg(help=f"One of {', '.join(applications())}.")],
    episodes: int | None = None,
    noise: float | None = None,
    out: Path | None = None,
    format: str | None = None,
    seed: int = 0,
    workers: Annotated[Workers, tyro.conf.arg(name="")] = Workers(),  # noqa: B008 (frozen)
    chunk: int = 25,
) -> None:
    """Write demonstrations of a task by its scripted expert, who tries consecutive seeds; successes alone are kept.

        poise collect navigate
        poise collect navigate --episodes 200 --noise 0.05 --out navigate.zarr --jobs 2

    Noise disturbs what the robot executes, not what is recorded, so that the data show how to recover. The episodes
    depend on neither --jobs nor --engine. poise applications --list says what the tasks are.

    Args:
        task: Name of an application.
        episodes: Number of episodes to keep; by default as many as the recipe of the task was made for.
        noise: Deviation of the disturbance, in units of the action; by default that of the task.
        out: What is written, in the format of its suffix; by default where the recipe of the task looks for it.
        format: Name of the format, where a suffix does not tell, such as lerobot, which is a folder.
        seed: Of the first attempt.
        workers: Where attempts are driven; without --jobs and --engine, in this process.
        chunk: Attempts that another process gets at once; an option of --jobs and --engine.
    """
    application = find(task)
    path = out or application.file
    chosen = chosen_format(path, format)
    if path.exists():
        raise FileExistsError(f"{path} exists already, expected a new name: remove it, or name another --out")
    collected = gathered(application, episodes, noise, seed, workers, chunk)
    print("\n".join(collected.lines))
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, joined(application, collected.kept), chosen)
    data = f" --data {path}" if out else ""
    print(f"wrote {path}\nnext: poise train recipes/applications/{task}.py{data}")


def gathered(
    application: Application,
    episodes: int | None = None,
    noise: float | None = None,
    seed: int = 0,
    workers: Workers = Workers(),  # noqa: B008 (frozen)
    chunk: int = 25,
) -> Collected:
    """Drive consecutive seeds until so many attempts have succeeded, with a bar; see `collect`.

    Raises:
        ValueError: Numbers below 1, seeds that are for evaluation, or an expert that fails mostly.
    """
    count = application.episodes if episodes is None else episodes
    if min(count, chunk) < 1 or seed < 0:
        raise ValueError(f"got {count} episodes in chunks of {chunk} from seed {seed}, expected at least 1, 1 and 0")
    seeds = range(seed, seed + 2 * count + _FEW)  # an expert who needs more than these fails mostly
    if seeds.stop > _EVALUATION:
        raise ValueError(
            f"got {count} episodes from seed {seed}, which may need seeds up to {seeds[-1]}, expected them below "
            f"{_EVALUATION}: those from there on are for evaluation"
        )
    tried = attempts(application, noise, seeds)
    if workers.apart:
        chunks = [Attempts(application.name, noise, seeds[k : k + chunk]) for k in range(0, len(seeds), chunk)]
        tried = _apart(workers.start(), chunks)
    with closing(tried):
        return _selected(application, tried, count)


def attempts(application: Application, noise: float | None, seeds: Sequence[int]) -> Generator[Driven, None, None]:
    """The attempts of seeds in this process."""
    driver = Driver(application, noise)
    try:
        yield from driver.drive(seeds)
    finally:
        driver.close()


def _apart(engine: Engine, chunks: Sequence[Attempts]) -> Generator[Driven, None, None]:
    """The attempts of chunks in other processes, in the order of their seeds."""
    early: dict[int, list[Driven]] = {}
    with closing(engine.map(Attempts.run, chunks)) as outcomes:
        following = 0
        for outcome in outcomes:
            if outcome.value is None:
                seeds = chunks[outcome.number].seeds
                raise ValueError(f"the attempts of seeds {seeds[0]} to {seeds[-1]} ended in {outcome.error}")
            early[outcome.number] = outcome.value
            while following in early:
                yield from early.pop(following)
                following += 1


def _selected(application: Application, attempts: Iterable[Driven], count: int) -> Collected:
    """The first successes of attempts in order.

    Raises:
        ValueError: Fewer than half of them succeed.
    """
    kept: list[Driven] = []
    failed: list[Driven] = []
    with tqdm(total=count, desc=f"demonstrations of {application.name}", unit="episode") as bar:
        for one in attempts:
            if one.success:
                kept.append(one)
                bar.update()
            else:
                failed.append(replace(one, rows={}))
            tried = len(kept) + len(failed)
            if len(kept) == count:
                break
            if tried >= _FEW and 2 * len(kept) < tried:
                raise ValueError(
                    f"the expert of {application.name} succeeded in {len(kept)} of {tried} attempts, expected at least "
                    f"half of them; failed: {ended(failed)}. Lower the --noise"
                )
    return Collected(application, tuple(kept), tuple(failed))


def ended(failed: Sequence[Driven]) -> str:
    """The first seeds of failures and the stages that they ended in."""
    named = ", ".join(f"seed {one.seed} in stage {one.stage!r}" for one in failed[:_NAMED])
    return named + (f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else "")


def ways(application: Application, modes: Sequence[int]) -> str:
    """The share of every mode, and how even the shares are: their entropy over that of equal ones."""
    names = dict(application.modes) | {mode: "not recognised" for mode in modes if mode not in application.modes}
    shares = "; ".join(f"{name} {sum(mode == k for mode in modes) / len(modes):.0%}" for k, name in names.items())
    even = entropy(modes) / math.log(max(2, len(application.modes)))
    return f"{shares}. Entropy {even:.2f} of that of equal shares"


__all__ = ["Attempts", "Collected", "attempts", "collect", "ended", "gathered", "ways"]
