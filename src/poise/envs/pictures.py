"""Figures of the navigation world: the routes that policies take, and plans on their way out of noise.

Routes have the five colours that Okabe and Ito (2008, "Color universal design") chose to be told apart by everyone, in
the tones of `poise.envs.drawing`. A figure's label is its caption.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from numpy.typing import ArrayLike, NDArray

from poise.envs.drawing import FLOOR, GOAL, MARGIN, PLAN, ROBOT, draw_map
from poise.envs.experts import routes
from poise.envs.maps import GOAL_RADIUS, Map
from poise.envs.point import DT, advance

INK: Final = "#1b2332"  # text
MUTED: Final = "#697588"  # text of less weight, and paths off the natural routes
SKY: Final = "#38b6f1"
FAILURE: Final = "#dc2f45"
ROUTES: Final = (ROBOT, SKY, PLAN, GOAL)  # from the uppermost route to the lowest
WIDTH: Final = 10.0  # inches, of every figure

_PANELS = 6  # of a denoising
_SHOWN = 100  # trajectories a panel that can still be told apart

Floats = NDArray[np.float64]
Trajectory = tuple[NDArray, bool]


def integrate(position: ArrayLike, velocity: ArrayLike, commands: ArrayLike) -> Floats:
    """Positions that a robot passes when it follows plans, obstacles and walls aside.

    Args:
        position: at the start of the plans in metres, (P, 2) or one (2,) for all.
        velocity: at the start in m/s, likewise.
        commands: plans of commanded velocities in m/s (P, T, 2), each held for 0.1 s; clipped to [-1, 1] as `Navigate`
            does.

    Returns:
        Positions in metres (P, T, 2), after each command.
    """
    plans = np.clip(_positions("commands", commands, 3), -1.0, 1.0)
    for name, value in (("position", position), ("velocity", velocity)):
        if np.shape(value) not in ((2,), (len(plans), 2)):
            raise ValueError(
                f"{name} has shape {np.shape(value)}; expected (2,) or ({len(plans)}, 2), one for each plan."
            )
    place, speed = (np.broadcast_to(value, (len(plans), 2)) for value in (position, velocity))
    path = np.empty_like(plans)
    for k in range(plans.shape[1]):
        place, speed = advance(place, speed, plans[:, k], DT)
        path[:, k] = place
    return path


def routes_figure(map: Map, panels: Mapping[str, Sequence[Trajectory]]) -> Figure:
    """Draw the trajectories of several policies as small multiples.

    Args:
        map: the world.
        panels: name of a policy -> its trajectories, each as positions in metres (steps, 2) and whether it succeeded.

    Returns:
        A figure with a panel a policy; successes have the colour of their route, failures are red and end in a cross.
        At most 100 trajectories a panel, evenly spread, are drawn; the counts are of all.
    """
    if not panels:
        raise ValueError("routes_figure got no panels; expected at least one policy with its trajectories.")
    figure, grid = _grid(map, len(panels), 2 if len(panels) in (2, 4) else min(3, len(panels)))
    for axes, (name, trajectories) in zip(grid, panels.items(), strict=True):
        arrived = sum(bool(success) for _, success in trajectories)
        _panel(axes, map, name[:1].upper() + name[1:], f"{arrived} of {len(trajectories)} reach the goal")
        paths = [_positions(f"trajectory {k} of {name!r}", path, 2) for k, (path, _) in enumerate(trajectories)]
        shown = _spread(len(paths), _SHOWN)
        solved = [paths[k] for k in shown if trajectories[k][1]]
        failed = [paths[k] for k in shown if not trajectories[k][1]]
        _draw(axes, map, solved, [_colour(map, path) for path in solved], 1.0)
        _draw(axes, map, failed, [FAILURE] * len(failed), 1.0)
        ends = np.array([path[-1] for path in failed]).reshape(-1, 2)
        axes.plot(*ends.T, "x", color=FAILURE, markersize=5, markeredgewidth=1.6, zorder=6, label="failed")
    thinned = any(len(trajectories) > _SHOWN for trajectories in panels.values())
    figure.set_label(
        "Trajectories from start (left) to goal (right), coloured by route; failures are red and end in a cross."
        + thinned * f" At most {_SHOWN} a panel are drawn."
    )
    return figure


def denoising_figure(map: Map, states: Sequence[tuple[float, NDArray]], position: NDArray, goal: NDArray) -> Figure:
    """Draw how plans for one robot emerge from noise.

    Args:
        map: the world.
        states: (t, plans as positions in metres (P, T, 2)) from noise, t = 1, to plans, t = 0; see `integrate`. At most
            six of them, evenly spread, are drawn.
        position: of the robot in metres (2,).
        goal: in metres (2,).

    Returns:
        A figure with a panel a state; every line has the colour of the route that its plan ends up in.
    """
    if not states:
        raise ValueError("denoising_figure got no states; expected those that Policy.trace yields, as positions.")
    chosen = [states[k] for k in _spread(len(states), _PANELS)]
    figure, grid = _grid(map, len(chosen), min(3, len(chosen)))
    anchored = [(t, [np.vstack([position, p]) for p in _positions(f"state t = {t}", x, 3)]) for t, x in chosen]
    colours = [_colour(map, path) for path in anchored[-1][1]]
    for axes, (t, paths) in zip(grid, anchored, strict=True):
        if len(paths) != len(colours):
            raise ValueError(f"state t = {t} has {len(paths)} plans, the last one {len(colours)}; expected as many.")
        note = "noise" if t == chosen[0][0] else "plans" if t == chosen[-1][0] else ""
        _panel(axes, map, f"t = {t:.2f}", note)
        _draw(axes, map, paths, colours, 1.1)
        axes.add_patch(Circle(tuple(goal), GOAL_RADIUS, facecolor=to_rgba(GOAL, 0.25), edgecolor=GOAL, zorder=3))
        axes.add_patch(Circle(tuple(goal), 0.014, color=GOAL, linewidth=0, zorder=3))
        axes.add_patch(Circle(tuple(position), map.robot_radius + 0.012, color=FLOOR, linewidth=0, zorder=5))
        axes.add_patch(Circle(tuple(position), map.robot_radius, color=ROBOT, linewidth=0, zorder=6))
    figure.set_label("Plans for one robot on their way out of noise, coloured by the route that they end up in.")
    return figure


def _positions(name: str, values: ArrayLike, dims: int) -> Floats:
    array = np.asarray(values, np.float64)
    if array.ndim != dims or array.shape[-1] != 2 or not array.shape[-2]:
        expected = "(steps, 2)" if dims == 2 else "(P, T, 2)"
        raise ValueError(f"{name} has shape {array.shape}; expected {expected} with at least one step, (x, y) last.")
    return array


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spread from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def _grid(map: Map, count: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, row by row, each of the shape of the map below a line of text."""
    rows = -(-count // columns)
    gap, head = 0.18, 0.34  # inches
    wide = (WIDTH - gap * (columns - 1)) / columns
    high = wide * (map.half_height + MARGIN) / (map.half_width + MARGIN)
    height = rows * (high + head) + gap * (rows - 1)
    figure = Figure(figsize=(WIDTH, height), dpi=100, facecolor="white")
    boxes = []
    for k in range(count):
        row, column = divmod(k, columns)
        bottom = height - (row + 1) * (high + head) - row * gap
        boxes.append((column * (wide + gap) / WIDTH, bottom / height, wide / WIDTH, high / height))
    return figure, [figure.add_axes(box) for box in boxes]


def _panel(axes: Axes, map: Map, title: str, note: str) -> None:
    draw_map(axes, map)
    axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold", pad=7)
    axes.set_title(note, loc="right", color=MUTED, fontsize=9.5, pad=7)


def _draw(axes: Axes, map: Map, paths: Sequence[Floats], colours: Sequence[str], width: float) -> None:
    """Draw paths, cut off at the walls."""
    lines = LineCollection(list(paths), colors=list(colours), linewidths=width, alpha=0.62, capstyle="round", zorder=4)
    axes.add_collection(lines, autolim=False)
    corner = -map.half_width, -map.half_height
    lines.set_clip_path(Rectangle(corner, 2 * map.half_width, 2 * map.half_height, transform=axes.transData))


def _colour(map: Map, path: Floats) -> str:
    """Colour of the uppermost natural route that passes on the same side of every obstacle that the path has passed.

    A path that has not passed any counts as if it went on level to the next one.
    """
    discs = np.array(map.obstacles).reshape(-1, 3)
    right, above = path[:, :1] >= discs[:, 0], path[:, 1:] > discs[:, 1]
    crossings = right[1:] != right[:-1]
    last = (np.arange(1, len(path))[:, None] * crossings).max(axis=0, initial=0)
    passed, side = last > 0, above[last, np.arange(len(discs))]
    if not passed.any():
        ahead = np.where(right[-1], np.inf, discs[:, 0])
        passed, side = np.isfinite(ahead) & (ahead == ahead.min(initial=np.inf)), above[-1]
    return next((colour for sides, colour in _palette(map) if (sides == side)[passed].all()), MUTED)


@lru_cache(maxsize=16)
def _palette(map: Map) -> list[tuple[NDArray[np.bool_], str]]:
    """Natural routes from top to bottom: the obstacles that each passes above, and its colour."""
    highest = sorted(routes(map), key=lambda route: -sum(y for _, y in route.knots))
    bits = 1 << np.arange(len(map.obstacles))
    return [(route.mode & bits > 0, ROUTES[k % len(ROUTES)]) for k, route in enumerate(highest)]


__all__ = [
    "FAILURE",
    "INK",
    "MUTED",
    "ROUTES",
    "SKY",
    "WIDTH",
    "denoising_figure",
    "integrate",
    "routes_figure",
]
