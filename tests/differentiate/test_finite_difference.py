"""Finite differences: observed order, all contractions, counting, and functions that they cannot take."""

from __future__ import annotations

import itertools
import math

import deriv_reference as reference
import pytest
import torch
from deriv_support import assert_close, contractions, points_of
from torch import Tensor

from sobolev.differentiate.exact import Exact
from sobolev.differentiate.finite_difference import FiniteDifference
from sobolev.errors import DerivativeError
from sobolev.vocabulary import Points, Probe, full

D = 3
X = ("x",)


def function(inputs: dict[str, Tensor]) -> Tensor:
    x = inputs["x"]
    return torch.stack([torch.sin(x).sum(1), torch.exp(0.3 * x).prod(1)], dim=1)


def points() -> Points:
    return points_of((D,), 2)


def exact(order: int) -> Tensor:
    where = points()
    return reference.full_derivative(lambda x: function({"x": x}), where.inputs["x"], order).detach()


def error(scheme: str, step: float | None, order: int = 1) -> float:
    key = ("x",) * order
    jet = FiniteDifference(Exact(), scheme=scheme, step=step).differentiate(function, points(), Probe.full((key,)))
    return float((jet[key] - exact(order)).abs().max())


@pytest.mark.parametrize(("scheme", "slope"), [("forward", 1), ("central", 2)])
@pytest.mark.parametrize("order", [1, 2])
def test_observed_order(scheme: str, slope: int, order: int) -> None:
    steps = [0.04, 0.02, 0.01]
    errors = [error(scheme, step, order) for step in steps]
    for wide, narrow in itertools.pairwise(errors):
        assert math.log2(wide / narrow) == pytest.approx(slope, abs=0.1)


def test_complex_steps_are_exact_to_machine_precision() -> None:
    assert error("complex-step", None) < 1e-14


@pytest.mark.parametrize(
    ("scheme", "order", "tolerance"),
    [("central", 1, 1e-9), ("forward", 1, 1e-6), ("central", 2, 1e-6), ("complex-step", 2, 1e-7)],
)
def test_the_default_step_balances_truncation_and_rounding(scheme: str, order: int, tolerance: float) -> None:
    assert error(scheme, None, order) < tolerance


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("rows", [1, 7, 4096])
def test_every_contraction(order: int, rows: int) -> None:
    key = ("x",) * order
    for what, contraction in contractions((D,), 2, order).items():
        jet = FiniteDifference(Exact(), rows=rows).differentiate(function, points(), Probe({key: contraction}))
        expected = reference.contracted(exact(order), contraction)
        assert_close(jet[key], expected, what, 1e-8 if order == 1 else 1e-5)


def test_evaluations_are_counted() -> None:
    where = points()
    rows = len(where)
    for scheme, per_sample in (("central", 1 + 2 * D), ("forward", 1 + D)):
        estimator = FiniteDifference(Exact(), scheme=scheme)
        called: list[int] = []

        def counted(inputs: dict[str, Tensor], called: list[int] = called) -> Tensor:
            called.append(len(inputs["x"]))
            return function(inputs)

        estimator.differentiate(counted, where, Probe.full((X,)))
        assert sum(called) == rows * per_sample
        assert estimator.metrics()["evaluations"] == rows * per_sample


def test_a_target_that_drops_the_imaginary_part_is_found() -> None:
    estimator = FiniteDifference(Exact(), scheme="complex-step")
    with pytest.raises(DerivativeError, match=r"disagree|real numbers"):
        estimator.differentiate(lambda i: function({"x": i["x"].abs()}).to(i["x"].dtype), points(), Probe.full((X,)))
    with pytest.raises(DerivativeError, match="real numbers"):
        FiniteDifference(Exact(), scheme="complex-step").differentiate(
            lambda i: function({"x": i["x"].real}), points(), Probe.full((X,))
        )


def test_two_inputs_each_by_its_own_steps() -> None:
    where = points_of((D,), 2)

    def product(inputs: dict[str, Tensor]) -> Tensor:
        return (torch.sin(inputs["x"]).sum(1) * inputs["y"].prod(1))[:, None]

    keys = (("x",), ("y",), ("x", "y"))
    jet = FiniteDifference(Exact()).differentiate(product, where, Probe({key: full(key) for key in keys}))
    x, y = where.inputs["x"], where.inputs["y"]
    assert_close(jet["x",][:, 0], torch.cos(x) * y.prod(1, keepdim=True), "d/dx", 1e-8)
    assert_close(jet["y",][:, 0], torch.sin(x).sum(1, keepdim=True) * y.flip(1), "d/dy", 1e-8)
    assert_close(jet["x", "y"][:, 0], torch.cos(x)[:, :, None] * y.flip(1)[:, None], "d2/dxdy", 1e-5)
