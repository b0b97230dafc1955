"""Learning curves with bands over seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sobolev.builtin.reports.style import (
    colours,
    in_order,
    log_axis,
    metric_labels,
    plain,
    save,
)
from sobolev.components import Report, RunRecord
from sobolev.labels import cell_name, split_label
from sobolev.rundir import read_metrics

History = Sequence[Mapping[str, float]]


class Curves(Report):
    """Median over seeds of a metric against the step, with a band from the least to the greatest.

    Without a matrix there is one figure with a panel per metric. With one there is a figure per metric, with a panel
    per cell of the matrix.
    """

    name: ClassVar[str] = "curves"

    def __init__(self, metrics: Sequence[str]) -> None:
        self.metrics = list(metrics)

    def draw(self, runs: Sequence[RunRecord], directory: Path) -> list[Path]:
        """Draw from ``metrics.jsonl`` of every run."""
        histories: dict[str, list[History]] = {}
        for run in runs:
            histories.setdefault(run.variant, []).append(list(read_metrics(run.directory / "metrics.jsonl")))
        recorded = {name for runs_ in histories.values() for history in runs_ for r in history for name in r}
        metrics = [m for m in self.metrics if m in recorded] if self.metrics else _evaluated(histories)
        if not metrics:
            return []
        if any(split_label(variant)[1] for variant in histories):
            return [self._matrix(histories, metric, directory) for metric in metrics]
        palette, labels = colours(list(histories)), metric_labels(metrics)
        figure = Figure(figsize=(0.6 + 3.6 * len(metrics), 3.4), layout="constrained")
        for i, metric in enumerate(metrics):
            axes = figure.add_subplot(1, len(metrics), i + 1)
            _panel(axes, {variant: (variant, h) for variant, h in histories.items()}, metric, palette)
            axes.set_title(labels[metric], fontsize=10)
            axes.set_xlabel("step", fontsize=9)
            if i == 0:
                axes.legend(frameon=False, fontsize=9)
        return [save(figure, directory, "curves")]

    @staticmethod
    def _matrix(histories: Mapping[str, list[History]], metric: str, directory: Path) -> Path:
        parts = {variant: split_label(variant) for variant in histories}
        palette = colours(list(dict.fromkeys(arm for arm, _ in parts.values())))
        cells = list(dict.fromkeys(tuple(cells.items()) for _, cells in parts.values()))
        fields = list(dict(cells[0])) if cells[0] else []
        # The field with most values runs along the rows.
        across = max(fields, key=lambda f: len({dict(c).get(f) for c in cells}), default="")
        columns = in_order([dict(cell).get(across, "") for cell in cells])
        rows = list(dict.fromkeys(tuple(p for p in cell if p[0] != across) for cell in cells))
        figure = Figure(figsize=(0.8 + 1.95 * len(columns), 0.9 + 2.0 * len(rows)), layout="constrained")
        panels = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True)
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                here = {*row, (across, column)}
                members = {v: (arm, histories[v]) for v, (arm, c) in parts.items() if set(c.items()) == here}
                _panel(panels[i, j], members, metric, palette)
                panels[i, j].set_title(cell_name({across: column, **dict(row)}), fontsize=9)
        figure.supxlabel("step", fontsize=9)
        figure.supylabel(metric_labels([metric])[metric], fontsize=9)
        handles = [figure.axes[0].plot([], [], color=colour, lw=1.6)[0] for colour in palette.values()]
        figure.legend(handles, list(palette), loc="outside upper center", ncols=len(palette), frameon=False, fontsize=9)
        return save(figure, directory, "curves-" + metric.replace("/", "-"))


def _panel(
    axes: Axes, members: Mapping[str, tuple[str, list[History]]], metric: str, palette: Mapping[str, str]
) -> None:
    positive = True
    for arm, histories in members.values():
        steps, low, middle, high = _band(histories, metric)
        if not len(steps):
            continue
        positive = positive and bool((low > 0).all())
        axes.plot(steps, middle, color=palette[arm], label=arm, lw=1.6)
        axes.fill_between(steps, low, high, color=palette[arm], alpha=0.2, lw=0)
    if positive and axes.lines:
        log_axis(axes)
    plain(axes)


def _evaluated(histories: Mapping[str, list[History]]) -> list[str]:
    """Return the training loss, and the first three errors that were evaluated more than once in a run."""
    flat = [history for members in histories.values() for history in members]
    counts = Counter(name for history in flat for record in history for name in record)
    held_out = [n for n, count in counts.items() if n.startswith(("test/", "validation/")) and count > len(flat)]
    return (["train/loss"] if "train/loss" in counts else []) + held_out[:3]


def _band(histories: Sequence[History], metric: str) -> tuple[np.ndarray, ...]:
    """Return steps, least, median and greatest over seeds, at the steps that all seeds recorded."""
    series = [{r["step"]: float(r[metric]) for r in history if metric in r} for history in histories]
    series = [s for s in series if s]
    if not series:
        return (np.zeros(0),) * 4
    steps = sorted(set.intersection(*(set(s) for s in series)))
    values = np.array([[s[step] for step in steps] for s in series])
    return np.array(steps), values.min(axis=0), np.median(values, axis=0), values.max(axis=0)
