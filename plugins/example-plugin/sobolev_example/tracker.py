"""A tracker: where the numbers of a run go. If it fails, the run goes on without it."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from sobolev import RunInfo, Tracker


class Spreadsheet(Tracker):
    """A row per number: step, name, value."""

    def __init__(self, *, file: Annotated[str, Field(description="name in the run directory")] = "numbers.csv") -> None:
        self.file = file

    def start(self, run: RunInfo, resumed_at: int | None) -> None:
        """Open the file; rows after the step that a run goes on from are written again."""
        path = run.directory / self.file
        kept = []
        if resumed_at is not None and path.is_file():
            with path.open(newline="") as old:
                kept = [row for row in csv.reader(old) if row[0].isdigit() and int(row[0]) <= resumed_at]
        self._stream = path.open("w", newline="", buffering=1)
        self._writer = csv.writer(self._stream)
        self._writer.writerows([["step", "name", "value"], *kept])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append rows."""
        self._writer.writerows([step, name, value] for name, value in metrics.items())

    def finish(self, status: str, summary: Mapping[str, float], figures: Sequence[Path], student: Path | None) -> None:
        """Close the file."""
        self._stream.close()
