r"""Windows over episodes: an observation history, a horizon of actions and a padding mask, by index arithmetic.

For the current row i of an episode with rows [first, last], a window holds

$$ o_{\max(first,\, i - j)},\ j = H - 1, \dots, 0 \quad\text{and}\quad
a_{\min(last,\, \max(first,\, i - L + k))},\ k = 0, \dots, T - 1. $$

A plan starts now: with the lead L = 0 its index 0 is the action for the current observation. Published policies have
plans that begin at the oldest observation, L = H - 1 (Chi et al. 2023, arXiv 2303.04137). Rows beyond an episode repeat
its edge, and the mask says which actions are real, $first \le i - L + k \le last$.

Memory-mapped features stay in their files: a batch is copied out of them, and the process keeps a bounded part of them
in its memory.
"""

import copy
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poise.data.episodes import Episodes
from poise.data.mapped import is_mapped, relieve, share

_AT_ONCE = 2048  # windows copied from a file before its memory is looked at
_FEW = 2**16  # numbers of a batch that are copied one by one sooner than in stretches


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
        device: Where batches are made; features live there too, unless they are memory-mapped, or find no place there,
            which is said in a line on stderr: those stay on the host.
        lead: Steps before the current row at which the actions begin.

    Attributes:
        episodes: Number of episodes that have a window.

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
        lead: int = 0,
    ) -> None:
        _check_features(episodes, (*observations, action))
        for name, value in (("padded", padded), ("lead", lead)):
            if not 0 <= value < horizon:
                raise ValueError(f"Windows got {name}={value}, expected a number from 0 to horizon - 1 = {horizon - 1}")
        self.device = torch.device(device)
        self.observations = {name: self._kept(name, episodes) for name in observations}
        self.actions = self._kept(action, episodes).flatten(1)
        self._history, self._horizon, self._lead = history, horizon, lead
        lengths = episodes.ends - episodes.starts
        kept = np.clip(lengths + padded + lead + 1 - horizon, 0, lengths)  # windows of each episode: its first rows
        if not kept.any():
            raise ValueError(
                f"Windows got episodes of at most {int(lengths.max())} steps, expected some of at least "
                f"{horizon - padded - lead}: shorten the horizon or allow more padding"
            )
        self.episodes = int(np.count_nonzero(kept))
        # A row and an episode a window, in 32 bits where these suffice: ten million windows take 80 MB.
        size = np.int32 if episodes.steps < 2**31 else np.int64
        episode = np.repeat(np.arange(len(episodes), dtype=size), kept)
        row = (episodes.starts - np.cumsum(kept) + kept).astype(size)[episode]
        row += np.arange(len(row), dtype=size)
        self._row, self._episode = (torch.from_numpy(v).to(device) for v in (row, episode))
        self._first = torch.as_tensor(episodes.starts).to(device)
        self._last = torch.as_tensor(episodes.ends - 1).to(device)

    @property
    def starts(self) -> Tensor:
        """The first row of every episode, `(episodes,)`."""
        return self._first

    def only(self, episodes: NDArray) -> "Windows":
        """The windows of some episodes, by their numbers; all features are shared.

        Raises:
            ValueError: None of them is long enough.
        """
        here = torch.isin(self._episode, torch.as_tensor(episodes, device=self.device))
        if not here.any():
            raise ValueError(f"only got {len(episodes)} episodes, expected some that are long enough for a window")
        fewer = copy.copy(self)
        fewer._row, fewer._episode = self._row[here], self._episode[here]
        fewer.episodes = len(torch.unique(fewer._episode))
        return fewer

    def _kept(self, name: str, episodes: Episodes) -> Tensor:
        """A feature as it is gathered from: in its file, or on the device."""
        values = episodes.features[name]
        image = _is_image(name, values)
        if is_mapped(values):
            return share(values)
        values = torch.as_tensor(np.ascontiguousarray(values)).to(torch.uint8 if image else torch.float32)
        try:
            return values.to(self.device)
        except torch.OutOfMemoryError:
            held = f"{values.nbytes / 1e9:.3g} GB of the feature {name!r} find no place on {self.device}"
            print(f"{held}: they stay on the host, and batches are copied, which is slower", file=sys.stderr)
            return values

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, indices: Tensor) -> Batch:
        """The windows of the given indices `(B,)`."""
        return self.gather(indices, self.observations)

    def gather(self, indices: Tensor, observations: Iterable[str]) -> Batch:
        """The windows of the given indices `(B,)`, with some of the observed features."""
        row, bounds = self._placed(indices)
        begin = row - self._lead
        return Batch(
            observation={
                name: self._blocks(self.observations[name], row + 1 - self._history, bounds, self._history)
                for name in observations
            },
            actions=self._blocks(self.actions, begin, bounds, self._horizon),
            real=self._real(begin, bounds),
        )

    def real(self, indices: Tensor) -> Tensor:
        """Which actions of the windows of the given indices `(B,)` are no padding, `(B, horizon)`."""
        row, bounds = self._placed(indices)
        return self._real(row - self._lead, bounds)

    def _placed(self, indices: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The current rows of windows, and the first and last ones of their episodes."""
        row, episode = self._row[indices].long(), self._episode[indices].long()
        return row, (self._first.index_select(0, episode), self._last.index_select(0, episode))

    def _real(self, begin: Tensor, bounds: tuple[Tensor, Tensor]) -> Tensor:
        ahead = begin[:, None] + torch.arange(self._horizon, device=self.device)
        return (ahead >= bounds[0][:, None]) & (ahead <= bounds[1][:, None])

    def _blocks(self, rows: Tensor, begin: Tensor, bounds: tuple[Tensor, Tensor], steps: int) -> Tensor:
        """So many rows from `begin` on, `(B, steps, ...)`, those beyond an episode repeating its edge."""
        if rows.device.type != "cpu":
            return rows[_clamped(begin, bounds, steps)]
        begin, bounds = begin.cpu(), (bounds[0].cpu(), bounds[1].cpu())
        if len(begin) <= _AT_ONCE:
            blocks = _copied(rows, begin, bounds, steps)
            relieve()
        else:
            parts = zip(*(part.split(_AT_ONCE) for part in (begin, *bounds)), strict=True)
            blocks = torch.cat([self._blocks(rows, start, (first, last), steps) for start, first, last in parts])
        return blocks.to(self.device, torch.uint8 if rows.ndim == 4 else torch.float32)


def _copied(rows: Tensor, begin: Tensor, bounds: tuple[Tensor, Tensor], steps: int) -> Tensor:
    """`_blocks` on the host: rows that follow each other are one stretch of memory, which is several times faster."""
    width = rows[0].numel()
    places = len(rows) - steps + 1
    if places < 1 or len(begin) * steps * width < _FEW:
        return rows[_clamped(begin, bounds, steps)]
    stretches = rows.as_strided((places, steps * width), (width, 1))
    blocks = stretches.index_select(0, begin.clamp(0, places - 1)).view(-1, steps, *rows.shape[1:])
    edge = ((begin < bounds[0]) | (begin + steps - 1 > bounds[1])).nonzero().flatten()
    if len(edge):
        begin, first, last = (values.index_select(0, edge) for values in (begin, *bounds))
        inner = rows.index_select(0, _clamped(begin, (first, last), steps).flatten())
        blocks.index_copy_(0, edge, inner.view(-1, *blocks.shape[1:]))
    return blocks


def _clamped(begin: Tensor, bounds: tuple[Tensor, Tensor], steps: int) -> Tensor:
    ahead = begin[:, None] + torch.arange(steps, device=begin.device)
    return torch.minimum(torch.maximum(ahead, bounds[0][:, None]), bounds[1][:, None])


def _check_features(episodes: Episodes, names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in episodes.features]
    if missing:
        raise ValueError(
            f"Windows got episodes with features {sorted(episodes.features)}, expected also {missing}: "
            "name the features that exist, or add the missing ones"
        )
    single = [name for name in names if episodes.features[name].ndim < 2]
    if single:
        raise ValueError(
            f"Windows got the features {single} of shape (steps,), expected at least (steps, 1): make them so by "
            "array[:, None]"
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
