"""A report: a figure or a table, drawn from run directories alone, long after the models are gone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from sobolev import Report, RunRecord


class Errors(Report):
    """A Markdown table of final metrics: a row per run, a column per metric that begins as asked."""

    name = "example"

    def __init__(
        self, *, prefix: Annotated[str, Field(description="how the names of metrics begin")] = "test/"
    ) -> None:
        self.prefix = prefix

    def draw(self, runs: Sequence[RunRecord], directory: Path) -> list[Path]:
        """Write ``errors.md``, if there is anything to write."""
        finished = [run for run in runs if run.status == "finished"]
        metrics = sorted({name for run in finished for name in run.summary if name.startswith(self.prefix)})
        if not metrics:
            return []
        lines = ["| run | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
        for run in finished:
            cells = [f"{run.summary[name]:.4g}" if name in run.summary else "-" for name in metrics]
            lines.append(f"| {run.variant}, seed {run.seed} | " + " | ".join(cells) + " |")
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / "errors.md"
        file.write_text("\n".join(lines) + "\n")
        return [file]
