"""A comparison of samplers as one page: the recommendation, its evidence, and what every number means."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from poise.evaluation.advice import Advice, Constraints
from poise.evaluation.compare import Row
from poise.evaluation.comparison_plots import diversity_figure, families_figure, noise_figure, pareto_figure
from poise.evaluation.paired import paired_test, rate_difference
from poise.evaluation.report import Cell, Section, Table, write_report
from poise.evaluation.statistics import Interval


def write_comparison(
    path: Path,
    title: str,
    rows: Sequence[Row],
    advice: Advice,
    effect: Mapping[int, Interval],
    facts: Mapping[str, Any],
    constraints: Constraints,
    footer: str,
) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        title: Of the page.
        rows: Of one comparison.
        advice: Of `advise`.
        effect: Of `noise_effect`; may be empty.
        facts: Number of `observations`, whether they are `demonstrations`, their `log_likelihood` as value, low and
            high, and the `energy_floor`.
        constraints: That the advice was given for.
        footer: Small print.
    """
    lead, _, evidence = advice.text.partition("\n\n")
    chosen = advice.chosen
    latest = [constraints.max_latency_ms, _period(rows[0], constraints)]
    bound = min((ms for ms in latest if ms is not None), default=None)
    sections = [
        Section("The evidence", evidence, [pareto_figure(rows, chosen, bound)]),
        Section(
            "ODE or SDE", _families(rows, effect), [families_figure(rows), *([noise_figure(effect)] if effect else [])]
        ),
        Section("Diversity", _diversity(facts), [diversity_figure(rows, chosen)]),
        Section("Success and speed", _PAIRED, table=_results(rows)),
        Section("Plans", _PLANS, table=_plans(rows)),
    ]
    if advice.rejected:
        sections.append(Section("Why not the others", _REJECTED, table=_rejected(advice)))
    write_report(path, title, lead, [*sections, Section("What the numbers mean", _MEANING)], footer)


def _period(row: Row, constraints: Constraints) -> float | None:
    return None if constraints.rate_hz is None else 1e3 * row.ahead / constraints.rate_hz


def _families(rows: Sequence[Row], effect: Mapping[int, Interval]) -> str:
    """The answer in words."""
    best = []
    for family in dict.fromkeys(row.family for row in rows):
        top = max((row for row in rows if row.family == family), key=lambda r: (r.success.value, -r.evaluations))
        best.append(f"{top.label} of the {family} ({_percent(top.success.value)})")
    parts = [f"The most successful of each family: {'; '.join(best)}."]
    if effect:
        parts.append(_noise(effect))
    return "\n\n".join(parts)


def _noise(effect: Mapping[int, Interval]) -> str:
    costs = [f"{n} ({_signed(d)})" for n, d in effect.items() if d.high < 0]
    gains = [f"{n} ({_signed(d)})" for n, d in effect.items() if d.low > 0]
    even = [str(n) for n, d in effect.items() if d.low <= 0 <= d.high]
    said = [
        f"it costs success at {_and(costs)} evaluations a plan" if costs else "",
        f"it gains success at {_and(gains)}" if gains else "",
        f"it makes no difference that these episodes could tell at {_and(even)}" if even else "",
    ]
    brackets = " (percentage points, with intervals that hold all together with 95 %)" if costs or gains else ""
    return (
        "Samplers of the SDE draw noise in every step. Against their twins that are alike but for it, on the same "
        f"starts, {', and '.join(s for s in said if s)}{brackets}."
    )


def _diversity(facts: Mapping[str, Any]) -> str:
    source = "held-out demonstrations" if facts["demonstrations"] else "observations that the policy came to see"
    parts = [
        f"Measured on {facts['observations']} {source}, the same for every way of sampling, with the same noise. "
        "The errors of a solver spread plans too: spread that comes with less success, or further from the "
        "demonstrations, is not diversity."
    ]
    if facts.get("log_likelihood"):
        found = facts["log_likelihood"]
        parts.append(
            f"The network gives held-out demonstrations {_minus(found['value'])} nats a dimension "
            f"({_minus(found['low'])} to {_minus(found['high'])}), whatever samples from it. Two independent sets of "
            f"as many demonstrations would be an energy distance of about {facts['energy_floor']:.3f} apart: less than "
            "that is no difference."
        )
    return "\n\n".join(parts)


