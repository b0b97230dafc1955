"""How many points determine a member of a family: by rank where it is linear, and by fitting."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from torch import nn

from sobolev.builtin.theory.families import (
    GaussianStudent,
    Member,
    PiecewiseLinearStudent,
    PolynomialStudent,
)
from sobolev.components import Context, Student
from sobolev.distributed import connect
from sobolev.errors import ComponentError
from sobolev.heads import HEADS
from sobolev.host import default_host
from sobolev.recipe.plan import load_plans
from sobolev.run import Settings, execute
from sobolev.vocabulary import Batch, Site

LINE = Site({"x": (1,)}, 1, ("x",))
RECIPES = Path(__file__).parents[2] / "recipes/theory"
X = torch.linspace(-0.9, 0.9, 11, dtype=torch.float64)[:, None]


def jet(module: nn.Module, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    x = x.clone().requires_grad_()
    value = module(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    return value.detach().numpy()[:, 0], slope.numpy()[:, 0]


def test_polynomial() -> None:
    value, slope = jet(PolynomialStudent(3, [1, -2, 0.5, 3]).build(LINE), X)
    expected = np.polynomial.Chebyshev([1, -2, 0.5, 3])
    np.testing.assert_allclose(value, expected(X.numpy()[:, 0]))
    np.testing.assert_allclose(slope, expected.deriv()(X.numpy()[:, 0]))
    assert jet(PolynomialStudent(1, [4, 2]).build(LINE), X)[1] == pytest.approx(2)


def test_gaussian() -> None:
    value, slope = jet(GaussianStudent(0.3, 0.8).build(LINE), X)
    expected = scipy.stats.norm(0.3, 0.8).pdf(X.numpy()[:, 0])
    np.testing.assert_allclose(value, expected)
    np.testing.assert_allclose(slope, -(X.numpy()[:, 0] - 0.3) / 0.64 * expected)


def test_piecewise_linear() -> None:
    knots, values = [-1.0, 0.0, 0.25, 1.0], [2.0, -1.0, 0.5, 0.0]
    value, slope = jet(PiecewiseLinearStudent(knots, values).build(LINE), X)
    np.testing.assert_allclose(value, np.interp(X.numpy()[:, 0], knots, values))
    assert slope[0] == pytest.approx(-3) and slope[-1] == pytest.approx(-0.5 / 0.75)
    outside, _ = jet(PiecewiseLinearStudent(knots, values).build(LINE), torch.tensor([[2.0]], dtype=torch.float64))
    assert outside[0] == pytest.approx(-0.5 / 0.75)


def rank(family: Student, parameters: int, x: list[float], slopes: bool) -> int:
    """Number of independent conditions on the parameters of a family that is linear in them."""
    rows = []
    points = torch.tensor(x, dtype=torch.float64)[:, None]
    for j in range(parameters):
        unit = [float(i == j) for i in range(parameters)]
        setattr(family, "coefficients" if hasattr(family, "coefficients") else "values", unit)
        value, slope = jet(family.build(LINE), points)
        rows.append(np.concatenate([value, slope]) if slopes else value)
    return int(np.linalg.matrix_rank(np.array(rows)))


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5, 6])
def test_points_that_determine_a_polynomial(degree: int) -> None:
    family = PolynomialStudent(degree, None)
    random = np.random.default_rng(degree)

    def determined(count: int, slopes: bool) -> bool:
        return rank(family, degree + 1, random.uniform(-1, 1, count).tolist(), slopes) == degree + 1

    assert determined(degree + 1, False) and not determined(degree, False)
    enough = math.ceil((degree + 1) / 2)
    assert determined(enough, True) and (enough == 1 or not determined(enough - 1, True))
    printed = math.ceil(degree / 2)  # the paper's count: right for odd degrees alone
    assert determined(printed, True) == (degree % 2 == 1)


def test_points_that_determine_a_piecewise_linear_function() -> None:
    knots = [0.0, 1.0, 2.0, 3.0, 4.0]
    family = PiecewiseLinearStudent(knots, None)
    find: Callable[[list[float], bool], int] = lambda x, slopes: rank(family, 5, x, slopes)  # noqa: E731
    assert find([0.5, 1.5, 2.5, 3.5], True) == 5  # one per piece, with slopes
    assert find([0.5, 1.5, 2.5, 3.5], False) == 4
    assert find([0.2, 0.8, 1.5, 2.5, 3.5], False) == 5  # five values, not two per piece
    assert find([0.5, 2.5, 3.5], True) == 5  # three points with slopes, as the pieces meet
    assert find([0.1 * i for i in range(1, 10)], True) == 2  # any number in one piece does not do


def test_two_densities_with_two_common_values() -> None:
    """The paper's example: its second number is the deviation, not the variance."""
    x = torch.tensor([[0.0], [3.0]], dtype=torch.float64)
    one, _ = jet(GaussianStudent(2.0, 1.0).build(LINE), x)
    two, _ = jet(GaussianStudent(2.847, 1.641).build(LINE), x)
    np.testing.assert_allclose(one, two, rtol=1e-3)
    variance, _ = jet(GaussianStudent(2.847, math.sqrt(1.641)).build(LINE), x)
    assert abs(variance[0] - one[0]) > 0.3 * one[0]


