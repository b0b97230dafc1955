"""Families with few parameters, and a target that is one of their members (section 3 of the paper)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from sobolev.components import Axes, Context, Student, Target
from sobolev.errors import ComponentError
from sobolev.noise import generator, stream
from sobolev.vocabulary import Batch, Points, Site


class Polynomial(nn.Module):
    """``sum_j c_j T_j(x)`` with Chebyshev's polynomials, for ``x`` ``(B, 1)``."""

    def __init__(self, coefficients: Tensor) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(coefficients)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, 1)``."""
        basis = [torch.ones_like(x), x]
        while len(basis) < len(self.coefficients):
            basis.append(2 * x * basis[-1] - basis[-2])
        return torch.cat(basis[: len(self.coefficients)], dim=1) @ self.coefficients[:, None]


class GaussianDensity(nn.Module):
    """Density of N(mu, sigma^2), for ``x`` ``(B, 1)``; sigma is held by its logarithm."""

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.mean = nn.Parameter(mean)
        self.log_deviation = nn.Parameter(deviation.log())

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, 1)``."""
        z = (x - self.mean) * (-self.log_deviation).exp()
        return (-self.log_deviation - 0.5 * z.square()).exp() / math.sqrt(2 * math.pi)


class PiecewiseLinear(nn.Module):
    """Linear between ``knots`` ``(n,)``, where it has ``values`` ``(n,)``, for ``x`` ``(B, 1)``; straight outside."""

    knots: Tensor

    def __init__(self, knots: Tensor, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("knots", knots)
        self.values = nn.Parameter(values)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, 1)``."""
        piece = torch.bucketize(x.detach(), self.knots[1:-1])
        left, right = self.knots[piece], self.knots[piece + 1]
        share = (x - left) / (right - left)
        return (1 - share) * self.values[piece] + share * self.values[piece + 1]


class _Family(Student):
    name = ""

    def build(self, site: Site) -> nn.Module:
        """Return a member with the given parameters, or with random ones."""
        if list(site.inputs.values()) != [(1,)] or site.outputs != 1:
            shapes = dict(site.inputs)
            raise ComponentError(f"student {self.name!r} is a function of one variable; the target has inputs {shapes}")
        return self.member()

    def member(self) -> nn.Module:
        raise NotImplementedError


def _given_or_random(given: Sequence[float] | None, count: int, what: str) -> Tensor:
    if given is None:
        return torch.randn(count, dtype=torch.float64)
    if len(given) != count:
        raise ComponentError(f"{what}: expected {count} numbers, not {len(given)}")
    return torch.tensor(given, dtype=torch.float64)


class PolynomialStudent(_Family):
    """Polynomials of a degree."""

    name = "polynomial"

    def __init__(self, degree: int, coefficients: Sequence[float] | None) -> None:
        self.degree = degree
        self.coefficients = coefficients

    def member(self) -> nn.Module:
        """Return a polynomial; coefficients are normal by default."""
        return Polynomial(_given_or_random(self.coefficients, self.degree + 1, "student 'polynomial': coefficients"))


class GaussianStudent(_Family):
    """Normal densities."""

    name = "gaussian-density"

    def __init__(self, mean: float | None, deviation: float | None) -> None:
        self.mean = mean
        self.deviation = deviation

    def member(self) -> nn.Module:
        """Return a density; by default mu is uniform in [-1, 1] and sigma in [0.7, 1.5]."""
        u = torch.rand(2, dtype=torch.float64)
        mean = 2 * u[0] - 1 if self.mean is None else torch.tensor(self.mean, dtype=torch.float64)
        deviation = 0.7 + 0.8 * u[1] if self.deviation is None else torch.tensor(self.deviation, dtype=torch.float64)
        return GaussianDensity(mean, deviation)


class PiecewiseLinearStudent(_Family):
    """Continuous functions that are linear on given pieces.

    Raises:
        ComponentError: knots out of order.
    """

    name = "piecewise-linear"

    def __init__(self, knots: Sequence[float], values: Sequence[float] | None) -> None:
        if any(a >= b for a, b in pairwise(knots)):
            raise ComponentError(f"student 'piecewise-linear': knots must grow, not {list(knots)}")
        self.knots = torch.tensor(knots, dtype=torch.float64)
        self.values = values

    def member(self) -> nn.Module:
        """Return a function; values at the knots are normal by default."""
        values = _given_or_random(self.values, len(self.knots), "student 'piecewise-linear': values")
        return PiecewiseLinear(self.knots, values)


class Member(Target):
    """One member of a family, with weights drawn for every seed unless the family fixes them.

    A student of the same family can reach it: whether training finds it, from how many points, is what is asked.

    Raises:
        ComponentError: points of another dimension, an empty box.
    """

    fixed_points = True

    def __init__(
        self,
        of: Student,
        dimension: int,
        train: int,
        placed: str,
        at: Sequence[Sequence[float]] | None,
        test: int,
        low: float,
        high: float,
    ) -> None:
        if not low < high:
            raise ComponentError(f"target 'member': low must be below high, not {low} and {high}")
        if at is not None and (not at or any(len(point) != dimension for point in at)):
            raise ComponentError(f"target 'member': 'at' holds points of {dimension} numbers each, not {list(at)}")
        if placed == "evenly" and dimension != 1:
            raise ComponentError(f"target 'member': points are placed evenly on a line, not in {dimension} dimensions")
        self.family = of
        self.dimension = dimension
        self.at = at
        self.evenly = placed == "evenly"
        self.sizes = {"train": train if at is None else len(at), "test": test}
        self.low, self.high = low, high

    def prepare(self, context: Context) -> None:
        """Draw the member and the points."""
        site = Site({"x": (self.dimension,)}, 1, ("x",))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(context.seed, "member"))
            self.teacher = self.family.build(site).to(device=context.device, dtype=context.dtype).requires_grad_(False)
        self._x = {}
        for split, count in self.sizes.items():
            unit = torch.rand(count, self.dimension, dtype=torch.float64, generator=generator(context.seed, split))
            if split == "train" and self.evenly:
                unit = (torch.arange(count, dtype=torch.float64)[:, None] + 0.5) / count
            x = self.low + (self.high - self.low) * unit
            if split == "train" and self.at is not None:
                x = torch.tensor(self.at, dtype=torch.float64)
            self._x[split] = x.to(device=context.device, dtype=context.dtype)

    def sites(self) -> Mapping[str, Site]:
        """Return the one site, ``member``."""
        return {"member": Site({"x": (self.dimension,)}, 1, ("x",), {"x": (self.low, self.high)})}

    def size(self, split: str) -> int:
        """Return the number of points of a split."""
        return self.sizes.get(split, 0)

    def points(self, batch: Batch, training: bool) -> Mapping[str, Points]:
        """Return the points."""
        x = self._x[batch.split]
        return {"member": Points({"x": x[batch.ids.to(x.device)]}, ("x",), batch.ids)}

    def value(self, site: str, inputs: Mapping[str, Tensor], points: Points) -> Tensor:
        """Return the member's value ``(B, 1)``."""
        value: Tensor = self.teacher(inputs["x"])
        return value

    def axes(self, site: str) -> Axes:
        """Return names and box."""
        names = ("x",) if self.dimension == 1 else tuple(f"x{i + 1}" for i in range(self.dimension))
        return Axes(names, ("f",), (self.low,) * self.dimension, (self.high,) * self.dimension)
