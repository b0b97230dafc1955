"""What the student answers at held-out samples, beside the target: numbers for parity and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sobolev.components import RunRecord, Trained
from sobolev.tables import partial_label

_MOST = 8  # quantities of an output that are shown
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
    names = list(axes.outputs) if axes else ["f"] if target[0].shape[1] == 1 else numbered("f", target[0].shape[1])
    columns = []
    for o in outputs_of(target[0].shape[1], output):
        mine = [(names[o], names[o], target[0][:, o], student[0][:, o])]
        for key, derivative in target[1].items():
            whole = derivative[:, o].reshape(len(derivative), -1)
            answered = student[1][key][:, o].reshape(whole.shape)
            by = axes.inputs if axes and len(axes.inputs) == whole.shape[1] else [key]
            if len(by) != whole.shape[1]:
                by = numbered(key, whole.shape[1])
            mine += [(names[o], partial_label(names[o], x), whole[:, i], answered[:, i]) for i, x in enumerate(by)]
        columns += mine[:_MOST]
    if not columns:
        return None
    outputs, labels, expected, found = zip(*columns, strict=True)
    return {
        "outputs": np.array(outputs),
        "labels": np.array(labels),
        "target": np.stack(expected),
        "student": np.stack(found),
        "split": np.array(split),
    }


def numbered(name: str, count: int) -> list[str]:
    """Return names of axes that have none: ``x1``, ``x2``, ..."""
    return [f"{name}{i + 1}" for i in range(count)]


def read(runs: Sequence[RunRecord], name: str, seed: int | None) -> dict[str, dict[str, list[Quantity]]]:
    """Return the quantities by output and variant, over all seeds or of one."""
    found: dict[str, dict[str, list[list[Quantity]]]] = {}
    for run in runs:
        file = run.directory / "records" / f"{name}.npz"
        if seed not in (None, run.seed) or not file.is_file():
            continue
        with np.load(file, allow_pickle=False) as stored:
            rows = list(zip(*(stored[n] for n in ("outputs", "labels", "target", "student")), strict=True))
        of_run: dict[str, list[Quantity]] = {}
        for output, label, target, student in rows:
            of_run.setdefault(str(output), []).append(_quantity(str(label), target, student))
        for output, quantities in of_run.items():
            found.setdefault(output, {}).setdefault(run.variant, []).append(quantities)
    return {
        output: {variant: [_joined(parts) for parts in zip(*seeds, strict=True)] for variant, seeds in of.items()}
        for output, of in found.items()
    }


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
