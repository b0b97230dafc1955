"""Parity: what the student says against what the target says, value and each partial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sobolev.builtin.reports.heldout import Output, Quantity, chosen, gather, not_shown, read
from sobolev.builtin.reports.style import colours, file_names, plain, save, wrapped
from sobolev.components import Report, RunRecord, Trained


class Parity(Report):
    """A figure per output; a row per variant; a column for the value and one for each partial."""

    name: ClassVar[str] = "parity"

    def __init__(self, samples: int, output: int | None, seed: int | None) -> None:
        self.samples = samples
        self.output = output
        self.seed = seed

    def record(self, trained: Trained) -> Mapping[str, np.ndarray] | None:
        """Return target and student at held-out samples; None where there are none."""
        return gather(trained, self.samples, self.output)

    def draw(self, runs: Sequence[RunRecord], directory: Path) -> list[Path]:
        """Draw one seed of every variant, by default the first that recorded something."""
        of_variant = chosen(runs, self.name, self.seed)
        found = read([run for run in runs if of_variant.get(run.variant) is run], self.name)
        names = file_names(self.name, [output.name for output in found])
        return [save(self._figure(output), directory, name) for name, output in zip(names, found, strict=True)]

    def _figure(self, output: Output) -> Figure:
        found = output.quantities
        columns = max(map(len, found.values()))
        figure = Figure(figsize=(0.4 + 2.7 * columns, 0.5 + 2.6 * len(found)), layout="constrained")
        panels = figure.subplots(len(found), columns, squeeze=False)
        palette = colours(list(found))
        for row, (variant, quantities) in zip(panels, found.items(), strict=True):
            for axes, quantity in zip(row, quantities, strict=False):
                _draw(axes, quantity, palette[variant])
            for axes in row[len(quantities) :]:
                axes.set_axis_off()
            row[0].set_ylabel(f"{variant}\nstudent", fontsize=9)
        for axes, quantity in zip(panels[0], next(q for q in found.values() if len(q) == columns), strict=True):
            axes.set_title(wrapped(quantity.label), fontsize=10)
        further = not_shown(output.further, "partial", output.others)
        figure.supxlabel("target" + (f" ({further})" if further else ""), fontsize=9)
        return figure


def _draw(axes: Axes, quantity: Quantity, colour: str) -> None:
    plain(axes)
    if not len(quantity.target):
        axes.text(0.5, 0.5, "not known", ha="center", va="center", transform=axes.transAxes, fontsize=9)
        return
    # The target sets the window; a student that leaves it is shown at its border.
    low, high = float(quantity.target.min()), float(quantity.target.max())
    margin = 0.08 * (high - low) or 1.0
    low, high = low - margin, high + margin
    inside = (quantity.student >= low) & (quantity.student <= high)
    axes.plot([low, high], [low, high], color="black", lw=0.8)
    size = float(np.clip(30 / np.sqrt(len(quantity.target)), 2, 5))  # a few points must be seen, many must not hide
    opacity = 0.4 + 0.1 * (size - 2)
    axes.plot(quantity.target[inside], quantity.student[inside], "o", ms=size, mew=0, alpha=opacity, color=colour)
    beyond = np.clip(quantity.student[~inside], low, high)
    axes.plot(quantity.target[~inside], beyond, "x", ms=1 + size, mew=0.7, alpha=0.6, color=colour)
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.set_box_aspect(1)
    axes.locator_params(nbins=4)
    axes.ticklabel_format(scilimits=(-3, 4))
    axes.xaxis.offsetText.set_fontsize(8)
    axes.yaxis.offsetText.set_fontsize(8)
    error = float(np.sqrt(np.mean((quantity.student - quantity.target) ** 2)))
    axes.text(0.04, 0.95, f"RMSE {error:.3g}", transform=axes.transAxes, va="top", fontsize=8)
