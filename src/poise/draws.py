r"""Random numbers of a training batch, the same whether it is computed as a whole or in parts.

Row i of a batch of B rows gets what it would get if the whole batch were drawn: a part draws for all rows and keeps its
own. A gradient therefore does not depend on how many parts, or processes, a batch is cut into.
"""

import torch
from torch import Tensor


class Draws:
    """Random numbers for some rows of a batch.

    Args:
        generator: Their source, on the device that they are wanted on; None is PyTorch's global one, on the CPU.
        start: First row of the part.
        total: Rows of the whole batch; None means that the part is the whole.
        level: What `stratified` answers everywhere, to look at one level of noise; None draws.
    """

    def __init__(
        self,
        generator: torch.Generator | None = None,
        start: int = 0,
        total: int | None = None,
        level: float | None = None,
    ) -> None:
        self._generator, self._start, self._total, self._level = generator, start, total, level
        self._device = generator.device if generator else torch.device("cpu")

    def normal(self, rows: int, *shape: int) -> Tensor:
        """Standard normal numbers `(rows, *shape)`."""
        return self._mine(torch.randn(self._whole(rows), *shape, generator=self._generator, device=self._device), rows)

    def uniform(self, rows: int, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), `(rows, *shape)`."""
        return self._mine(torch.rand(self._whole(rows), *shape, generator=self._generator, device=self._device), rows)

    def once(self) -> float:
        """One uniform number in [0, 1) for the whole batch, the same in all of its parts."""
        return torch.rand((), generator=self._generator, device=self._device).item()

    def integers(self, below: int, rows: int) -> Tensor:
        """Whole numbers from 0 to `below - 1`, `(rows,)`."""
        size = (self._whole(rows),)
        return self._mine(torch.randint(below, size, generator=self._generator, device=self._device), rows)

    def stratified(self, rows: int, each: int = 1) -> Tensor:
        r"""Numbers in [0, 1) that cover it evenly, `(each, rows)`.

        With one uniform u and n numbers in all they are

        $$ u_i = (u + i / n) \bmod 1, \qquad i = 0, \dots, n - 1, $$

        and every batch then covers the whole scale of noise (Kingma et al. 2021, arXiv 2107.00630).
        """
        whole = self._whole(rows)
        if self._level is not None:
            return torch.full((each, rows), self._level, device=self._device)
        offset = torch.rand((), generator=self._generator, device=self._device)
        even = (offset + torch.arange(each * whole, device=self._device) / (each * whole)) % 1
        return even.unflatten(0, (each, whole))[:, self._start : self._start + rows]

    def _whole(self, rows: int) -> int:
        return self._total or rows

    def _mine(self, whole: Tensor, rows: int) -> Tensor:
        return whole[self._start : self._start + rows]


__all__ = ["Draws"]
