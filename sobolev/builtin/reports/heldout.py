"""What the student answers at held-out samples, beside the target: numbers for parity and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sobolev.components import Axes, RunRecord, Trained
from sobolev.tables import partial_label
from sobolev.wording import plural

MOST = 8  # quantities of an output, or inputs, that are shown
_OUTPUTS = 4  # outputs that are shown where none is named


def outputs_of(count: int, chosen: int | None) -> list[int]:
    """Return which of so many outputs a report shows; none where the chosen one is not there."""
    return list(range(min(count, _OUTPUTS))) if chosen is None else [chosen][: count > chosen]


@dataclass(frozen=True)
class Quantity:
    """One number per sample: a value, or a partial.

    Attributes:
        label: for an axis: ``f``, ``df/dx``.
        target, student: ``(B,)``, without samples that the target does not know.
    """

    label: str
    target: np.ndarray
    student: np.ndarray


@dataclass(frozen=True)
class Output:
    """What is drawn of an output.

    Attributes:
        name: of the output.
        quantities: by variant.
        further: partials that were not recorded, as there are too many.
        others: outputs that were not recorded, where none was named and there are too many.
    """

    name: str
    quantities: Mapping[str, list[Quantity]]
    further: int
    others: int


_Found = dict[tuple[str, tuple[str, ...]], dict[str, list[list[Quantity]]]]
"""By output and labels: quantities by variant, a list of them per run."""


def gather(trained: Trained, limit: int, output: int | None) -> Mapping[str, np.ndarray] | None:
    """Return values and partials at samples of the test split, or of validation, or of training.

    Of one output, or, where it is None, of the first few.
    """
    for split in ("test", "validation", "train"):
        compared = trained.compared(split, limit)
        if compared:
            break
    else:
        return None
    site, (target, student) = next(iter(compared.items()))
    axes = trained.axes.get(site)
    names = output_names(axes, target[0].shape[1])
    columns: list[tuple[Any, ...]] = []
    for o in outputs_of(target[0].shape[1], output):
        mine = [(names[o], names[o], target[0][:, o], student[0][:, o])]
        for key, derivative in target[1].items():
            whole = derivative[:, o].reshape(len(derivative), -1)
            answered = student[1][key][:, o].reshape(whole.shape)
            by = axes.inputs if axes and len(axes.inputs) == whole.shape[1] else [key]
            if len(by) != whole.shape[1]:
                by = numbered(key, whole.shape[1])
            mine += [(names[o], partial_label(names[o], x), whole[:, i], answered[:, i]) for i, x in enumerate(by)]
        columns += [(*column, max(0, len(mine) - MOST)) for column in mine[:MOST]]
    if not columns:
        return None
    outputs, labels, expected, found, further = zip(*columns, strict=True)
    return {
        "outputs": np.array(outputs),
        "labels": np.array(labels),
        "target": np.stack(expected),
        "student": np.stack(found),
        "further": np.array(further),
        "others": np.array(others(target[0].shape[1], output)),
        "split": np.array(split),
    }


def numbered(name: str, count: int) -> list[str]:
    """Return names of axes that have none: ``x1``, ``x2``, ..."""
    return [f"{name}{i + 1}" for i in range(count)]


def output_names(axes: Axes | None, count: int) -> list[str]:
    """Return the names of the outputs of a site: those of its axes, or ``f``, or ``f1``, ``f2``, ..."""
    return list(axes.outputs) if axes else ["f"] if count == 1 else numbered("f", count)


def others(count: int, chosen: int | None) -> int:
    """Return how many outputs get no figure because there are too many."""
    return max(0, count - _OUTPUTS) if chosen is None else 0


def not_shown(further: int, of: str, others: int = 0) -> str:
    """Return what a figure says of so many partials or inputs that it leaves out, and of outputs without a figure."""
    left = [f"{plural(further, f'further {of}')} {'is' if further == 1 else 'are'} not shown"] if further else []
    if others:
        left.append(f"{plural(others, 'further output')} {'has' if others == 1 else 'have'} no figure")
    return "; ".join(left)


def chosen(runs: Sequence[RunRecord], name: str, seed: int | None) -> dict[str, RunRecord]:
    """Return by variant the run of one seed, or, where it is None, of the least that has numbers of the report."""
    found: dict[str, RunRecord] = {}
    for run in sorted(runs, key=lambda r: r.seed):
        if seed in (None, run.seed) and recorded(run, name) is not None:
            found.setdefault(run.variant, run)
    return found


def recorded(run: RunRecord, name: str) -> Path | None:
    """Return the file in which a run recorded the numbers of a report, or None where it has none."""
    file = run.directory / "records" / f"{name}.npz"
    return file if file.is_file() else None


def read(runs: Sequence[RunRecord], name: str) -> list[Output]:
    """Return outputs, and the quantities of each by variant, over all seeds of the runs.

    An output comes once for all variants that recorded the same quantities of it, or only the first of these, and again
    for those that recorded others.
    """
    found: _Found = {}
    further: dict[str, int] = {}
    left = 0
    for run in runs:
        file = recorded(run, name)
        if file is None:
            continue
        with np.load(file, allow_pickle=False) as stored:
            rows = list(zip(*(stored[n] for n in ("outputs", "labels", "target", "student")), strict=True))
            if "further" in stored:
                more = zip(map(str, stored["outputs"]), map(int, stored["further"]), strict=True)
                further |= {output: max(count, further.get(output, 0)) for output, count in more}
            left = max(left, int(stored["others"])) if "others" in stored else left
        of_run: dict[str, list[Quantity]] = {}
        for output, label, target, student in rows:
            of_run.setdefault(str(output), []).append(_quantity(str(label), target, student))
        for output, quantities in of_run.items():
            labels = tuple(quantity.label for quantity in quantities)
            found.setdefault((output, labels), {}).setdefault(run.variant, []).append(quantities)
    made = []
    for (output, _), variants in _together(found).items():
        ordered = [variant for variant in dict.fromkeys(run.variant for run in runs) if variant in variants]
        joined = {v: [_joined(parts) for parts in zip(*variants[v], strict=True)] for v in ordered}
        made.append(Output(output, joined, further.get(output, 0), left))
    return made


def _together(found: _Found) -> _Found:
    """Return what was found, with variants that have fewer quantities among those that have the same and more."""
    made = dict(found)
    for key in sorted(found, key=lambda key: len(key[1])):
        output, labels = key
        for other in made:
            more = other[0] == output and len(other[1]) > len(labels) and other[1][: len(labels)] == labels
            if more and not made[other].keys() & made[key].keys():
                made[other] = made[other] | made.pop(key)
                break
    return made


def _joined(parts: Sequence[Quantity]) -> Quantity:
    """Return one quantity of several runs."""
    return Quantity(
        parts[0].label,
        np.concatenate([part.target for part in parts]),
        np.concatenate([part.student for part in parts]),
    )


def _quantity(label: str, target: np.ndarray, student: np.ndarray) -> Quantity:
    known = np.isfinite(target) & np.isfinite(student)
    return Quantity(label, target[known].astype(float), student[known].astype(float))
