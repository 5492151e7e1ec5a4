"""Chunks of zarr arrays, format 2: what `.zarray` declares, and their bytes to numbers and back.

A chunk is decoded only after its own header is found to give the size that `.zarray` declares, or by a decoder that
stops there; so no file makes it allocate more than that. Codecs are those of `numcodecs` (extra `zarr`), and of
`imagecodecs` (extra `umi`) JPEG XL and JPEG 2000, in which UMI stores images.

The array format is that of the zarr specification, version 2 (https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html).
"""

import bz2
import math
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.data.untrusted import DataError, affordable, broken
from poise.extras import extra

PUBLISHED = {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 2, "blocksize": 0}  # that of Push-T
_DENSE = 8  # zstd and JPEG XL make constant images smaller than 1 / 1000, by not more than this
_SPARE = 2**16  # bytes by which a chunk may grow when it is compressed
_J2K = b"\xff\x4f\xff\x51"  # start of a codestream, then its size


@dataclass(frozen=True)
class Layout:
    """What `.zarray` says.

    Attributes:
        shape: Of the array.
        chunks: Shape of each chunk, also of those that reach beyond the array.
        dtype: As stored.
        codec: Name of the compressor; `raw` for none.
        order: `C` or `F`, of the numbers in a chunk.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype
    codec: str = "blosc"
    order: str = "C"

    @property
    def size(self) -> int:
        """Bytes of a chunk."""
        return math.prod(self.chunks) * self.dtype.itemsize

    @property
    def grid(self) -> tuple[int, ...]:
        """Chunks along each dimension."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True))

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "zarr_format": 2,
            "shape": list(self.shape),
            "chunks": list(self.chunks),
            "dtype": self.dtype.str,
            "compressor": PUBLISHED,
            "fill_value": 0,
            "filters": None,
            "order": self.order,
        }

    @classmethod
    def of(cls, path: Path, field: str, plain: Any, stored: int) -> "Layout":
        """The layout that JSON data declares.

        Args:
            path: The dataset.
            field: The array in it.
            plain: Content of `.zarray`.
            stored: Bytes of all chunks.

        Raises:
            DataError: Another version, a type that is no number, a codec that is not read, or more than the chunks can
                hold.
        """
        with broken(path, f"{field}/.zarray", KeyError, TypeError, AttributeError, ValueError):
            version, shape, chunks, dtype = (plain[key] for key in ("zarr_format", "shape", "chunks", "dtype"))
            compressor, filters, order = plain["compressor"], plain.get("filters"), plain.get("order", "C")
            codec = "raw" if compressor is None else str(compressor["id"])
            separator = plain.get("dimension_separator", ".")
            if (version, separator) != (2, ".") or order not in ("C", "F") or filters:
                raise ValueError(
                    f"got version {version}, separator {separator!r}, order {order!r}, filters {filters}, expected "
                    "version 2, '.', C or F, and none"
                )
            if codec not in _DECODERS:
                raise ValueError(f"got the compressor {codec!r}, expected one of {sorted(_DECODERS)}")
            shape, chunks, text = tuple(shape), tuple(chunks), dtype if type(dtype) is str else "object"
            if not shape or len(chunks) != len(shape) or any(type(n) is not int or n < 1 for n in chunks):
                raise ValueError(f"got chunks {chunks} of an array {shape}, expected as many sizes of 1 or more")
            layout = cls(shape, chunks, affordable(path, field, shape, text, _DENSE * stored), codec, order)
            affordable(path, field, chunks, text, _DENSE * stored)
        return layout


def encode(values: NDArray) -> bytes:
    """A chunk by the published compressor: zstd of level 5 after a shuffle of bits."""
    return _numcodecs().get_codec(dict(PUBLISHED)).encode(np.ascontiguousarray(values))


