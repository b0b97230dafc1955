"""What all figures share: colours that colour-blind readers can tell apart, and how a figure is saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
"""Okabe and Ito's palette."""


def colours(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for every name, in order."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def log_axis(axes: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers where it spans little and powers of ten where it spans much."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high / low < 1e3:
        subs = (1.0, 2.0, 5.0) if high / low > 8 else (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=subs))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def save(figure: Figure, directory: Path, name: str) -> Path:
    """Write a figure as ``<name>.png`` and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{name}.png"
    FigureCanvasAgg(figure)
    figure.savefig(file, dpi=150)
    return file
