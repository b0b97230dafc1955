"""Files of columns: CSV, Parquet and NPZ behind one face, read in pieces of bounded size."""

from __future__ import annotations

import csv
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sobolev.errors import DataError
from sobolev.tables import no_number, open_rows, split_unit, to_number, wrong_width

CHUNK = 16384  # rows per piece: 4 MiB for 33 columns
_SHOWN = 5  # problems of one column that are shown; the others are counted
_MISSING = {"", "na", "n/a", "nan", "null", "none", "-"}
_EXTENSIONS = ".csv, .tsv, .parquet, .pq or .npz"


class Faults:
    """Problems of a file, gathered so that all are told at once."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self._hidden: Counter[str] = Counter()
        self._shown: Counter[str] = Counter()

    def add(self, message: str) -> None:
        """Note a problem."""
        if message not in self.messages:
            self.messages.append(message)

    def cell(self, place: str, column: str, message: str) -> None:
        """Note a problem of one cell, or of a row (``column`` empty); only the first few of a column are shown."""
        if self._shown[column] < _SHOWN:
            self._shown[column] += 1
            self.add(f"{place}: column {column!r}: {message}" if column else f"{place}: {message}")
        else:
            self._hidden[column] += 1

    def raise_any(self) -> None:
        """Raise what was found, if anything.

        Raises:
            DataError: all problems, one per line.
        """
        if not self.messages:
            return
        lines = [
            *self.messages,
            *(f"{f'column {c!r}' if c else 'rows'}: {n} more of the kind" for c, n in self._hidden.items()),
        ]
        count = len(self.messages) + sum(self._hidden.values())
        raise DataError("\n".join(lines) + (f"\n{count} problems" if count > 1 else ""))


@dataclass(frozen=True)
class Chunk:
    """Some rows of a file.

    Attributes:
        start: number of the first row, from 0.
        numbers: ``(rows, columns)``, NaN where nothing is recorded; infinite also where the type is too small.
        texts: cells of the text columns, by name.
    """

    start: int
    numbers: NDArray[Any]
    texts: dict[str, list[str]] = field(default_factory=dict)


class TableFile:
    """A file of named columns.

    Attributes:
        file: where it is.
        names: names of the columns, without units.
        units: units by name, where the file gives them (``x [m]`` in a header, ``unit`` in Parquet's metadata).
        arrays: names of arrays with several columns (NPZ) -> their columns.
        shapes: of these arrays, without the samples.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.names: tuple[str, ...] = ()
        self.units: dict[str, str] = {}
        self.arrays: dict[str, list[str]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def chunks(
        self, numbers: Sequence[str], texts: Sequence[str], kind: np.dtype[Any], faults: Faults
    ) -> Iterator[Chunk]:
        """Yield all rows in order, as numbers of a kind; unreadable cells are noted and stand as NaN."""
        raise NotImplementedError

    def most_rows(self) -> int:
        """Return a bound of the number of rows, found without reading them."""
        raise NotImplementedError

    def place(self, row: int) -> str:
        """Return where a row stands, for people."""
        return f"{self.file}, row {row + 1}"

    def _named(self, raw: Sequence[str]) -> None:
        """Take names with units from a header.

        Raises:
            DataError: a name that stands there twice.
        """
        names = []
        for text in raw:
            name, unit = split_unit(text)
            if unit:
                self.units[name] = unit
            names.append(name)
        twice = [name for name, count in Counter(names).items() if count > 1 and name]
        if twice:
            raise DataError(f"{self.file}: several columns are called {', '.join(map(repr, twice))}; rename them")
        self.names = tuple(names)


def open_table(file: Path) -> TableFile:
    """Open a file by its extension.

    Raises:
        DataError: no such file, an extension or content that is not read here, an empty file.
    """
    kinds = {".csv": _Csv, ".tsv": _Csv, ".parquet": _Parquet, ".pq": _Parquet, ".npz": _Npz}
    suffix = file.suffix.lower()
    if suffix not in kinds:
        hint = "; export the sheet as CSV" if suffix in (".xlsx", ".xls", ".ods") else ""
        raise DataError(f"{file}: a table is {_EXTENSIONS}, not {suffix or 'a file without extension'}{hint}")
    if not file.is_file():
        near = (
            sorted(f.name for f in file.parent.iterdir() if f.suffix.lower() in kinds) if file.parent.is_dir() else []
        )
        raise DataError(f"{file}: there is no such file" + (f"; beside it: {', '.join(near[:8])}" if near else ""))
    if not file.stat().st_size:
        raise DataError(f"{file}: the file is empty")
    return kinds[suffix](file)


def note_infinite(
    table: TableFile, start: int, block: NDArray[Any], names: Sequence[str], kind: np.dtype[Any], faults: Faults
) -> None:
    """Note the cells of a block of rows that are infinite, or too large for the numbers of training, ``kind``."""
    text = "an infinite number" + (", or one too large for float32" if kind.itemsize == 4 else "")
    for row, column in np.argwhere(np.abs(block) > np.finfo(kind).max):
        faults.cell(table.place(start + int(row)), names[column], text)


class _Csv(TableFile):
    """Text with a header; the separator is the one of comma, semicolon and tab that the header holds most."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        try:
            with file.open(newline="", encoding="utf-8-sig") as stream:
                rows, head, _ = open_rows(file, stream)
                line = rows.line_num
        except (UnicodeDecodeError, csv.Error):
            raise DataError(f"{file}: not text in UTF-8; is it really a {file.suffix} file?") from None
        self._named(head)
        numeric = [name for name in self.names if _is_number(name)]
        if numeric and len(numeric) == len(self.names):
            raise DataError(
                f"{file}:{line}: the first line holds numbers ({numeric[0]}, ...); it must name the columns"
            )
        self._lines: list[tuple[int, int]] = []  # (row, line) from where lines and rows run in step

    def most_rows(self) -> int:
        """Return a bound: a row has a byte or more for every separator and its end."""
        return self.file.stat().st_size // max(1, len(self.names)) + 1

    def place(self, row: int) -> str:
        """Return ``file:line``, also of a row that was read by another process, and then found in a cache."""
        if not self._lines:
            for _ in self.chunks((), (), np.dtype(np.float32), Faults()):
                pass
        start, line = next(pair for pair in reversed(self._lines) if pair[0] <= row)
        return f"{self.file}:{line + row - start}"

    def chunks(
        self, numbers: Sequence[str], texts: Sequence[str], kind: np.dtype[Any], faults: Faults
    ) -> Iterator[Chunk]:
        """Yield all rows in order."""
        width = len(self.names)
        with self.file.open(newline="", encoding="utf-8-sig") as stream:
            reader, _, separator = open_rows(self.file, stream)
            self._lines = [(0, reader.line_num + 1)]
            start = 0
            rows: list[list[str]] = []
            try:
                for cells in reader:
                    if not cells:
                        continue
                    row = start + len(rows)
                    known, line = self._lines[-1]
                    if reader.line_num != line + row - known:  # blank lines, or cells of several lines
                        self._lines.append((row, reader.line_num))
                    if len(cells) != width:
                        faults.cell(self.place(row), "", wrong_width(len(cells), width, separator))
                        cells = (cells + [""] * width)[:width]
                    rows.append(cells)
                    if len(rows) == CHUNK:
                        yield self._chunk(start, rows, numbers, texts, kind, faults)
                        start, rows = start + len(rows), []
            except (csv.Error, UnicodeDecodeError) as error:
                raise DataError(f"{self.file}:{reader.line_num + 1}: cannot be read as text: {error}") from None
            if rows:
                yield self._chunk(start, rows, numbers, texts, kind, faults)

    def _chunk(
        self,
        start: int,
        rows: list[list[str]],
        numbers: Sequence[str],
        texts: Sequence[str],
        kind: np.dtype[Any],
        faults: Faults,
    ) -> Chunk:
        columns = list(zip(*rows, strict=True))
        found = np.empty((len(rows), len(numbers)), dtype=kind)
        for j, name in enumerate(numbers):
            found[:, j] = _parsed(self, name, columns[self.names.index(name)], start, faults)
        return Chunk(start, found, {name: [c.strip() for c in columns[self.names.index(name)]] for name in texts})


def _parsed(table: TableFile, name: str, cells: Sequence[Any], start: int, faults: Faults) -> NDArray[np.float64]:
    """Return texts as numbers, NaN where a cell says that it is missing or is no number."""
    try:
        if "_" not in "".join(cells):
            return np.fromiter(map(float, cells), dtype=np.float64, count=len(cells))
    except (ValueError, TypeError):
        pass
    found = np.full(len(cells), np.nan)
    for i, cell in enumerate(cells):
        text = "" if cell is None else str(cell).strip()
        if text.lower() in _MISSING:
            continue
        try:
            found[i] = to_number(text)
        except ValueError:
            faults.cell(table.place(start + i), name, no_number(text))
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class _Parquet(TableFile):
    """Columns in row groups, decoded a piece at a time; needs pyarrow."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise DataError(f"{file}: Parquet needs pyarrow: pip install 'sobolev[tables]'") from None
        try:
            self._file = pq.ParquetFile(file, pre_buffer=False, buffer_size=2**20)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file}: not a Parquet file: {str(error).splitlines()[0]}") from None
        schema = self._file.schema_arrow
        self._raw = list(schema.names)
        self._named(self._raw)
        for name, column in zip(self.names, schema, strict=True):
            unit = (column.metadata or {}).get(b"unit")
            if unit:
                self.units[name] = unit.decode()

    def most_rows(self) -> int:
        """Return the number of rows."""
        return int(self._file.metadata.num_rows)

    def chunks(
        self, numbers: Sequence[str], texts: Sequence[str], kind: np.dtype[Any], faults: Faults
    ) -> Iterator[Chunk]:
        """Yield all rows in order."""
        import pyarrow as pa

        raw = [self._raw[self.names.index(name)] for name in (*numbers, *texts)]
        wanted = list(dict.fromkeys(raw))
        for i, (name, column) in enumerate(zip((*numbers, *texts), raw, strict=True)):
            held = self._file.schema_arrow.field(column).type
            if i < len(numbers) and not _numeric(held):
                faults.add(f"{self.file}: column {name!r} holds {held}, not one number per row")
            elif i >= len(numbers) and not (_numeric(held) or pa.types.is_temporal(held)):
                faults.add(f"{self.file}: column {name!r} holds {held}, not one text per row")
        if faults.messages:
            return
        start = 0
        try:
            for batch in self._file.iter_batches(batch_size=CHUNK, columns=wanted, use_threads=False):
                found = np.empty((batch.num_rows, len(numbers)), dtype=kind)
                for j, name in enumerate(numbers):
                    column = batch.column(wanted.index(raw[j]))
                    if pa.types.is_dictionary(column.type):
                        column = column.dictionary_decode()
                    if _textual(column.type):
                        found[:, j] = _parsed(self, name, column.to_pylist(), start, faults)
                    else:
                        if not pa.types.is_floating(column.type):
                            column = column.cast(pa.float64(), safe=False)
                        found[:, j] = column.to_numpy(zero_copy_only=False)
                cells = {}
                for name, label in zip(texts, raw[len(numbers) :], strict=True):
                    column = batch.column(wanted.index(label))
                    if pa.types.is_temporal(column.type):  # Python's times have no nanoseconds
                        column = column.cast(pa.string())
                    cells[name] = ["" if c is None else str(c) for c in column.to_pylist()]
                yield Chunk(start, found, cells)
                start += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.file}, after row {start}: cannot be read: {str(error).splitlines()[0]}") from None


