"""Maps of the navigation task."""

from dataclasses import dataclass
from typing import Final, Protocol, final

import numpy as np

GOAL_RADIUS: Final = 0.06  # m

Rectangle = tuple[float, float, float, float]


class Maps(Protocol):
    """Worlds of one size, one of which every episode is on.

    Attributes:
        half_width: arenas span `[-half_width, half_width]` in x, in metres.
        half_height: arenas span `[-half_height, half_height]` in y.
        robot_radius: radius of the robot.
        discs: number of obstacles of each map.
    """

    @property
    def half_width(self) -> float: ...  # noqa: D102

    @property
    def half_height(self) -> float: ...  # noqa: D102

    @property
    def robot_radius(self) -> float: ...  # noqa: D102

    @property
    def discs(self) -> int: ...  # noqa: D102

    def draw(self, generator: np.random.Generator) -> "Map":
        """The map of an episode, by the random stream of its slot."""
        ...


@final
@dataclass(frozen=True)
class Map:
    """The world, in metres; the arena is centred on the origin and its border is a wall.

    The default has one disc on the way and two behind it, which leaves four natural routes: above or below the first
    disc, then between the other two or round the near one of them.

    Attributes:
        obstacles: discs as (x, y, radius).
        start: the box (x_min, y_min, x_max, y_max) of start positions.
        goal: the box of goals, likewise.
        half_width: the arena spans `[-half_width, half_width]` in x.
        half_height: the arena spans `[-half_height, half_height]` in y.
        robot_radius: radius of the robot.
    """

    obstacles: tuple[tuple[float, float, float], ...] = ((-0.29, 0.0, 0.16), (0.29, 0.31, 0.13), (0.29, -0.31, 0.13))
    start: Rectangle = (-0.91, -0.35, -0.85, 0.35)
    goal: Rectangle = (0.82, -0.2, 0.88, 0.2)
    half_width: float = 1.0
    half_height: float = 0.8
    robot_radius: float = 0.03

    def __post_init__(self) -> None:
        """Reject a map on which an episode could start in a collision or be over at once."""
        for name in ("half_width", "half_height", "robot_radius"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"Map.{name} is {getattr(self, name)!r}; expected a positive length in metres.")
        width, height = self.half_width, self.half_height
        for k, disc in enumerate(self.obstacles):
            values = np.asarray(disc, np.float64)
            if values.shape != (3,) or not (np.abs(values) <= [width, height, np.inf]).all() or values[2] <= 0:
                raise ValueError(
                    f"Map.obstacles[{k}] is {disc}; expected (x, y, radius) in metres with the centre within "
                    f"x = +-{width} and y = +-{height} and a positive radius. Correct or remove this disc."
                )
        self._check_region("start", self.start)
        self._check_region("goal", self.goal)
        apart = np.maximum(np.subtract(self.goal[:2], self.start[2:]), np.subtract(self.start[:2], self.goal[2:]))
        if np.hypot(*np.maximum(apart, 0.0)) <= GOAL_RADIUS:
            raise ValueError(
                f"Map.start {self.start} and Map.goal {self.goal} come within the goal radius of {GOAL_RADIUS} m, so "
                "an episode could be over before it starts. Move them apart."
            )

    @property
    def discs(self) -> int:
        """Number of obstacles."""
        return len(self.obstacles)

    def draw(self, generator: np.random.Generator) -> "Map":
        """Itself: one map is also a set of maps, and needs no random number."""
        return self

    def _check_region(self, name: str, box: Rectangle) -> None:
        values = np.asarray(box, np.float64)
        limit = np.array([self.half_width, self.half_height]) - self.robot_radius
        low, high = values[:2], values[2:]
        if values.shape != (4,) or not ((-limit <= low) & (low <= high) & (high <= limit)).all():
            raise ValueError(
                f"Map.{name} is {box}; expected (x_min, y_min, x_max, y_max) in metres with min <= max, robot_radius = "
                f"{self.robot_radius} away from the walls: within x = +-{limit[0]:.3f} and y = +-{limit[1]:.3f}."
            )
        for k, disc in enumerate(np.asarray(self.obstacles)):
            nearest = np.clip(disc[:2], low, high)
            if np.hypot(*(disc[:2] - nearest)) <= disc[2] + self.robot_radius:
                raise ValueError(
                    f"Map.{name} {box} overlaps obstacles[{k}] {self.obstacles[k]} (robot_radius {self.robot_radius} "
                    "included); expected a free region. Move the region or the disc."
                )


THREE_DISCS: Final = Map()


__all__ = ["GOAL_RADIUS", "THREE_DISCS", "Map", "Maps"]
