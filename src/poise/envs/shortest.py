"""Lengths of shortest ways among discs, what the ways of robots are measured against.

The way of a robot is that of its centre, so every disc grows by the robot's radius. A shortest way among discs consists
of straight lines and arcs; arcs are replaced by the polygon around the disc, which is at most 0.5 % longer, and the
ways along its corners by Floyd's and Warshall's algorithm (Floyd, 1962, "Algorithm 97: shortest path").
"""

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.linalg import norm
from numpy.typing import NDArray

from poise.envs.maps import Map

CORNERS: Final = 32  # of the polygon around a disc

Floats = NDArray[np.float64]


def shortest(map: Map, begin: Floats, end: Floats) -> float:
    """Length of the shortest way.

    Args:
        map: the world.
        begin: where the way begins in metres (2,).
        end: where it ends (2,).

    Returns:
        Metres; infinity where there is no way.
    """
    corners, between = _graph(map)
    first, last = _lengths(map, begin[None], corners)[0], _lengths(map, end[None], corners)[0]
    direct = _lengths(map, begin[None], end[None])[0, 0]
    return float(min(direct, (first[:, None] + between + last).min(initial=np.inf)))


@lru_cache(maxsize=64)
def _graph(map: Map) -> tuple[Floats, Floats]:
    """Corners (C, 2) around the discs, and the lengths of the shortest ways between them (C, C)."""
    angles = 2 * np.pi * np.arange(CORNERS) / CORNERS
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=-1) / np.cos(np.pi / CORNERS)
    discs = _grown(map)
    corners = (discs[:, None, :2] + discs[:, None, 2:] * circle).reshape(-1, 2)
    limit = np.array([map.half_width, map.half_height]) - map.robot_radius
    gaps = norm(corners[:, None] - discs[:, :2], axis=-1) - discs[:, 2]
    corners = corners[(np.abs(corners) <= limit).all(axis=1) & (gaps > 0).all(axis=1)]
    between = _lengths(map, corners, corners)
    for k in range(len(corners)):
        between = np.minimum(between, between[:, k, None] + between[k])
    return corners, between


def _lengths(map: Map, begins: Floats, ends: Floats) -> Floats:
    """Lengths of the straight lines between points (A, 2) and (B, 2), infinite where one meets a disc, (A, B)."""
    discs = _grown(map)
    piece = ends - begins[:, None]
    length = norm(piece, axis=-1)
    offset = discs[:, :2] - begins[:, None, None]
    along = (offset * piece[:, :, None]).sum(axis=-1) / np.maximum(length**2, np.finfo(np.float64).tiny)[..., None]
    nearest = norm(offset - np.clip(along, 0.0, 1.0)[..., None] * piece[:, :, None], axis=-1)
    return np.where((nearest < discs[:, 2] - 1e-9).any(axis=-1), np.inf, length)


def _grown(map: Map) -> Floats:
    return np.array(map.obstacles, np.float64).reshape(-1, 3) + [0.0, 0.0, map.robot_radius]


__all__ = ["shortest"]
