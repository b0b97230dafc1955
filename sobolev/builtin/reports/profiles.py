"""Sensitivity profiles: value and partial along each input, the others held at the middle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sobolev.builtin.reports.heldout import MOST, not_shown, numbered, others, output_names, outputs_of, recorded
from sobolev.builtin.reports.style import colours, file_names, plain, save, wrapped
from sobolev.components import Report, RunRecord, Trained
from sobolev.tables import partial_label

_OF_ALL = ("inputs", "further", "others", "x")  # what is recorded once for all outputs


class Profiles(Report):
    """A figure per output; a column per input: the value above, below it its partial where partials are measured."""

    name: ClassVar[str] = "profiles"

    def __init__(self, grid: int, output: int | None) -> None:
        self.grid = grid
        self.output = output

    def record(self, trained: Trained) -> Mapping[str, np.ndarray] | None:
        """Return values and partials along lines through the middle of the box, or through the median sample."""
        for site, where in trained.sites.items():
            name, shape = next(iter(where.inputs.items()))
            if len(where.inputs) != 1 or len(shape) != 1:
                continue
            box = _box(trained, site, name)
            if box is None:
                continue
            low, middle, high = box
            lines = np.tile(middle, (min(len(middle), MOST), self.grid, 1))
            for i, line in enumerate(lines):
                line[:, i] = np.linspace(low[i], high[i], self.grid)
            axes = trained.axes[site]
            inputs = list(axes.inputs) if axes else numbered(name, len(middle))
            names = output_names(axes, where.outputs)
            shown = outputs_of(where.outputs, self.output)
            if not shown:
                return None
            arrays = {
                "inputs": np.array(inputs[:MOST]),
                "further": np.array(max(0, len(middle) - MOST)),
                "others": np.array(others(where.outputs, self.output)),
                "outputs": np.array([names[o] for o in shown]),
                "x": np.stack([line[:, i] for i, line in enumerate(lines)]),
            }
            for who, ask in (("student", trained.student), ("spread", trained.spread), ("target", trained.target)):
                found = [] if ask is None else [answer for line in lines if (answer := ask(site, {name: line}))]
                if not found:
                    continue
                arrays[f"{who}_value"] = np.stack([value[:, shown].T for value, _ in found], axis=1)
                if all(name in derivatives for _, derivatives in found):
                    slopes = [derivatives[name][:, shown, i].T for i, (_, derivatives) in enumerate(found)]
                    arrays[f"{who}_partial"] = np.stack(slopes, axis=1)
            return arrays
        return None

    def draw(self, runs: Sequence[RunRecord], directory: Path) -> list[Path]:
        """Draw the median over seeds, and the target where it can be asked; a figure per output.

        The band reaches from the least to the greatest seed; of an ensemble, each with the spread of its members.
        """
        found: dict[tuple[str, ...], dict[str, list[dict[str, np.ndarray]]]] = {}
        for run in runs:
            file = recorded(run, self.name)
            if file is None:
                continue
            with np.load(file, allow_pickle=False) as stored:
                whole = {name: stored[name] for name in stored.files}
            for o, output in enumerate(whole.pop("outputs")):
                record = {name: array if name in _OF_ALL else array[o] for name, array in whole.items()}
                # Runs of other inputs are drawn apart: the figure has a column per input, under its name.
                key = (str(output), *map(str, whole["inputs"]))
                found.setdefault(key, {}).setdefault(run.variant, []).append(record)
        names = file_names(self.name, [output for output, *_ in found])
        return [
            save(self._figure(variants, output), directory, name)
            for name, ((output, *_), variants) in zip(names, found.items(), strict=True)
        ]

    def _figure(self, found: Mapping[str, list[dict[str, np.ndarray]]], output: str) -> Figure:
        names = [str(name) for name in next(iter(found.values()))[0]["inputs"]]
        palette = colours(list(found))
        stored = {name for members in found.values() for record in members for name in record}
        rows = [what for what in ("value", "partial") if {f"student_{what}", f"target_{what}"} & stored]
        figure = Figure(figsize=(0.8 + 2.7 * len(names), 0.6 + 2.1 * len(rows)), layout="constrained")
        panels = figure.subplots(len(rows), len(names), squeeze=False, sharex="col")
        for i, name in enumerate(names):
            for axes, what in zip(panels[:, i], rows, strict=True):
                _lines(axes, found, what, i, palette)
                title = partial_label(output, name) if what == "partial" else output if i == 0 else ""
                axes.set_title(wrapped(title), fontsize=10, loc="left")
            panels[-1, i].set_xlabel(wrapped(name), fontsize=9)
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
        figure.supxlabel("; ".join(filter(None, (_caption(found), _further(found)))), fontsize=8)
        return figure


def _caption(found: Mapping[str, list[dict[str, np.ndarray]]]) -> str:
    """Return what lines and bands are, where there is more than one line behind them."""
    seeds = any(len(members) > 1 for members in found.values())
    members = any("spread_value" in record for records in found.values() for record in records)
    spread = "one standard deviation of the members" if members else ""
    if not seeds:
        return f"lines: mean of the members; bands: {spread}" if members else ""
    return "lines: median over seeds; bands: least to greatest" + (f", and {spread}" if members else "")


def _further(found: Mapping[str, list[dict[str, np.ndarray]]]) -> str:
    stored = [record for records in found.values() for record in records]
    inputs, outputs = (max(int(record.get(name, 0)) for record in stored) for name in ("further", "others"))
    return not_shown(inputs, "input", outputs)


def _box(trained: Trained, site: str, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return low, middle and high ``(d,)``: of the target's box, or of its training samples."""
    axes = trained.axes[site]
    if axes is not None and axes.low is not None and axes.high is not None:
        low, high = np.asarray(axes.low, dtype=float), np.asarray(axes.high, dtype=float)
        return low, (low + high) / 2, high
    samples = trained.samples("train", 2000).get(site)
    if samples is None:
        return None
    x = samples[name].astype(float)
    return x.min(axis=0), np.median(x, axis=0), x.max(axis=0)


