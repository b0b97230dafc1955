"""Where a run's numbers go: ``metrics.jsonl`` always, then the recipe's trackers, whose failures cost a warning."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sobolev.components import RunInfo, Tracker
from sobolev.rundir import jsonable, read_metrics, write_atomic


class MetricsFile(Tracker):
    """Appends one JSON object per record to ``metrics.jsonl``."""

    def start(self, run: RunInfo, resumed_at: int | None) -> None:
        """Open the file; records after the checkpoint that a run resumes from are dropped."""
        file = run.directory / "metrics.jsonl"
        self._started = time.monotonic()
        self._before = 0.0
        if file.exists():
            kept = [record for record in read_metrics(file) if record["step"] <= (resumed_at or 0)]
            write_atomic(file, "".join(json.dumps(record) + "\n" for record in kept))
            self._before = kept[-1].get("seconds", 0.0) if kept else 0.0
        self._stream = file.open("a", buffering=1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a record."""
        seconds = round(self._before + time.monotonic() - self._started, 3)
        self._stream.write(json.dumps({"step": step, **jsonable(metrics), "seconds": seconds}) + "\n")

    def finish(self, status: str, summary: Mapping[str, float], figures: Sequence[Path], student: Path | None) -> None:
        """Close the file."""
        self._stream.close()


class Recorder:
    """Passes records on to trackers; one that fails is warned about once and left out from then on.

    Args:
        trackers: by name; the first rank alone has any.
        say: shows one line to the user.
    """

    def __init__(self, trackers: Sequence[tuple[str, Tracker]], say: Callable[[str], None] = print) -> None:
        self.trackers = list(trackers)
        self.warn = say
        for _, tracker in self.trackers:
            tracker.say = say

    def start(self, run: RunInfo, resumed_at: int | None) -> None:
        """Begin a run, or go on with one."""
        self._each(lambda tracker: tracker.start(run, resumed_at))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record numbers of a step."""
        self._each(lambda tracker: tracker.log(step, metrics))

    def finish(self, status: str, summary: Mapping[str, float], figures: Sequence[Path], student: Path | None) -> None:
        """End a run."""
        self._each(lambda tracker: tracker.finish(status, summary, figures, student))

    def compare(self, recipe: str, table: str, figures: Sequence[Path], directory: Path) -> None:
        """Record the comparison of a recipe's runs."""
        self._each(lambda tracker: tracker.compare(recipe, table, figures, directory))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers):
            try:
                call(tracker)
            except Exception as error:
                if isinstance(tracker, MetricsFile):
                    raise
                self.trackers.remove((name, tracker))
                self.warn(f"warning: tracker {name} stopped: {type(error).__name__}: {error}")
