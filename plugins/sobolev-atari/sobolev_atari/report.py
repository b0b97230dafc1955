"""The report `distillation`: test errors while training, by game and share of the states (the paper's Figure 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sobolev import Report, RunRecord
from sobolev.builtin.reports.style import colours, log_axis, save
from sobolev.rundir import read_metrics

_TITLES = {
    "test/action-error": "action error",
    "test/kl-student-teacher": "KL(student, teacher)",
    "test/kl-teacher-student": "KL(teacher, student)",
    "test/policy/d/dx": "derivative error",
    "score": "score",
}
_LINEAR = ("test/action-error", "score")  # shares, and numbers of any sign


@dataclass(frozen=True)
class _Group:
    """Runs of one approach on one game with one share of the states."""

    game: str
    percent: float
    approach: str
    runs: tuple[RunRecord, ...]


class DistillationReport(Report):
    """A panel per game, share and metric, a line per approach: median over seeds, band from least to greatest.

    Args:
        metrics: drawn side by side; names as in ``metrics.jsonl``.
    """

    name: ClassVar[str] = "distillation"

    def __init__(self, metrics: Sequence[str]) -> None:
        self.metrics = list(metrics)

    def draw(self, runs: Sequence[RunRecord], directory: Path) -> list[Path]:
        """Draw ``distillation.png`` and write ``distillation.md``, a table of the finished runs."""
        groups = _groups([run for run in runs if run.status == "finished"])
        if not groups:
            return []
        games = list(dict.fromkeys(group.game for group in groups))
        percents = sorted({group.percent for group in groups})
        palette = colours(list(dict.fromkeys(group.approach for group in groups)))
        columns = [(metric, percent) for metric in self.metrics for percent in percents]
        figure = Figure(figsize=(0.5 + 2.7 * len(columns), 0.5 + 2.2 * len(games)), layout="constrained")
        panels = figure.subplots(len(games), len(columns), squeeze=False)
        for row, game in enumerate(games):
            for column, (metric, percent) in enumerate(columns):
                axes = panels[row][column]
                found = [group for group in groups if (group.game, group.percent) == (game, percent)]
                _panel(axes, found, metric, palette)
                if row == 0:
                    axes.set_title(f"{_TITLES.get(metric, metric)}, {percent:g} %", fontsize=10)
                if row == len(games) - 1:
                    axes.set_xlabel("step")
                if column == 0:
                    axes.set_ylabel(game.replace("_", " "))
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", frameon=False, fontsize=9, ncols=len(labels))
        drawn = save(figure, directory, "distillation")
        table = directory / "distillation.md"
        table.write_text(table_of(groups))
        return [drawn, table]


def _groups(runs: Sequence[RunRecord]) -> list[_Group]:
    found: dict[tuple[str, float, str], list[RunRecord]] = {}
    for run in runs:
        target: Mapping[str, Any] = run.config.get("target", {})
        game = target.get("environment") or target.get("teacher") or "?"
        if isinstance(game, Mapping):  # a recipe that trains its teacher
            game = game.get("environment", "?")
        key = (str(game), float(target.get("train_percent", 100)), run.variant.split(",")[0])
        found.setdefault(key, []).append(run)
    return [_Group(*key, tuple(members)) for key, members in found.items()]


def _panel(axes: Axes, groups: Sequence[_Group], metric: str, palette: Mapping[str, str]) -> None:
    positive = True
    for group in groups:
        histories = [
            {int(r["step"]): float(r[metric]) for r in read_metrics(run.directory / "metrics.jsonl") if metric in r}
            for run in group.runs
        ]
        steps = sorted(set.intersection(*(set(history) for history in histories)))
        if not steps:
            continue
        values = np.array([[history[step] for step in steps] for history in histories])
        positive = positive and bool((values > 0).all())
        colour = palette[group.approach]
        axes.plot(steps, np.median(values, 0), color=colour, label=group.approach, lw=1.6)
        axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.2, lw=0)
    if positive and axes.lines and metric not in _LINEAR:
        log_axis(axes)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def table_of(groups: Sequence[_Group]) -> str:
    """Final numbers as a Markdown table, approaches side by side: median over seeds, and the least and the greatest."""
    cells_of = list(dict.fromkeys((group.game, group.percent) for group in groups))
    ordered = sorted(groups, key=lambda group: cells_of.index((group.game, group.percent)))
    scored = any("teacher-score" in run.summary for group in groups for run in group.runs)
    shown = [name for name in _TITLES if any(name in run.summary for group in groups for run in group.runs)]
    head = ["game", "states that train", "approach", "seeds", *(_TITLES[name] for name in shown)]
    head += ["teacher's score"] if scored else []
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for group in ordered:
        cells = [group.game.replace("_", " "), f"{group.percent:g} %", group.approach, str(len(group.runs))]
        for name in shown:
            cells.append(_spread([run.summary[name] for run in group.runs if name in run.summary]))
        if scored:
            teachers = {run.summary["teacher-score"] for run in group.runs if "teacher-score" in run.summary}
            cells.append(_spread(list(teachers)))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    low, middle, high = min(values), float(np.median(values)), max(values)
    return _number(middle) if low == high else f"{_number(middle)} ({_number(low)} to {_number(high)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
