"""Episodes in one compressed NumPy archive: an entry a feature, and `episode_ends`."""

import zipfile
from pathlib import Path

import numpy as np

from poise.data.episodes import Episodes

_ENDS = "episode_ends"


def read_npz(path: str | Path) -> Episodes:
    """Read episodes; arrays of objects are refused, so nothing in the file is executed.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not an archive of numeric arrays, no `episode_ends`, or inconsistent episodes.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(
            f"{path} is not an archive of numeric arrays ({error}), expected a file of write_npz"
        ) from error
    if _ENDS not in arrays:
        raise ValueError(f"{path} holds {sorted(arrays)}, expected also {_ENDS!r}: the exclusive end of every episode")
    ends = arrays.pop(_ENDS)
    return Episodes(arrays, ends)


def write_npz(path: str | Path, episodes: Episodes) -> None:
    """Write episodes."""
    np.savez_compressed(path, **{**episodes.features, _ENDS: episodes.ends})


__all__ = ["read_npz", "write_npz"]