def _numeric(held: Any) -> bool:
    """Return whether a Parquet column may hold one number per row: as numbers, or as texts that say them."""
    from pyarrow import types

    if types.is_dictionary(held):
        held = held.value_type
    kinds = (types.is_floating, types.is_integer, types.is_decimal, types.is_boolean, types.is_null, _textual)
    return any(kind(held) for kind in kinds)


def _textual(held: Any) -> bool:
    """Return whether a Parquet column holds texts."""
    return str(held) in ("string", "large_string", "string_view")


class _Npz(TableFile):
    """Arrays whose first dimension runs over samples: ``(N,)`` is a column ``a``, ``(N, 3)`` are ``a[0]`` to ``a[2]``.

    Every array that is used is held in memory.
    """

    _rows = 0

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self._columns: dict[str, tuple[str, int]] = {}
        for name, shape in self._shapes().items():
            if not shape:
                continue
            inner = list(np.ndindex(*shape[1:])) if len(shape) > 1 else [()]
            labels = [f"{name}[{','.join(map(str, index))}]" if index else name for index in inner]
            self._columns |= {label: (name, position) for position, label in enumerate(labels)}
            if len(shape) > 1:
                self.arrays[name] = labels
                self.shapes[name] = shape[1:]
            self._rows = max(self._rows, shape[0])
        self.names = tuple(self._columns)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Read the shapes alone, from the headers of the members."""
        found = {}
        try:
            with zipfile.ZipFile(self.file) as archive:
                for member in archive.namelist():
                    with archive.open(member) as stream:
                        old = np.lib.format.read_magic(stream) == (1, 0)
                        read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
                        found[member.removesuffix(".npy")] = read(stream)[0]
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.file}: not an NPZ file: {error}") from None
        return found

    def most_rows(self) -> int:
        """Return the largest first dimension."""
        return self._rows

    def _read(self, names: Iterable[str], faults: Faults) -> dict[str, NDArray[Any]]:
        found = {}
        with np.load(self.file, allow_pickle=False) as arrays:
            for name in names:
                try:
                    found[name] = arrays[name]
                except (ValueError, zipfile.BadZipFile, OSError, EOFError) as error:
                    faults.add(f"{self.file}: array {name!r} cannot be read: {error}")
        return found

    def chunks(
        self, numbers: Sequence[str], texts: Sequence[str], kind: np.dtype[Any], faults: Faults
    ) -> Iterator[Chunk]:
        """Yield all rows in order."""
        found = self._read(dict.fromkeys(self._columns[name][0] for name in (*numbers, *texts)), faults)
        lengths = {name: len(array) for name, array in found.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
            faults.add(f"{self.file}: arrays of different lengths: {shown}")
        for array in dict.fromkeys(self._columns[name][0] for name in numbers):
            if array in found and found[array].dtype.kind in "mM":
                faults.add(f"{self.file}: array {array!r} holds {found[array].dtype}, not numbers")
        if faults.messages:
            return
        rows = next(iter(lengths.values()), 0)
        for start in range(0, rows, CHUNK):
            stop = min(rows, start + CHUNK)
            block = np.empty((stop - start, len(numbers)), dtype=kind)
            for j, name in enumerate(numbers):
                array, position = self._columns[name]
                cells = found[array][start:stop].reshape(stop - start, -1)[:, position]
                if cells.dtype.kind in "iufb":
                    block[:, j] = cells
                else:
                    block[:, j] = _parsed(self, name, _texts(cells), start, faults)
            cells_of = {}
            for name in texts:
                array, position = self._columns[name]
                cells = found[array][start:stop].reshape(stop - start, -1)[:, position]
                cells_of[name] = [str(cell) for cell in _texts(cells)]
            yield Chunk(start, block, cells_of)


def _texts(cells: NDArray[Any]) -> list[Any]:
    """Return cells that are no numbers as Python's objects; bytes and dates as texts."""
    if cells.dtype.kind == "S":
        return list(np.char.decode(cells, "utf-8", "replace").tolist())
    return list((cells.astype(str) if cells.dtype.kind in "mM" else cells).tolist())
