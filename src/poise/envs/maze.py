"""A ball in the mazes of PointMaze (Fu et al. 2020, "D4RL", arXiv 2004.07219; MuJoCo), with two ways to every goal.

Importing this module registers `poise/Maze-v0` with Gymnasium, which needs the extra `maze`:

    Task("poise.envs.maze:poise/Maze-v0", {"layout": "medium"}, extra="maze")

PointMaze's forces act 100 times a second and let the ball drift for long. Here an action is a velocity, which a
proportional controller makes the ball follow for a tenth of a second, as the drives of mobile robots do.
"""

import contextlib
import difflib
import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final, final

import gymnasium
import numpy as np
from numpy.typing import NDArray

from poise.envs.drawing import draw_maze
from poise.envs.episodic import Episodic, Observation
from poise.envs.grid import Cell, Grid, leftness
from poise.extras import extra

LAYOUTS: Final[Mapping[str, tuple[str, int]]] = {"medium": ("MEDIUM_MAZE", 6), "large": ("LARGE_MAZE", 10)}
"""Name -> PointMaze's map, and cells that start and goal are apart at least, by the shortest way."""

DETOUR: Final = 1.25  # natural ways are at most this much longer than the shortest
FASTEST: Final = 2.0  # m/s, along each axis
SUBSTEPS: Final = 10  # of PointMaze, 0.01 s each, in a control step
GAIN: Final = 0.3  # force for each m/s that is missing, of at most 1; the ball lags by about 0.14 s

Way = tuple[Cell, ...]


@final
class Maze(Episodic):
    """Roll a ball to a goal, at 10 Hz, between cells that two natural ways join: one on the left, one on the right.

    Actions are velocities in m/s (2,), clipped to [-2, 2]. Observations are `position`, `velocity` and `goal` (2,).
    Cells are 1 m wide. Within 0.45 m of the goal is success, as in PointMaze, and terminates. The reward is 1 on
    success, else 0. Infos hold `is_success`; `mode`, 0 for the way on the left and 1 for that on the right once one of
    them has been gone to the goal, else -1; and among `measures` `path_over_shortest`: what was gone, and the shortest
    way that is left in cells, over the shortest way from the start in cells. Seeds and episodes that are over are as
    in `Episodic`.

    Attributes:
        grid: The cells.
        ways: The natural ways of this episode, that on the left first.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, layout: str = "medium", max_steps: int = 200, render_mode: str | None = None) -> None:
        """Make the maze.

        Args:
            layout: `medium` or `large`.
            max_steps: Control steps after which an episode is truncated.
            render_mode: `"rgb_array"`, or None.

        Raises:
            ImportError: The extra `maze` is missing.
            ValueError: No layout of that name, no step, or another render mode.
        """
        if layout not in LAYOUTS:
            near = difflib.get_close_matches(layout, LAYOUTS, n=1, cutoff=0.0)[0]
            raise ValueError(f"got the maze {layout!r}, expected one of {', '.join(LAYOUTS)}: did you mean {near!r}?")
        maps, point_maze = _library()
        name, apart = LAYOUTS[layout]
        rows = vars(maps)[name]
        self.grid = Grid(tuple(tuple(cell == 1 for cell in row) for row in rows))
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("position", "velocity", "goal"), (2,))
        super().__init__(shapes, {}, 2, FASTEST, max_steps, render_mode)
        self._pairs = _pairs(self.grid, apart)
        self._env = point_maze.PointMazeEnv(maze_map=rows, continuing_task=False)
        Path(self._env.tmp_xml_file_path).unlink(missing_ok=True)  # which PointMaze leaves behind
        self._half = np.array([len(rows[0]), len(rows)]) / 2

    def centre(self, cell: Cell) -> NDArray[np.float64]:
        """Where the middle of a cell is, in metres (2,)."""
        return np.array([cell[1] + 0.5, -cell[0] - 0.5]) + self._half * (-1, 1)

    def render(self) -> NDArray[np.uint8] | None:
        """The maze from above (256, W, 3), or None without a render mode; it needs no OpenGL."""
        return None if self.render_mode is None else draw_maze(self.grid.walls, self._goal, np.array(self._trail))

    def close(self) -> None:
        """Free the simulation."""
        self._env.close()

    def _begin(self, seed: int | None) -> tuple[Observation, dict[str, Any]]:
        start, goal = list(self._pairs)[self.np_random.integers(len(self._pairs))]
        self.ways = self._pairs[start, goal]
        self._left = self.grid.distances(goal)
        places = {"reset_cell": start, "goal_cell": goal}
        told, _ = self._env.reset(seed=int(self.np_random.integers(2**31)), options=places)
        self._goal, self._trail, self._way = told["desired_goal"], [told["achieved_goal"]], [start]
        self._gone = 0.0
        return self._observe(), self._infos(False)

    def _advance(self, action: NDArray[np.float64]) -> tuple[Observation, float, bool, dict[str, Any]]:
        success = self._follow(action)
        return self._observe(), float(success), success, self._infos(success)

    def _follow(self, velocity: NDArray[np.float64]) -> bool:
        """Whether the goal was reached on the way."""
        success = False
        for _ in range(SUBSTEPS):
            before = self._env.data.qpos.copy()
            _, _, _, _, told = self._env.step(GAIN * (velocity - self._env.data.qvel))
            self._gone += float(np.linalg.norm(self._env.data.qpos - before))
            column, row = np.floor((self._env.data.qpos * (1, -1)) + self._half)
            if (int(row), int(column)) != self._way[-1]:
                self._way.append((int(row), int(column)))
            success = bool(told["success"])
            if success:
                break
        self._trail.append(self._env.data.qpos.copy())
        return success

    def _recognised(self) -> int:
        """The natural way that passes the walls on the same sides, -1 if neither does."""
        signatures = [self.grid.signature(way) for way in self.ways]
        gone = self.grid.signature((*self._way, self.ways[0][-1]))
        return signatures.index(gone) if gone in signatures else -1

    def _observe(self) -> Observation:
        values = {"position": self._env.data.qpos, "velocity": self._env.data.qvel, "goal": self._goal}
        return {name: value.astype(np.float32) for name, value in values.items()}

    def _infos(self, success: bool) -> dict[str, Any]:
        ratio = (self._gone + self._left[self._way[-1]]) / self._left[self._way[0]]
        mode = self._recognised() if success else -1
        return {"is_success": success, "mode": mode, "measures": {"path_over_shortest": ratio}}


@cache
def _pairs(grid: Grid, apart: int) -> dict[tuple[Cell, Cell], tuple[Way, Way]]:
    """Starts and goals that are far apart and have two natural ways; the one on the left comes first."""
    found = {}
    for start in grid.free:
        distances = grid.distances(start)
        ways = grid.ways(start, int(DETOUR * max(distances.values())))
        for goal in grid.free:
            natural = [way for way in ways[goal] if len(way) - 1 <= DETOUR * distances[goal]]
            if distances[goal] >= apart and len(natural) == 2:
                right, left = sorted(natural, key=leftness)
                found[start, goal] = left, right
    return found


def _library() -> tuple[ModuleType, ModuleType]:
    # On import it tells of hands that are not used here.
    with extra("maze", "mazes need"), contextlib.redirect_stderr(io.StringIO()):
        from gymnasium_robotics.envs.maze import maps, point_maze
    return maps, point_maze


gymnasium.register(id="poise/Maze-v0", entry_point="poise.envs.maze:Maze")

__all__ = ["DETOUR", "FASTEST", "LAYOUTS", "Maze"]
