"""Navigation maps drawn at random, another one for every seed: on maps of new seeds a policy has never been."""

from dataclasses import dataclass
from itertools import product
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from poise.envs.experts.navigate import curve, routes
from poise.envs.maps import Map
from poise.envs.point import approach

RADII: Final = 0.10, 0.17  # m, of the discs
REGION: Final = 0.5, 0.45  # m, half the width and height of where their centres are
APART: Final = 0.02  # m between two discs
FREE: Final = 0.05  # m between the robot and the discs, on every natural route from anywhere in the start region

_ATTEMPTS = 2000


@final
@dataclass(frozen=True)
class RandomMaps:
    """Maps with discs at random places, each with at least two natural routes.

    Discs are numbered from left to right, so that a map looks the same whatever order they were drawn in.

    Attributes:
        discs: obstacles of a map.
        half_width: arenas span `[-half_width, half_width]` in x.
        half_height: arenas span `[-half_height, half_height]` in y.
        robot_radius: radius of the robot.
    """

    discs: int = 3
    half_width: float = Map.half_width
    half_height: float = Map.half_height
    robot_radius: float = Map.robot_radius

    def draw(self, generator: np.random.Generator) -> Map:
        """Draw maps until one has two natural routes or more, all of them wide enough.

        Raises:
            ValueError: So many discs that no such map is found.
        """
        size = self.half_width, self.half_height, self.robot_radius
        for _ in range(_ATTEMPTS):
            discs = np.column_stack(
                [generator.uniform(-1, 1, (self.discs, 2)) * REGION, generator.uniform(*RADII, self.discs)]
            )
            if _separate(discs):
                ordered = sorted((float(x), float(y), float(radius)) for x, y, radius in discs)
                map = Map(tuple(ordered), Map.start, Map.goal, *size)
                if _good(map):
                    return map
        raise ValueError(
            f"RandomMaps found no map with discs={self.discs} and two natural routes in {_ATTEMPTS} attempts, expected "
            "fewer discs"
        )


def _separate(discs: NDArray[np.float64]) -> bool:
    distances = np.linalg.norm(discs[:, None, :2] - discs[:, :2], axis=-1)
    gaps = distances - discs[:, None, 2] - discs[:, 2]
    return bool((gaps[~np.eye(len(discs), dtype=bool)] > APART).all())


def _good(map: Map) -> bool:
    """Whether there are two natural routes, and all of them are free from anywhere to anywhere."""
    try:
        found = routes(map)
    except ValueError:  # none at all
        return False
    ends = product(_heights(map.start), _heights(map.goal), (route.knots for route in found))
    paths = curve(np.array([(begin, *knots, end) for begin, end, knots in ends]))
    discs = np.array(map.obstacles)
    gaps = approach(paths[:, :, None] - discs[:, :2]) - discs[:, 2] - map.robot_radius
    return len(found) >= 2 and bool((gaps >= FREE).all())


def _heights(box: tuple[float, float, float, float]) -> list[tuple[float, float]]:
    """The lowest, middle and highest points of a region."""
    x = (box[0] + box[2]) / 2
    return [(x, box[1]), (x, (box[1] + box[3]) / 2), (x, box[3])]


__all__ = ["RandomMaps"]
