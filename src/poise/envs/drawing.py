"""Pictures of the navigation world: flat colours, no axes, no global matplotlib state.

Sizes are in metres of the world throughout, so that a picture looks the same at any resolution.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch
from matplotlib.typing import ColorType
from numpy.typing import NDArray

from poise.envs.maps import GOAL_RADIUS, Map

WALL: Final = "#d5dae3"
FLOOR: Final = "#f8f9fb"
OBSTACLE: Final = "#39445a"
SHADOW: Final = "#dfe3ea"
START: Final = "#3b82f6"
GOAL: Final = "#10b981"
ROBOT: Final = "#2563eb"
PLAN: Final = "#f59e0b"

MARGIN: Final = 0.05  # m, the drawn thickness of the wall

Floats = NDArray[np.float64]


def draw_map(axes: Axes, map: Map) -> None:
    """Draw arena, start and goal regions and obstacles, and set the limits of the axes to the arena.

    Args:
        axes: any matplotlib axes; ticks and frame are switched off.
        map: the map to draw.
    """
    width, height = map.half_width, map.half_height
    axes.add_patch(_rounded((-width - MARGIN, -height - MARGIN, width + MARGIN, height + MARGIN), 0.06, WALL))
    axes.add_patch(_rounded((-width, -height, width, height), 0.03, FLOOR))
    for box, colour in ((map.start, START), (map.goal, GOAL)):
        grown = (box[0] - 0.03, box[1] - 0.03, box[2] + 0.03, box[3] + 0.03)
        axes.add_patch(_rounded(grown, 0.03, to_rgba(colour, 0.14)))
    for x, y, radius in map.obstacles:
        axes.add_patch(Circle((x + 0.012, y - 0.018), radius, color=SHADOW, linewidth=0, zorder=1))
    for x, y, radius in map.obstacles:
        axes.add_patch(Circle((x, y), radius, color=OBSTACLE, linewidth=0, zorder=2))
    axes.set(xlim=(-width - MARGIN, width + MARGIN), ylim=(-height - MARGIN, height + MARGIN), aspect="equal")
    axes.set_axis_off()


def draw_frame(
    map: Map,
    position: Floats,
    goal: Floats,
    trail: Floats,
    plans: Floats | None = None,
    height: int = 256,
    discs: Floats | None = None,
) -> NDArray[np.uint8]:
    """Draw one frame of a video.

    Args:
        map: the map; its picture is kept, so that a second frame on the same map is quicker.
        position: of the robot in metres (2,).
        goal: in metres (2,).
        trail: positions so far in metres (T, 2); older ones fade.
        plans: candidate plans as positions in metres (P, T, 2), drawn as thin lines.
        height: of the image in pixels.
        discs: moving obstacles (x, y, radius) in metres (K, 3), besides those of the map.

    Returns:
        Image (height, W, 3); W is even, as video codecs require.
    """
    for name, value, dims in (("trail", trail, 2), ("plans", plans, 3)):
        if value is not None and (np.ndim(value) != dims or np.shape(value)[-1] != 2):
            expected = "(T, 2)" if dims == 2 else "(P, T, 2)"
            raise ValueError(f"{name} has shape {np.shape(value)}; expected positions {expected} in metres.")
    figure, axes = _blank(map.half_width, map.half_height, height)
    figure.figimage(_background(map, height), zorder=-1)
    if discs is not None:
        for x, y, radius in discs:
            axes.add_patch(Circle((x, y), radius, color=OBSTACLE, linewidth=0, zorder=2))
    if plans is not None:
        width = 0.008 * _points(axes)
        axes.add_collection(LineCollection(list(plans), colors=to_rgba(PLAN, 0.55), linewidths=width, zorder=3))
    _draw_robot(axes, position, goal, trail, map.robot_radius)
    return _pixels(figure)


def draw_maze(walls: Sequence[Sequence[bool]], goal: Floats, trail: Floats, height: int = 256) -> NDArray[np.uint8]:
    """Draw one frame of a video in a maze of cells of one metre, centred on the origin.

    Args:
        walls: whether each cell is a wall, row by row from the top.
        goal: in metres (2,).
        trail: positions so far in metres (T, 2), the current one last.
        height: of the image in pixels.

    Returns:
        Image (height, W, 3); W is even.
    """
    half_width, half_height = len(walls[0]) / 2, len(walls) / 2
    figure, axes = _blank(half_width, half_height, height)
    extent = (-half_width, half_width, -half_height, half_height)
    cells = np.where(np.array(walls)[..., None], to_rgb(OBSTACLE), to_rgb(FLOOR))
    axes.imshow(cells, extent=extent, interpolation="nearest", aspect="auto")
    _draw_robot(axes, trail[-1], goal, trail, 0.1, scale=4.0)
    return _pixels(figure)


def _draw_robot(axes: Axes, position: Floats, goal: Floats, trail: Floats, radius: float, scale: float = 1.0) -> None:
    """Draw trail, goal and robot; lines are `scale` times as wide as in the navigation world."""
    points = scale * _points(axes)
    if len(trail) > 1:
        pieces = np.stack([trail[:-1], trail[1:]], axis=1)
        fade = np.linspace(0.2, 0.9, len(pieces))[:, None]
        colours = (1 - fade) * to_rgb(FLOOR) + fade * to_rgb(ROBOT)  # opaque, so that joints do not show
        lines = LineCollection(list(pieces), colors=colours, linewidths=0.018 * points, capstyle="round", zorder=4)
        axes.add_collection(lines)
    ring = {"facecolor": to_rgba(GOAL, 0.25), "edgecolor": GOAL, "linewidth": 0.01 * points}
    axes.add_patch(Circle((goal[0], goal[1]), scale * GOAL_RADIUS, zorder=3, **ring))
    axes.add_patch(Circle((goal[0], goal[1]), scale * 0.014, color=GOAL, linewidth=0, zorder=3))
    rim = radius + scale * 0.012
    axes.add_patch(Circle((position[0], position[1]), rim, color="white", linewidth=0, zorder=5))
    axes.add_patch(Circle((position[0], position[1]), radius, color=ROBOT, linewidth=0, zorder=6))


def _points(axes: Axes) -> float:
    """Points a metre: matplotlib has line widths in points."""
    pixel = axes.transData.transform([(0.0, 0.0), (1.0, 0.0)])
    return float((pixel[1, 0] - pixel[0, 0]) * 72 / axes.figure.dpi)


@lru_cache(maxsize=16)
def _background(map: Map, height: int) -> NDArray[np.uint8]:
    figure, axes = _blank(map.half_width, map.half_height, height)
    draw_map(axes, map)
    image = _pixels(figure)
    image.setflags(write=False)
    return image


def _blank(half_width: float, half_height: float, height: int) -> tuple[Figure, Axes]:
    """An empty figure whose axes span an arena and its wall."""
    half_width, half_height = half_width + MARGIN, half_height + MARGIN
    width = 2 * round(height * half_width / half_height / 2)
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-half_width, half_width), ylim=(-half_height, half_height))
    axes.set_axis_off()
    return figure, axes


def _pixels(figure: Figure) -> NDArray[np.uint8]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _rounded(box: tuple[float, float, float, float], radius: float, colour: ColorType) -> FancyBboxPatch:
    x_min, y_min, x_max, y_max = box
    width, height, style = x_max - x_min, y_max - y_min, f"round,pad=0,rounding_size={radius}"
    return FancyBboxPatch((x_min, y_min), width, height, boxstyle=style, color=colour, linewidth=0, zorder=0)


__all__ = ["draw_frame", "draw_map", "draw_maze"]
