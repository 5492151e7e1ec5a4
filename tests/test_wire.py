import json
import math
import pickle
import struct
from contextlib import suppress

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from poise.wire import MAX_BYTES, DecodeError, pack, unpack

F4, U1 = np.float32, np.uint8
ARRAY = "c40b5f5f6e6461727261795f5fc3c40464617461"
SCALAR = "c40d5f5f6e7067656e657269635f5fc3c40464617461"
DTYPE, SHAPE = "c4056474797065", "c4057368617065"
# Packed by openpi-client 0.1.2.
VECTORS = {
    "empty": ({}, "80"),
    "f32": ({"actions": F4([[1, 2]])}, f"81a7616374696f6e7384{ARRAY}c4080000803f00000040{DTYPE}a33c6634{SHAPE}920102"),
    "f32 scalar": ({"x": F4(1.5)}, f"81a17883{SCALAR}cb3ff8000000000000{DTYPE}a33c6634"),
    "f64 scalar": ({"x": np.float64(1.5)}, "81a178cb3ff8000000000000"),
    "bool scalar": ({"x": np.bool_(True)}, f"81a17883{SCALAR}c3{DTYPE}a37c6231"),
    "u8 scalar": ({"x": U1(7)}, f"81a17883{SCALAR}07{DTYPE}a37c7531"),
    "i64 scalar": ({"x": np.int64(3)}, f"81a17883{SCALAR}03{DTYPE}a33c6938"),
    "list": ({"l": [F4(1.0)]}, f"81a16c9183{SCALAR}cb3ff0000000000000{DTYPE}a33c6634"),
    "i64": (
        {"a": np.arange(3)},
        f"81a16184{ARRAY}c418000000000000000001000000000000000200000000000000{DTYPE}a33c6938{SHAPE}9103",
    ),
    "no rows": ({"actions": np.zeros((0, 2), F4)}, f"81a7616374696f6e7384{ARRAY}c400{DTYPE}a33c6634{SHAPE}920002"),
    "0-d": ({"x": np.array(2.0)}, f"81a17884{ARRAY}c4080000000000000040{DTYPE}a33c6638{SHAPE}90"),
    "bool": ({"m": np.array([True, False])}, f"81a16d84{ARRAY}c4020100{DTYPE}a37c6231{SHAPE}9102"),
    "f16": ({"h": np.float16([1.0])}, f"81a16884{ARRAY}c402003c{DTYPE}a33c6632{SHAPE}9101"),
    "big-endian": ({"a": np.array([1], ">i4")}, f"81a16184{ARRAY}c40400000001{DTYPE}a33e6934{SHAPE}9101"),
    "Fortran order": (
        {"a": np.asfortranarray(np.int16([[1, 2], [3, 4]]))},
        f"81a16184{ARRAY}c4080100020003000400{DTYPE}a33c6932{SHAPE}920202",
    ),
    "tuple": ({"t": (1, 2)}, "81a174920102"),
    "None and bytes": ({"p": None, "b": b"ab"}, "82a170c0a162c4026162"),
    "slashes": (
        {"observation/image": np.zeros((1, 1, 3), U1), "prompt": "hi"},
        f"82b16f62736572766174696f6e2f696d61676584{ARRAY}c403000000{DTYPE}a37c7531{SHAPE}93010103a670726f6d7074a26869",
    ),
    "nested": (
        {"images": {"cam_high": U1([[[7]]])}, "state": F4([0.5])},
        f"82a6696d6167657381a863616d5f6869676884{ARRAY}c40107{DTYPE}a37c7531{SHAPE}93010101"
        f"a5737461746584{ARRAY}c4040000003f{DTYPE}a33c6634{SHAPE}9101",
    ),
    "reply": (
        {"actions": F4([[1.0]]), "server_timing": {"infer_ms": 1.5}},
        f"82a7616374696f6e7384{ARRAY}c4040000803f{DTYPE}a33c6634{SHAPE}920101"
        "ad7365727665725f74696d696e6781a8696e6665725f6d73cb3ff8000000000000",
    ),
}
HOSTILE = {
    "trailing byte": ("8000", "ExtraData"),
    "truncated": ("81a178", "incomplete"),
    "integer key": ("810102", "int is not allowed"),
    "extension": ("d6ff00000001", "ext"),
    "empty extension": ("c70005", "an extension of type 5"),
    "missing keys": ("81c40b5f5f6e6461727261795f5fc3", "expected .*shape"),
    "buffer too short": (f"84{ARRAY}c40400000000{DTYPE}a33c6634{SHAPE}9102", "4 bytes for the shape"),
    "buffer too long": (f"84{ARRAY}c4080000000000000000{DTYPE}a33c6634{SHAPE}9101", "8 bytes for the shape"),
    "negative size": (f"84{ARRAY}c40400000000{DTYPE}a33c6634{SHAPE}91ff", "sizes of 0 or more"),
    "boolean size": (f"84{ARRAY}c40400000000{DTYPE}a33c6634{SHAPE}91c3", "sizes of 0 or more"),
    "hidden size": (f"84{ARRAY}c400{DTYPE}a33c6634{SHAPE}9200cf7fffffffffffffff", "product below"),
    "unknown type": (f"84{ARRAY}c400{DTYPE}a37a7a7a{SHAPE}90", "got the type 'zzz'"),
    "objects": (f"84{ARRAY}c400{DTYPE}a37c4f38{SHAPE}9100", "got the type .*O8"),
    "type of 16 bytes": (f"84{ARRAY}c400{DTYPE}a43c663136{SHAPE}9100", "got the type .*f16"),
    "numbers as text": (f"84{ARRAY}a0{DTYPE}a33c6634{SHAPE}9100", "as str, expected bytes"),
    "third boolean": (f"84{ARRAY}c403000201{DTYPE}a37c6231{SHAPE}9103", "other than 0 and 1"),
    "mark is not True": (f"84c40b5f5f6e6461727261795f5fc2c40464617461c400{DTYPE}a33c6634{SHAPE}9100", "True for it"),
    "scalar out of range": (f"83{SCALAR}cd012c{DTYPE}a37c7531", "300, which is out of the range"),
    "float out of range": (f"83{SCALAR}cb7e37e43c8800759c{DTYPE}a33c6634", "out of the range of <f4"),
    "fraction for an integer": (f"83{SCALAR}cb3ff8000000000000{DTYPE}a33c6934", "a number of that kind"),
    "dialect": (
        "85c4026e64c3c40474797065a33c6634c4046b696e64c400c40573686170659101c40464617461c40400000000",
        "dialect of the package msgpack-numpy",
    ),
    "bytes for a key": ("81c4017801", "got the key b'x', expected text"),
    "key twice": ("82a17801a17802", "a key twice"),
    "text that is none": ("a1ff", "UnicodeDecodeError"),
    "deep": ("91" * 17 + "90", "nested deeper"),
    "very deep": ("91" * 5000 + "90", "no message"),
    "many items": ("dd00001001" + "c0" * 4097, "no message"),
}