def decode(path: Path, field: str, layout: Layout, data: bytes) -> NDArray:
    """The numbers of a chunk, of the shape `layout.chunks`, in the byte order of this machine.

    Raises:
        DataError: Bytes of another size than declared, or broken ones.
        ImportError: Names the extra that is missing.
    """
    if len(data) > 2 * layout.size + _SPARE:
        raise DataError(path, field, f"has {len(data)} bytes for a chunk of {layout.size}, expected fewer")
    with broken(
        path, field, ValueError, RuntimeError, TypeError, IndexError, OSError, EOFError, struct.error, zlib.error
    ):
        decoded = np.frombuffer(_DECODERS[layout.codec](layout, data), np.uint8)
        if len(decoded) != layout.size:
            raise ValueError(f"got a chunk of {len(decoded)} bytes, expected {layout.size}")
        values = decoded.view(layout.dtype).reshape(layout.chunks, order="F" if layout.order == "F" else "C")
    return values.astype(layout.dtype.newbyteorder("="), copy=False)


def _expect(layout: Layout, declared: int) -> None:
    if declared != layout.size:
        raise ValueError(f"the header of a chunk declares {declared} bytes, expected {layout.size}")


def _raw(layout: Layout, data: bytes) -> Any:
    return data


def _blosc(layout: Layout, data: bytes) -> Any:
    numbers, _, stored = struct.unpack_from("<III", data, 4)
    _expect(layout, numbers)
    if stored != len(data):
        raise ValueError(f"the header of a chunk declares {stored} stored bytes, but there are {len(data)}")
    return _numcodecs().blosc.decompress(data)


def _zstd(layout: Layout, data: bytes) -> Any:
    """A frame, whose header ends in the size (RFC 8878, 3.1.1.1)."""
    flags = data[4]
    start = 5 + (not flags & 32) + (0, 1, 2, 4)[flags & 3]
    width = (flags >> 5 & 1, 2, 4, 8)[flags >> 6]
    _expect(layout, int.from_bytes(data[start : start + width], "little") + 256 * (width == 2))
    return _numcodecs().zstd.decompress(data)


def _lz4(layout: Layout, data: bytes) -> Any:
    _expect(layout, struct.unpack_from("<I", data)[0])
    return _numcodecs().lz4.decompress(data)


def _zlib(layout: Layout, data: bytes) -> Any:
    """Of zlib and gzip, by the header."""
    return zlib.decompressobj(wbits=47).decompress(data, layout.size + 1)


def _bz2(layout: Layout, data: bytes) -> Any:
    return bz2.BZ2Decompressor().decompress(data, layout.size + 1)


def _jpegxl(layout: Layout, data: bytes) -> Any:
    image = _image(layout)
    return _imagecodecs().jpegxl_decode(data, out=image).reshape(-1)


def _jpeg2k(layout: Layout, data: bytes) -> Any:
    """The decoder allocates what the codestream declares, so its size is looked at before."""
    image, start = _image(layout), data.find(_J2K)
    if start < 0 or data.count(_J2K) != 1:
        raise ValueError("got another number of JPEG 2000 codestreams than one")
    right, bottom, left, top = struct.unpack_from(">IIII", data, start + 8)
    if (bottom - top, right - left) != image.shape[:2]:
        raise ValueError(f"a chunk is an image of {bottom - top} x {right - left}, expected {image.shape}")
    return _imagecodecs().jpeg2k_decode(data, out=image).reshape(-1)


def _image(layout: Layout) -> NDArray[np.uint8]:
    if layout.dtype != np.uint8 or len(layout.chunks) != 4 or layout.chunks[0] != 1 or layout.order != "C":
        raise ValueError(f"got images in chunks {layout.chunks} of {layout.dtype}, expected uint8 (1, H, W, C)")
    height, width, channels = layout.chunks[1:]
    return np.empty((height, width, channels) if channels > 1 else (height, width), np.uint8)


_DECODERS: Mapping[str, Callable[[Layout, bytes], Any]] = {
    "raw": _raw,
    "blosc": _blosc,
    "zstd": _zstd,
    "lz4": _lz4,
    "zlib": _zlib,
    "gzip": _zlib,
    "bz2": _bz2,
    "imagecodecs_jpegxl": _jpegxl,
    "imagecodecs_jpeg2k": _jpeg2k,
}


def _numcodecs() -> ModuleType:
    with extra("zarr", "zarr needs"):
        import numcodecs
        import numcodecs.blosc
        import numcodecs.lz4
        import numcodecs.zstd
    return numcodecs


def _imagecodecs() -> ModuleType:
    with extra("umi", "images in JPEG XL or JPEG 2000 need"):
        import imagecodecs
    return imagecodecs


__all__ = ["PUBLISHED", "Layout", "decode", "encode"]
