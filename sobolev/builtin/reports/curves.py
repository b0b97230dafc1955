"""Learning curves with bands over seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from matplotlib.figure import Figure

from sobolev.builtin.reports.style import colours, log_axis, save
from sobolev.components import Report, RunRecord
from sobolev.rundir import read_metrics


class Curves(Report):
    """One panel per metric, one line per variant."""

    name: ClassVar[str] = "curves"

    def __init__(self, metrics: Sequence[str]) -> None:
        self.metrics = list(metrics)

    def draw(self, runs: Sequence[RunRecord], directory: Path) -> list[Path]:
        """Draw from ``metrics.jsonl`` of every run."""
        histories = {id(run): list(read_metrics(run.directory / "metrics.jsonl")) for run in runs}
        metrics = self.metrics or _evaluated(list(histories.values()))
        variants = list(dict.fromkeys(run.variant for run in runs))
        palette = colours(variants)
        if not metrics:
            return []
        figure = Figure(figsize=(0.6 + 3.6 * len(metrics), 3.4), layout="constrained")
        for i, metric in enumerate(metrics):
            axes = figure.add_subplot(1, len(metrics), i + 1)
            positive = True
            for variant in variants:
                steps, low, middle, high = _band([histories[id(run)] for run in runs if run.variant == variant], metric)
                if not len(steps):
                    continue
                positive = positive and bool((low > 0).all())
                axes.plot(steps, middle, color=palette[variant], label=variant, lw=1.6)
                axes.fill_between(steps, low, high, color=palette[variant], alpha=0.2, lw=0)
            if positive:
                log_axis(axes)
            axes.set_title(metric, fontsize=10)
            axes.set_xlabel("step")
            axes.spines[["top", "right"]].set_visible(False)
            if i == 0:
                axes.legend(frameon=False, fontsize=9)
        return [save(figure, directory, "curves")]


def _evaluated(histories: Sequence[Sequence[dict[str, float]]]) -> list[str]:
    """Return the training loss, and the first three errors that were evaluated more than once in a run."""
    counts = Counter(name for history in histories for record in history for name in record)
    held_out = [n for n, count in counts.items() if n.startswith(("test/", "validation/")) and count > len(histories)]
    return (["train/loss"] if "train/loss" in counts else []) + held_out[:3]


def _band(histories: Sequence[Sequence[dict[str, float]]], metric: str) -> tuple[np.ndarray, ...]:
    """Return steps, least, median and greatest over seeds, at the steps that all seeds recorded."""
    series = [{r["step"]: float(r[metric]) for r in history if metric in r} for history in histories]
    series = [s for s in series if s]
    if not series:
        return (np.zeros(0),) * 4
    steps = sorted(set.intersection(*(set(s) for s in series)))
    values = np.array([[s[step] for step in steps] for s in series])
    return np.array(steps), values.min(axis=0), np.median(values, axis=0), values.max(axis=0)
