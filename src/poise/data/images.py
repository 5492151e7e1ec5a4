"""Compressed images of datasets, by Pillow: the one file that needs the extra `images`."""

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from poise.data.untrusted import DataError, affordable, broken
from poise.extras import extra

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> what Pillow calls it
_FORMATS = ("PNG", "JPEG")  # what recordings hold; the other parsers of Pillow never see a byte


def decode_image(path: Path, field: str, data: bytes, shape: Sequence[int]) -> NDArray[np.uint8]:
    """The pixels of a PNG or JPEG, once its header is found to agree with the declared shape.

    Args:
        path: The file that holds it, for messages.
        field: Where it is in that file.
        data: The compressed image.
        shape: Declared `(H, W, C)`, C being 1, 3 or 4.

    Returns:
        uint8 `(H, W, C)`.

    Raises:
        DataError: Another shape than that of the image, more pixels than so many bytes can hold, or a broken image.
        ImportError: Pillow is missing.
    """
    image = _library()
    mode = _MODES.get(shape[-1]) if len(shape) == 3 else None
    if mode is None:
        raise DataError(path, field, f"got the shape {tuple(shape)}, expected (H, W, C) of 1, 3 or 4 channels")
    affordable(path, field, shape, np.uint8, len(data))
    errors = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, IndexError, RuntimeError)
    with (
        broken(path, field, *errors, image.DecompressionBombError),
        image.open(io.BytesIO(data), formats=_FORMATS) as picture,
    ):
        found = (picture.height, picture.width, len(picture.getbands()))
        if found[:2] != tuple(shape[:2]) or (found[2] != shape[2] and picture.mode != "P"):
            raise DataError(path, field, f"is an image {found}, expected {tuple(shape)} as declared")
        if picture.mode not in (mode, "P"):
            raise DataError(path, field, f"is an image of mode {picture.mode}, expected {mode} of 8 bits")
        return np.array(picture.convert(mode)).reshape(tuple(shape))


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """The PNG of an image `(H, W, C)` of 1, 3 or 4 channels.

    Raises:
        ImportError: Pillow is missing.
    """
    stream = io.BytesIO()
    flat = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    _library().fromarray(np.ascontiguousarray(flat)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _library() -> ModuleType:
    with extra("images", "images need"):
        from PIL import Image
    return Image


__all__ = ["decode_image", "encode_png"]
