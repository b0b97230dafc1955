"""Numbers as lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sobolev.components import RunInfo, Tracker


class Console(Tracker):
    """Prints every n-th record."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._count = 0
        self._label = ""

    def start(self, run: RunInfo, resumed_at: int | None) -> None:
        """Name the run."""
        self._label = f"{run.variant}/seed-{run.seed}"
        if resumed_at:
            print(f"{self._label}: goes on after step {resumed_at}", flush=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print a record."""
        self._count += 1
        if self._count % self._every == 0:
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            print(f"{self._label} step {step}: {numbers}", flush=True)

    def finish(self, status: str, summary: Mapping[str, float], figures: Sequence[Path], student: Path | None) -> None:
        """Print how the run ended."""
        print(f"{self._label}: {status}", flush=True)
