"""Which rows train, validate and test: by fraction, by a column, or by whole groups."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sobolev.builtin.targets.table.store import Summary
from sobolev.errors import DataError
from sobolev.wording import plural

Rows = dict[str, NDArray[np.int64]]
_NO_GROUP = {"", "nan", "null"}


def by_fraction(usable: NDArray[np.int64], validation: float, test: float, seed: int) -> Rows:
    """Split rows at random; the same rows for the same seed, whatever the seed of a run."""
    order = np.random.default_rng(seed).permutation(usable)
    n_test, n_validation = round(test * len(order)), round(validation * len(order))
    return {
        "test": np.sort(order[:n_test]),
        "validation": np.sort(order[n_test : n_test + n_validation]),
        "train": np.sort(order[n_test + n_validation :]),
    }


def by_label(
    usable: NDArray[np.int64],
    codes: NDArray[np.int32],
    summary: Summary,
    wanted: Mapping[str, Sequence[str]],
    where: str,
) -> Rows:
    """Split rows by what stands in a column.

    Args:
        usable: rows that may be used.
        codes: of all rows.
        summary: with the labels.
        wanted: the labels of every split.
        where: file and column, for messages.

    Raises:
        DataError: a label that belongs to no split.
    """
    split_of: dict[str, str] = {}
    for split, labels in wanted.items():
        for label in labels:
            other = split_of.setdefault(label.lower(), split)
            if other != split:
                raise DataError(f"{where}: split.labels: {label!r} is named for {other} and for {split}")
    strange = [label for label in summary.labels if label.lower() not in split_of]
    if strange:
        shown = ", ".join(map(repr, strange[:8])) + (" and more" if len(strange) > 8 else "")
        meant = "; ".join(f"{split}: {', '.join(labels)}" for split, labels in wanted.items() if labels)
        raise DataError(f"{where}: {shown}: belongs to no split; they are told by split.labels ({meant})")
    rows = {}
    for split in ("train", "validation", "test"):
        codes_of = [i for i, label in enumerate(summary.labels) if split_of[label.lower()] == split]
        rows[split] = usable[np.isin(codes[usable], codes_of)]
    return rows


def by_group(
    usable: NDArray[np.int64],
    codes: NDArray[np.int32],
    summary: Summary,
    validation: float,
    test: float,
    seed: int,
    column: str,
    place: Callable[[int], str],
) -> Rows:
    """Split whole groups, so that none is in two splits; fractions are of groups, not of rows.

    The order of groups hangs on their names and the seed alone: a table with its rows in another order, or with more
    rows of the same groups, is split in the same way.

    Raises:
        DataError: rows that may be used, but belong to no group.
    """
    names = summary.labels
    nameless = {i for i, name in enumerate(names) if name.strip().lower() in _NO_GROUP}
    alone = usable[np.isin(codes[usable], list(nameless))]
    if len(alone):
        raise DataError(
            f"{place(int(alone[0]))}: column {column!r}: the group is missing"
            + (f", there and in {plural(len(alone) - 1, 'other row')}" if len(alone) > 1 else "")
            + "; name the group of every row (a row that belongs with no other is a group of its own), or remove such "
            "rows"
        )
    named = {*range(len(names))} - nameless
    order = sorted(named, key=lambda i: hashlib.blake2b(f"{seed}\x1f{names[i]}".encode()).digest())
    n_test, n_validation = round(test * len(order)), round(validation * len(order))
    split = np.zeros(len(names), dtype=np.int8)
    split[order[:n_test]] = 2
    split[order[n_test : n_test + n_validation]] = 1
    of_row = split[codes[usable]]
    return {name: usable[of_row == i] for i, name in enumerate(("train", "validation", "test"))}
