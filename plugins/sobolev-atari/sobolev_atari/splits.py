"""Which states train and which test: by time, test states from other episodes (supplement 3)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sobolev import DataError

Split = Literal["time", "fixed-test"]


def split_rows(
    episodes: NDArray[np.int64],
    *,
    split: Split,
    train_percent: float,
    validation_percent: float,
    test_percent: float,
    most_test: int | None,
) -> dict[str, NDArray[np.int64]]:
    """Rows of the three splits of N decisions that are stored in order of time.

    The first `train_percent` of all decisions train; their last `validation_percent` validate instead. With `time` all
    other decisions test, with `fixed-test` only the last `test_percent`, whatever trains. Decisions of an episode that
    reaches into the first part are left out of the test. Test rows come in a fixed random order, so that any first
    part of them is a fair sample; `most_test` keeps that many.

    Args:
        episodes: `(N,)`, a number per decision that is unique to its episode.
        split: how the test part is chosen.
        train_percent: of all decisions.
        validation_percent: of those that train.
        test_percent: of all decisions (`fixed-test`).
        most_test: bound of the test part, or None.

    Raises:
        DataError: a part is empty, or training and test parts meet.
    """
    count = len(episodes)
    cut = round(count * train_percent / 100)
    held = round(cut * validation_percent / 100)
    begin = cut if split == "time" else count - round(count * test_percent / 100)
    if begin < cut:
        raise DataError(f"{train_percent} % of the states train and {test_percent} % test: together more than all")
    test = np.arange(begin, count)
    test = test[~np.isin(episodes[test], np.unique(episodes[:cut]))]
    if cut - held < 1 or not len(test):
        raise DataError(
            f"of {count} states {cut - held} train and {len(test)} test (of episodes that do not train); "
            "collect more states, or change train_percent"
        )
    test = np.random.default_rng(0).permutation(test)[:most_test]
    return {"train": np.arange(cut - held), "validation": np.arange(cut - held, cut), "test": test}
