"""What all figures share: colours that colour-blind readers can tell apart, and how a figure is saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
"""Okabe and Ito's palette."""


def colours(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for every name, in order."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def save(figure: Figure, directory: Path, name: str) -> Path:
    """Write a figure as ``<name>.png`` and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{name}.png"
    FigureCanvasAgg(figure)
    figure.savefig(file, dpi=150)
    return file
