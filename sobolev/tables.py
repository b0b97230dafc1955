"""Small tables of numbers from CSV files, with errors that name file, row and column."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from sobolev.errors import DataError
from sobolev.registry import did_you_mean

_UNIT = re.compile(r"^(?P<name>.*\S)\s*\[(?P<unit>[^\[\]]+)\]$")


def split_unit(label: str) -> tuple[str, str]:
    """Return name and unit of a label such as ``x [m]``; the unit is empty where there is none."""
    found = _UNIT.match(label.strip())
    return (found["name"], found["unit"].strip()) if found else (label.strip(), "")


def partial_label(output: str, by: str) -> str:
    """Return the label of a partial derivative: ``u [K]`` and ``x [m]`` give ``du/dx [K/m]``."""
    (above, upper), (below, lower) = split_unit(output), split_unit(by)
    unit = f" [{upper or '1'}/{f'({lower})' if '/' in lower or '*' in lower else lower}]" if lower else ""
    return f"d{above}/d{below}{unit or (f' [{upper}]' if upper else '')}"


def separator_of(head: str) -> str:
    """Return what separates the columns of a header: whichever of comma, semicolon and tab it holds most."""
    return max("\t,;", key=head.count) if any(map(head.count, "\t,;")) else ","


def read_numbers(file: Path, columns: Sequence[str]) -> list[list[float]]:
    """Return the named columns of a CSV file, row by row; a unit in brackets may stand behind a name, or be left out.

    Raises:
        DataError: no text, a column that is missing, a cell that is no number.
    """
    try:
        return _numbers(file, columns)
    except (UnicodeDecodeError, csv.Error):
        raise DataError(f"{file}: not text in UTF-8; inputs are read from CSV files") from None


def _numbers(file: Path, columns: Sequence[str]) -> list[list[float]]:
    with file.open(newline="", encoding="utf-8-sig") as stream:
        separator = separator_of(stream.readline())
        stream.seek(0)
        reader = csv.reader(stream, delimiter=separator)
        head = [name.strip() for name in next(reader, [])]
        plain = [split_unit(name)[0] for name in head]
        places = []
        for column in columns:
            name = split_unit(column)[0]
            if column not in head and name not in plain:
                raise DataError(f"{file}: there is no column {name!r}; {did_you_mean(name, plain)}")
            places.append(head.index(column) if column in head else plain.index(name))
        rows = []
        for number, row in enumerate(reader, start=2):
            values = []
            for column, place in zip(columns, places, strict=True):
                cell = row[place] if place < len(row) else ""
                try:
                    values.append(float(cell))
                except ValueError:
                    what = f"{cell!r} is no number" if cell.strip() else "the cell is empty; every row needs a number"
                    raise DataError(f"{file}:{number}: column {column!r}: {what}") from None
            rows.append(values)
    return rows
