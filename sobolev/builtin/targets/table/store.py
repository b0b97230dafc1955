"""Rows of numbers that any ids can be read from quickly: in memory, or in a memory-mapped file of bounded residence.

A file much larger than memory cannot be shuffled by reading it in order. So it is converted once, in one pass, to
rows of equal size in a cache that is addressed by content; a random batch then touches one or two pages per row.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sobolev.builtin.targets.table.columns import Columns
from sobolev.builtin.targets.table.files import Chunk, Faults, TableFile, note_infinite
from sobolev.errors import DataError

_SOME_PARTIALS = "; partials: {output: {input: column}} names those that are there"
_FORMAT = "2"  # of the cache; change it when its files change
_RESIDENT = 2  # times the memory that rows may take is what may stay mapped; giving pages back costs time
_OLD = 2 * 86400.0  # seconds
_PAGES = 64 * 1024  # bytes that the kernel maps around a page that is touched


@dataclass
class Summary:
    """What one pass over a table has found.

    Attributes:
        rows: how many.
        missing: entries that are missing, by column.
        low, high: extremes of each column of numbers, in their order.
        incomplete: rows in which an input or the weight is missing.
        empty: rows in which no value and no partial is known.
        labels: distinct texts of the label column, in order of appearance.
    """

    rows: int = 0
    missing: dict[str, int] = field(default_factory=dict)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    incomplete: list[int] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


def _remove_leftovers(folder: Path) -> None:
    """Remove what conversions that were killed have left; none takes as long as these are old."""
    for path in folder.glob("making-*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _OLD:
                shutil.rmtree(path, ignore_errors=True)


class Store:
    """All rows of a table.

    Attributes:
        summary: of the pass that made it.
        codes: ``(N,)`` position of each row's label in ``summary.labels``, or None where there is no label column.
        digest: of the content and of what was read of it.
    """

    def __init__(self, summary: Summary, codes: NDArray[np.int32] | None, digest: str) -> None:
        self.summary = summary
        self.codes = codes
        self.digest = digest

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """Return rows ``(B, columns)``, NaN where nothing is recorded."""
        raise NotImplementedError


class _Memory(Store):
    def __init__(self, numbers: Tensor, summary: Summary, codes: NDArray[np.int32] | None, digest: str) -> None:
        super().__init__(summary, codes, digest)
        self._numbers = numbers

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        return self._numbers[torch.from_numpy(rows)]


class _Mapped(Store):
    """Rows in a file; pages are given back to the system before more than ``resident`` bytes of them pile up."""

    def __init__(
        self, folder: Path, columns: int, dtype: np.dtype[Any], resident: int, summary: Summary, digest: str
    ) -> None:
        codes = np.load(folder / "codes.npy") if (folder / "codes.npy").is_file() else None
        super().__init__(summary, codes, digest)
        with (folder / "rows.bin").open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._rows = np.frombuffer(self._map, dtype=dtype).reshape(summary.rows, columns)
        self._resident = resident
        self._touched = 0

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        found = torch.from_numpy(np.take(self._rows, rows, axis=0))
        if len(self._map) > self._resident and hasattr(self._map, "madvise"):
            self._touched += len(rows) * _PAGES
            if self._touched > self._resident:
                self._map.madvise(mmap.MADV_DONTNEED)
                self._touched = 0
        return found


def open_store(
    table: TableFile, columns: Columns, dtype: torch.dtype, memory: int, cache: Path, faults: Faults
) -> Store:
    """Read a table, or find it in the cache.

    Args:
        table: the file.
        columns: what is read of it.
        dtype: float32 or float64.
        memory: bytes up to which rows stay in memory; twice as many pages of a file may stay mapped.
        cache: folder for larger tables.
        faults: where cells that cannot be read are noted.

    Raises:
        DataError: text where a number stands, a column without numbers, no rows; all problems at once.
    """
    kind = np.dtype(np.float64 if dtype == torch.float64 else np.float32)
    builder = _Builder(table, columns, kind, memory)
    if table.most_rows() * len(columns.numbers) * kind.itemsize <= memory:
        return builder.build(None, _digest(table, columns, kind), faults)
    digest = _digest(table, columns, kind)
    folder = cache / "tables" / digest
    with _alone(folder):
        if not (folder / "summary.json").is_file():
            return builder.build(folder, digest, faults)
    return _open(folder, columns, kind, memory, digest)


def _open(folder: Path, columns: Columns, kind: np.dtype[Any], memory: int, digest: str) -> Store:
    summary = Summary(**json.loads((folder / "summary.json").read_text()))
    return _Mapped(folder, len(columns.numbers), kind, _RESIDENT * memory, summary, digest)


def _digest(table: TableFile, columns: Columns, kind: np.dtype[Any]) -> str:
    with table.file.open("rb") as stream:
        content = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16))
    # The summary hangs on the parts that columns play, which their order alone does not tell.
    parts = [len(columns.inputs), len(columns.outputs), len(columns.partials), columns.weight is not None]
    what = json.dumps([_FORMAT, columns.numbers, parts, columns.label, kind.name, table.file.suffix.lower()])
    content.update(what.encode())
    return content.hexdigest()


def _quietly(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Yield chunks without warnings of numbers that float32 cannot hold: they are told as problems of their cells."""
    while True:
        with np.errstate(over="ignore"):
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield chunk


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time make what belongs into ``folder``; the lock goes with its process."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as stream:
        try:
            import fcntl
        except ImportError:  # no such locks there: two processes may do the same work, the last one wins
            yield
            return
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


