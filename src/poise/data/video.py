"""Videos of what a policy does and of demonstrations, by PyAV: the one file that needs the extra `video`.

A frame of a dataset belongs to a time, not to a number: row i of an episode that begins at $b$ is the frame nearest to
$b + i / rate$, at most half a frame away.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.data.untrusted import DataError, broken
from poise.extras import extra

_OPTIONS = {"crf": "21", "preset": "medium"}  # constant rate factor: less is better and larger
_DATASET_OPTIONS = {"g": "2", "crf": "30"}  # those of LeRobot: every second frame can be decoded without another
_LAYOUTS = {1: "gray", 3: "rgb24"}  # channels -> what FFmpeg calls them
_ERRORS = (OSError, ValueError, ArithmeticError, MemoryError, RuntimeError, TypeError, AttributeError)
_PADDED = 128  # rows and columns that a decoder may add to a frame
_BEFORE, _FACTOR = 10_000, 32  # frames decoded in vain, at most, beside so many for each one that is asked for


class FilmWriter:
    """Encodes the frames of a dataset (AV1, yuv420p, a key frame at least every second frame) as they come.

    Args:
        path: The file.
        rate: Frames a second; frame i is shown at `i / rate`.
        size: `(H, W)` of all frames.

    Attributes:
        frames: Number of frames so far.
        size: Bytes that they take, but for the last ones, which the encoder holds back.

    Raises:
        ImportError: PyAV is missing.
    """

    def __init__(self, path: Path, rate: float, size: tuple[int, int]) -> None:
        self._av = _library("writing films")
        os.environ.setdefault("SVT_LOG", "1")  # the encoder prints its settings otherwise: this keeps errors alone
        path.parent.mkdir(parents=True, exist_ok=True)
        self.frames = self.size = 0
        self._container = self._av.open(str(path), "w", format="mp4")
        steps = Fraction(rate).limit_denominator(1001)
        self._stream = self._container.add_stream("libsvtav1", rate=steps, options=_DATASET_OPTIONS)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"

    def append(self, frames: NDArray[np.uint8]) -> None:
        """Encode frames `(steps, H, W, 3)`."""
        for frame in frames:
            self._mux(self._av.VideoFrame.from_ndarray(frame, format="rgb24"))
        self.frames += len(frames)

    def close(self) -> None:
        """Encode what is held back and complete the file; once."""
        if self.frames:
            self._mux(None)
        self._container.close()

    def _mux(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            self.size += packet.size
            self._container.mux(packet)


def decode_frames(
    path: Path, field: str, start: float, count: int, rate: float, shape: Sequence[int]
) -> NDArray[np.uint8]:
    """The frames of a film at `start + i / rate`, i = 0, ..., count - 1: each the nearest one, within half a frame.

    Args:
        path: An MP4 file.
        field: What it is of, for messages.
        start: Seconds.
        count: Number of frames.
        rate: Frames a second.
        shape: Declared `(H, W, C)`, C being 1 or 3.

    Returns:
        uint8 `(count, H, W, C)`.

    Raises:
        DataError: A broken film, frames of another size than declared, none at one of the times, or far more frames
            than are asked for.
        ImportError: PyAV is missing.
    """
    layout = _LAYOUTS.get(shape[-1]) if len(shape) == 3 else None
    if layout is None:
        raise DataError(path, field, f"is a film of shape {tuple(shape)}, expected (H, W, C) of 1 or 3 channels")
    with _opened(path, field) as (container, stream):
        if (stream.height, stream.width) != tuple(shape[:2]):
            raise DataError(path, field, f"has frames {stream.height} x {stream.width}, expected {tuple(shape)}")
        stream.codec_context.options = {"max_pixels": str((stream.height + _PADDED) * (stream.width + _PADDED))}
        if start > 0:
            container.seek(int(start / stream.time_base), stream=stream)
        images = np.empty((count, *shape), np.uint8)
        distances = np.full(count, np.inf)
        for number, frame in enumerate(container.decode(stream)):
            position = -1.0 if frame.time is None else (frame.time - start) * rate
            row = round(position)
            if row >= count or number > _BEFORE + _FACTOR * count:
                break
            if row >= 0 and abs(position - row) < distances[row]:
                distances[row] = abs(position - row)
                images[row] = frame.to_ndarray(format=layout).reshape(tuple(shape))
    missing = np.flatnonzero(np.isinf(distances))
    if len(missing):
        raise DataError(
            path, field, f"has no frame at {start + missing[0] / rate:.3f} s, the one of row {missing[0]} of {count}: "
            "the film is shorter than its episode or has gaps"
        )  # fmt: skip
    return images


def film_seconds(path: Path, field: str) -> float:
    """How long a film says that it lasts.

    Raises:
        DataError: It is broken.
        ImportError: PyAV is missing.
    """
    with _opened(path, field) as (_, stream):
        return float((stream.duration or 0) * stream.time_base)


@contextmanager
def _opened(path: Path, field: str) -> Iterator[tuple[Any, Any]]:
    """The container and its film; only the parser of MP4 runs, for others open the files that theirs name."""
    av = _library("reading films")
    if not path.is_file():
        raise DataError(path, field, "does not exist, expected an MP4 file")
    with broken(path, field, av.FFmpegError, *_ERRORS), av.open(str(path.absolute()), format="mp4") as container:
        if not container.streams.video:
            raise DataError(path, field, "holds no film")
        yield container, container.streams.video[0]


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
    av = _library("write_video")
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


def _library(what: str) -> ModuleType:
    with extra("video", f"{what} needs"):
        import av
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


__all__ = ["FilmWriter", "decode_frames", "film_seconds", "write_video"]
