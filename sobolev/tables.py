"""Small tables of numbers from CSV files, with errors that name file, row and column."""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, TextIO

from sobolev.errors import DataError
from sobolev.registry import did_you_mean
from sobolev.wording import plural

# The numbers in x[0] and x[0,1] are places in an array, not units.
_UNIT = re.compile(r"^(?P<name>.*\S)(?:\s+\[|\[(?!\d+(?:,\d+)*\]$))(?P<unit>[^\[\]]+)\]$")
_QUOTED = re.compile(r'(?:^|(?<=[\t,;\r\n]))"(?:[^"]|"")*"')  # at the beginning of a cell: elsewhere a quote is text
_OPENS = re.compile(r'(?:^|[\t,;\r\n])"')
_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")


def split_unit(label: str) -> tuple[str, str]:
    """Return name and unit of a label such as ``x [m]``; the unit is empty where there is none."""
    found = _UNIT.match(label.strip())
    return (found["name"], found["unit"].strip()) if found else (label.strip(), "")


def partial_label(output: str, by: str) -> str:
    """Return the label of a partial derivative: ``u [K]`` and ``x [m]`` give ``du/dx [K/m]``.

    Names of several words stand in brackets: ``d(heat flux)/dx``.
    """
    (above, upper), (below, lower) = split_unit(output), split_unit(by)
    unit = f" [{upper or '1'}/{f'({lower})' if '/' in lower or '*' in lower else lower}]" if lower else ""
    above, below = (f"({name})" if " " in name else name for name in (above, below))
    return f"d{above}/d{below}{unit or (f' [{upper}]' if upper else '')}"


class Rows(Protocol):
    """A reader of CSV files."""

    @property
    def line_num(self) -> int:
        """How many lines of the file are read."""

    def __iter__(self) -> Iterator[list[str]]:
        """Return the reader."""

    def __next__(self) -> list[str]:
        """Return the cells of the next row; none for a blank line."""


def open_rows(file: Path, stream: TextIO) -> tuple[Rows, list[str], str]:
    """Return a reader of a file's rows below the header, the names in the header, and the separator.

    The separator is whichever of comma, semicolon and tab the header holds most, outside of quotes. A name may run
    over several lines, in quotes.

    Raises:
        csv.Error, UnicodeDecodeError: no text.
        DataError: comments stand above the header.
    """
    head = plain = ""
    for line in stream:
        head += line
        if '"' in line or not plain.strip():
            plain = _QUOTED.sub("", head)
        if (head.strip() and not _OPENS.search(plain)) or len(head) > csv.field_size_limit():
            break
    separator = max("\t,;", key=plain.count) if any(map(plain.count, "\t,;")) else ","
    stream.seek(0)
    if head.lstrip().startswith("#"):  # a name may begin so, too: then there are as many cells below
        above, *below = itertools.islice(filter(None, csv.reader(stream, delimiter=separator)), 2)
        if below and len(below[0]) != len(above):
            raise DataError(
                f"{file}: the first line is the comment {above[0]!r}; it must name the columns, so remove the comments"
            )
        stream.seek(0)
    reader = csv.reader(stream, delimiter=separator)
    cells: list[str] = next((row for row in reader if row), [])
    return reader, [re.sub(r"\s*[\r\n]+\s*", " ", name).strip() for name in cells], separator


def to_number(text: str) -> float:
    """Return the number that a cell holds.

    Raises:
        ValueError: it holds none; ``1_000``, which Python would take, is none.
    """
    if "_" in text:
        raise ValueError(text)
    return float(text)


def no_number(text: str) -> str:
    """Return what is wrong with a cell that holds no number, for people."""
    hint = " (a decimal comma? write a point)" if _COMMA.fullmatch(text) else ""
    return f"{text!r} is no number{hint}"


def wrong_width(cells: int, columns: int, separator: str) -> str:
    """Return what is wrong with a row that has not one cell per column, for people."""
    many = cells > columns and separator == ","
    hint = "; decimal commas? write points, or separate the columns by semicolons" if many else ""
    return f"{plural(cells, 'cell')}, {plural(columns, 'column')} in the header{hint}"


def to_text(number: float) -> str:
    """Return the shortest text that gives a number back."""
    return repr(number).removesuffix(".0")


def read_numbers(file: Path, columns: Sequence[str]) -> list[list[float]]:
    """Return the named columns of a CSV file, row by row; a unit in brackets may stand behind a name, or be left out.

    Raises:
        DataError: no text; a column that is missing, there twice or in another unit; a row with a cell too many or too
            few; a cell that is no finite number.
    """
    try:
        return _numbers(file, columns)
    except (UnicodeDecodeError, csv.Error):
        raise DataError(f"{file}: not text in UTF-8; inputs are read from CSV files") from None


def _numbers(file: Path, columns: Sequence[str]) -> list[list[float]]:
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader, head, separator = open_rows(file, stream)
        places = [_place(file, head, column) for column in columns]
        rows = []
        for row in reader:
            if not row:
                continue
            where = f"{file}:{reader.line_num}"
            if len(row) != len(head):
                raise DataError(f"{where}: {wrong_width(len(row), len(head), separator)}")
            values = []
            for column, place in zip(columns, places, strict=True):
                cell = row[place].strip()
                try:
                    values.append(to_number(cell))
                except ValueError:
                    what = no_number(cell) if cell else "the cell is empty; every row needs a number"
                    raise DataError(f"{where}: column {column!r}: {what}") from None
                if not math.isfinite(values[-1]):
                    raise DataError(f"{where}: column {column!r}: {cell!r} is no finite number; every row needs one")
            rows.append(values)
    return rows


def _place(file: Path, head: Sequence[str], column: str) -> int:
    """Return where a column stands in a header: under its whole label, or else under its name.

    Raises:
        DataError: nowhere, several times, or in another unit.
    """
    name, unit = split_unit(column)
    plain = [split_unit(label)[0] for label in head]
    found = [i for i, label in enumerate(head) if label == column]
    found = found or [i for i, label in enumerate(head) if name in (label, plain[i])]
    if not found:
        raise DataError(f"{file}: there is no column {name!r}; {did_you_mean(name, plain)}")
    if len(found) > 1:
        raise DataError(f"{file}: several columns are called {name!r}; rename or remove those that are not meant")
    label = head[found[0]]
    given = "" if label in (name, column) else split_unit(label)[1]
    if unit and given and given != unit:
        raise DataError(
            f"{file}: column {label!r}: the unit must be [{unit}], as in the data that the student was trained on; "
            "convert the numbers, and then the header"
        )
    return found[0]
