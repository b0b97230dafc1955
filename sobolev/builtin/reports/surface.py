"""The paper's Figure 3: surfaces over their gradient fields, for inputs of two dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sobolev.builtin.reports.heldout import chosen
from sobolev.builtin.reports.style import save
from sobolev.components import Report, RunRecord, Trained
from sobolev.labels import cell_name, split_label

_ARROWS = 16  # along each axis


class Surface(Report):
    """Target and student on a grid: the value as a surface, the gradient as a field under it."""

    name: ClassVar[str] = "surface"

    def __init__(self, grid: int, seed: int | None) -> None:
        self.grid = grid
        self.seed = seed

    def record(self, trained: Trained) -> Mapping[str, np.ndarray] | None:
        """Return values and gradients on a grid; None where the input has not two dimensions or no box."""
        for site, axes in trained.axes.items():
            shape = next(iter(trained.sites[site].inputs.values()))
            if axes is None or axes.low is None or axes.high is None or shape != (2,) or len(axes.outputs) != 1:
                continue
            x = np.linspace(axes.low[0], axes.high[0], self.grid)
            y = np.linspace(axes.low[1], axes.high[1], self.grid)
            points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
            name = next(iter(trained.sites[site].inputs))
            value, gradients = trained.student(site, {name: points})
            arrays = {"x": x, "y": y, "value": value[:, 0], "gradient": _gradient(gradients, name, points)}
            if trained.target is not None:
                value, gradients = trained.target(site, {name: points})
                arrays |= {"target_value": value[:, 0], "target_gradient": _gradient(gradients, name, points)}
            samples = trained.samples("train", 200).get(site)
            if samples is not None:
                arrays["samples"] = samples[name]
            arrays["labels"] = np.array([*axes.inputs, *axes.outputs])
            return arrays
        return None

    def draw(self, runs: Sequence[RunRecord], directory: Path) -> list[Path]:
        """Draw the target and one run of every variant side by side: one figure for every cell of the matrix."""
        of_variant = chosen(runs, self.name, self.seed)
        figures: dict[tuple[tuple[str, str], ...], list[tuple[str, RunRecord]]] = {}
        for variant in dict.fromkeys(run.variant for run in runs):
            if variant in of_variant:
                arm, cells = split_label(variant)
                figures.setdefault(tuple(cells.items()), []).append((arm or variant, of_variant[variant]))
        return [self._figure(dict(cells), members, directory) for cells, members in figures.items()]

    def _figure(self, cells: Mapping[str, str], members: Sequence[tuple[str, RunRecord]], directory: Path) -> Path:
        columns = _columns(members)
        figure = Figure(figsize=(4.2 * len(columns), 8.2))
        # The target gives the scale of all; where it cannot be asked, all of them together.
        scaling = columns[:1] if columns[0][0] == "target" else columns
        low = min(float(data["value"].min()) for _, data in scaling)
        high = max(float(data["value"].max()) for _, data in scaling)
        high = high if high > low else low + 1.0
        for i, (title, data) in enumerate(columns):
            self._surface(figure, len(columns), i, title, data, low, high)
            self._field(figure, len(columns), i, data, low, high)
        left = max(0.05, 0.75 / (4.2 * len(columns)))  # room for a name with its unit
        figure.subplots_adjust(left=left, right=0.97, bottom=0.07, top=0.93, wspace=0.2, hspace=0.08)
        if cells:
            figure.suptitle(cell_name(cells), fontsize=12)
        return save(figure, directory, "-".join(["surface", *cells.values()]))

    def _surface(
        self, figure: Figure, count: int, i: int, title: str, data: Mapping[str, Any], low: float, high: float
    ) -> None:
        axes: Any = figure.add_subplot(2, count, i + 1, projection="3d")
        x, y = np.meshgrid(data["x"], data["y"])
        z = data["value"].reshape(x.shape)
        axes.plot_surface(
            x, y, np.clip(z, low, high), cmap="viridis", vmin=low, vmax=high, rcount=60, ccount=60,
            linewidth=0, antialiased=True,
        )  # fmt: skip
        if "samples" in data and title == "target":
            samples = data["samples"]
            axes.scatter(samples[:, 0], samples[:, 1], np.full(len(samples), low), s=8, color="black", depthshade=False)
        axes.set_zlim(low, high)
        axes.view_init(elev=32, azim=-60)
        axes.set_title(title, fontsize=14, y=1.02)
        axes.set_xlabel(str(data["labels"][0]))
        axes.set_ylabel(str(data["labels"][1]))
        axes.tick_params(labelsize=8, pad=0)
        for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
            axis.set_major_locator(MaxNLocator(5))
        axes.zaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}".replace("e+0", "e")))
        axes.set_box_aspect((1, 1, 0.75), zoom=0.98)

    def _field(self, figure: Figure, count: int, i: int, data: Mapping[str, Any], low: float, high: float) -> None:
        axes = figure.add_subplot(2, count, count + i + 1)
        x, y = data["x"], data["y"]
        z = data["value"].reshape(len(y), len(x))
        axes.contourf(x, y, np.clip(z, low, high), levels=np.linspace(low, high, 25), cmap="viridis", alpha=0.55)
        every = max(1, len(x) // _ARROWS)
        gradient = data["gradient"].reshape(len(y), len(x), 2)[::every, ::every]
        # Directions are what the eye compares; lengths are compressed so that steep corners do not hide the rest.
        length = np.linalg.norm(gradient, axis=-1, keepdims=True)
        arrows = gradient / np.maximum(length, 1e-12) * np.log1p(length)
        axes.quiver(x[::every], y[::every], arrows[..., 0], arrows[..., 1], pivot="mid", width=0.004, color="#222222")
        if "samples" in data:
            samples = data["samples"]
            axes.plot(samples[:, 0], samples[:, 1], "o", ms=4, mfc="white", mec="black", mew=0.8)
        axes.set_xlabel(str(data["labels"][0]))
        if i == 0:
            axes.set_ylabel(str(data["labels"][1]))
        axes.tick_params(labelsize=8)


def _columns(members: Sequence[tuple[str, RunRecord]]) -> list[tuple[str, dict[str, Any]]]:
    """Return title and numbers of every column, the target first where it is known."""
    columns: list[tuple[str, dict[str, Any]]] = []
    for title, run in members:
        with np.load(run.directory / "records" / "surface.npz", allow_pickle=False) as stored:
            data = {name: stored[name] for name in stored.files}
        if not columns and "target_value" in data:
            columns.append(("target", {**data, "value": data["target_value"], "gradient": data["target_gradient"]}))
        columns.append((title, data))
    return columns


def _gradient(gradients: Mapping[str, np.ndarray], name: str, points: np.ndarray) -> np.ndarray:
    found = gradients.get(name)
    return np.zeros_like(points) if found is None else found[:, 0]
