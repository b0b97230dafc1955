"""What the student answers at held-out samples, beside the target: numbers for parity and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sobolev.components import RunRecord, Trained
from sobolev.tables import partial_label

_MOST = 8  # quantities that are shown


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


def gather(trained: Trained, limit: int, output: int) -> Mapping[str, np.ndarray] | None:
    """Return values and partials of one output at samples of the test split, or of validation, or of training."""
    for split in ("test", "validation", "train"):
        compared = trained.compared(split, limit)
        if compared:
            break
    else:
        return None
    site, (target, student) = next(iter(compared.items()))
    axes = trained.axes.get(site)
    if output >= target[0].shape[1]:
        return None
    name = axes.outputs[output] if axes else "f"
    columns = [(name, target[0][:, output], student[0][:, output])]
    for key, derivative in target[1].items():
        whole = derivative[:, output].reshape(len(derivative), -1)
        mine = student[1][key][:, output].reshape(whole.shape)
        named = axes.inputs if axes and len(axes.inputs) == whole.shape[1] else [key]
        if len(named) != whole.shape[1]:
            named = [f"{key}{i + 1}" for i in range(whole.shape[1])]
        columns += [(partial_label(name, x), whole[:, i], mine[:, i]) for i, x in enumerate(named)]
    columns = columns[:_MOST]
    return {
        "labels": np.array([label for label, _, _ in columns]),
        "target": np.stack([values for _, values, _ in columns]),
        "student": np.stack([values for _, _, values in columns]),
        "split": np.array(split),
    }


def read(runs: Sequence[RunRecord], name: str, seed: int | None) -> dict[str, list[Quantity]]:
    """Return the quantities by variant, over all seeds or of one."""
    found: dict[str, list[list[Quantity]]] = {}
    for run in runs:
        file = run.directory / "records" / f"{name}.npz"
        if seed in (None, run.seed) and file.is_file():
            with np.load(file, allow_pickle=False) as stored:
                rows = zip(stored["labels"], stored["target"], stored["student"], strict=True)
                found.setdefault(run.variant, []).append([_quantity(str(label), t, s) for label, t, s in rows])
    return {
        variant: [
            Quantity(
                parts[0].label, *(np.concatenate([getattr(p, side) for p in parts]) for side in ("target", "student"))
            )
            for parts in zip(*seeds, strict=True)
        ]
        for variant, seeds in found.items()
    }


def _quantity(label: str, target: np.ndarray, student: np.ndarray) -> Quantity:
    known = np.isfinite(target) & np.isfinite(student)
    return Quantity(label, target[known].astype(float), student[known].astype(float))
