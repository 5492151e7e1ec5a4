"""What is done to whole files to make them broken or hostile; see `hostile`."""

import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hostile import ESCAPE, Case, Poison, episodes

DEEP = "[" * 100_000
FREE = (".zgroup", ".zattrs", "stats.json", "tasks.jsonl")  # files that may be missing, or that no reader needs
NASTY = (
    None,
    -1,
    0,
    2**63,
    10**400,
    1e308,
    float("nan"),
    [],
    {},
    True,
    [[]],
    "x" * 2**20,
    f"{ESCAPE}/x",
    "\0",
    "object",
)
SLOW = ("robomimic", "robomimic chunked", "minari", "pickle")  # formats of which every file is tried by a process


class Maker:
    """Makes files in a folder and remembers what they are.

    Args:
        root: The folder; beside the files it gets `outside`, a copy of all whole files.
        wholes: Format -> a whole file or folder.
    """

    def __init__(self, root: Path, wholes: Mapping[str, Path]) -> None:
        self.root, self.wholes, self.cases = root, wholes, list[Case]()
        self.outside, self.canary = root / "outside", root / "canary"
        self.outside.mkdir()
        for path in wholes.values():
            _copy(path, self.outside / path.name)
        self.random = random.Random(0)

    def new(self, format: str, kind: str, sure: bool = True) -> Path:
        """A copy of the whole file, to be broken by the caller."""
        path = self.root / f"{len(self.cases):04d}" / self.wholes[format].name
        path.parent.mkdir()
        _copy(self.wholes[format], path)
        self.cases.append(Case(format, kind, str(path), sure))
        return path


def corpus(root: Path, wholes: Mapping[str, Path]) -> Maker:
    """Every case, in a fixed order."""
    maker = Maker(root, wholes)
    for format in wholes:
        for name in files(wholes[format]):
            _bytes(maker, format, name)
            if wholes[format].is_dir():
                _places(maker, format, name)
            if name.endswith(".json"):
                _json_file(maker, format, name)
    for part in (_npz, _zarr, _hdf5, _tables, _nan, _tensors, _pickles):
        part(maker)
    return maker


def files(path: Path) -> list[str]:
    """Names of all files of a dataset, relative to it; the empty one for itself."""
    if path.is_file():
        return [""]
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)


def _at(path: Path, name: str) -> Path:
    return path / name if name else path


# --- bytes and places -------------------------------------------------------------------------------------------------


def _bytes(maker: Maker, format: str, name: str) -> None:
    free = name.endswith((*FREE, ".mp4"))
    few = format in SLOW
    shares = (0.0,) if name.endswith(".jsonl") else (0.0, 0.5, 0.9) if few else (0.0, 0.3, 0.6, 0.95)
    for share in shares:  # a torn line of an index is none: rows are left out then, and nothing is wrong
        file = _at(maker.new(format, "truncated", not free), name)
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    for count in (1, 4, 16, 64) if few else (1, 1, 2, 8):
        file = _at(maker.new(format, "flipped", sure=False), name)
        data = bytearray(file.read_bytes())
        for _ in range(count):
            data[maker.random.randrange(len(data))] ^= 1 << maker.random.randrange(8)
        file.write_bytes(data)
    for part in (b"\xff" * 8, b"\0" * 8):
        file = _at(maker.new(format, "overwritten", sure=False), name)
        data = bytearray(file.read_bytes())
        first = maker.random.randrange(max(1, len(data) - 8))
        data[first : first + 8] = part
        file.write_bytes(data)
    file = _at(maker.new(format, "pickle payload", not name.endswith((".zgroup", ".bin"))), name)
    file.write_bytes(pickle.dumps(Poison(maker.canary)))