def test_value_and_slope_give_the_density() -> None:
    """Proposition 3: beta / alpha and alpha determine sigma, as the right-hand side falls with sigma^2."""
    alpha, beta = scipy.stats.norm(2, 1).pdf(0), 2 * scipy.stats.norm(2, 1).pdf(0)
    left = 2 * math.log(math.sqrt(2 * math.pi) * alpha)
    found = scipy.optimize.brentq(lambda s: -math.log(s) - (beta / alpha) ** 2 * s - left, 1e-6, 1e3)
    assert found == pytest.approx(1.0) and beta / alpha * found == pytest.approx(2.0)


def test_a_member_differs_by_seed_and_is_reached_by_its_own_family() -> None:
    def member(seed: int) -> Member:
        made = Member(PolynomialStudent(2, None), 1, 3, "evenly", None, 20, -1.0, 1.0)
        made.prepare(
            Context(torch.device("cpu"), torch.float64, connect("cpu"), seed, HEADS["identity"], Path(), Path())
        )
        return made

    one, two = member(0), member(1)
    points = one.points(Batch("train", torch.arange(3)), True)["member"]
    torch.testing.assert_close(points.inputs["x"][:, 0], torch.tensor([-2 / 3, 0, 2 / 3], dtype=torch.float64))
    values = [m.value("member", points.inputs, points) for m in (one, member(0), two)]
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])
    given = PolynomialStudent(2, one.teacher.coefficients.tolist()).build(LINE)
    assert torch.equal(given(points.inputs["x"]), values[0])


@pytest.mark.parametrize("make", [
    lambda: Member(PolynomialStudent(2, None), 1, 2, "random", None, 5, 1.0, -1.0),
    lambda: Member(PolynomialStudent(2, None), 1, 2, "random", [[0.0, 1.0]], 5, -1.0, 1.0),
    lambda: Member(PolynomialStudent(2, None), 2, 2, "evenly", None, 5, -1.0, 1.0),
    lambda: PiecewiseLinearStudent([0.0, 1.0, 1.0], None),
    lambda: PiecewiseLinearStudent([0.0, 1.0], [1.0]).build(LINE),
    lambda: PolynomialStudent(2, [1.0]).build(LINE),
    lambda: PolynomialStudent(2, None).build(Site({"x": (2,)}, 1, ("x",))),
])  # fmt: skip
def test_mistakes(make: Callable[[], object]) -> None:
    with pytest.raises(ComponentError):
        make()


def summary(recipe: str, variant: str, folder: Path, *overrides: str) -> dict[str, float]:
    host = default_host()
    (plan,) = [p for p in load_plans(RECIPES / recipe, host.registry, ["seeds=1", *overrides]) if p.variant == variant]
    return execute(plan, host, connect("cpu"), Settings(folder, smoke=True)).summary


@pytest.mark.parametrize(("recipe", "found", "not_found"), [
    ("polynomials.yaml", ["quartic-sobolev,train=3", "quartic-regular,train=5"], ["quartic-sobolev,train=2"]),
    ("gaussians.yaml", ["one-value-and-slope", "three-values"], ["two-values", "one-value"]),
    ("piecewise-linear.yaml", ["three-with-slopes", "five-values"], ["one-each-values", "nine-in-one-piece"]),
    ("hyperplanes.yaml", ["sobolev,train=1", "regular,train=11"], ["regular,train=5"]),
])  # fmt: skip
def test_training_finds_the_member_where_the_points_determine_it(
    recipe: str, found: list[str], not_found: list[str], tmp_path: Path
) -> None:
    for variant in found:
        assert summary(recipe, variant, tmp_path, "figures=[]")["test/member/value"] < 1e-9, variant
    for variant in not_found:
        result = summary(recipe, variant, tmp_path, "figures=[]")
        assert result["test/member/value"] > 1e-4 and result["train/loss"] < 1e-9, variant


def test_recipe_of_proposition_1(tmp_path: Path) -> None:
    for variant in ("plane", "lattice", "five-dimensions"):
        result = summary("proposition1.yaml", variant, tmp_path, "figures=[]")
        assert result["train/set/value"] < 1e-18 and result["train/set/d/dx"] < 1e-16
    printed = summary("proposition1.yaml", "plane-as-printed", tmp_path, "figures=[]")
    assert printed["train/set/value"] < 1e-18 and printed["train/set/d/dx"] > 0.1
