"""The paper's seven benchmark functions (supplement 2): formulas, boxes, minima."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sobolev.builtin.sampling import Sampling, sample
from sobolev.components import Axes, Context, Target
from sobolev.errors import ComponentError
from sobolev.noise import stream
from sobolev.vocabulary import Batch, Points, Site


@dataclass(frozen=True)
class Function:
    """A function of ``x`` ``(B, d)`` with its box.

    Attributes:
        value: ``(B, d)`` -> ``(B,)``.
        low, high: the box, one number per coordinate; the last one repeats in higher dimensions.
        minimum: where it is smallest, in two dimensions.
        any_dimension: whether the formula holds in any dimension (the paper uses two).
        singular: where there is no gradient, with the convention that is used there; empty where there always is one.
    """

    value: Callable[[Tensor], Tensor]
    low: tuple[float, ...]
    high: tuple[float, ...]
    minimum: tuple[float, ...]
    any_dimension: bool = False
    singular: str = ""


def _ackley(x: Tensor) -> Tensor:
    # The paper writes 0.5 (x^2 + y^2) and 0.5 (cos + cos): means over coordinates. Two `where`s: the derivative of the
    # square root at 0 is infinite and 0 * inf would be NaN.
    mean_square = x.square().mean(dim=1)
    radius = torch.where(mean_square > 0, mean_square, torch.ones_like(mean_square)).sqrt()
    radius = torch.where(mean_square > 0, radius, torch.zeros_like(radius))
    waves = torch.cos(2 * math.pi * x).mean(dim=1)
    return -20 * torch.exp(-0.2 * radius) - torch.exp(waves) + math.e + 20


def _beale(x: Tensor) -> Tensor:
    a, b = x.unbind(dim=1)
    return (1.5 - a + a * b).square() + (2.25 - a + a * b.square()).square() + (2.625 - a + a * b**3).square()


def _booth(x: Tensor) -> Tensor:
    a, b = x.unbind(dim=1)
    return (a + 2 * b - 7).square() + (2 * a + b - 5).square()


def _bukin(x: Tensor) -> Tensor:
    a, b = x.unbind(dim=1)
    height = (b - 0.01 * a.square()).abs()
    root = torch.where(height > 0, height, torch.ones_like(height)).sqrt()
    return 100 * torch.where(height > 0, root, torch.zeros_like(root)) + 0.01 * (a + 10).abs()


def _mccormick(x: Tensor) -> Tensor:
    a, b = x.unbind(dim=1)
    return torch.sin(a + b) + (a - b).square() - 1.5 * a + 2.5 * b + 1


def _rosenbrock(x: Tensor) -> Tensor:
    a, b = x[:, :-1], x[:, 1:]
    return (100 * (b - a.square()).square() + (a - 1).square()).sum(dim=1)


def _styblinski_tang(x: Tensor) -> Tensor:
    return 0.5 * (x**4 - 16 * x.square() + 5 * x).sum(dim=1)


FUNCTIONS: dict[str, Function] = {
    "ackley": Function(
        _ackley,
        (-5.0,),
        (5.0,),
        (0.0, 0.0),
        any_dimension=True,
        singular="the origin, the tip of a cone; the gradient there is taken as 0",
    ),
    "beale": Function(_beale, (-4.5,), (4.5,), (3.0, 0.5)),
    "booth": Function(_booth, (-10.0,), (10.0,), (1.0, 3.0)),
    "bukin": Function(
        _bukin,
        (-15.0, -3.0),
        (-5.0, 3.0),
        (-10.0, 1.0),
        # Beside the ridge the slope grows as 1 / sqrt(distance): its square has no finite mean over the box.
        singular="the ridge y = 0.01 x^2, where the root's part of the gradient is taken as 0, and the line x = -10, "
        "where that of the absolute value is",
    ),
    "mccormick": Function(_mccormick, (-1.5, -3.0), (4.0, 4.0), (-0.5471975512, -1.5471975512)),
    "rosenbrock": Function(_rosenbrock, (-2.0,), (2.0,), (1.0, 1.0), any_dimension=True),
    "styblinski-tang": Function(_styblinski_tang, (-5.0,), (5.0,), (-2.9035340277, -2.9035340277), any_dimension=True),
}


class FunctionTarget(Target):
    """A function that torch can differentiate, sampled in its box.

    Test and validation points are the same for all seeds of a run; training points depend on the seed.

    Raises:
        ComponentError: a dimension that the function does not have.
    """

    fixed_points = True

    def __init__(
        self,
        name: str,
        train: int,
        test: int,
        validation: int,
        dimension: int,
        sampling: Sampling,
    ) -> None:
        self.name = name
        self.function = FUNCTIONS[name]
        if dimension != 2 and not self.function.any_dimension:
            raise ComponentError(f"target {name!r} is a function of 2 variables; dimension {dimension} is not there")
        if dimension < 2:
            raise ComponentError(f"target {name!r}: dimension must be at least 2, not {dimension}")
        self.dimension = dimension
        self.sampling = sampling
        self.sizes = {"train": train, "validation": validation, "test": test}
        self.low = self._edge(self.function.low)
        self.high = self._edge(self.function.high)

    def _edge(self, given: tuple[float, ...]) -> Tensor:
        padded = (*given, *[given[-1]] * self.dimension)[: self.dimension]
        return torch.tensor(padded, dtype=torch.float64)

    def prepare(self, context: Context) -> None:
        """Draw the points of every split."""
        self._x = {}
        for split, count in self.sizes.items():
            seed = stream(self.name, context.seed, split) if split == "train" else stream(self.name, split)
            x = sample(self.sampling if split == "train" else "uniform", count, self.low, self.high, seed)
            self._x[split] = x.to(device=context.device, dtype=context.dtype)

    def sites(self) -> Mapping[str, Site]:
        """Return the one site, ``function``."""
        ranges = {"x": (self.low.tolist(), self.high.tolist())}
        return {"function": Site({"x": (self.dimension,)}, 1, ("x",), ranges)}

    def size(self, split: str) -> int:
        """Return the number of points of a split."""
        return self.sizes[split]

    def points(self, batch: Batch, training: bool) -> Mapping[str, Points]:
        """Return the sampled points."""
        x = self._x[batch.split]
        return {"function": Points({"x": x[batch.ids.to(x.device)]}, ("x",), batch.ids)}

    def value(self, site: str, inputs: Mapping[str, Tensor], points: Points) -> Tensor:
        """Return f(x) ``(B, 1)``."""
        return self.function.value(inputs["x"])[:, None]

    def axes(self, site: str) -> Axes:
        """Return the coordinates and the box."""
        names = ("x", "y") if self.dimension == 2 else tuple(f"x{i + 1}" for i in range(self.dimension))
        return Axes(names, ("f",), self.low.tolist(), self.high.tolist())