def _places(maker: Maker, format: str, name: str) -> None:
    """What is at the place of a file: nothing, a link out, a pipe, a folder, or another file."""
    free = name.endswith(FREE)
    # The hub keeps what it loads behind links, so those of policies of ours may lead anywhere.
    for kind in ("deleted", "pipe", "folder") if format == "policy" else ("deleted", "link out", "pipe", "folder"):
        path = maker.new(format, kind, not free or (kind == "link out" and not name.endswith(".zgroup")))
        file = path / name
        file.unlink()
        if kind == "link out":
            file.symlink_to(maker.outside / path.name / name)
        elif kind == "pipe":
            os.mkfifo(file)
        elif kind == "folder":
            file.mkdir()
    names = files(maker.wholes[format])
    other = names[(names.index(name) + 1) % len(names)]
    one, two = (maker.wholes[format] / n for n in (name, other))
    if one.read_bytes() != two.read_bytes():
        path = maker.new(format, "swapped", not {one.name, two.name} & set(FREE))
        (path / name).write_bytes(two.read_bytes())
        (path / other).write_bytes(one.read_bytes())


# --- JSON -------------------------------------------------------------------------------------------------------------


def leaves(plain: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all values within JSON data."""
    pairs = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    for key, value in pairs:
        yield (*where, key)
        yield from leaves(value, (*where, key))


def changed(plain: Any, where: tuple[Any, ...], value: Any) -> Any:
    """A copy of JSON data with another value at a path."""
    plain = json.loads(json.dumps(plain))
    inner = plain
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    return plain


def spoiled(plain: Any, random: random.Random, count: int) -> Iterator[tuple[str, bool, bytes]]:
    """Kind, whether it is sure, and the text of JSON data that were spoiled."""
    text = json.dumps(plain)
    yield "deep JSON", True, (text[:-1] + f', "deep": {DEEP}').encode()
    yield "deep JSON", True, DEEP.encode()
    yield "wrong type", True, b"[1, 2]"
    yield "wrong type", True, b'"text"'
    if isinstance(plain, dict):
        key = next(iter(plain))
        yield "duplicate key", True, f"{{{json.dumps(key)}: 1, {text[1:]}".encode()
    places = [*leaves(plain)]
    for where in random.sample(places, min(count, len(places))):
        value = random.choice(NASTY)
        kind = "path escape" if isinstance(value, str) and ESCAPE in value else "wrong value"
        yield kind, False, json.dumps(changed(plain, where, value)).encode()


def _json_file(maker: Maker, format: str, name: str) -> None:
    if name.endswith(FREE):
        return
    plain = json.loads((maker.wholes[format] / name).read_text())
    for kind, sure, text in spoiled(plain, maker.random, 4 if format in SLOW else 12):
        (maker.new(format, kind, sure) / name).write_bytes(text)


# --- archives ---------------------------------------------------------------------------------------------------------


def npy(shape: str, dtype: str, data: bytes = b"\0" * 64) -> bytes:
    """A .npy file of any header."""
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def edited(path: Path, change: Callable[[str, bytes], list[tuple[str, bytes]]], squeeze: int) -> None:
    """Write a zip anew."""
    with zipfile.ZipFile(path) as old:
        entries = [pair for one in old.infolist() for pair in change(one.filename, old.read(one))]
    with zipfile.ZipFile(path, "w", squeeze) as new:
        for name, data in entries:
            new.writestr(name, data)


def replacing(name: str, data: bytes) -> Callable[[str, bytes], list[tuple[str, bytes]]]:
    """A change of one entry."""
    return lambda n, d: [(n, data if n == name else d)]


def _npz(maker: Maker) -> None:
    stored = io.BytesIO()
    np.save(stored, np.array([Poison(maker.canary)], object), allow_pickle=True)
    entries = {
        "shape bomb": [npy("(1000000000000, 2)", "'<f4'"), npy("(2,) * 9", "'<f4'"), npy("(7, 99999999999)", "'<f8'")],
        "negative size": [npy("(-7, 2)", "'<f4'"), npy("(7, -2)", "'<f4'"), npy("(-1, -56)", "'u1'")],
        "wrong dtype": [npy("(8,)", f"'{d}'") for d in ("O", "<c16", "<M8[ns]", "<U2", "V8", "<f16", "[('a','<f8')]")],
        "pickle payload": [stored.getvalue(), npy("(7,)", "'O'", pickle.dumps(Poison(maker.canary)))],
        "wrong shape": [npy("(8, 2)", "'<f4'"), npy("()", "'<f8'", b"\0" * 8), npy("(7, 2)", "'<f8'", b"\0" * 111)],
        "code in a header": [npy("__import__('os').system('touch canary')", "'<f4'"), npy("(" * 100, "'<f4'")],
        "deflate bomb": [npy("(7, 2)", "'<f8'", b"\0" * 2**25), npy("(7, 99999999)", "'<f8'", b"\0" * 2**25)],
    }
    for kind, contents in entries.items():
        for data in contents:
            edited(maker.new("npz", kind), replacing("action.npy", data), zipfile.ZIP_DEFLATED)
    ends = [[7, 4], [-1, 7], [4, 4, 7], [4, 2**62], [0, 7], [4.0, 7.0], [], [[4, 7]], [4, 8]]
    for value in ends:
        file = io.BytesIO()
        np.save(file, np.array(value))
        edited(maker.new("npz", "wrong ends"), replacing("episode_ends.npy", file.getvalue()), zipfile.ZIP_DEFLATED)
    for squeeze in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        edited(maker.new("npz", "other compression"), replacing("", b""), squeeze)
        edited(maker.new("zarr zip", "other compression"), replacing("", b""), squeeze)
    file = io.BytesIO()
    np.save(file, np.arange(7.0))
    with zipfile.ZipFile(maker.new("npz", "huge count"), "a") as archive:
        for number in range(1100):
            archive.writestr(f"{number}.npy", file.getvalue())
    for format in ("npz", "zarr zip"):
        for which in range(3):
            with zipfile.ZipFile(maker.new(format, "duplicate name"), "a") as archive:
                one = archive.infolist()[which]
                archive.NameToInfo.clear()
                archive.writestr(one.filename, archive.read(one))
        _lies_of_zip(maker, format)


def _lies_of_zip(maker: Maker, format: str) -> None:
    """Sizes and offsets in the directory of a zip that are not those of its files."""
    for offset, kind in ((20, "zip size"), (24, "zip size"), (42, "zip offset"), (8, "zip flags"), (28, "zip name")):
        for value in (2**32 - 2, 2**31):
            path = maker.new(format, kind, sure=kind != "zip flags")
            data = bytearray(path.read_bytes())
            entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"action"))
            width = 2 if offset in (8, 28) else 4
            data[entry + offset : entry + offset + width] = (value >> (32 - 8 * width)).to_bytes(width, "little")
            path.write_bytes(data)


def _zarr(maker: Maker) -> None:
    name, ends = "data/action/.zarray", "meta/episode_ends/.zarray"
    plain = json.loads((maker.wholes["zarr"] / name).read_text())
    changes: dict[str, list[dict[str, Any]]] = {
        "shape bomb": [{"shape": [10**12, 2], "chunks": [10**12, 2]}, {"shape": [7] + [1] * 9}, {"shape": [7, 2**40]}],
        "negative size": [{"shape": [-7, 2]}, {"chunks": [0, 2]}, {"chunks": [-1, 2]}],
        "wrong dtype": [{"dtype": d} for d in ("|O", "<c8", "<M8[ns]", "<U1", [["a", "<f4"]], "i4,O", 3)],
        "wrong codec": [{"compressor": c} for c in ({"id": "pickle"}, {"id": "msgpack2"}, {}, [], {"id": "zlib"})],
        "wrong filter": [{"filters": [{"id": "pickle"}]}, {"filters": [{"id": "json2"}]}],
        "huge count": [{"shape": [10**9, 2], "chunks": [1, 1]}, {"shape": [7, 2], "chunks": [1, 1]}],
        "wrong version": [{"zarr_format": 3}, {"order": "X"}, {"dimension_separator": "/"}],
    }
    for kind, several in changes.items():
        for change in several:
            text = json.dumps({**plain, **change}).encode()
            (maker.new("zarr", kind) / name).write_bytes(text)
            edited(maker.new("zarr zip", kind), replacing(name, text), zipfile.ZIP_STORED)
    for kind, sure, text in spoiled(plain, maker.random, 16):
        (maker.new("zarr", kind, sure) / name).write_bytes(text)
    for kind, sure, text in spoiled(json.loads((maker.wholes["zarr"] / ends).read_text()), maker.random, 12):
        edited(maker.new("zarr zip", kind, sure), replacing(ends, text), zipfile.ZIP_STORED)
    for kind, sure, text in spoiled(json.loads((maker.wholes["zarr"] / ".zattrs").read_text()), maker.random, 12):
        (maker.new("zarr", kind, sure and text[:1] == b"{") / ".zattrs").write_bytes(text)
    _chunks(maker)
    for folder in ("data", "data/action", "meta"):
        path = maker.new("zarr", "link out")
        shutil.rmtree(path / folder)
        (path / folder).symlink_to(maker.outside / path.name / folder)
    for name in (f"{ESCAPE}/0", "data/../../x/.zarray", "/etc/.zarray", "data/x/../../../y"):
        with zipfile.ZipFile(maker.new("zarr zip", "path escape", sure=False), "a") as archive:
            archive.writestr(name, b"{}")


def _chunks(maker: Maker) -> None:
    """Chunks whose own headers lie, and bombs."""
    import numcodecs

    codecs = {
        "zlib": (numcodecs.Zlib(), numcodecs.Zlib().encode(bytes(2**25))),
        "gzip": (numcodecs.GZip(), numcodecs.GZip().encode(bytes(2**25))),
        "bz2": (numcodecs.BZ2(), numcodecs.BZ2().encode(bytes(2**25))),
        "zstd": (numcodecs.Zstd(), numcodecs.Zstd().encode(bytes(2**25))),
        "lz4": (numcodecs.LZ4(), numcodecs.LZ4().encode(bytes(2**25))),
        "blosc": (numcodecs.Blosc("zstd"), numcodecs.Blosc("zstd").encode(bytes(2**25))),
    }
    name = "data/action"
    for codec, bomb in codecs.values():
        for data in (bomb, codec.encode(b"short"), b"", b"\xff" * 50):
            path = maker.new("zarr", "chunk bomb" if data is bomb else "broken chunk")
            plain = json.loads((path / name / ".zarray").read_text())
            (path / name / ".zarray").write_text(json.dumps({**plain, "compressor": codec.get_config()}))
            (path / name / "0.0").write_bytes(data)


# --- HDF5 -------------------------------------------------------------------------------------------------------------


def _hdf5(maker: Maker) -> None:
    import h5py

    demo, secret, poison = "data/demo_0", str(maker.outside / "a.hdf5"), pickle.dumps(Poison(maker.canary))

    def put(file: Any, name: str, value: Any, **more: Any) -> None:
        if name in file:
            del file[name]
        file.create_dataset(name, data=value, **more)

    def linked(link: Any) -> Callable[[Any], None]:
        def change(file: Any) -> None:
            del file[f"{demo}/actions"]
            file[f"{demo}/actions"] = link

        return change

    def external(file: Any) -> None:
        del file[f"{demo}/actions"]
        file.create_dataset(f"{demo}/actions", (4, 2), "f4", external=[(secret, 0, 32)])

    def virtual(file: Any) -> None:
        layout = h5py.VirtualLayout((4, 2), "f4")
        layout[:] = h5py.VirtualSource(secret, f"{demo}/actions", (4, 2))
        del file[f"{demo}/actions"]
        file.create_virtual_dataset(f"{demo}/actions", layout)

    def bomb(shape: tuple[int, ...], chunks: tuple[int, ...]) -> Callable[[Any], None]:
        def change(file: Any) -> None:
            del file[f"{demo}/actions"]
            file.create_dataset(f"{demo}/actions", shape, "f4", chunks=chunks, compression="gzip")

        return change

    def attribute(where: str, name: str, value: Any) -> Callable[[Any], None]:
        return lambda file: file[where].attrs.__setitem__(name, value)

    bad = [np.zeros((3, 2), "f4"), np.zeros((4, 2), "c8"), np.array([b"x"] * 4), np.float32(1), np.zeros((0, 2), "f4")]
    changes: dict[str, list[Callable[[Any], Any]]] = {
        "link out": [linked(h5py.ExternalLink(secret, f"/{demo}/actions")), linked(h5py.SoftLink("/nowhere")),
                     linked(h5py.SoftLink("/data/demo_1/actions")), external, virtual],
        "shape bomb": [bomb((10**9, 2), (10**6, 2)), bomb((4, 2**31), (1, 2**20)), bomb((2**50, 2), (1, 2))],
        "wrong dtype": [lambda file, v=v: put(file, f"{demo}/actions", v) for v in bad],
        "group for an array": [lambda file: (file.pop(f"{demo}/actions"), file.create_group(f"{demo}/actions"))],
        "array for a group": [lambda file: (file.__delitem__("data"), put(file, "data", np.zeros(3)))],
        "wrong name": [lambda file: file["data"].create_group("demo_x"), lambda file: file["data"].move("demo_1", "x")],
        "negative size": [attribute(demo, "num_samples", -4), attribute(demo, "num_samples", 2**62)],
        "deep JSON": [attribute(demo, "ep_meta", DEEP), attribute(demo, "ep_meta", '{"lang": ' + DEEP)],
        "duplicate key": [attribute(demo, "ep_meta", '{"lang": "a", "lang": "b"}')],
        "long attribute": [lambda file: (file[demo].attrs.__delitem__("num_samples"),
                                         attribute(demo, "num_samples", np.zeros(4000))(file))],
        "cycle of links": [lambda file: file["data"].__setitem__("demo_2", file["/"])],
        "mask": [lambda file: put(file, "mask/train", np.array([b"demo_77"]))],
        "pickle payload": [lambda file: put(file, "poise_about", np.frombuffer(poison, "u1"))],
    }  # fmt: skip
    for kind, several in changes.items():
        for change in several:
            with h5py.File(maker.new("robomimic", kind), "a") as file:
                change(file)
    for place, size in ((168, 0), (168, 2**64 - 16), (32, 2**64 - 16), (16, 0)):
        path = maker.new("robomimic", "heap that hangs the library", sure=False)
        data = bytearray(path.read_bytes())
        first = data.index(b"GCOL") + place
        data[first : first + 8] = size.to_bytes(8, "little")
        path.write_bytes(data)
    for key, value in (("rewards", np.zeros(5)), ("actions", np.zeros((3, 3))), ("observations/achieved", np.zeros(5))):
        with h5py.File(maker.new("minari", "wrong shape") / "data/main_data.hdf5", "a") as file:
            put(file, f"episode_1/{key}", value)
    text = json.loads((maker.wholes["minari"] / "data/metadata.json").read_text())
    box = json.loads(text["action_space"])
    for _ in range(3000):
        box = {"type": "Tuple", "subspaces": [box]} if _ < 30 else box
    for space in (DEEP, json.dumps(box), "3", '{"type": "Dict", "subspaces": {"../x": {"type": "Discrete"}}}'):
        changed_text = json.dumps({**text, "action_space": space})
        (maker.new("minari", "hostile space") / "data/metadata.json").write_text(changed_text)


# --- Parquet ----------------------------------------------------------------------------------------------------------


def _tables(maker: Maker) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for format, whole in maker.wholes.items():
        for name in files(whole) if format.startswith("lerobot") else ():
            if not name.endswith(".parquet"):
                continue
            table = pq.read_table(whole / name)
            read_ones = [c for c in table.column_names if not c.startswith(("stats/", "timestamp", "meta/"))]
            for column in [c for c in read_ones if "to_timestamp" not in c][:12]:
                place, rows = table.column_names.index(column), table.num_rows
                values = {
                    "missing column": None,
                    "empty cells": pa.nulls(rows, table.schema.field(column).type),
                    "wrong dtype": pa.array([[{"x": 1}]] * rows),
                }
                for kind, value in values.items():
                    kept = table.remove_column(place)
                    kept = kept if value is None else kept.add_column(place, column, value)
                    needless = column in ("tasks", "task_index")
                    pq.write_table(kept, maker.new(format, kind, not needless) / name)
            twice = table.append_column(table.column_names[0], table.column(0))
            pq.write_table(twice, maker.new(format, "duplicate name") / name)
            if "data/" in name:
                pq.write_table(pa.concat_tables([table, table]), maker.new(format, "doubled rows") / name)
                pq.write_table(table.slice(1), maker.new(format, "missing rows") / name)
                long = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**6, "i4")), pa.array(["x" * 2**20]))
                pq.write_table(pa.table({"index": long}), maker.new(format, "dictionary bomb") / name)
                bomb = pa.table({c: pa.array(np.zeros(2 * 10**6, "i8")) for c in ("index", "episode_index")})
                pq.write_table(bomb, maker.new(format, "huge count") / name, compression="zstd")
    for template in (f"{ESCAPE}/lerobot/data/chunk-000/file-000.parquet", "/etc/passwd", "{chunk_index:099999999d}",
                     "{chunk_index.__class__}", "\0", "x" * 5000, "data/{video_key}.parquet", "data"):  # fmt: skip
        for format, key in (("lerobot", "data_path"), ("lerobot-v2", "data_path"), ("lerobot-video", "video_path")):
            path = maker.new(format, "path escape")
            info = json.loads((path / "meta/info.json").read_text())
            (path / "meta/info.json").write_text(json.dumps({**info, key: template}))


# --- values and checkpoints -------------------------------------------------------------------------------------------


def _nan(maker: Maker) -> None:
    from poise.data import known_formats
    from poise.data.flat import in_memory

    data = episodes()
    contents = in_memory(data).contents
    for format in ("npz", "zarr", "zarr zip", "robomimic", "recording", "lerobot"):
        for value in (np.nan, np.inf, -np.inf):
            path = maker.new(format, "not finite")
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            with known_formats()[format.split()[0]].create(path, contents) as sink:
                for first, last in zip(data.starts, data.ends, strict=True):
                    rows = {name: array[first:last].copy() for name, array in data.features.items()}
                    rows["action"][1, 0] = value
                    sink.append(rows, "x")


def sealed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the JSON header of a safetensors file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def _tensors(maker: Maker) -> None:
    for format, name in (("policy", "policy.safetensors"), ("lerobot policy", "model.safetensors")):
        whole = (maker.wholes[format] / name).read_bytes()
        size = int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8 : 8 + size])
        for where in maker.random.sample([w for w in leaves(header) if w[0] != "__metadata__"], 20):
            value = maker.random.choice([*NASTY, "I32", [2**40, 2**40]])
            path = maker.new(format, "header of tensors") / name
            sealed(path, lambda h, w=where, v=value: _put(h, w, v))
        for length in (0, 2**62, 2**64 - 1, size + 10**6, 10):
            (maker.new(format, "huge count") / name).write_bytes(length.to_bytes(8, "little") + whole[8:])
        for place in (size + 20, size + 4000, len(whole) - 2) if format == "policy" else ():
            data = bytearray(whole)
            data[place] ^= 64
            (maker.new(format, "flipped payload") / name).write_bytes(data)
    text = json.loads(header_of(maker.wholes["policy"] / "policy.safetensors")["policy"])
    for kind, sure, spoilt in spoiled(text, maker.random, 40):
        file = maker.new("policy", kind, sure) / "policy.safetensors"

        def change(header: dict[str, Any], spoilt: bytes = spoilt) -> None:
            about = header["__metadata__"]
            about["policy"] = spoilt.decode()
            about.pop("seal", None)  # a liar seals its lie, or leaves it out as old files do

        sealed(file, change)
    for key in ("policy", "notes", "sha256", "seal", "format"):
        sealed(maker.new("policy", "flipped header") / "policy.safetensors", _turned(key))
    huge = {"dims": [2**20, 2**20]}, {"embedding": 2**40}, {"horizon": 2**40}, {"layers": 10**9}, {"dims": [8] * 10**5}
    for value in huge:
        file = maker.new("policy", "shape bomb", sure=False) / "policy.safetensors"
        spec = {**text["spec"], **{k: v for k, v in value.items() if k in text["spec"]}}
        spec["network"] = {**spec["network"], **{k: v for k, v in value.items() if k in spec["network"]}}
        sealed(file, lambda h, spec=spec: _put(h, ("__metadata__", "policy"), json.dumps({**text, "spec": spec})))


def header_of(path: Path) -> dict[str, str]:
    """The texts beside the tensors."""
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


def _put(plain: Any, where: tuple[Any, ...], value: Any) -> None:
    for key in where[:-1]:
        plain = plain[key]
    plain[where[-1]] = value


def _turned(key: str) -> Callable[[dict[str, Any]], None]:
    """Another letter in one of the texts of a header."""

    def change(header: dict[str, Any]) -> None:
        text = header["__metadata__"][key]
        half = len(text) // 2
        header["__metadata__"][key] = text[:half] + chr(ord(text[half]) ^ 1) + text[half + 1 :]

    return change


def _pickles(maker: Maker) -> None:
    run = f"touch {maker.canary}".encode()
    line = b"V" + run + b"\n"
    programs = {
        "pickle payload": [
            b"cos\nsystem\n(" + line + b"tR.",
            b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + b"(" + line + b"tR.",
            b"cbuiltins\nexec\n(Vopen('" + str(maker.canary).encode() + b"','w')\ntR.",
            b"(ios\nsystem\n" + line + b".",
            b"csubprocess\nPopen\n((lp0\nVtouch\naV" + str(maker.canary).encode() + b"\natR.",
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(cos\nsystem\n" + line + b"tR.",
        ],
        "broken pickle": [b"", b".", b"\x80\x02", b"\x80\xff.", b"}(V\n", b"\x94.", b"h\xff.", b"N" * 99, b"(" * 10**5],
        "huge count": [b"\x80\x02N" + b"r\xff\xff\xff\x7f.", b"\x80\x04\x8d" + b"\xff" * 8, b"\x8b\xff\xff\xff\x7f.",
                       b"I" + b"9" * 5000 + b"\n."],
        "cycle": [b"\x80\x02]q\x00(h\x00h\x00h\x00e.", b"\x80\x02}q\x00(K\x01h\x00K\x02h\x00u."],
        "deep pickle": [b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
                        b"\x80\x02" + b"(" * 5000 + b"t" * 5000 + b"."],
        "persistent": [b"\x80\x02(Vstorage\nVx\nVy\nVz\nK\x01tQ.", b"\x80\x02K\x01Q."],
    }  # fmt: skip
    for kind, several in programs.items():
        for data in several:
            sure = kind != "pickle payload" and kind != "deep pickle"
            path = maker.new("pickle", kind, sure)
            with zipfile.ZipFile(path) as old:
                name = next(one for one in old.namelist() if one.endswith("data.pkl"))
            edited(path, replacing(name, data), zipfile.ZIP_STORED)
    for name in (f"{ESCAPE}/data.pkl", "a/data/../../x"):
        with zipfile.ZipFile(maker.new("pickle", "path escape", name.endswith("pkl")), "a") as archive:
            archive.writestr(name, b".")
    squeezed = maker.new("pickle", "deflate bomb")
    edited(squeezed, lambda n, d: [(n, bytes(2**25) if n.endswith("data/0") else d)], zipfile.ZIP_DEFLATED)
