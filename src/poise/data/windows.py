r"""Windows over episodes: an observation history, a horizon of actions and a padding mask, by index arithmetic.

For the current row i of an episode with rows [first, last], a window holds

$$ o_{\max(first,\, i - j)},\ j = H - 1, \dots, 0 \quad\text{and}\quad a_{\min(last,\, i + k)},\ k = 0, \dots, T - 1: $$

a plan starts now, its index 0 is the action for the current observation. Rows beyond an episode repeat its edge, and
the mask says which actions are real.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poise.data.episodes import Episodes


@dataclass(frozen=True)
class Batch:
    """Windows gathered for a policy.

    Attributes:
        observation: Name -> `(B, history, ...)`, float32; images `(B, history, height, width, channels)`, uint8.
        actions: `(B, horizon, action)`, float32.
        real: `(B, horizon)`, False where an action is padding.
    """

    observation: dict[str, Tensor]
    actions: Tensor
    real: Tensor


class Windows:
    """All windows of a set of episodes; a batch is one gather a feature.

    Args:
        episodes: Demonstrations.
        observations: Names of the observed features.
        history: Observation steps, T_o.
        horizon: Action steps, T_p.
        padded: Largest number of padded actions at the end of an episode; `horizon - execute` keeps every executed
            action real, as in the published configurations.
        action: Name of the action feature.
        device: Where the data live and batches are made.

    Raises:
        ValueError: A missing feature, one of single numbers, images that are not of 8 bits, or no episode long enough.
    """

    def __init__(
        self,
        episodes: Episodes,
        observations: tuple[str, ...],
        history: int,
        horizon: int,
        padded: int,
        action: str = "action",
        device: str | torch.device = "cpu",
    ) -> None:
        missing = [name for name in (*observations, action) if name not in episodes.features]
        if missing:
            raise ValueError(
                f"Windows got episodes with features {sorted(episodes.features)}, expected also {missing}: "
                "name the features that exist, or add the missing ones"
            )
        single = [name for name in (*observations, action) if episodes.features[name].ndim < 2]
        if single:
            raise ValueError(
                f"Windows got the features {single} of shape (steps,), expected at least (steps, 1): make them so by "
                "array[:, None]"
            )
        if not 0 <= padded < horizon:
            raise ValueError(f"Windows got padded={padded}, expected a number from 0 to horizon - 1 = {horizon - 1}")

        def resident(name: str) -> Tensor:
            values = np.ascontiguousarray(episodes.features[name])
            return torch.as_tensor(values).to(device, torch.uint8 if _is_image(name, values) else torch.float32)

        self.observations = {name: resident(name) for name in observations}
        self.actions = resident(action).flatten(1)
        lengths = torch.as_tensor(episodes.ends - episodes.starts)
        row = torch.arange(episodes.steps)
        first = torch.as_tensor(episodes.starts).repeat_interleave(lengths)
        last = torch.as_tensor(episodes.ends).repeat_interleave(lengths) - 1
        keep = row + horizon - 1 - last <= padded
        if not keep.any():
            raise ValueError(
                f"Windows got episodes of at most {int(lengths.max())} steps, expected some of at least "
                f"{horizon - padded}: shorten the horizon or allow more padding"
            )
        self._row, self._first, self._last = (v[keep].to(device) for v in (row, first, last))
        self._back = torch.arange(1 - history, 1, device=device)
        self._ahead = torch.arange(horizon, device=device)

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, indices: Tensor) -> Batch:
        """The windows of the given indices `(B,)`."""
        return self.gather(indices, self.observations)

    def gather(self, indices: Tensor, observations: Iterable[str]) -> Batch:
        """The windows of the given indices `(B,)`, with some of the observed features."""
        row, first, last = (v[indices, None] for v in (self._row, self._first, self._last))
        past = torch.maximum(row + self._back, first)
        ahead = row + self._ahead
        return Batch(
            observation={name: self.observations[name][past] for name in observations},
            actions=self.actions[torch.minimum(ahead, last)],
            real=ahead <= last,
        )


def _is_image(name: str, values: NDArray) -> bool:
    """Whether rows are images, `(height, width, channels)`.

    Raises:
        ValueError: Images of another type than uint8, which would take four times the memory.
    """
    image = values.ndim == 4
    if image and values.dtype != np.uint8:
        raise ValueError(
            f"Windows got images {name!r} of {values.dtype}, expected uint8 from 0 to 255: "
            "convert them, after multiplying by 255 where white is 1"
        )
    return image


__all__ = ["Batch", "Windows"]
