r"""Ways through a maze of cells, told apart by the walls that they pass on either side.

Walls that hang together, also by their corners, and do not touch the border are islands. Two ways between the same
cells are homotopic where they pass every island on the same side. As Bhattacharya, Kumar and Likhachev do (2010,
"Search-based path planning with homotopy class constraints", AAAI), we draw a ray from each island up to the border and
count how often a way crosses it from left to right, less how often from right to left: the counts are the signature of
the way. A search over pairs of cell and signature finds the shortest way of every class.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final, final

Cell = tuple[int, int]  # row, column
Signature = tuple[int, ...]

SIDEWAYS: Final = ((-1, 0), (0, -1), (0, 1), (1, 0))


@final
@dataclass(frozen=True)
class Grid:
    """Free cells among walls.

    Attributes:
        walls: whether each cell is a wall, row by row from the top; the border is.
    """

    walls: tuple[tuple[bool, ...], ...]

    @cached_property
    def free(self) -> tuple[Cell, ...]:
        """The free cells, row by row."""
        return tuple((i, j) for i, row in enumerate(self.walls) for j, wall in enumerate(row) if not wall)

    @cached_property
    def rays(self) -> tuple[Cell, ...]:
        """For every island one of its walls; its ray goes up along the right side of that wall."""
        unseen = {(i, j) for i, row in enumerate(self.walls) for j, wall in enumerate(row) if wall}
        found = []
        while unseen:
            first = min(unseen)
            unseen.remove(first)
            island, front = [first], [first]
            while front:
                i, j = front.pop()
                touching = {(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} & unseen
                unseen -= touching
                front += touching
                island += touching
            if first != (0, 0):  # what hangs together with the border
                found.append(first)
        return tuple(found)

    def signature(self, way: tuple[Cell, ...]) -> Signature:
        """Crossings of every ray by a way over neighbouring cells."""
        pairs = list(zip(way, way[1:], strict=False))
        return tuple(sum(_crossing(ray, a, b) for a, b in pairs) for ray in self.rays)

    def distances(self, start: Cell) -> dict[Cell, int]:
        """Steps from a cell to every cell that can be reached."""
        found, front = {start: 0}, [start]
        for cell in front:
            for neighbour in self._neighbours(cell):
                if neighbour not in found:
                    found[neighbour] = found[cell] + 1
                    front.append(neighbour)
        return found

    def ways(self, start: Cell, longest: int) -> dict[Cell, list[tuple[Cell, ...]]]:
        """The shortest way of every class from a cell to every cell, shortest first.

        Args:
            start: where ways begin.
            longest: steps of the longest way.
        """
        state = (start, (0,) * len(self.rays))
        found: dict[tuple[Cell, Signature], tuple[Cell, ...]] = {state: (start,)}
        front = [state]
        ways: dict[Cell, list[tuple[Cell, ...]]] = {start: [(start,)]}
        for state in front:
            way, (cell, counts) = found[state], state
            if len(way) > longest:
                break
            for neighbour in self._neighbours(cell):
                crossed = tuple(n + _crossing(ray, cell, neighbour) for n, ray in zip(counts, self.rays, strict=True))
                if (neighbour, crossed) not in found and neighbour not in way:
                    found[neighbour, crossed] = (*way, neighbour)
                    front.append((neighbour, crossed))
                    ways.setdefault(neighbour, []).append(found[neighbour, crossed])
        return ways

    def _neighbours(self, cell: Cell) -> list[Cell]:
        around = [(cell[0] + i, cell[1] + j) for i, j in SIDEWAYS]
        return [(i, j) for i, j in around if not self.walls[i][j]]


def _crossing(ray: Cell, a: Cell, b: Cell) -> int:
    """+1 where a step crosses the ray to the right, -1 to the left, else 0."""
    across = (a[1] > ray[1]) != (b[1] > ray[1])
    return (1 if b[1] > a[1] else -1) if across and min(a[0], b[0]) < ray[0] else 0


def leftness(way: tuple[Cell, ...]) -> float:
    """Twice the area, in cells, by which a way lies to the left of the straight line from its beginning to its end."""
    corners = zip(way, (*way[1:], way[0]), strict=True)
    return float(sum(a[1] * b[0] - a[0] * b[1] for a, b in corners))


__all__ = ["Cell", "Grid", "Signature", "leftness"]
