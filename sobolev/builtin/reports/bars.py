"""Held-out errors per variant: the paper's Figure 2 (right)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from matplotlib.figure import Figure

from sobolev.builtin.reports.style import colours, log_axis, save
from sobolev.compare import compare
from sobolev.components import Report, RunRecord


class Bars(Report):
    """One panel per metric, one bar per variant, one dot per seed."""

    name: ClassVar[str] = "bars"

    def __init__(self, metrics: Sequence[str]) -> None:
        self.metrics = list(metrics)

    def draw(self, runs: Sequence[RunRecord], directory: Path) -> list[Path]:
        """Draw the finished runs."""
        finished = [run for run in runs if run.status == "finished"]
        metrics = self.metrics or compare(finished).metrics
        variants = list(dict.fromkeys(run.variant for run in finished))
        if not metrics:
            return []
        palette = colours(variants)
        figure = Figure(figsize=(1.6 + max(2.4, 0.8 * len(variants)) * len(metrics), 3.6), layout="constrained")
        for i, metric in enumerate(metrics):
            axes = figure.add_subplot(1, len(metrics), i + 1)
            positive = True
            for j, variant in enumerate(variants):
                values = [r.summary[metric] for r in finished if r.variant == variant and metric in r.summary]
                if not values:
                    axes.text(j, 0.5, "not\napplicable", ha="center", va="center", transform=axes.get_xaxis_transform())
                    continue
                positive = positive and min(values) > 0
                axes.bar(j, float(np.median(values)), width=0.6, color=palette[variant], alpha=0.75)
                spread = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else np.zeros(1)
                axes.plot(j + spread, values, "o", ms=4, mfc="white", mec="black", mew=0.9)
            if positive:
                log_axis(axes)
            axes.set_xticks(range(len(variants)), variants, rotation=0 if len(variants) < 4 else 30)
            axes.set_xlim(-0.6, len(variants) - 0.4)
            axes.set_title(metric, fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
        figure.supylabel("mean squared error: median, and every seed" if not self.metrics else "", fontsize=9)
        return [save(figure, directory, "bars")]
