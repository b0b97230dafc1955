"""The report `synthetic-gradients`: accuracy of every method while it trains, and how true its gradients are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sobolev import Report, RunRecord
from sobolev.builtin.reports.style import colours, save
from sobolev.rundir import read_metrics

_REFERENCE = "backprop"
_SPLITS = ("test", "validation", "train")
_TICKS = (0, 50, 80, 90, 95, 98, 99, 100)


class MethodsReport(Report):
    """A figure with bands over seeds, and a table in the shape of the paper's Table 1.

    Args:
        split: on which accuracy is shown; ``auto``: test where it was measured, else validation, else train.
    """

    name: ClassVar[str] = "synthetic-gradients"

    def __init__(self, split: str) -> None:
        self.wanted = split
        self.split = split

    def draw(self, runs: Sequence[RunRecord], directory: Path) -> list[Path]:
        """Draw ``synthetic-gradients.png`` and write ``table1.md``."""
        finished = [run for run in runs if run.status == "finished"]
        if self.wanted == "auto":
            there = (split for split in _SPLITS if any(f"{split}/top-1" in run.summary for run in finished))
            self.split = next(there, "test")
        finished = [run for run in finished if self._top(1) in run.summary]
        methods = list(dict.fromkeys(run.variant for run in finished))
        if not methods:
            return []
        figure = Figure(figsize=(10.4, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
        palette = colours(methods)
        for method in methods:
            self._curve(left, [run for run in finished if run.variant == method], method, palette[method])
        left.set(
            xlabel="step", ylabel=f"top-1 accuracy, {self.split} (%)", title="main network: median and range of seeds"
        )
        _spread_near_100(left)
        figure.legend(
            *left.get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside lower center", ncols=len(methods)
        )
        self._cosines(right, finished, [m for m in methods if self._measured(finished, m)], palette)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        table = directory / "table1.md"
        drawn = save(figure, directory, "synthetic-gradients")
        table.write_text(self.table(finished))
        return [drawn, table]

    def _top(self, k: int) -> str:
        return f"{self.split}/top-{k}"

    def _curve(self, axes: Axes, runs: Sequence[RunRecord], label: str, colour: str) -> None:
        series = []
        for run in runs:
            records = [r for r in read_metrics(run.directory / "metrics.jsonl") if self._top(1) in r]
            series.append({int(r["step"]): 100 * float(r[self._top(1)]) for r in records})
        steps = sorted(set.intersection(*(set(one) for one in series)))
        if not steps:
            return
        values = np.array([[one[step] for step in steps] for one in series])
        axes.plot(
            steps, np.median(values, 0), color=colour, label=label, lw=1.6, marker="o" if len(steps) == 1 else None
        )
        axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.18, lw=0)

    def _sites(self, runs: Sequence[RunRecord]) -> list[str]:
        names = (name.split("/") for run in runs for name in run.summary if name.startswith(f"{self.split}/"))
        return list(dict.fromkeys(parts[1] for parts in names if parts[-1] == "cosine"))

    def _measured(self, runs: Sequence[RunRecord], method: str) -> bool:
        """Whether a method has modules that say anything: without parameters all their gradients are 0."""
        return any(_values(runs, method, f"{self.split}/{site}/cosine").any() for site in self._sites(runs))

    def _cosines(self, axes: Axes, runs: Sequence[RunRecord], methods: Sequence[str], palette: dict[str, str]) -> None:
        sites = self._sites(runs)
        width = 0.8 / max(1, len(methods))
        for j, method in enumerate(methods):
            for i, site in enumerate(sites):
                values = _values(runs, method, f"{self.split}/{site}/cosine")
                if not len(values):
                    continue
                x = i + (j - (len(methods) - 1) / 2) * width
                axes.bar(x, np.median(values), width=0.9 * width, color=palette[method], alpha=0.75)
                axes.plot(np.full(len(values), x), values, "o", ms=2.5, mfc="white", mec="black", mew=0.6)
        axes.axhline(0, color="black", lw=0.6)
        axes.set_xticks(range(len(sites)), [f"after {site}" for site in sites])
        axes.set(ylabel="cosine, synthetic and true gradient", title="modules: median and every seed")

    def table(self, runs: Sequence[RunRecord]) -> str:
        """Return a Markdown table: a row per accuracy, a column per method, back-propagation in the first column."""
        methods = [m for m in dict.fromkeys(run.variant for run in runs) if m != _REFERENCE]
        lines = ["| | " + " | ".join(methods) + " |", "|---|" + "---|" * len(methods)]
        for k in (1, 5):
            if not any(self._top(k) in run.summary for run in runs):
                continue
            reference = _values(runs, _REFERENCE, self._top(k))
            title = f"Top {k}" + (f" ({100 * reference.mean():.1f}%)" if len(reference) else "")
            cells = [_cell(_values(runs, method, self._top(k))) for method in methods]
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"


def _spread_near_100(axes: Axes) -> None:
    """Scale an axis of percentages by the logarithm of what is missing to 101, so that good methods lie apart."""
    low, high = axes.get_ylim()
    if high < 90:
        return
    axes.set_yscale("function", functions=(lambda a: -np.log10(np.clip(101 - a, 0.1, None)), lambda u: 101 - 10.0**-u))
    low, high = max(0.0, low), min(100.0, high)
    axes.set_ylim(low, high)
    axes.set_yticks([tick for tick in _TICKS if low <= tick <= high])


def _values(runs: Sequence[RunRecord], method: str, metric: str) -> NDArray[Any]:
    found = [float(run.summary[metric]) for run in runs if run.variant == method and metric in run.summary]
    return np.array([value for value in found if np.isfinite(value)])


def _cell(values: NDArray[Any]) -> str:
    if not len(values):
        return "-"
    spread = f" ± {100 * values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{100 * values.mean():.1f}%{spread}"
