"""What a dataset says of its features beside their numbers: what they are for, their names, how fast they came."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Role(StrEnum):
    """What a feature is for."""

    OBSERVATION = "observation"
    ACTION = "action"
    GOAL = "goal"
    REWARD = "reward"


@dataclass(frozen=True)
class Facts:
    """What holds for all episodes of a dataset.

    Attributes:
        rate: Rows a second; None where nobody wrote it down.
        robot: Name of the robot or environment.
        roles: Feature -> what it is for; features without a role are carried along.
        names: Feature -> names of its dimensions.

    Raises:
        ValueError: A rate that is not above 0.
    """

    rate: float | None = None
    robot: str | None = None
    roles: Mapping[str, Role] = field(default_factory=dict)
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise ValueError(f"Facts got rate={self.rate}, expected rows a second above 0, or None")

    def named(self, role: Role) -> tuple[str, ...]:
        """The features of a role."""
        return tuple(name for name, found in self.roles.items() if found is role)

    def only(self, features: Collection[str]) -> "Facts":
        """The facts of some features."""
        roles = {name: role for name, role in self.roles.items() if name in features}
        names = {name: words for name, words in self.names.items() if name in features}
        return Facts(self.rate, self.robot, roles, names)

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        roles = {name: role.value for name, role in self.roles.items()}
        names = {name: [*words] for name, words in self.names.items()}
        return {"rate": self.rate, "robot": self.robot, "roles": roles, "names": names}

    @classmethod
    def of(cls, plain: Any) -> "Facts":
        """What `plain` wrote.

        Raises:
            ValueError: Something else.
        """
        try:
            roles = {str(name): Role(role) for name, role in plain["roles"].items()}
            names = {str(name): tuple(map(str, words)) for name, words in plain["names"].items()}
            rate, robot = plain["rate"], plain["robot"]
            return cls(None if rate is None else float(rate), None if robot is None else str(robot), roles, names)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"got {str(plain)[:200]!r} for facts, expected rate, robot, roles and names") from error


__all__ = ["Facts", "Role"]
