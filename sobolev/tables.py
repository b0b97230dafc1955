"""Small tables of numbers from CSV files, with errors that name file, row and column."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from sobolev.errors import DataError
from sobolev.registry import did_you_mean


def read_numbers(file: Path, columns: Sequence[str]) -> list[list[float]]:
    """Return the named columns of a CSV file, row by row.

    Raises:
        DataError: a column that is missing, a cell that is no number.
    """
    with file.open(newline="") as stream:
        reader = csv.reader(stream)
        head = [name.strip() for name in next(reader, [])]
        for column in columns:
            if column not in head:
                raise DataError(f"{file}: there is no column {column!r}; {did_you_mean(column, head)}")
        places = [head.index(column) for column in columns]
        rows = []
        for number, row in enumerate(reader, start=2):
            values = []
            for column, place in zip(columns, places, strict=True):
                cell = row[place] if place < len(row) else ""
                try:
                    values.append(float(cell))
                except ValueError:
                    raise DataError(f"{file}:{number}: column {column!r}: {cell!r} is no number") from None
            rows.append(values)
    return rows
