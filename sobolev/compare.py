"""Comparison of run directories: one row per variant, mean and spread over seeds. Imports no torch."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from sobolev.components import RunRecord
from sobolev.labels import cell_name, split_label
from sobolev.wording import short


@dataclass(frozen=True)
class Cell:
    """A metric of one variant over its seeds."""

    mean: float
    spread: float
    count: int

    @property
    def text(self) -> str:
        """``mean ± standard deviation``."""
        return short(self.mean, 3) if self.count < 2 else f"{short(self.mean, 3)} ± {short(self.spread, 2)}"


@dataclass(frozen=True)
class Comparison:
    """Metrics of variants.

    Attributes:
        metrics: names, most telling first.
        cells: variant -> metric -> cell.
        seeds: variant -> number of finished runs.
    """

    metrics: list[str]
    cells: dict[str, dict[str, Cell]]
    seeds: dict[str, int]

    @cached_property
    def first(self) -> dict[str, str]:
        """What each variant is compared with: the first arm in its cell of the matrix, or the first variant of all.

        The latter where no cell has several arms.
        """
        of_cell: dict[tuple[tuple[str, str], ...], str] = {}
        first = {name: of_cell.setdefault(_cell(name), name) for name in self.cells}
        return first if len(of_cell) < len(first) else dict.fromkeys(first, next(iter(first), ""))

    def ratio(self, variant: str, metric: str) -> float | None:
        """Return (mean of the `first` variant) / (mean of this one), or None where it says nothing."""
        first, this = self.cells[self.first[variant]].get(metric), self.cells[variant].get(metric)
        if first is None or this is None or this.mean == 0 or not math.isfinite(first.mean / this.mean):
            return None
        return first.mean / this.mean

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            variant: {
                name: {"mean": c.mean, "std": c.spread, "seeds": c.count, "ratio": self.ratio(variant, name)}
                for name, c in cells.items()
            }
            for variant, cells in self.cells.items()
        }


def _cell(variant: str) -> tuple[tuple[str, str], ...]:
    return tuple(split_label(variant)[1].items())


def compare(runs: Sequence[RunRecord], metrics: Sequence[str] = ()) -> Comparison:
    """Compare finished runs.

    Args:
        runs: run directories, read.
        metrics: which; by default everything measured on the held-out split that is there, and final scores.
    """
    finished = [run for run in runs if run.status == "finished"]
    names = list(metrics) or _telling(finished)
    groups: dict[str, list[RunRecord]] = {}
    for run, label in zip(finished, _labels(finished), strict=True):
        groups.setdefault(label, []).append(run)
    cells: dict[str, dict[str, Cell]] = {}
    for variant, members in groups.items():
        cells[variant] = {}
        for name in names:
            values = [run.summary[name] for run in members if name in run.summary]
            if values:
                finite = all(math.isfinite(value) for value in values)
                spread = 0.0 if len(values) < 2 else statistics.stdev(values) if finite else math.nan
                cells[variant][name] = Cell(statistics.fmean(values), spread, len(values))
    return Comparison(names, cells, {variant: len(members) for variant, members in groups.items()})


def _labels(runs: Sequence[RunRecord]) -> list[str]:
    """Return for each run what it is a seed of: a variant, of its recipe or folder where there are several of them."""
    names = [run.config["name"] for run in runs]
    if len({(name, run.variant, run.seed) for name, run in zip(names, runs, strict=True)}) < len(runs):
        homes = [run.directory.resolve().parent.parent for run in runs]
        common = Path(os.path.commonpath(homes))
        names = [str(home.relative_to(common)) for home in homes]
    several = len(set(names)) > 1
    return [f"{name}/{run.variant}" if several else run.variant for name, run in zip(names, runs, strict=True)]


def _telling(runs: Sequence[RunRecord]) -> list[str]:
    """Return held-out metrics: of ``test`` where there is one, else ``validation``; then final scores."""
    names = list(dict.fromkeys(name for run in runs for name in run.summary))
    for split in ("test", "validation", "train"):
        found = [name for name in names if name.startswith(f"{split}/")]
        if found:
            break
    prefixes = ("train/", "validation/", "test/", "last/", "best/")
    scores = [name for name in names if not name.startswith(prefixes) and name != "lr"]
    return found + scores


def table(comparison: Comparison, title: str, width: int, transposed: bool | None = None) -> RenderableType:
    """Return the comparison for a terminal; of a matrix one table per cell where a single one would not fit.

    Args:
        comparison: what to show.
        title: above the table.
        width: of the terminal, in characters.
        transposed: a row per metric and a column per variant, instead of the other way round; by default where the
            other way would not fit, and this one takes less room.
    """
    if transposed is not None:
        return _by_metric(comparison, title) if transposed else _by_variant(comparison, title)
    upright, aside = _by_variant(comparison, title), _by_metric(comparison, title)
    rows, columns = (Console(width=10_000).measure(made).maximum for made in (upright, aside))
    cells = list(dict.fromkeys(map(_cell, comparison.cells)))
    if min(rows, columns) > width and 1 < len(cells) < len(comparison.cells):
        return Group(Text(title), *(_of_cell(comparison, cell) for cell in cells))
    return upright if rows <= max(width, columns) else aside


def _of_cell(comparison: Comparison, cell: tuple[tuple[str, str], ...]) -> Table:
    """Return the arms of one cell of the matrix, a row per metric."""
    arms = {variant: split_label(variant)[0] for variant in comparison.cells if _cell(variant) == cell}
    metrics = [name for name in comparison.metrics if any(name in comparison.cells[variant] for variant in arms)]
    part = Comparison(
        metrics,
        {arm: comparison.cells[variant] for variant, arm in arms.items()},
        {arm: comparison.seeds[variant] for variant, arm in arms.items()},
    )
    return _by_metric(part, cell_name(dict(cell)))


def _titled(title: str) -> Table:
    """Return an empty table; its title may be wider than itself."""
    return Table(title=Text(title, no_wrap=True, overflow="ignore"), title_justify="left")


def _by_variant(comparison: Comparison, title: str) -> Table:
    made = _titled(title)
    made.add_column("variant", overflow="fold")
    made.add_column("seeds", justify="right")
    several = len(comparison.cells) > 1
    for name in comparison.metrics:
        made.add_column(name, justify="right", overflow="fold")
        if several:
            made.add_column("ratio", justify="right", style="bold", no_wrap=True)
    for variant, cells in comparison.cells.items():
        row = [variant, str(comparison.seeds[variant])]
        for name in comparison.metrics:
            cell = cells.get(name)
            row.append(cell.text if cell else "not applicable")
            if several:
                row.append(_ratio(comparison, variant, name))
        made.add_row(*row)
    return made


def _by_metric(comparison: Comparison, title: str) -> Table:
    made = _titled(title)
    made.add_column("metric", overflow="fold")
    for variant, count in comparison.seeds.items():
        made.add_column(f"{variant}\n{count} seeds" if count > 1 else variant, justify="right")
    for name in comparison.metrics:
        row = [name]
        for variant, cells in comparison.cells.items():
            cell, ratio = cells.get(name), _ratio(comparison, variant, name)
            row.append((cell.text if cell else "-") + (f"\n[bold]{ratio}[/]" if ratio else ""))
        made.add_row(*row)
    return made


def _ratio(comparison: Comparison, variant: str, name: str) -> str:
    """Return how many times smaller a number is than that of `Comparison.first`; empty for that one."""
    ratio = None if variant == comparison.first[variant] else comparison.ratio(variant, name)
    return "" if ratio is None else f"{short(ratio, 3)}x"


def markdown(comparison: Comparison) -> str:
    """Return the comparison as a Markdown table."""
    head = ["variant", "seeds", *comparison.metrics]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for variant, cells in comparison.cells.items():
        texts = [cells[n].text if n in cells else "not applicable" for n in comparison.metrics]
        lines.append("| " + " | ".join([variant, str(comparison.seeds[variant]), *texts]) + " |")
    return "\n".join(lines)
