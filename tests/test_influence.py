"""Main effects of a sweep against a table whose effects are known."""

import itertools

import pytest

from poise.evaluation.influence import influences

EFFECTS = {"schedule": {"cosine": 0.3, "linear": -0.3}, "levels": {"100": 0.1, "300": 0.0, "1000": -0.1}}
NAMES = list(EFFECTS)


def rows(interaction: float = 0.0) -> list[dict]:
    """An additive table, and an interaction that no field has alone."""
    found = []
    for schedule, levels in itertools.product(*EFFECTS.values()):
        twist = {"cosine": 1, "linear": -1}[schedule] * {"100": 1, "300": 0, "1000": -1}[levels]
        y = 0.5 + EFFECTS["schedule"][schedule] + EFFECTS["levels"][levels] + interaction * twist
        found.append({"schedule": schedule, "levels": levels, "success": y})
    return found


def test_effects_of_an_additive_table_are_exact():
    first, second = influences(rows(), ["levels", "schedule"], "success")
    assert (first.field, second.field) == ("schedule", "levels")
    assert first.means == pytest.approx({"cosine": 0.8, "linear": 0.2})
    assert (first.range, first.best) == (pytest.approx(0.6), "cosine")
    assert second.means == pytest.approx({"100": 0.6, "300": 0.5, "1000": 0.4})
    variances = 0.3**2, (0.1**2 + 0.1**2) / 3
    assert [i.share for i in (first, second)] == pytest.approx([v / sum(variances) for v in variances])


def test_an_interaction_belongs_to_no_field():
    plain, twisted = (influences(rows(i), NAMES, "success") for i in (0.0, 0.2))
    assert [i.means for i in plain] == [pytest.approx(i.means) for i in twisted]
    variances = 0.3**2, (0.1**2 + 0.1**2) / 3, 0.2**2 * 2 / 3
    assert sum(i.share for i in plain) == pytest.approx(1)
    assert sum(i.share for i in twisted) == pytest.approx(sum(variances[:2]) / sum(variances))


def test_where_nothing_differs_nothing_matters():
    same = [{"schedule": name, "success": 0.5} for name in ("cosine", "linear")]
    (found,) = influences(same, ["schedule"], "success")
    assert (found.range, found.share) == (0, 0)
    with pytest.raises(ValueError, match="influences got no rows, expected one a setting"):
        influences([], ["schedule"], "success")
