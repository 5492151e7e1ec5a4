"""Videos of what a policy does, by PyAV: the one file that needs the extra `video`."""

import math
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

_OPTIONS = {"crf": "21", "preset": "medium"}  # constant rate factor: less is better and larger


def write_video(path: str | Path, frames: Iterable[NDArray[np.uint8]], rate: float) -> None:
    """Write frames, one by one as they come, to an MP4 file (H.264) that every browser plays.

    The file is complete or it is not there. Frames of odd sizes repeat their last row or column, for the codec needs
    even ones.

    Args:
        path: The file.
        frames: Images (H, W, 3) of red, green and blue, all of one size.
        rate: Frames a second.

    Raises:
        ImportError: PyAV is missing.
        ValueError: No frame, a frame that does not fit the first, or a rate that is not positive.
    """
    av = _library()
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"write_video got rate={rate!r}, expected frames a second above 0")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with av.open(str(aside), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001), options=_OPTIONS)
            images = _even(frames)
            first = next(images)
            stream.height, stream.width = first.shape[:2]
            stream.pix_fmt = "yuv420p"
            for frame in chain([first], images):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _library() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ImportError("write_video needs the extra 'video': pip install 'poise[video]'") from error
    return av


def _even(frames: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """Check that frames are images of one size, and make it even."""
    shape = None
    for k, image in enumerate(frames):
        frame = np.asarray(image)
        expected = "(H, W, 3)" if shape is None else str(shape)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3 or frame.shape != (shape or frame.shape):
            raise ValueError(f"write_video got frame {k} of {frame.dtype} {frame.shape}, expected uint8 {expected}")
        shape = frame.shape
        yield np.pad(frame, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), mode="edge")
    if shape is None:
        raise ValueError("write_video got no frames, expected at least one")


__all__ = ["write_video"]
