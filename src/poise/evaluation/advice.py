"""What to run on the robot: a recommendation in words, from measured rows and what the robot asks for."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from poise.evaluation.compare import Row
from poise.evaluation.paired import paired_test, rate_difference
from poise.evaluation.statistics import Interval, paired_difference

LEVEL = 0.05
"""P-value below which two ways of sampling are told apart."""

SLIGHT, LAG = 0.01, 0.05
"""Shares, of episodes and of the mean reward, that a cheaper way may do worse: even if sure, and unless proven more."""

_FEW = 30  # episodes, from which nothing is sure
_NATS = 0.05  # of mode entropy, within which the spread of plans decides
_NEAR = 1.1  # times the least distance to the demonstrations, beyond which spread is not theirs
_STEADY = 2  # between the times of as many evaluations
_UNSEEN = 3  # what n episodes without it leave possible is 3 / n (the rule of three)
_POINTS = 2  # percentage points that a further run should tell apart
_TOLD = (1.96 + 0.84) ** 2  # variances over squared difference, of a test at 0.05 that finds it four times of five


@dataclass(frozen=True)
class Constraints:
    """What a robot asks of a sampler.

    Attributes:
        rate_hz: Least control rate in Hz at which the next plan, in 95 % of cases, is there before the last one ends.
        max_latency_ms: Largest 95 % quantile of a plan's time.
        deterministic: No noise after the start, so that observation and start decide the plan, to the bit.
        diverse: Of those as good as the best, the most diverse instead of the cheapest.

    Raises:
        ValueError: A rate or a latency that is not above zero.
    """

    rate_hz: float | None = None
    max_latency_ms: float | None = None
    deterministic: bool = False
    diverse: bool = False

    def __post_init__(self) -> None:
        for name, value in (("rate_hz", self.rate_hz), ("max_latency_ms", self.max_latency_ms)):
            if value is not None and not value > 0:
                raise ValueError(f"Constraints got {name}={value}, expected a number above 0, or none")


@dataclass(frozen=True)
class Advice:
    """A recommendation.

    Attributes:
        text: Paragraphs, between blank lines; the first says it all, the others bring the evidence.
        chosen: The row that is recommended; None where nothing meets the constraints.
        rejected: Label -> why not, of every other row.
    """

    text: str
    chosen: Row | None
    rejected: Mapping[str, str]


class _Violation(NamedTuple):
    """A constraint that a row does not meet, by what factor, and what would help."""

    text: str
    factor: float
    remedy: str


class _Gap(NamedTuple):
    """How a row does against the best one on the same seeds."""

    success: Interval
    success_p: float
    reward: Interval
    reward_p: float
    scale: float  # of rewards: the size of the best one's mean

    @property
    def told(self) -> bool:
        """Whether it is told apart, to the worse, by however little."""
        success = self.success.value < 0 and self.success_p < LEVEL
        return success or (self.reward.value < 0 and self.reward_p < LEVEL)

    @property
    def fewer(self) -> bool:
        """Whether it succeeds less often, for sure and by more than a little."""
        return self.success.value < -SLIGHT and self.success_p < LEVEL

    @property
    def worse(self) -> bool:
        """Whether it is told apart, to the worse by more than a little."""
        return self.fewer or (self.reward.value < -SLIGHT * self.scale and self.reward_p < LEVEL)

    @property
    def behind(self) -> bool:
        """Whether it did so much worse that not being told apart is no excuse: few episodes tell nothing apart."""
        return self.success.value < -LAG or self.reward.value < -LAG * self.scale


def advise(rows: Sequence[Row], constraints: Constraints = Constraints()) -> Advice:  # noqa: B008 (frozen)
    """Choose a row: of those that meet the constraints and are as good as the best, the cheapest.

    A row is as good as the best unless the paired test on success or on reward tells it apart at `LEVEL`, by more than
    `SLIGHT`, or it is behind by more than `LAG`, for few episodes tell nothing apart. Cheaper is
    fewer network evaluations; at as many, higher success, then reward, then the earlier row. Who asks for diversity
    gets the one of the largest mode entropy instead, where the environment tells modes, and of the largest spread of
    plans; where there are demonstrations, only among those about as near to them as any, for errors of a solver spread
    plans too.

    Args:
        rows: Of one comparison, on the same seeds.
        constraints: Of the robot.

    Raises:
        ValueError: No rows.
    """
    if not rows:
        raise ValueError("advise got no rows, expected at least one: compare something first")
    broken = {row.label: _violations(row, constraints) for row in rows}
    rejected = {label: "; ".join(v.text for v in found) for label, found in broken.items() if found}
    feasible = [row for row in rows if not broken[row.label]]
    if not feasible:
        return Advice(_nothing(rows, broken), None, rejected)
    best = _best(feasible)
    gaps = {row.label: _gap(row, best) for row in feasible}
    ties = [row for row in feasible if not (gaps[row.label].worse or gaps[row.label].behind)]
    chosen = _most_diverse(ties) if constraints.diverse else min(ties, key=_cost)
    for row in feasible:
        if row is not chosen:
            rejected[row.label] = _why_not(row, chosen, gaps[row.label], constraints)
    parts = [
        _headline(chosen, constraints),
        _against_best(chosen, best, gaps[chosen.label], constraints),
        _left_out(rows, chosen, broken),
        _certainty(chosen, feasible, ties, constraints),
        _steadiness(rows),
        f"In code: {chosen.code}",
    ]
    return Advice("\n\n".join(part for part in parts if part), chosen, rejected)


def _best(rows: Sequence[Row]) -> Row:
    return max(rows, key=lambda row: (row.success.value, float(np.mean(row.rewards)), -row.evaluations))


def _cost(row: Row) -> tuple[float, float, float]:
    return row.evaluations, -row.success.value, -round(float(np.mean(row.rewards)), 3)


def _most_diverse(rows: Sequence[Row]) -> Row:
    apart = [row.energy for row in rows if row.energy is not None]
    human = [row for row in rows if not apart or (row.energy or 0.0) <= _NEAR * min(apart)]
    known = [row.mode_entropy for row in human if row.mode_entropy is not None]
    near = [row for row in human if not known or (row.mode_entropy or 0.0) >= max(known) - _NATS]
    return max(near, key=lambda row: (row.spread, -row.evaluations))


def _gap(row: Row, best: Row) -> _Gap:
    return _Gap(
        rate_difference(row.won, best.won),
        paired_test(row.won, best.won),
        paired_difference(row.rewards, best.rewards),
        paired_test(row.rewards, best.rewards),
        abs(float(np.mean(best.rewards))),
    )


def _violations(row: Row, constraints: Constraints) -> list[_Violation]:
    found, p95 = [], f"95 % of plans within {row.plan_ms_p95:.1f} ms"
    if constraints.rate_hz is not None and row.rate_hz < constraints.rate_hz:
        text = (
            f"keeps up with {row.rate_hz:.1f} Hz, {constraints.rate_hz:g} Hz were asked for ({p95}, to be there "
            f"within {row.ahead} control step{'s' if row.ahead > 1 else ''})"
        )
        found.append(_Violation(text, constraints.rate_hz / row.rate_hz, "a longer horizon, of which more is run"))
    if constraints.max_latency_ms is not None and row.plan_ms_p95 > constraints.max_latency_ms:
        text = f"{p95}, {constraints.max_latency_ms:g} ms were asked for"
        found.append(_Violation(text, row.plan_ms_p95 / constraints.max_latency_ms, "a warm start"))
    if constraints.deterministic and not (row.deterministic and row.repeatable):
        why = "draws noise after the start" if not row.deterministic else "gave other bits for the same seed"
        found.append(_Violation(f"{why}, a deterministic plan was asked for", math.inf, "an ODE sampler"))
    return found


def _nothing(rows: Sequence[Row], broken: Mapping[str, Sequence[_Violation]]) -> str:
    """What comes nearest, and what would help."""
    nearest = min(rows, key=lambda row: (max(v.factor for v in broken[row.label]), *_cost(row)))
    found = broken[nearest.label]
    remedies = [v.remedy for v in found]
    if any(math.isfinite(v.factor) for v in found):
        remedies = ["fewer evaluations", *remedies, "a smaller network", "a faster machine"]
    return (
        f"Nothing that was measured meets the constraints. {_capital(nearest.label)} comes nearest: it "
        f"{'; it '.join(_as_verb(v.text) for v in found)}.\n\n"
        f"It succeeds on {_rate(nearest.success)} of {len(nearest.won)} episodes. What would help: "
        f"{_listed(remedies, 'or')}."
    )


def _as_verb(text: str) -> str:
    return f"makes {text}" if text.startswith("95 %") else text


def _scope(constraints: Constraints, meet: str) -> str:
    """What the choice is among."""
    asked = dataclasses.replace(constraints, diverse=False) != Constraints()
    return f"{meet} the constraints" if asked else f"{'was' if meet == 'meets' else 'were'} measured"


def _headline(row: Row, constraints: Constraints) -> str:
    asked = [
        f"{constraints.rate_hz:g} Hz" if constraints.rate_hz is not None else "",
        f"at most {constraints.max_latency_ms:g} ms" if constraints.max_latency_ms is not None else "",
        "deterministic" if constraints.deterministic else "",
        "diverse" if constraints.diverse else "",
    ]
    first = (
        "" if len(row.won) >= _FEW else f" {len(row.won)} episodes are a first impression: repeat it with 100 or more."
    )
    wish = f" It meets what was asked for: {', '.join(a for a in asked if a)}." if any(asked) else ""
    return (
        f"Use {row.label}: success on {_rate(row.success)} of {len(row.won)} episodes, "
        f"a plan in {row.plan_ms_median:.1f} ms (95 % within {row.plan_ms_p95:.1f} ms). That keeps up with "
        f"{row.rate_hz:.0f} Hz at {row.execute} actions a plan, or {row.replan_hz:.0f} Hz if every step waits for a "
        f"plan of its own.{wish}{first}"
    )


def _against_best(chosen: Row, best: Row, gap: _Gap, constraints: Constraints) -> str:
    if chosen is best:
        return f"Nothing that {_scope(constraints, 'meets')} succeeded more often."
    little = f"a difference, but less than {100 * SLIGHT:g} point of success and {SLIGHT:.0%} of the reward"
    verdict = little if gap.told else "these episodes cannot tell the two apart"
    return (
        f"The highest success was that of {best.label}: {_rate(best.success)}. On the same starts the choice succeeds "
        f"{_points(gap.success, gap.success_p)} and its mean reward differs by {_interval(gap)}: "
        f"{verdict}. It takes "
        f"{_count(chosen.evaluations)} of the network instead of {best.evaluations:.3g}, and "
        f"{chosen.plan_ms_median:.1f} ms instead of {best.plan_ms_median:.1f} ms."
    )


def _left_out(rows: Sequence[Row], chosen: Row, broken: Mapping[str, Sequence[_Violation]]) -> str:
    """What the constraints cost."""
    best, out = _best(rows), sum(bool(found) for found in broken.values())
    if not out:
        return ""
    said = f"The constraints leave out {out} of {len(rows)} ways of sampling"
    if not broken[best.label]:
        return f"{said}, none of which succeeded more often than the best of the rest."
    gap = _gap(chosen, best)
    verdict = "a price of the constraints" if gap.told else "no more than these episodes can tell from chance"
    return (
        f"{said}, among them {best.label}, which succeeded most often ({_rate(best.success)}). Against it the choice "
        f"succeeds {_points(gap.success, gap.success_p)}: {verdict}."
    )


def _certainty(chosen: Row, feasible: Sequence[Row], ties: Sequence[Row], constraints: Constraints) -> str:
    """How many could not be told apart, by what the choice among them fell, and how many episodes would."""
    if len(ties) == 1:
        return (
            ""
            if len(feasible) == 1
            else f"Every other way that {_scope(constraints, 'meets')} did worse, told apart or by more than {_lag()}."
        )
    modes = chosen.mode_entropy
    entropy = "" if modes is None else f"mode entropy {modes:.2f} nats, "
    by = (
        f"the most diverse is preferred ({entropy}spread of plans {chosen.spread:.2f})"
        if constraints.diverse
        else "the cheapest is preferred"
    )
    spread = np.mean([np.var(np.subtract(row.won, chosen.won, dtype=float)) for row in ties if row is not chosen])
    needed = math.ceil(max(float(spread), _UNSEEN / len(chosen.won)) * _TOLD * (100 / _POINTS) ** 2 / 100) * 100
    further = (
        f"Telling {_POINTS} points apart would take about {needed} episodes, four times out of five."
        if needed > len(chosen.won)
        else f"A difference of {_POINTS} points would probably have shown."
    )
    return (
        f"{len(ties)} of the {len(feasible)} ways that {_scope(constraints, 'meet')} are as good as the best as far as "
        f"{len(chosen.won)} episodes tell: not worse in paired tests at {LEVEL:g}, nor behind by more than {_lag()}. "
        f"The tests are not corrected for their number, which passes over a good one rather than keep a bad one. Of "
        f"those {by}. "
        f"{further}"
    )


def _steadiness(rows: Sequence[Row]) -> str:
    """A warning where as many evaluations took very different times."""
    times: dict[float, list[float]] = {}
    for row in rows:
        times.setdefault(row.evaluations, []).append(row.plan_ms_median)
    evaluations, found = max(times.items(), key=lambda item: max(item[1]) / min(item[1]))
    if max(found) <= _STEADY * min(found):
        return ""
    return (
        f"The clock was unsteady: plans of {_count(evaluations)} took from {min(found):.1f} to {max(found):.1f} ms in "
        "the median, more than samplers differ. Something else ran on the machine: measure on a quiet one, and on the "
        "robot's, before trusting a rate."
    )


def _count(evaluations: float) -> str:
    return f"{evaluations:.3g} evaluation{'s' if evaluations != 1 else ''}"


def _lag() -> str:
    return f"{100 * LAG:g} points of success or {LAG:.0%} of the mean reward"


def _why_not(row: Row, chosen: Row, gap: _Gap, constraints: Constraints) -> str:
    if gap.worse or gap.behind:
        fewer = gap.fewer or gap.success.value < -LAG
        how = f"succeeds {_points(gap.success, gap.success_p)}" if fewer else f"mean reward {_interval(gap)}"
        return f"{how} against the best" + ("" if gap.worse else ", which so few episodes cannot tell from chance")
    if constraints.diverse and row.spread > chosen.spread:
        return (
            f"as good and of wider plans (spread {row.spread:.2f}), but of fewer modes or further from demonstrations"
        )
    if constraints.diverse:
        return f"as good, and less diverse: spread {row.spread:.2f} against {chosen.spread:.2f}"
    if row.evaluations > chosen.evaluations:
        return f"cannot be told apart, and takes {_count(row.evaluations)} instead of {chosen.evaluations:.3g}"
    return "cannot be told apart at the same cost, and did no better"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _interval(gap: _Gap) -> str:
    value, low, high = (_signed(v) for v in gap.reward)
    return f"{value} ({low} to {high}), p = {_p(gap.reward_p)}"


def _points(difference: Interval, p: float) -> str:
    value, low, high = (100 * v for v in difference)
    if not value:
        return f"as often (interval of the difference {low:+.1f} to {high:+.1f} points, p = {_p(p)})".replace("-", "−")
    more = "more" if value > 0 else "less"
    return f"{abs(value):.1f} points {more} often ({low:+.1f} to {high:+.1f}, p = {_p(p)})".replace("-", "−")


def _rate(success: Interval) -> str:
    return f"{100 * success.value:.1f} % ({100 * success.low:.1f} to {100 * success.high:.1f})"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "0.001 or less"


def _listed(words: Sequence[str], last: str) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


__all__ = ["LAG", "LEVEL", "SLIGHT", "Advice", "Constraints", "advise"]
