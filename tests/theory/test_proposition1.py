"""Proposition 1: the constructed network, verified by autograd."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sobolev.builtin.theory.constructive import Constructive, _line
from sobolev.builtin.theory.families import Member, PolynomialStudent
from sobolev.builtin.theory.finite import FiniteSet
from sobolev.components import Context
from sobolev.distributed import connect
from sobolev.errors import ComponentError
from sobolev.heads import HEADS
from sobolev.vocabulary import Batch, Contraction, Probe, Site


def finite(points: int = 12, dimension: int = 2, grid: bool = False, seed: int = 0) -> FiniteSet:
    return FiniteSet(points, dimension, grid, None, 0, seed)


def errors(of: FiniteSet, slopes: str = "inverse-transpose", activation: str = "relu") -> tuple[float, float]:
    """Largest error of values and of gradients on the set."""
    network = Constructive(of, slopes, activation).build(of.sites()["set"])
    x = of.x.clone().requires_grad_()
    value = network(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return float((value.detach() - of.value_at).abs().max()), float((gradient - of.gradient_at[:, 0]).abs().max())


@pytest.mark.parametrize("activation", ["relu", "leaky-relu"])
@pytest.mark.parametrize(("points", "dimension", "grid"), [
    (1, 1, False), (1, 3, False), (12, 1, False), (12, 2, False), (30, 2, False), (12, 5, False), (16, 2, True),
    (27, 3, True),
])  # fmt: skip
def test_any_values_and_gradients_are_met(points: int, dimension: int, grid: bool, activation: str) -> None:
    value, gradient = errors(finite(points, dimension, grid), activation=activation)
    assert value < 1e-9 and gradient < 1e-8


def test_the_printed_construction_meets_values_but_not_gradients() -> None:
    for dimension in (2, 5):
        value, gradient = errors(finite(dimension=dimension), slopes="inverse")
        assert value < 1e-9 and gradient > 0.5
    assert errors(finite(dimension=1), slopes="inverse")[1] < 1e-8  # a number is its own transpose


@pytest.mark.parametrize(("activation", "units"), [("relu", 4), ("leaky-relu", 8)])
def test_one_hidden_layer(activation: str, units: int) -> None:
    of = finite(7, 3)
    first, middle, last = Constructive(of, "inverse-transpose", activation).build(of.sites()["set"])
    assert isinstance(first, nn.Linear) and isinstance(middle, nn.ReLU | nn.LeakyReLU) and isinstance(last, nn.Linear)
    assert first.out_features == units * 7 * 3


def test_the_line_of_the_papers_proof() -> None:
    """p is 0 away from the points, and the wanted line for an epsilon on either side."""
    z = torch.tensor([0.0, 3.0, 1.0], dtype=torch.float64)
    value = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    slope = torch.tensor([1.0, 4.0, -2.0], dtype=torch.float64)
    kinks, changes = _line(z, value, slope)

    def p(at: Tensor) -> Tensor:
        return (at[:, None] - kinks).relu() @ changes

    e = 1 / 6
    for i in range(3):
        beside = z[i] + torch.tensor([-e, -e / 2, 0, e / 2, e], dtype=torch.float64)
        torch.testing.assert_close(p(beside), value[i] + slope[i] * (beside - z[i]))
        away = z[i] + torch.tensor([-2 * e, 2 * e], dtype=torch.float64)
        torch.testing.assert_close(p(away), torch.zeros(2, dtype=torch.float64))
    assert p(torch.tensor([-9.0, 0.5, 2.0, 9.0], dtype=torch.float64)).abs().max() < 1e-12


def test_equal_points_are_refused() -> None:
    of = finite(3)
    of.x[1] = of.x[0]
    with pytest.raises(ComponentError, match="equal"):
        Constructive(of, "inverse-transpose", "relu").build(of.sites()["set"])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ComponentError, match="finite-set"):
        Constructive(Member(PolynomialStudent(2, None), 1, 2, "random", None, 5, -1, 1), "inverse", "relu")
    with pytest.raises(ComponentError, match="2 inputs"):
        Constructive(finite(), "inverse-transpose", "relu").build(Site({"x": (3,)}, 1, ("x",)))
    with pytest.raises(ComponentError, match="test"):
        FiniteSet(4, 2, False, None, 10, 0)
    with pytest.raises(ComponentError, match="exclude"):
        FiniteSet(4, 2, True, "booth", 0, 0)
    with pytest.raises(ComponentError, match="3 variables"):
        FiniteSet(4, 3, False, "booth", 0, 0)


def prepared(of: FiniteSet) -> FiniteSet:
    of.prepare(Context(torch.device("cpu"), torch.float64, connect("cpu"), 0, HEADS["identity"], Path(), Path()))
    return of


def test_recorded_numbers_are_contracted_as_asked() -> None:
    of = prepared(finite(6, 3))
    ids = torch.tensor([4, 1])
    points = of.points(Batch("train", ids), True)
    v = torch.randn(2, 2, 3, dtype=torch.float64)
    probe = Probe({("x",): Contraction(None, (v,))})
    jet = of.answer(points, {"set": probe}, None)["set"]
    assert torch.equal(jet.value, of.value_at[ids])
    expected = torch.stack([v[b] @ of.gradient_at[ids[b], 0] for b in range(2)])
    torch.testing.assert_close(jet[("x",)][..., 0], expected)


def test_a_function_has_its_own_values_and_test_points() -> None:
    of = prepared(FiniteSet(5, 2, False, "booth", 8, 1))
    assert (of.size("train"), of.size("test"), of.size("validation")) == (5, 8, 0)
    x = of.points(Batch("test", torch.arange(8)), False)["set"].inputs["x"]
    assert torch.equal(x, of.x[5:]) and (x.abs() <= 10).all()
    a, b = of.x[:, 0], of.x[:, 1]
    torch.testing.assert_close(of.value_at[:, 0], (a + 2 * b - 7) ** 2 + (2 * a + b - 5) ** 2)
    torch.testing.assert_close(of.gradient_at[:, 0, 0], 2 * (a + 2 * b - 7) + 4 * (2 * a + b - 5))
