"""Checks of frames and episodes: frozen, still, doubled, too short."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from poise.data.doctor.check import About, EpisodeCheck, Seen, runs
from poise.data.source import Finding, Severity

_FROZEN = 10  # rows that may be alike while other things move


class Frozen(EpisodeCheck):
    """Sensors that repeat themselves, bit by bit, while commands go on changing; or one camera while others do not."""

    def episode(self, about: About, seen: Seen) -> Iterator[Finding]:
        """A finding a stretch, of all observations or of one camera."""
        sensors = [name for name in about.observations if name in seen.same]
        moving = _any_changes(seen, [name for name in about.actions if name in seen.same])
        if sensors:
            same = ~_any_changes(seen, sensors)
            if not same.all() or not set(sensors) <= set(about.cameras):  # else each camera is a finding of `Still`
                yield from self._stretches(seen, same, moving if about.actions else np.ones_like(same), None)
        for camera in (name for name in sensors if name in about.cameras and not seen.same[name].all()):
            others = _any_changes(seen, [name for name in sensors if name != camera])
            yield from self._stretches(seen, seen.same[camera], others, camera)

    def _stretches(
        self, seen: Seen, same: NDArray[np.bool_], moving: NDArray[np.bool_], feature: str | None
    ) -> Iterator[Finding]:
        for first, length in runs(same):
            if length + 1 >= _FROZEN and moving[first : first + length].any():
                what = f"{feature} repeats" if feature else "all observations repeat"
                words = (
                    f"{what} bit by bit for {length + 1} rows from here, while other things move: check whether the "
                    "sensor hung, and cut these rows out"
                )
                yield Finding("frozen", Severity.WARNING, words, feature, seen.number, first)


class Still(EpisodeCheck):
    """Images that never change in an episode: a camera that was covered, or not running."""

    def episode(self, about: About, seen: Seen) -> Iterator[Finding]:
        """A finding a camera."""
        for name in about.cameras:
            if name in seen.same and seen.length > 1 and seen.same[name].all():
                words = f"{name} shows the same image in all {seen.length} rows: drop it, or leave the camera out"
                yield Finding("still", Severity.ERROR, words, name, seen.number, 0)


class Pixels(EpisodeCheck):
    """Images of floats: four times the memory, no word on what white is, and room for NaN."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def episode(self, about: About, seen: Seen) -> Iterator[Finding]:
        """One finding a camera, and one a camera and episode with NaN."""
        for name, finite in seen.finite.items():
            kind = about.contents.features[name].dtype
            if kind != np.uint8 and name not in self._told:
                self._told.add(name)
                words = (
                    f"{name} holds images of {kind}, and training takes uint8 from 0 to 255: convert them, after "
                    "multiplying by 255 where white is 1"
                )
                yield Finding("image-type", Severity.WARNING, words, name)
            bad = np.flatnonzero(~finite)
            if len(bad):
                words = f"{name} has NaN or infinity in {len(bad)} images of the episode, first here: drop the episode"
                yield Finding("nan", Severity.ERROR, words, name, seen.number, int(bad[0]))


class Doubled(EpisodeCheck):
    """An episode that is there twice, which weighs twice and makes validation see what training saw."""

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}

    def episode(self, about: About, seen: Seen) -> Iterator[Finding]:
        """A finding a copy."""
        original = self._known.setdefault(seen.digest, seen.number)
        if original != seen.number:
            words = f"the episode equals episode {original} bit by bit: drop one of the two"
            yield Finding("duplicate", Severity.WARNING, words, None, seen.number, 0)


class Short(EpisodeCheck):
    """An episode in which no window fits without padding."""

    def episode(self, about: About, seen: Seen) -> Iterator[Finding]:
        """At most one finding."""
        if seen.length < about.horizon:
            words = (
                f"the episode has {seen.length} rows, fewer than the horizon of {about.horizon}: drop it, or plan with "
                "a shorter horizon"
            )
            yield Finding("short", Severity.WARNING, words, None, seen.number, 0)


def _any_changes(seen: Seen, names: Sequence[str]) -> NDArray[np.bool_]:
    """`(length - 1,)`, whether any of the features differs from the row before."""
    changed = np.zeros(max(seen.length - 1, 0), bool)
    for name in names:
        changed |= ~seen.same[name]
    return changed


__all__ = ["Doubled", "Frozen", "Pixels", "Short", "Still"]
