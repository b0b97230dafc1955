"""Held-out errors per variant: the paper's Figure 2 (right)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sobolev.builtin.reports.style import (
    colours,
    in_order,
    log_axis,
    metric_labels,
    plain,
    save,
    slant,
)
from sobolev.compare import compare
from sobolev.components import Report, RunRecord
from sobolev.labels import cell_name, split_label

_MISSING = "not\napplicable"


class Bars(Report):
    """One bar per variant at the median over seeds, one dot per seed.

    Without a matrix there is a panel per metric. With one, the last field of the matrix makes groups of bars, a bar per
    variant in each; every combination of the other fields is a column of panels, every metric a row.
    """

    name: ClassVar[str] = "bars"

    def __init__(self, metrics: Sequence[str]) -> None:
        self.metrics = list(metrics)

    def draw(self, runs: Sequence[RunRecord], directory: Path) -> list[Path]:
        """Draw the finished runs."""
        finished = [run for run in runs if run.status == "finished"]
        metrics = [m for m in self.metrics or compare(finished).metrics if any(m in r.summary for r in finished)]
        if not metrics:
            return []
        matrix = any(split_label(run.variant)[1] for run in finished)
        figure = self._grouped(finished, metrics) if matrix else self._plain(finished, metrics)
        return [save(figure, directory, "bars")]

    @staticmethod
    def _plain(runs: Sequence[RunRecord], metrics: Sequence[str]) -> Figure:
        variants = list(dict.fromkeys(run.variant for run in runs))
        palette, labels = colours(variants), metric_labels(metrics)
        figure = Figure(figsize=(1.6 + max(2.4, 0.8 * len(variants)) * len(metrics), 3.6), layout="constrained")
        for i, metric in enumerate(metrics):
            axes = figure.add_subplot(1, len(metrics), i + 1)
            shown: list[float] = []
            for j, variant in enumerate(variants):
                shown += _bar(axes, j, 0.6, palette[variant], _values(runs, variant, metric))
            _scale(axes, shown)
            plain(axes)
            slant(axes, variants)
            axes.tick_params(axis="x", labelsize=9)
            axes.set_xlim(-0.6, len(variants) - 0.4)
            axes.set_title(labels[metric], fontsize=10)
        figure.supylabel("bars: median over seeds, dots: every seed", fontsize=8)
        return figure

    @staticmethod
    def _grouped(runs: Sequence[RunRecord], metrics: Sequence[str]) -> Figure:
        parts = {run.variant: split_label(run.variant) for run in runs}
        group = list(next(cells for _, cells in parts.values() if cells))[-1]
        arms = list(dict.fromkeys(arm for arm, _ in parts.values()))
        ticks = in_order([cells[group] for _, cells in parts.values() if group in cells])
        columns = list(dict.fromkeys(_others(cells, group) for _, cells in parts.values()))
        palette, labels = colours(arms), metric_labels(metrics)
        width = max(1.9, 0.5 + 0.22 * len(ticks) * (len(arms) + 1))
        figure = Figure(figsize=(0.9 + width * len(columns), 0.9 + 2.3 * len(metrics)), layout="constrained")
        panels = figure.subplots(len(metrics), len(columns), squeeze=False)
        bar = 0.8 / len(arms)
        for row, metric in zip(panels, metrics, strict=True):
            for axes, column in zip(row, columns, strict=True):
                shown: list[float] = []
                for variant, (arm, cells) in parts.items():
                    if _others(cells, group) == column and group in cells:
                        place = ticks.index(cells[group]) + (arms.index(arm) - (len(arms) - 1) / 2) * bar
                        shown += _bar(axes, place, 0.92 * bar, palette[arm], _values(runs, variant, metric))
                _scale(axes, shown)
                plain(axes)
                axes.set_xticks(range(len(ticks)), ticks)
                axes.set_xlim(-0.6, len(ticks) - 0.4)
            row[0].set_ylabel(labels[metric], fontsize=9)
        for axes, column in zip(panels[0], columns, strict=True):
            axes.set_title(cell_name(dict(column)), fontsize=10)
        figure.supxlabel(f"{group} (bars: median over seeds, dots: every seed)", fontsize=9)
        handles = [Patch(color=palette[arm], alpha=0.75) for arm in arms]
        figure.legend(handles, arms, loc="outside upper center", ncols=len(arms), frameon=False, fontsize=9)
        return figure


def _others(cells: dict[str, str], group: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in cells.items() if name != group)


def _values(runs: Sequence[RunRecord], variant: str, metric: str) -> list[float]:
    return [run.summary[metric] for run in runs if run.variant == variant and metric in run.summary]


def _bar(axes: Axes, place: float, width: float, colour: str, values: list[float]) -> list[float]:
    finite = [value for value in values if np.isfinite(value)]
    if not values:
        axes.text(
            place, 0.5, _MISSING, ha="center", va="center", fontsize=8, transform=axes.get_xaxis_transform(), wrap=False
        )
        return []
    if lost := len(values) - len(finite):
        axes.text(
            place, 0.97, f"{lost} of {len(values)} not finite", rotation=90, ha="center", va="top", fontsize=7,
            color="firebrick", transform=axes.get_xaxis_transform(), bbox={"fc": "white", "ec": "none", "pad": 1},
        )  # fmt: skip
    # A seed without a number is the worst one: the median counts it.
    middle = float(np.median([*finite, *[np.inf] * lost]))
    if np.isfinite(middle):
        axes.bar(place, middle, width=width, color=colour, alpha=0.75, lw=0)
    if not finite:
        return []
    spread = np.linspace(-0.2, 0.2, len(finite)) * width if len(finite) > 1 else np.zeros(1)
    size = min(4.0, 14 * width)
    axes.plot(place + spread, finite, "o", ms=size, mfc="white", mec="black", mew=0.2 * size)
    return finite


def _scale(axes: Axes, shown: Sequence[float]) -> None:
    if shown and min(shown) > 0:
        # At least a decade: on a shorter axis small differences would look large, and ticks would be uneven numbers.
        span = max(shown) / min(shown)
        margin = max(1.5, span**0.06, (10 / span) ** 0.5)
        axes.set_ylim(min(shown) / margin, max(shown) * margin)
        log_axis(axes)