def _lines(
    axes: Axes, found: Mapping[str, list[dict[str, np.ndarray]]], what: str, i: int, palette: Mapping[str, str]
) -> None:
    plain(axes)
    axes.ticklabel_format(scilimits=(-3, 4))
    axes.yaxis.offsetText.set_fontsize(8)
    for variant, seeds in found.items():
        if f"student_{what}" not in seeds[0]:
            continue
        x = seeds[0]["x"][i]
        # Where the box is that of the training samples, every seed has its own.
        values = np.stack([np.interp(x, seed["x"][i], seed[f"student_{what}"][i]) for seed in seeds])
        zero = np.zeros_like(seeds[0]["x"])
        spread = np.stack([np.interp(x, seed["x"][i], seed.get(f"spread_{what}", zero)[i]) for seed in seeds])
        low, high = (values - spread).min(axis=0), (values + spread).max(axis=0)
        axes.plot(x, np.median(values, axis=0), color=palette[variant], label=variant, lw=1.5)
        axes.fill_between(x, low, high, color=palette[variant], alpha=0.2, lw=0)
    _targets(axes, found, what, i, palette)


def _targets(
    axes: Axes, found: Mapping[str, list[dict[str, np.ndarray]]], what: str, i: int, palette: Mapping[str, str]
) -> None:
    """Draw the target once, or, where variants have targets of their own, each in its variant's colour."""
    lines = {
        variant: (seeds[0]["x"][i], seeds[0][f"target_{what}"][i])
        for variant, seeds in found.items()
        if f"target_{what}" in seeds[0]
    }
    if not lines:
        return
    (x, first), *others = lines.values()
    if all(np.array_equal(x, at) and np.allclose(first, line, equal_nan=True) for at, line in others):
        axes.plot(x, first, color="black", lw=1, ls="--", label="target")
        return
    for variant, (at, line) in lines.items():
        axes.plot(at, line, color=palette[variant], lw=1, ls="--", label=f"target of {variant}")
