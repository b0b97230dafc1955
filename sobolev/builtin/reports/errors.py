"""Histograms of held-out errors, of the value and of each partial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from matplotlib.figure import Figure

from sobolev.builtin.reports.heldout import Output, gather, not_shown, read
from sobolev.builtin.reports.style import colours, file_names, plain, save, wrapped
from sobolev.components import Report, RunRecord, Trained

_BINS = (10, 40)  # least and most
_COLUMNS = 4
_DECADES = 8  # below the largest error; smaller ones are counted in the first bin


class Errors(Report):
    """Absolute errors on a logarithmic axis, one line per variant, all seeds together."""

    name: ClassVar[str] = "errors"

    def __init__(self, samples: int, output: int | None) -> None:
        self.samples = samples
        self.output = output

    def record(self, trained: Trained) -> Mapping[str, np.ndarray] | None:
        """Return target and student at held-out samples; None where there are none."""
        return gather(trained, self.samples, self.output)

    def draw(self, runs: Sequence[RunRecord], directory: Path) -> list[Path]:
        """Draw a figure per output, in it a panel per quantity."""
        found = read(runs, self.name)
        names = file_names(self.name, [output.name for output in found])
        return [save(self._figure(output), directory, name) for name, output in zip(names, found, strict=True)]

    def _figure(self, output: Output) -> Figure:
        found = output.quantities
        palette = colours(list(found))
        count = max(map(len, found.values()))
        columns = min(count, _COLUMNS)
        rows = -(-count // columns)
        figure = Figure(figsize=(0.6 + 3.0 * columns, 3.2 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels[count:]:
            axes.set_axis_off()
        for i, axes in enumerate(panels[:count]):
            shown = {v: q[i] for v, q in found.items() if i < len(q) and len(q[i].target)}
            sizes = {v: np.abs(q.student - q.target) for v, q in shown.items()}
            largest = max((float(s.max()) for s in sizes.values()), default=0.0) or 1.0
            smallest = min((float(s[s > 0].min()) for s in sizes.values() if (s > 0).any()), default=largest / 10)
            fewest = min((len(s) for s in sizes.values()), default=1)
            bins = int(np.clip(1.5 * np.sqrt(fewest), *_BINS))  # more than samples can fill would look ragged
            edges = np.geomspace(max(smallest, largest * 10.0**-_DECADES) * 0.99, largest * 1.01, bins + 1)
            for variant, error in sizes.items():
                share = np.histogram(np.maximum(error, edges[0]), edges)[0] / len(error)
                axes.stairs(share, edges, color=palette[variant], label=variant, lw=1.5)
                axes.axvline(max(float(np.median(error)), edges[0]), color=palette[variant], lw=1, ls=":")
            axes.set_xscale("log")
            axes.set_ylim(bottom=0)
            axes.set_title(wrapped(next((q.label for q in shown.values()), ""), 34), fontsize=10)
            axes.set_xlabel("absolute error", fontsize=9)
            plain(axes)
            if i % columns == 0:
                axes.set_ylabel("share of samples (dotted: median)", fontsize=9)
            if i == 0:
                axes.legend(frameon=False, fontsize=8, loc="upper left")
        figure.supxlabel(not_shown(output.further, "partial", output.others), fontsize=8)
        return figure
