"""Replay buffers of Diffusion Policy: zarr format 2, `data/<feature>` and `meta/episode_ends` (extra `zarr`)."""

from pathlib import Path

import numpy as np

from poise.data.episodes import Episodes

try:
    import numcodecs
    import zarr
    from zarr.errors import GroupNotFoundError
    from zarr.storage import LocalStore, ZipStore
except ImportError as error:
    raise ImportError("reading zarr needs the extra 'zarr': pip install 'poise[zarr]'") from error


def read_zarr(path: str | Path, features: tuple[str, ...] | None = None) -> Episodes:
    """Read a replay buffer, a directory or a zip.

    Args:
        path: The `.zarr` directory or `.zarr.zip` file.
        features: Names under `data`; None reads all of them (images too, into memory).

    Raises:
        FileNotFoundError: No such path.
        ValueError: No `data` or `meta/episode_ends`, a missing feature, or inconsistent episodes.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist, expected a .zarr directory or .zarr.zip file")
    store = ZipStore(path, mode="r") if path.is_file() else LocalStore(path, read_only=True)
    try:
        arrays = _arrays(zarr.open_group(store, mode="r"))
        if "meta/episode_ends" not in arrays:
            raise ValueError(f"{path} holds {sorted(arrays)}, expected also 'meta/episode_ends'")
        found = sorted(key.removeprefix("data/") for key in arrays if key.startswith("data/"))
        missing = sorted(set(features or ()) - set(found))
        if missing:
            raise ValueError(f"{path} holds the features {found}, expected also {missing}: check their names")
        ends = np.asarray(arrays["meta/episode_ends"])
        return Episodes({name: np.asarray(arrays[f"data/{name}"]) for name in features or found}, ends)
    except GroupNotFoundError as error:
        raise ValueError(f"{path} is not a zarr group, expected a replay buffer with 'data' and 'meta'") from error
    finally:
        store.close()


def _arrays(root: zarr.Group) -> dict[str, zarr.Array]:
    groups = {name: root[name] for name in ("data", "meta") if name in root}
    return {
        f"{name}/{key}": array
        for name, group in groups.items()
        if isinstance(group, zarr.Group)
        for key, array in group.arrays()
    }


def write_zarr(path: str | Path, episodes: Episodes) -> None:
    """Write a replay buffer directory that Diffusion Policy's own code reads (format 2, zstd with bit shuffle)."""
    root = zarr.open_group(path, mode="w", zarr_format=2)
    data, meta = root.create_group("data"), root.create_group("meta")
    compressor = numcodecs.Blosc(cname="zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE)
    for name, values in episodes.features.items():
        chunks = (min(161, len(values)), *values.shape[1:])
        data.create_array(name, shape=values.shape, chunks=chunks, dtype=values.dtype, compressors=compressor)[:] = (
            values
        )
    ends = meta.create_array("episode_ends", shape=episodes.ends.shape, dtype="i8", compressors=None)
    ends[:] = episodes.ends


__all__ = ["read_zarr", "write_zarr"]
