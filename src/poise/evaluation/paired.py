"""Rows of a comparison against each other: tests on the same seeds, what noise does, and what nothing beats."""

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from poise.evaluation.compare import Row
from poise.evaluation.statistics import Interval

_EXACT = 14  # differences whose signs are all tried
_DRAWS = 20_000  # random signs beyond


def paired_test(first: Sequence[float], second: Sequence[float]) -> float:
    r"""Two-sided p-value of the mean of `first - second` over the same seeds, by random signs.

    $$ p = P\big(|\textstyle\sum_i \epsilon_i d_i| \ge |\sum_i d_i|\big), \qquad \epsilon_i = \pm 1 $$

    (Fisher 1935, The Design of Experiments). Every choice of signs is tried where few differences are not zero, and
    20 000 random ones otherwise. On successes it is the exact test of McNemar (1947, Psychometrika 12).

    Raises:
        ValueError: Unequal lengths.
    """
    difference = _paired("paired_test", first, second)
    difference = difference[difference != 0]
    if len(difference) <= _EXACT:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(difference))))
        sums = signs @ difference if len(difference) else np.zeros(1)
        return float((np.abs(sums) >= abs(difference.sum()) - 1e-9).mean())
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(_DRAWS, len(difference)))
    beyond = (np.abs(signs @ difference) >= abs(difference.sum()) - 1e-9).sum()
    return float((beyond + 1) / (_DRAWS + 1))


def rate_difference(first: Sequence[float], second: Sequence[float], looks: int = 1) -> Interval:
    r"""Difference of two success rates over the same n seeds, with its 95 % interval.

    $$ \frac{\sum_i d_i}{n + 2} \pm \frac{z}{n + 2} \sqrt{\textstyle\sum_i d_i^2 + 1 - \frac{(\sum_i d_i)^2}{n + 2}} $$

    (Agresti, Min 2005, Statistics in Medicine 24: Wald's after half a success and half a failure more for each). It
    has a width where no seed differs, as a bootstrap has not.

    Args:
        first: Success of every seed, or the mean of several.
        second: Likewise, to be subtracted.
        looks: Intervals that are to hold all together (Bonferroni).

    Raises:
        ValueError: Unequal lengths.
    """
    difference = _paired("rate_difference", first, second)
    total, seeds = float(difference.sum()), len(difference) + 2
    deviation = math.sqrt(float(np.square(difference).sum()) + 1 - total**2 / seeds)
    reach = NormalDist().inv_cdf(1 - 0.025 / looks) * deviation
    return Interval(float(difference.mean()), max(-1.0, (total - reach) / seeds), min(1.0, (total + reach) / seeds))


def _paired(name: str, first: Sequence[float], second: Sequence[float]) -> NDArray[np.float64]:
    a, b = np.asarray(first, float), np.asarray(second, float)
    if a.shape != b.shape:
        raise ValueError(f"{name} got {a.shape} and {b.shape} results, expected the same seeds in both")
    return a - b


def noise_effect(rows: Sequence[Row], twins: Mapping[str, str]) -> dict[int, Interval]:
    """Success with noise in every step less that without, at each budget, over pairs of samplers alike but for it.

    Every seed counts once, with the mean over the pairs that were measured at the budget.

    Args:
        rows: Of one comparison.
        twins: Name of a stochastic sampler -> that of its deterministic twin.

    Returns:
        Budget -> difference of the success rates, in ascending order, with intervals that hold all together.
    """
    found = {(row.name, row.budget): row for row in rows}
    pairs: dict[int, list[tuple[Row, Row]]] = {}
    for (name, budget), row in found.items():
        twin = found.get((twins.get(name, ""), budget))
        if twin is not None and budget is not None:
            pairs.setdefault(budget, []).append((row, twin))
    won = {n: [[row.won for row in side] for side in zip(*both, strict=True)] for n, both in sorted(pairs.items())}
    return {n: rate_difference(np.mean(noisy, 0), np.mean(plain, 0), len(won)) for n, (noisy, plain) in won.items()}


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Places that nothing beats: no other costs as little and is worth as much, one of them strictly so.

    Returns:
        Indices in ascending order of cost.
    """
    front: list[int] = []
    for k in sorted(range(len(costs)), key=lambda k: (costs[k], -values[k])):
        same = bool(front) and (costs[k], values[k]) == (costs[front[-1]], values[front[-1]])
        if not front or values[k] > values[front[-1]] or same:
            front.append(k)
    return front


__all__ = ["noise_effect", "paired_test", "pareto", "rate_difference"]
