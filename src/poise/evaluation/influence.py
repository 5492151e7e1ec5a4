"""What matters in a sweep: the main effect of every field that was varied."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Influence:
    """The main effect of one field.

    Attributes:
        field: Its name.
        means: Value -> mean figure over all settings of the other fields, in the order of the sweep.
        share: Of the variance between settings, 0 to 1; what no field has alone are interactions and chance.
    """

    field: str
    means: dict[str, float]
    share: float

    @property
    def range(self) -> float:
        """From the worst value to the best one."""
        return max(self.means.values()) - min(self.means.values())

    @property
    def best(self) -> str:
        """The value with the largest mean."""
        return max(self.means, key=self.means.__getitem__)


def influences(rows: Sequence[Mapping[str, Any]], varied: Sequence[str], figure: str) -> list[Influence]:
    r"""Main effects, the largest range first.

    $$ \bar y_v = \mathrm{mean}\{y : \text{field} = v\}, \qquad
       \text{share} = \frac{\sum_v n_v (\bar y_v - \bar y)^2}{\sum_i (y_i - \bar y)^2}, $$

    the analysis of variance of Fisher (1925), which compares like with like where every combination was tried.

    Args:
        rows: A setting each, with the varied fields and the figure.
        varied: Names of the fields.
        figure: Name of y.

    Raises:
        ValueError: No row.
    """
    if not rows:
        raise ValueError("influences got no rows, expected one a setting")
    y = np.array([row[figure] for row in rows], float)
    spread, found = ((y - y.mean()) ** 2).sum(), []
    for field in varied:
        of = np.array([str(row[field]) for row in rows])
        means = {value: float(y[of == value].mean()) for value in dict.fromkeys(of.tolist())}
        between = sum((of == value).sum() * (mean - y.mean()) ** 2 for value, mean in means.items())
        found.append(Influence(field, means, float(between / spread) if spread else 0.0))
    return sorted(found, key=lambda influence: -influence.range)


__all__ = ["Influence", "influences"]