class _Builder:
    """One pass over a file: rows go to memory, or to a file once they are too many."""

    def __init__(self, table: TableFile, columns: Columns, kind: np.dtype[Any], memory: int) -> None:
        self.table, self.columns, self.kind, self.memory = table, columns, kind, memory
        self.summary = Summary()
        count = len(columns.numbers)
        self._missing = np.zeros(count, dtype=np.int64)
        self._low, self._high = np.full(count, np.inf), np.full(count, -np.inf)
        self._codes: list[NDArray[np.int32]] = []
        self._labels: dict[str, int] = {}

    def build(self, folder: Path | None, digest: str, faults: Faults) -> Store:
        """Read everything; ``folder`` is where rows go that are too many for memory."""
        held: list[NDArray[Any]] = []
        work: Path | None = None
        stream = None
        try:
            label = () if self.columns.label is None else (self.columns.label,)
            for chunk in _quietly(self.table.chunks(self.columns.numbers, label, self.kind, faults)):
                numbers = chunk.numbers
                self._look(chunk.start, numbers, faults)
                if label:
                    self._code(chunk.texts[label[0]])
                if stream is None and folder is not None and self._size() > self.memory:
                    _remove_leftovers(folder.parent)
                    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix="making-"))
                    stream = (work / "rows.bin").open("wb")
                    for part in held:
                        stream.write(part.data)
                    held.clear()
                if stream is None:
                    held.append(numbers)
                else:
                    stream.write(numbers.data)
            self._finish(faults)
            codes = np.concatenate(self._codes) if self._codes else None
            if stream is None or work is None or folder is None:
                return _Memory(torch.from_numpy(np.concatenate(held)), self.summary, codes, digest)
            stream.close()
            if codes is not None:
                np.save(work / "codes.npy", codes)
            (work / "summary.json").write_text(json.dumps(vars(self.summary)))
            if folder.exists():  # left by a process that was interrupted while it removed it
                shutil.rmtree(folder)
            os.replace(work, folder)
            work = None
        except OSError as error:
            raise DataError(f"{folder}: the table cannot be converted there: {error.strerror or error}") from None
        finally:
            if stream is not None:
                stream.close()
            if work is not None:
                shutil.rmtree(work, ignore_errors=True)
        return _open(folder, self.columns, self.kind, self.memory, digest)

    def _size(self) -> int:
        return self.summary.rows * len(self.columns.numbers) * self.kind.itemsize

    def _look(self, start: int, kept: NDArray[Any], faults: Faults) -> None:
        """Count what is missing, note infinities, take extremes."""
        names = self.columns.numbers
        self.summary.rows = start + len(kept)
        low, high = np.fmin.reduce(kept), np.fmax.reduce(kept)  # NaN only where all is missing
        self._low, self._high = np.fmin(self._low, low), np.fmax(self._high, high)
        if np.isinf(low).any() or np.isinf(high).any():
            note_infinite(self.table, start, kept, names, self.kind, faults)
        missing = np.isnan(kept)
        self._missing += missing.sum(axis=0)
        if self.columns.weight is not None:
            for row in np.flatnonzero(kept[:, -1] < 0):
                faults.cell(self.table.place(start + int(row)), names[-1], f"the weight {kept[row, -1]:g} is negative")
        if not missing.any():
            return
        d, m = len(self.columns.inputs), len(self.columns.outputs)
        needed = missing[:, :d].any(axis=1)
        if self.columns.weight is not None:
            needed |= missing[:, -1]
        self.summary.incomplete += (start + np.flatnonzero(needed)).tolist()
        answers = missing[:, d : d + m + len(self.columns.partials)]
        self.summary.empty += (start + np.flatnonzero(answers.all(axis=1))).tolist()

    def _code(self, texts: list[str]) -> None:
        codes = [self._labels.setdefault(text, len(self._labels)) for text in texts]
        self._codes.append(np.array(codes, dtype=np.int32))

    def _finish(self, faults: Faults) -> None:
        names = self.columns.numbers
        if not self.summary.rows and not faults.messages:
            faults.add(f"{self.table.file}: there are no rows below the header")
        for name, count in zip(names, self._missing.tolist(), strict=True):
            if self.summary.rows and count == self.summary.rows and not any(repr(name) in m for m in faults.messages):
                faults.add(
                    f"{self.table.file}: column {name!r} holds no number at all; leave it out of the recipe"
                    + (_SOME_PARTIALS if name in self.columns.partials.values() else "")
                )
        faults.raise_any()
        self.summary.missing = {n: c for n, c in zip(names, self._missing.tolist(), strict=True) if c}
        self.summary.low, self.summary.high = self._low.tolist(), self._high.tolist()
        self.summary.labels = list(self._labels)
