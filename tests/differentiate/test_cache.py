"""Derivatives of a target that are kept: equal to those of every step, within their bound, where that is exact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from test_runs import RECIPE, experiment
from torch import Tensor

from sobolev.vocabulary import Batch, Points, Probe

X = ("x",)
VARIANTS = {"whole": "{use: exact}", "projected": "{use: projected, side: input, probes: 2}"}


def made(folder: Path, estimator: str, bound: int):
    found = experiment(folder, RECIPE.replace("{use: exact}", estimator), smoke=True)
    found.target.derivative_cache = bound
    calls: list[int] = []
    value = found.target.value

    def counted(site: str, inputs: Mapping[str, Tensor], points: Points) -> Tensor:
        calls.append(len(points))
        return value(site, inputs, points)

    found.target.value = counted
    return found, calls


def drawn(found, ids: list[int], step: int = 0):
    batch = Batch("train", torch.tensor(ids), None)
    return found.draw(batch, step, training=True).reference["function"]


@pytest.mark.parametrize("estimator", VARIANTS.values(), ids=VARIANTS)
def test_kept_derivatives_answer_every_probe(tmp_path: Path, estimator: str) -> None:
    kept, calls = made(tmp_path, estimator, 2**20)
    fresh, _ = made(tmp_path, estimator, 0)
    for step, ids in enumerate(([3, 60, 7], [7, 8], [0, 63, 1])):
        a, b = drawn(kept, ids, step), drawn(fresh, ids, step)
        torch.testing.assert_close(a.value, b.value)
        torch.testing.assert_close(a[X], b[X])
    assert sum(calls) == 64  # the training set, once


@pytest.mark.parametrize("bound", [0, 64 * 3 * 4 - 1])
def test_a_training_set_above_the_bound_is_not_kept(tmp_path: Path, bound: int) -> None:
    found, calls = made(tmp_path, "{use: exact}", bound)
    drawn(found, [3, 60, 7])
    assert sum(calls) == 3


def test_other_splits_and_estimators_of_their_own_are_not_answered_from_it(tmp_path: Path) -> None:
    found, calls = made(tmp_path, "{use: exact}", 2**20)
    test = Batch("test", torch.arange(3), None)
    points = found.target.points(test, False)
    assert found._cached(test, {"function": Probe.full((X,))}) is None
    expected = found.reference(points, {"function": Probe.full((X,))}, None)["function"]
    drawn(found, [0, 1, 2])
    again = found.reference(points, {"function": Probe.full((X,))}, None)["function"]
    assert torch.equal(expected[X], again[X])
    differences, calls = made(tmp_path, "{use: finite-difference, of: {use: exact}}", 2**20)
    drawn(differences, [3, 60, 7])
    assert sum(calls) == 3 * 2  # value and stencil of these samples, not of all
