"""Which way of training predicts held-out samples best, and after how many steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sobolev.arrays import ArrayTarget, Samples
from sobolev.recording import Recorder
from sobolev.selection import Candidate, best, folds, in_unit_scale


def samples(rows: int) -> Samples:
    x = torch.linspace(0, 100, rows, dtype=torch.float64)[:, None]
    return Samples(x, torch.cat([x, 50 * x], 1), torch.tensor([[1.0], [50.0]], dtype=torch.float64).expand(rows, 2, 1))


def recorded(*curve: tuple[int, float, float]) -> Candidate:
    """Return a candidate whose evaluations are given: step, error of values, error of partials."""

    def train(target: ArrayTarget, recorder: Recorder) -> None:
        for step, value, partials in curve:
            recorder.log(step, {"train/loss": 1.0})  # no evaluation
            recorder.log(step, {"validation/data/value": value, "validation/data/d/dx": partials})

    return Candidate(train, earliest=100)


def test_the_smaller_product_of_errors_wins() -> None:
    candidates = {"first": recorded((100, 1.0, 100.0)), "second": recorded((100, 8.0, 1.0))}
    name, step, scores = best(samples(12), candidates, torch.arange(12))
    assert (name, step) == ("second", 100)
    assert scores == pytest.approx({"first": np.log(100) / 2, "second": np.log(8) / 2})


def test_training_ends_where_errors_begin_to_grow() -> None:
    curve = [(50, 1e-9, 1e-9), (100, 1.0, 1.0), (105, 0.5, 0.5), (110, 0.55, 0.55), (115, 0.9, 0.9)]
    # 50 is before the earliest end, 110 is as good as 105 but for 10 %, 115 is worse.
    assert best(samples(12), {"only": recorded(*curve)}, torch.arange(12))[:2] == ("only", 110)


def test_numbers_that_are_not_finite_never_win() -> None:
    candidates = {"broken": recorded((100, float("nan"), float("nan"))), "works": recorded((100, 1e9, 1e9))}
    assert best(samples(12), candidates, torch.arange(12))[0] == "works"


@pytest.mark.parametrize(("rows", "held"), [(10, 10), (100, 100), (101, 34), (200, 34), (500, 50), (1000, 100)])
def test_every_sample_is_held_out_once_or_some_of_many(rows: int, held: int) -> None:
    seen = [out.x[:, 0] for _, out in folds(samples(rows), torch.randperm(rows))]
    assert len(torch.cat(seen).unique()) == sum(map(len, seen)) == held
    for train, out in folds(samples(rows), torch.randperm(rows)):
        assert len(train.x) + len(out.x) == rows
        assert not set(train.x[:, 0].tolist()) & set(out.x[:, 0].tolist())


def test_outputs_of_different_units_weigh_alike() -> None:
    scaled = in_unit_scale(samples(20))
    assert torch.allclose(scaled.y.std(0, correction=0), torch.ones(2, dtype=torch.float64))
    assert scaled.dydx is not None
    # Both outputs are straight lines: one deviation of x is one deviation of y.
    assert torch.allclose(scaled.dydx, torch.ones(20, 2, 1, dtype=torch.float64))
