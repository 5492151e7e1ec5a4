"""What goes over the wire: msgpack with arrays, as openpi's client packs them, read as if an enemy had written it.

| value | encoding |
|---|---|
| array | `{b"__ndarray__": True, b"data": bytes in C order, b"dtype": dtype.str, b"shape": [...]}` |
| NumPy scalar | `{b"__npgeneric__": True, b"data": number, b"dtype": dtype.str}` |
| anything else | plain msgpack; keys of maps are text, and tuples arrive as lists |

A type and a shape say how memory is read and how much of it is taken. So types come from a list, no name from the wire
reaches `numpy.dtype`, and a shape must fit its bytes before an array is made. Needs msgpack (extra `serve`) and NumPy.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.extras import extra

with extra("serve", "messages need"):
    import msgpack

MAX_BYTES = 32 * 2**20
"""Bytes of a message, unless told otherwise."""

_DIMENSIONS, _DEPTH, _ITEMS, _TEXT, _ELEMENTS = 8, 16, 4096, 2**20, 2**48
_TOTAL = 2**14  # items of all maps and lists together: an empty map is one byte on the wire and sixty in memory
_DTYPES = {
    dtype.str: dtype
    for code in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
    for dtype in (np.dtype(f"<{code}"), np.dtype(f">{code}"))
}
_FOREIGN = {  # how others begin; of msgpack, each is a value with bytes after it that belong to none
    b"{": "is JSON",
    b"\x93NUMPY": "is a file .npy of NumPy",
    b"PRI * HTTP/2": "is the beginning of HTTP/2 (gRPC speaks it)",
    **{bytes([0x80, protocol]): f"is a pickle of protocol {protocol}" for protocol in range(2, 6)},
}
_REMEDY = "expected msgpack with arrays in openpi's form: pack with poise.client or openpi-client"
_ARRAY = {b"__ndarray__", b"data", b"dtype", b"shape"}
_NAMES = {"bool", "float", "int", "uint"}  # of types, as in float32
_SCALAR = {b"__npgeneric__", b"data", b"dtype"}
_TEXTUAL = [{key.decode() for key in form} for form in (_ARRAY, _SCALAR)]
_NUMBERS = {"b": (bool,), "i": (int,), "u": (int,), "f": (int, float)}


class DecodeError(ValueError):
    """A message that is not to be trusted.

    Attributes:
        where: The place in the message, such as `observation/image`; empty for the whole.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"message{f' at {where}' if where else ''}: {problem}")
        self.where = where


def pack(value: Any) -> bytes:
    """Encode numbers, text, bytes, None, arrays, and lists and maps of them.

    Raises:
        TypeError: Anything else, such as an array of objects or of complex numbers.
    """
    packed = msgpack.packb(value, default=_encoded, use_bin_type=True)
    assert packed is not None  # as the stubs of msgpack allow
    return packed


def unpack(data: bytes, limit: int = MAX_BYTES) -> Any:
    """Decode a message; arrays are copies of their own.

    Args:
        data: The message.
        limit: Bytes that it may have.

    Raises:
        DecodeError: Anything that is not exactly such a message. Nothing else is ever raised.
    """
    if len(data) > limit:
        raise DecodeError("", f"got {len(data)} bytes, expected at most {limit}")
    foreign = next((what for begin, what in _FOREIGN.items() if data.startswith(begin) and len(data) > 1), None)
    if foreign is not None:
        raise DecodeError("", f"{foreign}, {_REMEDY}")
    count = _Count()
    try:
        value = msgpack.unpackb(
            data,
            object_pairs_hook=count.of_map,
            list_hook=count.of_list,
            ext_hook=_no_extension,
            raw=False,
            strict_map_key=True,
            max_map_len=_ITEMS,
            max_array_len=_ITEMS,
            max_bin_len=limit,
            max_str_len=_TEXT,
            max_ext_len=0,
        )
    except DecodeError:
        raise
    except Exception as error:  # msgpack raises a dozen types that have no base in common
        raise DecodeError("", f"is no message of openpi's form ({type(error).__name__}: {error})") from None
    return _decoded(value, "", 0)


