"""Results of a function on disk: one line of JSON per point, appended as it comes.

A line is written by one call to the system, at the end of the file, by the process that computed it: killing any
process at any time loses at most what was not finished. A torn line is left out when the file is read.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Point = tuple[float, ...]


@dataclass(frozen=True)
class Result:
    """What a function returned at a point.

    Attributes:
        value: m numbers.
        partials: m rows of d numbers, or None.
    """

    value: tuple[float, ...]
    partials: tuple[tuple[float, ...], ...] | None = None


def append(file: Path, x: Point, result: Result) -> None:
    """Add one result at the end of a file."""
    line = json.dumps({"x": x, "value": result.value, "partials": result.partials}) + "\n"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


class Results:
    """The results that a file holds, for points of ``d`` inputs and values of ``m`` outputs.

    Args:
        file: may not exist yet; other processes may append to it at any time.
        inputs: d.
        outputs: m.
    """

    def __init__(self, file: Path, inputs: int, outputs: int) -> None:
        self.file = file
        self.inputs, self.outputs = inputs, outputs
        self._found: dict[Point, Result] = {}
        self._position = 0

    def __len__(self) -> int:
        return len(self._found)

    def get(self, x: Point) -> Result | None:
        """Return the result at a point, or None."""
        return self._found.get(x)

    def refresh(self) -> None:
        """Read what has been appended since the last time."""
        try:
            with self.file.open("rb") as stream:
                stream.seek(self._position)
                content = stream.read()
        except FileNotFoundError:
            return
        end = content.rfind(b"\n") + 1  # what follows is still being written, or torn
        for line in content[:end].splitlines():
            self._take(line)
        self._position += end

    def mend(self) -> None:
        """End a torn last line, so that what is appended next stands on a line of its own."""
        try:
            with self.file.open("rb+") as stream:
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    stream.write(b"\n")
        except (FileNotFoundError, OSError):
            return

    def _take(self, line: bytes) -> None:
        try:
            record: dict[str, Any] = json.loads(line)
            x = tuple(map(float, record["x"]))
            value = tuple(map(float, record["value"]))
            partials = record["partials"]
            rows = None if partials is None else tuple(tuple(map(float, row)) for row in partials)
        except (ValueError, KeyError, TypeError):
            return
        fits = len(x) == self.inputs and len(value) == self.outputs
        fits = fits and (rows is None or _shape(rows) == {(self.outputs, self.inputs)})
        if fits and all(map(math.isfinite, value)):
            self._found[x] = Result(value, rows)


def _shape(rows: Sequence[Sequence[float]]) -> set[tuple[int, int]]:
    return {(len(rows), len(row)) for row in rows}