def _results(rows: Sequence[Row]) -> Table:
    columns = (
        "sampler",
        "evaluations",
        "success",
        "95 % interval",
        "less the best, points",
        "p",
        "reward",
        "plan, ms",
        "p95, ms",
        "Hz, chunks",
        "Hz, every step",
    )
    best = max(rows, key=lambda row: (row.success.value, row.reward.value, -row.evaluations))
    table: list[Sequence[Cell]] = []
    for row in sorted(rows, key=lambda row: (-row.success.value, row.evaluations)):
        gap = rate_difference(row.won, best.won)
        low, high = row.success[1:]
        table.append(
            (
                row.name,
                f"{row.evaluations:.3g}",
                _percent(row.success.value),
                f"{100 * low:.1f} – {100 * high:.1f}",
                None if row is best else _signed(gap),
                None if row is best else round(paired_test(row.won, best.won), 3),
                f"{row.reward.value:.3f}",
                f"{row.plan_ms_median:.1f}",
                f"{row.plan_ms_p95:.1f}",
                f"{row.rate_hz:.0f}",
                f"{row.replan_hz:.0f}",
            )
        )
    return Table(columns, table)


def _plans(rows: Sequence[Row]) -> Table:
    columns: list[tuple[str, list[Cell]]] = [
        ("sampler", [row.name for row in rows]),
        ("evaluations", [f"{row.evaluations:.3g}" for row in rows]),
        ("noise", ["start only" if row.deterministic else "every step" for row in rows]),
        ("same bits", ["yes" if row.repeatable else "no" for row in rows]),
        ("spread", [row.spread for row in rows]),
        ("mode entropy", [row.mode_entropy for row in rows]),
        ("to demonstrations", [row.energy for row in rows]),
        ("sensitivity", [row.sensitivity for row in rows]),
        ("jerk", [row.jerk for row in rows]),
        ("seams", [row.seam_jump for row in rows]),
    ]
    shown = [(name, cells) for name, cells in columns if any(cell is not None for cell in cells)]
    return Table([name for name, _ in shown], list(zip(*(cells for _, cells in shown), strict=True)))


def _rejected(advice: Advice) -> Table:
    return Table(("way of sampling", "why not"), list(advice.rejected.items()))


def _minus(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _signed(difference: Interval) -> str:
    value, low, high = (100 * v for v in difference)
    return f"{value:+.1f}, {low:+.1f} to {high:+.1f}".replace("-", "−")


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


_PAIRED = """Every way of sampling ran the same weights from the same starts with the same seeds of noise. The \
difference to the best is of the same starts (interval: Agresti and Min 2005); p is that of a test by random signs, on \
successes McNemar's exact one. With many rows some p below 0.05 come by chance, and the best of many is flattered by \
it: other seeds tell."""
_PLANS = """What plans are like, beside whether they succeed."""
_REJECTED = """Against the recommendation, or against the constraints."""
_MEANING = """Success is what the environment calls so, with Wilson's 95 % interval; the reward is the mean of the \
largest of an episode.

A plan's time is that of one call of the controller which makes a new plan for one robot, observation in, action out. \
In chunks, the next plan is made while the last one runs, and in 95 % of cases is there before it ends; a robot that \
waits for a plan at every step manages 1 / p95. Evaluations are calls of the network, counted; where a tolerance \
decides they are a mean. A warm start spends the evaluations of the checkpoint on its first plan.

Spread is the mean distance between two plans for the same observation under different noise, over whole plans in \
normalised units. The mode entropy, in nats, is that of the ways in which episodes succeeded, where the environment \
tells them apart; its exponential is the number of ways that are as common.

The distance to the demonstrations is the energy distance between one plan for every observation and what the \
demonstrators did there. The sensitivity is how far a plan moves for a small change of the observation, 1 % of each \
feature's standard deviation, with the noise of sampling held fixed, both in normalised units.

Jerk is the mean third difference of executed actions; seams is the change of action where a new plan begins, relative \
to that within plans, and 1 is seamless. Same bits says whether the same seed gave the same plan twice, bit by bit. A \
sampler with noise at the start only maps start and observation to one plan: with a fixed start, or at temperature 0, \
the observation alone decides."""


__all__ = ["write_comparison"]
