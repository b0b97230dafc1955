"""The paper's seven functions against its formulas, written once more in sympy."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import sympy
import torch

from sobolev.builtin.targets.functions import FUNCTIONS, FunctionTarget
from sobolev.components import Context
from sobolev.distributed import connect
from sobolev.errors import ComponentError
from sobolev.heads import HEADS
from sobolev.vocabulary import Batch

X, Y = sympy.symbols("x y", real=True)
# Supplement 2, as printed: f(x, y) and the box.
PAPER = {
    "ackley": (
        -20 * sympy.exp(-0.2 * sympy.sqrt((X**2 + Y**2) / 2))
        - sympy.exp((sympy.cos(2 * sympy.pi * X) + sympy.cos(2 * sympy.pi * Y)) / 2) + sympy.E + 20,
        (-5, 5, -5, 5),
    ),
    "beale": (
        (1.5 - X + X * Y) ** 2 + (2.25 - X + X * Y**2) ** 2 + (2.625 - X + X * Y**3) ** 2,
        (-4.5, 4.5, -4.5, 4.5),
    ),
    "booth": ((X + 2 * Y - 7) ** 2 + (2 * X + Y - 5) ** 2, (-10, 10, -10, 10)),
    "bukin": (
        100 * sympy.sqrt(sympy.Abs(Y - X**2 / 100)) + sympy.Abs(X + 10) / 100,
        (-15, -5, -3, 3),
    ),
    "mccormick": (sympy.sin(X + Y) + (X - Y) ** 2 - 1.5 * X + 2.5 * Y + 1, (-1.5, 4, -3, 4)),
    "rosenbrock": (100 * (Y - X**2) ** 2 + (X - 1) ** 2, (-2, 2, -2, 2)),
    "styblinski-tang": ((X**4 - 16 * X**2 + 5 * X + Y**4 - 16 * Y**2 + 5 * Y) / 2, (-5, 5, -5, 5)),
}  # fmt: skip
LOWEST = {
    "ackley": 0.0, "beale": 0.0, "booth": 0.0, "bukin": 0.0, "rosenbrock": 0.0, "styblinski-tang": -78.33233140754285,
    # x + y = -2 pi / 3 and x - y = 1 are where both partials vanish.
    "mccormick": 2 - math.sqrt(3) / 2 - 1.5 * (0.5 - math.pi / 3) + 2.5 * (-0.5 - math.pi / 3),
}  # fmt: skip


def general(name: str, x: tuple[sympy.Symbol, ...]) -> sympy.Expr:
    """The functions that have a form in d dimensions."""
    d = len(x)
    if name == "ackley":
        waves = sum(sympy.cos(2 * sympy.pi * v) for v in x) / d
        return -20 * sympy.exp(-0.2 * sympy.sqrt(sum(v**2 for v in x) / d)) - sympy.exp(waves) + sympy.E + 20
    if name == "rosenbrock":
        return sum(100 * (b - a**2) ** 2 + (a - 1) ** 2 for a, b in itertools.pairwise(x))
    return sum(v**4 - 16 * v**2 + 5 * v for v in x) / 2


def box(name: str, d: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    target = FunctionTarget(name, 1, 0, 0, d, "uniform")
    return target.low, target.high


def inside(name: str, count: int, d: int = 2) -> torch.Tensor:
    low, high = box(name, d)
    return low + (high - low) * torch.rand(count, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def jet(name: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    value = FUNCTIONS[name].value(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def same(name: str, formula: sympy.Expr, symbols: tuple[sympy.Symbol, ...], x: torch.Tensor) -> None:
    value, gradient = jet(name, x)
    columns = x.numpy().T
    expected = sympy.lambdify(symbols, formula, "numpy")(*columns)
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-11, atol=1e-11)
    for i, symbol in enumerate(symbols):
        slope = sympy.lambdify(symbols, sympy.diff(formula, symbol), "numpy")(*columns)
        np.testing.assert_allclose(gradient[:, i].numpy(), slope, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PAPER)
def test_values_and_gradients_are_those_of_the_paper(name: str) -> None:
    formula, edges = PAPER[name]
    low, high = box(name)
    assert (low[0], high[0], low[1], high[1]) == edges
    same(name, formula, (X, Y), inside(name, 200))


@pytest.mark.parametrize("name", [n for n, f in FUNCTIONS.items() if f.any_dimension])
@pytest.mark.parametrize("d", [2, 5])
def test_functions_that_have_a_form_in_any_dimension(name: str, d: int) -> None:
    symbols = sympy.symbols(f"x:{d}", real=True)
    same(name, general(name, symbols), symbols, inside(name, 50, d))
    if d == 2:
        assert sympy.simplify(general(name, (X, Y)) - PAPER[name][0]) == 0


@pytest.mark.parametrize("name", PAPER)
def test_minimum(name: str) -> None:
    function = FUNCTIONS[name]
    at = torch.tensor([function.minimum], dtype=torch.float64)
    low, high = box(name)
    assert ((at >= low) & (at <= high)).all()
    value, gradient = jet(name, at)
    assert value.item() == pytest.approx(LOWEST[name], abs=1e-8)
    assert gradient.abs().max() < (0.1 if function.singular else 1e-6)
    assert jet(name, inside(name, 20_000))[0].min() >= value.item() - 1e-9


@pytest.mark.parametrize(("name", "d"), [("ackley", 7), ("rosenbrock", 7), ("styblinski-tang", 7)])
def test_minimum_in_more_dimensions(name: str, d: int) -> None:
    coordinate = FUNCTIONS[name].minimum[0]
    value, gradient = jet(name, torch.full((1, d), coordinate, dtype=torch.float64))
    expected = LOWEST[name] * (d / 2 if name == "styblinski-tang" else 1)
    assert value.item() == pytest.approx(expected, abs=1e-7)
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_without_a_gradient_follow_the_convention(dtype: torch.dtype) -> None:
    tip = torch.zeros(1, 2, dtype=dtype)
    assert torch.equal(jet("ackley", tip)[1], torch.zeros(1, 2, dtype=dtype))
    assert jet("ackley", tip)[0].item() == pytest.approx(0, abs=1e-5 if dtype == torch.float32 else 1e-12)
    # On the ridge only the part 0.01 |x + 10| is left: slope -0.01, 0 on its own corner, 0.01.
    x = torch.tensor([-12.0, -10.0, -8.0], dtype=dtype)
    ridge = torch.stack([x, 0.01 * x.square()], dim=1)
    assert (ridge[:, 1] - 0.01 * ridge[:, 0].square() == 0).all()
    torch.testing.assert_close(jet("bukin", ridge)[1], torch.tensor([[-0.01, 0], [0, 0], [0.01, 0]], dtype=dtype))
    corner = torch.tensor([[-10.0, 2.0]], dtype=dtype)
    assert jet("bukin", corner)[1][0, 0].item() == pytest.approx(0.5 * 100 * 0.2)  # the root's part, 50 * 0.02 |x|
    assert {name for name, f in FUNCTIONS.items() if f.singular} == {"ackley", "bukin"}


@pytest.mark.parametrize("name", PAPER)
def test_second_derivatives_are_finite_everywhere(name: str) -> None:
    special = torch.tensor([[0.0, 0.0], [-10.0, 1.0], [-5.0, 0.25]], dtype=torch.float64)
    x = torch.cat([inside(name, 20), special]).requires_grad_()
    (gradient,) = torch.autograd.grad(FUNCTIONS[name].value(x).sum(), x, create_graph=True)
    for i in range(2):
        (row,) = torch.autograd.grad(gradient[:, i].sum(), x, retain_graph=True)
        assert torch.isfinite(row).all()


def test_bukins_squared_slope_has_no_mean() -> None:
    """The mean over points at least h from the ridge grows with log(1 / h): no Sobolev norm of order 1 exists."""
    low, high = box("bukin")
    x = low + (high - low) * torch.rand(400_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    distance = (x[:, 1] - 0.01 * x[:, 0] ** 2).abs()
    square = jet("bukin", x)[1].square().sum(dim=1)
    means = [square[distance > h].mean().item() for h in (1e-1, 1e-2, 1e-3)]
    steps = np.diff(means)
    # 2 sides * 2500 (1 + (0.02 x)^2) ln(10) / height of the box 6, per factor of ten.
    expected = 2 * 2500 * (1 + 4e-4 * 325 / 3) * math.log(10) / 6
    np.testing.assert_allclose(steps, expected, rtol=0.1)


def prepared(seed: int, **options: object) -> FunctionTarget:
    given = {"train": 20, "test": 30, "validation": 10, "dimension": 2, "sampling": "uniform", **options}
    target = FunctionTarget("mccormick", **given)  # type: ignore[arg-type]
    target.prepare(Context(torch.device("cpu"), torch.float32, connect("cpu"), seed, HEADS["identity"], Path(), Path()))
    return target


def points(target: FunctionTarget, split: str) -> torch.Tensor:
    return target.points(Batch(split, torch.arange(target.size(split))), False)["function"].inputs["x"]


def test_training_points_depend_on_the_seed_and_held_out_points_do_not() -> None:
    one, again, two = prepared(0), prepared(0), prepared(1)
    for split in ("train", "validation", "test"):
        assert torch.equal(points(one, split), points(again, split))
        assert torch.equal(points(one, split), points(two, split)) == (split != "train")
        x = points(one, split).double()
        assert ((x >= one.low - 1e-6) & (x <= one.high + 1e-6)).all()
    assert not torch.equal(points(one, "validation"), points(one, "test")[:10])


def test_a_larger_training_set_contains_the_smaller_one() -> None:
    assert torch.equal(points(prepared(3, train=100), "train")[:20], points(prepared(3), "train"))


@pytest.mark.parametrize(("name", "d"), [("booth", 3), ("bukin", 1), ("ackley", 1)])
def test_dimensions_that_are_not_there(name: str, d: int) -> None:
    with pytest.raises(ComponentError, match=r"dimension|variables"):
        FunctionTarget(name, 1, 0, 0, d, "uniform")