class _Count:
    """The items of all maps and lists of one message."""

    def __init__(self) -> None:
        self._left = _TOTAL

    def _spend(self, items: int) -> None:
        self._left -= items + 1
        if self._left < 0:
            raise DecodeError("", f"got more than {_TOTAL} values in maps and lists, expected numbers in arrays")

    def of_map(self, pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
        listed = list(pairs)
        self._spend(len(listed))
        found = dict(listed)
        if len(found) < len(listed):
            raise DecodeError("", f"got a key twice in a map of {sorted(map(str, found))[:8]}, expected it once")
        return found

    def of_list(self, values: list[Any]) -> list[Any]:
        self._spend(len(values))
        return values


def _no_extension(code: int, data: bytes) -> None:
    raise DecodeError("", f"got an extension of type {code}, expected none")


def _encoded(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.str not in _DTYPES:
        kind = f"{type(value).__name__}{f' of {value.dtype}' if isinstance(value, np.ndarray) else ''}"
        raise TypeError(f"cannot send a {kind}, expected numbers, text, bytes, arrays of numbers, lists and maps")
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


def _decoded(value: Any, where: str, depth: int) -> Any:
    if depth > _DEPTH:
        raise DecodeError(where, f"is nested deeper than {_DEPTH} levels")
    if isinstance(value, list):
        if len(value) == 3 and _is_dtype(value[0]) and isinstance(value[1], list) and isinstance(value[2], bytes):
            raise DecodeError(where, f"got an array as a list [dtype, shape, bytes], {_REMEDY}")
        return [_decoded(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if b"__ndarray__" in value:
        return _array(value, where)
    if b"__npgeneric__" in value:
        return _scalar(value, where)
    if {"nd", b"nd"} & set(value) and {"type", b"type"} & set(value):
        raise DecodeError(where, f"got an array in the dialect of the package msgpack-numpy, {_REMEDY}")
    if set(value) in _TEXTUAL:
        raise DecodeError(where, f"got an array or scalar whose keys are text and not bytes, {_REMEDY}")
    strange = next((key for key in value if not isinstance(key, str)), None)
    if strange is not None:
        raise DecodeError(where, f"got the key {strange[:40]!r}, expected text")
    return {key: _decoded(item, f"{where}/{key[:80]}" if where else key[:80], depth + 1) for key, item in value.items()}


def _array(form: dict[Any, Any], where: str) -> NDArray[Any]:
    _check_keys(form, _ARRAY, b"__ndarray__", where)
    dtype, shape, data = _dtype(form[b"dtype"], where), form[b"shape"], form[b"data"]
    if not isinstance(shape, list) or len(shape) > _DIMENSIONS or any(type(n) is not int or n < 0 for n in shape):
        raise DecodeError(where, f"got the shape {str(shape)[:80]}, expected at most {_DIMENSIONS} sizes of 0 or more")
    if not isinstance(data, bytes):
        raise DecodeError(where, f"got the numbers of an array as {type(data).__name__}, expected bytes")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise DecodeError(
            where,
            f"got {len(data)} bytes for the shape {str(shape)[:80]} of {dtype.str}, "
            "expected the product of the sizes and of the bytes of a number",
        )
    # A size of zero hides others that no array could have.
    if math.prod(n or 1 for n in shape) > _ELEMENTS:
        raise DecodeError(where, f"got the shape {str(shape)[:80]}, expected sizes of a product below {_ELEMENTS}")
    if dtype.kind == "b" and data.strip(b"\0\1"):
        raise DecodeError(where, "got bytes other than 0 and 1 in an array of booleans")
    return np.frombuffer(data, dtype).reshape(shape).copy()


def _scalar(form: dict[Any, Any], where: str) -> np.generic:
    _check_keys(form, _SCALAR, b"__npgeneric__", where)
    dtype, number = _dtype(form[b"dtype"], where), form[b"data"]
    if type(number) not in _NUMBERS[dtype.kind]:
        raise DecodeError(
            where, f"got {str(number)[:40]!r} for a scalar of {dtype.str}, expected a number of that kind"
        )
    try:
        with np.errstate(over="raise"):
            return dtype.type(number)
    except (OverflowError, FloatingPointError):
        raise DecodeError(where, f"got {number}, which is out of the range of {dtype.str}") from None


def _check_keys(form: dict[Any, Any], expected: set[bytes], mark: bytes, where: str) -> None:
    if set(form) != expected or form[mark] is not True:
        keys = sorted(key.decode() for key in expected)
        raise DecodeError(where, f"got {sorted(map(str, form))[:8]} beside {mark!r}, expected {keys} and True for it")


def _is_dtype(name: Any) -> bool:
    return isinstance(name, str) and (name in _DTYPES or name.rstrip("0123456789") in _NAMES)


def _dtype(name: Any, where: str) -> np.dtype[Any]:
    dtype = _DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise DecodeError(where, f"got the type {str(name)[:40]!r}, expected one of {sorted(_DTYPES)}")
    return dtype


__all__ = ["MAX_BYTES", "DecodeError", "pack", "unpack"]
