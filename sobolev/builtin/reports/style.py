"""What all figures share: colours that colour-blind readers can tell apart, labels, axes, and how a figure is saved."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sobolev.tables import split_unit

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
"""Okabe and Ito's palette."""


def colours(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for every name, in order."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def in_order(values: Sequence[str]) -> list[str]:
    """Return different values, numbers by size and anything else as it came."""
    different = list(dict.fromkeys(values))
    try:
        return sorted(different, key=float)
    except ValueError:
        return different


def metric_label(metric: str, several_sites: bool = False) -> str:
    """Return a metric for people: ``test/function/d/dx`` is "test error of d/dx"."""
    if metric == "train/loss":
        return "training loss"
    found = re.fullmatch(r"(train|validation|test)/([^/]+)/(value|spread|d\d*/.+)", metric)
    if not found:
        return metric
    split, site, what = found.groups()
    said = f"{split}: spread of members" if what == "spread" else f"{split} error of {what}"
    return said + (f" ({site})" if several_sites else "")


def metric_labels(metrics: Sequence[str]) -> dict[str, str]:
    """Return every metric's label; sites are named where there are several."""
    sites = {m.split("/")[1] for m in metrics if m.count("/") > 1}
    return {metric: metric_label(metric, len(sites) > 1) for metric in metrics}


def wrapped(text: str, width: int = 26) -> str:
    """Return a title in lines that fit a small panel; a quotient is broken before its denominator."""
    if len(text) <= width:
        return text
    return textwrap.fill(text.replace(")/d", ") /d"), width, break_long_words=False, break_on_hyphens=False)


def plain(axes: Axes) -> None:
    """Leave two borders and small numbers."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def slant(axes: Axes, labels: Sequence[str]) -> None:
    """Write names under an x axis of 0, 1, 2, ..., slanted where they would not fit side by side."""
    turned = len(labels) > 3 or max(map(len, labels), default=0) > 12
    axes.set_xticks(range(len(labels)), labels)
    if turned:
        axes.tick_params(axis="x", labelrotation=30)
        for text in axes.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")


def log_axis(axes: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers where it spans little and powers of ten where it spans much."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high / low < 1e3:
        subs = (1.0, 2.0, 5.0) if high / low > 8 else (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=subs))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("e+0", "e")))
        axes.yaxis.set_minor_formatter(NullFormatter())


def file_names(report: str, parts: Sequence[str]) -> list[str]:
    """Return a name of a file for every part of a report, such as every output; a single part needs none of its own.

    Units are left out. Names that would be equal, also where a file system does not tell capitals apart, get a number.
    """
    if len(parts) == 1:
        return [report]
    slugs = ["-".join([report, *re.findall(r"[\w.]+", split_unit(part)[0])]) for part in parts]
    names: list[str] = []
    taken = {slug.casefold() for slug in slugs}
    for i, slug in enumerate(slugs):
        name, number = slug, 1
        if slug.casefold() in {earlier.casefold() for earlier in slugs[:i]}:
            while name.casefold() in taken:
                number += 1
                name = f"{slug}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def save(figure: Figure, directory: Path, name: str) -> Path:
    """Write a figure as ``<name>.png`` and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{name}.png"
    FigureCanvasAgg(figure)
    figure.savefig(file, dpi=150)
    return file
