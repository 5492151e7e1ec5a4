"""Statistics of closed-loop results: intervals, diversity, smoothness."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Z = 1.959963984540054  # 97.5 % quantile of the standard normal


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(successes: int, trials: int) -> Interval:
    r"""Success rate with Wilson's 95 % score interval (Wilson 1927).

    $$ \frac{p + z^2/2n \pm z\sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n}. $$

    Raises:
        ValueError: No trial, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"wilson got {successes} successes in {trials} trials, expected 0 <= successes <= trials, trials >= 1"
        )
    p, n = successes / trials, trials
    centre, spread = p + _Z**2 / (2 * n), _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    return Interval(p, max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale))


def bootstrap(values: ArrayLike, seed: int = 0, resamples: int = 2000) -> Interval:
    """Mean with its 95 % percentile bootstrap interval (Efron 1979).

    Raises:
        ValueError: No value.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        raise ValueError("bootstrap got no values, expected at least one")
    rows = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[rows].mean(1), [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def paired_difference(first: ArrayLike, second: ArrayLike, seed: int = 0) -> Interval:
    """Mean of `first - second` over the same seeds, with its bootstrap interval: zero outside means a real difference.

    Raises:
        ValueError: Unequal lengths.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(
            f"paired_difference got {first.shape} and {second.shape} results, expected the same seeds in both"
        )
    return bootstrap(first - second, seed)


def entropy(modes: Sequence[int] | NDArray) -> float:
    r"""Entropy of the empirical distribution of modes, $-\sum_k p_k \log p_k$, in nats; 0 for none."""
    _, counts = np.unique(np.asarray(modes), return_counts=True)
    share = counts / max(1, counts.sum())
    return max(0.0, float(-(share * np.log(share)).sum()))  # a single mode gives -0.0


def finite_mean(values: Sequence[float]) -> float | None:
    """Mean of the values that are finite; None where none is."""
    finite = [v for v in values if math.isfinite(v)]
    return float(np.mean(finite)) if finite else None


def jerk(actions: NDArray) -> float:
    """Mean norm of the third difference of a sequence of actions `(steps, action)`, in action units a step cubed.

    NaN for fewer than four actions.
    """
    return float(np.linalg.norm(np.diff(actions, n=3, axis=0), axis=1).mean()) if len(actions) > 3 else math.nan


def seam_jump(actions: NDArray, fresh: NDArray[np.bool_]) -> float:
    """Mean change of action at the first step of a new plan, relative to that within plans; 1 is seamless.

    Args:
        actions: `(steps, action)`.
        fresh: `(steps,)`, whether a step begins a new plan.

    Returns:
        NaN where there is no seam or no change within plans.
    """
    change, seam = np.linalg.norm(np.diff(actions, axis=0), axis=1), fresh[1:]
    if not seam.any() or seam.all() or change[~seam].mean() == 0:
        return math.nan
    return float(change[seam].mean() / change[~seam].mean())


__all__ = ["Interval", "bootstrap", "entropy", "finite_mean", "jerk", "paired_difference", "seam_jump", "wilson"]