@pytest.mark.parametrize("name", VECTORS)
def test_messages_are_byte_for_byte_those_of_openpi(name):
    value, expected = VECTORS[name]
    assert pack(value).hex() == expected
    assert same(unpack(bytes.fromhex(expected)), value)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_messages_are_named(name):
    data, words = HOSTILE[name]
    with pytest.raises(DecodeError, match=words):
        unpack(bytes.fromhex(data))


FORM = {"data": bytes(4), "dtype": "<f4", "shape": [1]}
FOREIGN = {
    "text keys": (msgpack.packb({"x": {"__ndarray__": True, **FORM}}), "at x: got an array or scalar whose keys are"),
    "text keys of a scalar": (msgpack.packb({"__npgeneric__": True, "data": 1, "dtype": "<f4"}), "whose keys are text"),
    "list": (msgpack.packb({"x": ["<f4", [1], bytes(4)]}), r"at x: got an array as a list \[dtype, shape, bytes\]"),
    "list of a name": (msgpack.packb([["float32", [1], bytes(4)]]), r"at \[0\]: got an array as a list"),
    "JSON": (json.dumps({"x": [1.0]}).encode(), "is JSON, expected msgpack"),
    "empty JSON": (b"{}", "is JSON"),
    **{f"pickle {n}": (pickle.dumps({"x": 1}, n), f"is a pickle of protocol {n}") for n in range(2, 6)},
    "npy": (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}", "is a file .npy"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "is the beginning of HTTP/2"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_dialects_are_named(name):
    data, words = FOREIGN[name]
    with pytest.raises(DecodeError, match=words) as caught:
        unpack(data)
    assert "pack with poise.client or openpi-client" in str(caught.value)
    for count in range(len(data)):
        with suppress(DecodeError):
            unpack(data[:count])


def test_errors_say_where():
    bad = {b"__ndarray__": True, b"data": b"", b"dtype": "<f4", b"shape": [1]}
    with pytest.raises(DecodeError, match=r"message at cameras/left\[1\]: got 0 bytes") as caught:
        unpack(msgpack.packb({"cameras": {"left": [0, bad]}}))
    assert caught.value.where == "cameras/left[1]"


def test_messages_and_their_parts_are_bounded():
    with pytest.raises(DecodeError, match="got 11 bytes, expected at most 10"):
        unpack(bytes(11), limit=10)
    # 17 million empty lists would take a gigabyte; each part alone is within its bound.
    with pytest.raises(DecodeError, match="expected numbers in arrays"):
        unpack(msgpack.packb([[[]] * 4096] * 4096))
    declared = b"\xc6" + struct.pack(">I", 2**31)  # two gigabytes that never come
    with pytest.raises(DecodeError):
        unpack(declared)


def array(shape: list[int]) -> dict:
    return {b"__ndarray__": True, b"data": bytes(math.prod(shape)), b"dtype": "|u1", b"shape": shape}


def nested(depth: int) -> list:
    return [nested(depth - 1)] if depth else []


BOUNDS = {  # what is just allowed, and what is not
    "dimensions": (array([1] * 8), array([1] * 9)),
    "depth": (nested(16), nested(17)),
    "depth of maps": ({"a": nested(15)}, {"a": nested(16)}),
    "items of a list": ([None] * 4096, [None] * 4097),
    "items of a map": ({str(n): None for n in range(4096)}, {str(n): None for n in range(4097)}),
    "items in all": ([[None] * 4094] * 3 + [[None] * 4093], [[None] * 4094] * 4),
    "text": ("x" * 2**20, "x" * (2**20 + 1)),
    "hidden size": (array([0, 2**48]), array([0, 2**48 + 1])),
    "size": (bytes(MAX_BYTES - 5), bytes(MAX_BYTES - 4)),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_are_exact(name):
    allowed, refused = (msgpack.packb(value) for value in BOUNDS[name])
    assert unpack(allowed) is not None
    assert unpack(allowed, limit=len(allowed)) is not None
    with pytest.raises(DecodeError):
        unpack(allowed, limit=len(allowed) - 1)
    with pytest.raises(DecodeError):
        unpack(refused)


def test_only_whole_dialects_are_foreign():
    whole = (
        {"nd": True, "shape": [1]},
        {"type": "<f4", "kind": ""},
        FORM,
        {"__ndarray__": True},
        ["hello", [1], b""],
        ["<f4", 1, b""],
        [78, 85, 77],
        123,
        {},
    )
    for value in whole:
        assert unpack(pack(value)) == value


def test_what_is_received_may_be_written_to():
    array = unpack(pack({"x": np.zeros(3)}))["x"]
    array[0] = 1.0


@pytest.mark.parametrize("value", [object(), np.array([None]), np.array([1j]), np.array(["text"]), {1, 2}])
def test_what_has_no_form_is_not_sent(value):
    with pytest.raises(TypeError, match="cannot send a"):
        pack({"x": value})


def same(got, sent) -> bool:
    """Equal, where tuples arrive as lists and NumPy scalars keep their type."""
    if isinstance(sent, dict):
        return got.keys() == sent.keys() and all(same(got[key], sent[key]) for key in sent)
    if isinstance(sent, list | tuple):
        return len(got) == len(sent) and all(map(same, got, sent))
    if isinstance(sent, np.ndarray):
        return got.dtype == sent.dtype and got.shape == sent.shape and got.tobytes() == sent.tobytes()
    return type(got) is (float if type(sent) is np.float64 else type(sent)) and got == sent


DTYPES = st.sampled_from([np.dtype(code) for code in ("?", "i1", "<i2", ">i4", "u8", "<f2", ">f4", "f8")])
LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
)
VALUES = st.recursive(
    LEAVES | arrays.arrays(DTYPES, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_what_is_sent_arrives(value):
    assert same(unpack(pack(value)), value)


@settings(max_examples=2000, deadline=None)
@given(st.sampled_from(sorted(VECTORS)), st.randoms(use_true_random=False))
def test_broken_messages_raise_nothing_but_decode_errors(name, random):
    data = bytearray.fromhex(VECTORS[name][1])
    for _ in range(random.randint(1, 6)):
        place = random.randrange(len(data) + 1)
        match random.randrange(4):
            case 0:
                data[place:place] = random.randbytes(random.randint(1, 4))
            case 1:
                del data[place : place + random.randint(1, 8)]
            case 2:
                data[place : place + 1] = bytes([random.choice([0, 1, 0x7F, 0x80, 0xC1, 0xC4, 0xC7, 0xDD, 0xDF, 0xFF])])
            case _:
                data[place:place] = data[random.randrange(len(data) + 1) :][:16]
    with suppress(DecodeError):
        unpack(bytes(data))
