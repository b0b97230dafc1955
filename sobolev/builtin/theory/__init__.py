"""What section 3 of the paper states, as targets and students of recipes: light factories."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sobolev.components import Student, Target
from sobolev.hookspecs import Register
from sobolev.registry import Kind

Function = Literal["ackley", "beale", "booth", "bukin", "mccormick", "rosenbrock", "styblinski-tang"]
Vector = Annotated[list[float] | None, Field(description="its parameters; random ones by default")]


def finite_set(
    *,
    points: Annotated[int, Field(ge=1, description="points of the set")] = 12,
    dimension: Annotated[int, Field(ge=1, description="d")] = 2,
    grid: Annotated[bool, Field(description="on a lattice, where many points share coordinates")] = False,
    function: Annotated[
        Function | None,
        Field(description="values and gradients of this function, in its box; unrelated numbers by default"),
    ] = None,
    test: Annotated[int, Field(ge=0, description="test points, where there is a function")] = 0,
    seed: Annotated[int, Field(ge=0, description="of points and numbers; all runs share them")] = 0,
) -> Target:
    """Finite set with any value and any gradient at each point (the paper's Proposition 1)."""
    from sobolev.builtin.theory.finite import FiniteSet

    return FiniteSet(points, dimension, grid, function, test, seed)


def constructive(
    *,
    of: Annotated[Target, Kind("target"), Field(description="the finite set, with the same options as the target")],
    slopes: Annotated[
        Literal["inverse-transpose", "inverse"],
        Field(description="A^-T g, which is right, or A^-1 g, which the paper prints"),
    ] = "inverse-transpose",
    activation: Annotated[Literal["relu", "leaky-relu"], Field(description="of the hidden layer")] = "relu",
) -> Student:
    """Network that meets every value and gradient of a finite set, built without training (Proposition 1).

    One hidden layer with 4 n d units for n points in d dimensions (8 n d for leaky ReLU).
    """
    from sobolev.builtin.theory.constructive import Constructive

    return Constructive(of, slopes, activation)


def member(
    *,
    of: Annotated[
        Student, Kind("student"), Field(description="the family; one member, with its own weights, is the target")
    ],
    dimension: Annotated[int, Field(ge=1, description="d")] = 1,
    train: Annotated[int, Field(ge=1, description="training points")] = 2,
    placed: Annotated[
        Literal["random", "evenly"],
        Field(description="uniform in the box, anew for every seed; or at equal distances (d = 1)"),
    ] = "random",
    at: Annotated[
        list[list[float]] | None,
        Field(description="training points, one list of d numbers each; instead"),
    ] = None,
    test: Annotated[int, Field(ge=1, description="test points, uniform in the box")] = 1000,
    low: Annotated[float, Field(description="lower edge of the box, in every coordinate")] = -1.0,
    high: Annotated[float, Field(description="upper edge of the box")] = 1.0,
) -> Target:
    """Member of a family of students: how many points determine it (the paper's K_reg and K_sob)?"""
    from sobolev.builtin.theory.families import Member

    return Member(of, dimension, train, placed, at, test, low, high)


def polynomial(
    *,
    degree: Annotated[int, Field(ge=0, description="n")] = 3,
    coefficients: Vector = None,
) -> Student:
    """Polynomial of one variable, in Chebyshev's basis."""
    from sobolev.builtin.theory.families import PolynomialStudent

    return PolynomialStudent(degree, coefficients)


def gaussian_density(
    *,
    mean: Annotated[float | None, Field(description="mu; random by default")] = None,
    deviation: Annotated[float | None, Field(gt=0, description="sigma; random by default")] = None,
) -> Student:
    """Density of a normal distribution of one variable, with mean and deviation to be found."""
    from sobolev.builtin.theory.families import GaussianStudent

    return GaussianStudent(mean, deviation)


def piecewise_linear(
    *,
    knots: Annotated[list[float], Field(min_length=2, description="borders of the pieces, in order; fixed")],
    values: Vector = None,
) -> Student:
    """Continuous function of one variable, linear on given pieces; its values at the borders are to be found."""
    from sobolev.builtin.theory.families import PiecewiseLinearStudent

    return PiecewiseLinearStudent(knots, values)


_TARGETS = {"finite-set": finite_set, "member": member}
_STUDENTS = {
    "constructive": constructive,
    "polynomial": polynomial,
    "gaussian-density": gaussian_density,
    "piecewise-linear": piecewise_linear,
}


def targets(register: Register) -> None:
    """Register the targets."""
    for name, factory in _TARGETS.items():
        register(name, factory)


def students(register: Register) -> None:
    """Register the students."""
    for name, factory in _STUDENTS.items():
        register(name, factory)
