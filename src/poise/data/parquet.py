"""Parquet files, by pyarrow: the one file that needs the extra `lerobot`.

Sizes are believed only after the footer of the file agrees with them, and columns of texts and bytes are read in
pieces, for a dictionary of one long text stands for as many rows as a file likes.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.data.pages import page_sizes
from poise.data.source import Feature
from poise.data.untrusted import MAX_EPISODES, MAX_FEATURES, DataError, affordable, broken
from poise.extras import extra

_PIECE = 2**26  # bytes of texts that are in memory at a time
_FREE, _RATIO = 2**24, 1000  # texts that any file may hold, and how much larger they may be than the file
_SPARE = 2**20  # bytes by which a footer may be wrong about its pages
_COLUMNS = 32 * MAX_FEATURES  # a feature may be described by several columns


class Parquet:
    """A Parquet file that is not trusted.

    Its methods raise DataError for a missing column, one of other types than asked for, empty cells, or a broken file.

    Args:
        path: The file.

    Attributes:
        path: The file.
        rows: Their number.
        columns: Names, in the order of the file.
        pandas: Whether the file says which column is the index of pandas.

    Raises:
        DataError: No such file, a broken one, or one that declares more than it can hold.
        ImportError: pyarrow is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        parquet = _library().parquet
        if not path.is_file():
            raise DataError(path, "file", "does not exist, expected a Parquet file")
        with self._guarded("footer"):
            self._file = parquet.ParquetFile(path)
            self._about, self._types = self._file.metadata, self._file.schema_arrow
            groups = [self._about.row_group(i).num_rows for i in range(self._about.num_row_groups)]
        self._size, self.rows, self.columns = path.stat().st_size, int(self._about.num_rows), list(self._types.names)
        self.pandas = b"pandas" in (self._types.metadata or {})
        self._kept: tuple[Any, dict[str, NDArray]] = None, {}  # the last rows, for groups that hold many episodes
        self._checked = set[tuple[int, int]]()  # chunks of columns whose pages were looked at
        self._ends = np.cumsum(np.array(groups, np.int64))
        if min([self.rows, *groups]) < 0 or sum(groups) != self.rows:
            raise DataError(path, "footer", f"declares {self.rows} rows in groups of {groups[:9]}, expected their sum")
        if len(self.columns) > _COLUMNS or len(set(self.columns)) != len(self.columns):
            raise DataError(path, "footer", f"declares {len(self.columns)} columns, expected less and no name twice")

    def arrays(self, looks: Mapping[str, Feature], first: int = 0, last: int | None = None) -> dict[str, NDArray]:
        """Rows `(last - first, ...)` of columns of numbers, which may be views of read-only memory.

        Args:
            looks: Column -> dtype and shape of a row, to which it has to agree; (1,) is a column of single numbers too.
            first: The first row.
            last: The row after the last one.
        """
        last = self.rows if last is None else last
        groups, before = self._groups(first, last)
        for name, look in looks.items():
            self._check_numbers(name, look, groups)
        key = (groups, *looks.items())
        if key != self._kept[0]:
            with self._guarded("row groups"):
                table = self._file.read_row_groups(groups, columns=list(looks))
                self._kept = key, {name: self._numbers(name, look, table.column(name)) for name, look in looks.items()}
        return {name: array[before : before + last - first] for name, array in self._kept[1].items()}

    def number(self, name: str, kinds: str = "iu") -> NDArray:
        """A column of single numbers, of whichever type of the kinds (those of NumPy)."""
        kind = self._leaf(name)[0]
        if kind is None or kind.kind not in kinds or self.rows > MAX_EPISODES:
            raise DataError(self.path, name, f"is {self._type(name)} in {self.rows} rows, expected numbers ({kinds})")
        return self.arrays({name: Feature(kind, (1,))})[name].reshape(-1)

    def texts(self, name: str) -> list[Any]:
        """A column of texts, or of lists of texts, as they are."""
        types = _library().types
        kind = self._type(name)
        inner = kind.value_type if types.is_list(kind) or types.is_large_list(kind) else kind
        if not (types.is_string(inner) or types.is_large_string(inner)) or self.rows > MAX_EPISODES:
            raise DataError(self.path, name, f"is a column of {kind}, expected texts or lists of texts")
        found, size = [], 0
        for piece in self._pieces(name, name, range(len(self._ends))):
            size += piece.nbytes
            if size > max(_FREE, _RATIO * self._size):
                raise DataError(self.path, name, f"holds more than {size} bytes of texts in a file of {self._size}")
            found += piece.to_pylist()
        if any(one is None for one in found):
            raise DataError(self.path, name, "has empty cells, expected texts")
        return found

    def images(self, name: str, first: int, last: int) -> Iterator[bytes]:
        """The compressed images of some rows."""
        types, kind = _library().types, self._type(name)
        inside = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if not (inside and types.is_binary(kind.field("bytes").type)):
            raise DataError(self.path, name, f"is a column of {kind}, expected images: struct<bytes: binary, ...>")
        groups, before = self._groups(first, last)
        row = first - before
        for piece in self._pieces(name, f"{name}.bytes", groups):
            for cell in piece.field("bytes"):
                if first <= row < last:
                    data = cell.as_py()
                    if data is None:
                        problem = f"has no image in row {row}: those in other files are not read"
                        raise DataError(self.path, name, problem)
                    yield data
                row += 1
            if row >= last:
                return

    def _groups(self, first: int, last: int) -> tuple[range, int]:
        """The groups that hold some rows, and how many rows of them come before."""
        begin, end = np.searchsorted(self._ends, [first, last - 1], "right")
        return range(int(begin), int(end) + 1 if last > first else int(begin)), (
            first - int(self._ends[begin - 1]) if begin else first
        )

    def _pieces(self, name: str, column: str, groups: Sequence[int]) -> Iterator[Any]:
        """Arrays of a column, of so few rows each that they fit into memory even if each is as long as its group."""
        size = self._stored(name, groups)[1]
        affordable(self.path, name, (size,), np.uint8, self._size)
        with self._guarded(name):
            rows = max(1, min(1024, _PIECE // (size + 1)))
            for batch in self._file.iter_batches(rows, row_groups=list(groups), columns=[column]):
                yield batch.column(batch.schema.get_field_index(name))

    def _check_numbers(self, name: str, look: Feature, groups: Sequence[int]) -> None:
        found, widths = self._leaf(name)
        fits = len(widths) == len(look.shape) and all(w in (None, n) for w, n in zip(widths, look.shape, strict=True))
        if found != look.dtype or not (fits or (widths, look.shape) == ((), (1,))):
            problem = f"is a column of {self._type(name)}, expected {look.dtype} {look.shape} as declared"
            raise DataError(self.path, name, problem)
        rows = sum(self._about.row_group(i).num_rows for i in groups)
        affordable(self.path, name, (rows, *look.shape), look.dtype, self._size)
        stored = self._stored(name, groups)[0]
        if stored != rows * int(np.prod(look.shape)):
            raise DataError(self.path, name, f"holds {stored} numbers in {rows} rows, expected rows of {look.shape}")

    def _numbers(self, name: str, look: Feature, column: Any) -> NDArray:
        array, rows = column.combine_chunks(), len(column)
        for level in range(len(look.shape)):
            self._check_full(name, array)
            array = array.storage if _is_extension(array.type) else array
            kind = array.type
            if not _is_list(kind):
                break
            if not _library().types.is_fixed_size_list(kind):
                widths = np.diff(array.offsets.to_numpy())
                if (widths != look.shape[level]).any():
                    raise DataError(self.path, name, f"has rows of other widths than {look.shape} as declared")
            array = array.flatten()
        self._check_full(name, array)
        numbers = array.to_numpy(zero_copy_only=False).reshape(rows, *look.shape)
        numbers.flags.writeable = False  # they are kept, and shared with those who asked before
        return numbers

    def _check_full(self, name: str, array: Any) -> None:
        if array.null_count:
            raise DataError(self.path, name, f"has {array.null_count} empty cells, expected numbers in all of them")

    def _leaf(self, name: str) -> tuple[np.dtype | None, tuple[int | None, ...]]:
        """The dtype of the numbers of a column, and the widths of the lists that they are in; None is any."""
        kind, widths = self._type(name), ()
        kind = kind.storage_type if _is_extension(kind) else kind
        while _is_list(kind):
            fixed = _library().types.is_fixed_size_list(kind)
            widths, kind = (*widths, kind.list_size if fixed else None), kind.value_type
        try:
            return np.dtype(kind.to_pandas_dtype()), widths
        except (NotImplementedError, TypeError):
            return None, widths

    def _stored(self, name: str, groups: Sequence[int]) -> tuple[int, int]:
        """How many values the footer declares for a column in some groups, and the bytes of its largest group."""
        names = set(self.columns)
        paths = [self._about.schema.column(j).path for j in range(self._about.num_columns)]
        mine = [j for j, path in enumerate(paths) if _owner(path, names) == name]
        chunks = [[self._about.row_group(i).column(j) for j in mine] for i in groups]
        sizes = [sum(chunk.total_uncompressed_size for chunk in group) for group in chunks]
        self._check_pages(name, [chunk for group in chunks for chunk in group])
        return sum(chunk.num_values for group in chunks for chunk in group), max(sizes, default=0)

    def _check_pages(self, name: str, chunks: Sequence[Any]) -> None:
        """That pages become no more than the footer says; what they themselves say is what pyarrow makes room for."""
        spans = [(_start(chunk), chunk.total_compressed_size) for chunk in chunks]
        new = [span for span in spans if span not in self._checked]
        declared = sum(chunk.total_uncompressed_size for chunk in chunks)
        with broken(self.path, f"{name}: pages", ValueError, IndexError, OSError):
            size = 0
            for page in page_sizes(self.path, new):
                size += page
                if size > declared + _SPARE:
                    raise ValueError(f"they become {size} bytes, where the footer declares {declared}")
        self._checked.update(new)

    def _type(self, name: str) -> Any:
        if name not in self.columns:
            raise DataError(self.path, name, f"is no column of {self.columns[:20]}, expected it as declared")
        return self._types.field(name).type

    def _guarded(self, field: str) -> AbstractContextManager[None]:
        errors = (_library().ArrowException, OSError, ValueError, MemoryError, OverflowError, RuntimeError)
        return broken(self.path, field, *errors)


class ParquetWriter:
    """Writes a Parquet file, a row group at a time.

    Args:
        path: The file.
        pandas: What the file says to pandas of its index, as JSON text.
    """

    def __init__(self, path: Path, pandas: str | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.rows = path, 0
        self._arrow = _library()
        self._pandas = {"pandas": pandas} if pandas else None
        self._writer: Any = None

    def columns(self, columns: Mapping[str, NDArray]) -> None:
        """Write rows given by columns.

        Args:
            columns: Name -> numbers `(steps, ...)`, of which `(steps, 1)` become single ones, or objects `(steps,)`:
                the bytes of compressed images.
        """
        arrays = {name: self._array(values) for name, values in columns.items()}
        self._write(self._arrow.table(arrays))

    def records(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write rows given one by one, all of the types of the first ones."""
        schema = None if self._writer is None else self._writer.schema
        self._write(self._arrow.Table.from_pylist(list(records), schema=schema))

    def close(self) -> None:
        """Complete the file."""
        if self._writer is not None:
            self._writer.close()

    def size(self) -> int:
        """Bytes in the file so far."""
        return self.path.stat().st_size if self._writer is not None else 0

    def _write(self, table: Any) -> None:
        table = table.replace_schema_metadata(self._pandas)
        if self._writer is None:
            self._writer = self._arrow.parquet.ParquetWriter(self.path, table.schema, compression="snappy")
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self.rows += table.num_rows

    def _array(self, values: NDArray) -> Any:
        arrow = self._arrow
        if values.dtype == np.object_:
            kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
            return arrow.array([{"bytes": image, "path": None} for image in values], kind)
        array = arrow.array(np.ascontiguousarray(values).reshape(-1))
        if values.shape[1:] == (1,):
            return array
        if values.ndim == 2:
            return arrow.FixedSizeListArray.from_arrays(array, values.shape[1])
        for width in reversed(values.shape[1:]):
            offsets = np.arange(0, len(array) + 1, width, dtype=np.int32)
            array = arrow.ListArray.from_arrays(offsets, array)
        return array


def _is_list(kind: Any) -> bool:
    types = _library().types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _is_extension(kind: Any) -> bool:
    """Whether another library, such as `datasets`, gave lists a name of its own."""
    return isinstance(kind, _library().BaseExtensionType)


def _start(chunk: Any) -> int:
    """Where a chunk of a column begins: with its dictionary, if it has one."""
    return chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset


def _owner(path: str, names: set[str]) -> str:
    """The column that a path of nested ones belongs to; names may contain points."""
    while path not in names and "." in path:
        path = path.rpartition(".")[0]
    return path


def _library() -> ModuleType:
    with extra("lerobot", "Parquet needs"):
        import pyarrow
        import pyarrow.parquet
        import pyarrow.types
    return pyarrow


__all__ = ["Parquet", "ParquetWriter"]
