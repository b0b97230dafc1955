"""A finite set of points with any value and any gradient at each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sobolev.builtin.targets.functions import FUNCTIONS
from sobolev.components import Axes, Context, Target
from sobolev.differentiate.contract import contract
from sobolev.errors import ComponentError
from sobolev.noise import generator
from sobolev.vocabulary import Batch, Jet, Points, Probe, Site


class FiniteSet(Target):
    """Points ``(n, d)`` with values ``(n, 1)`` and gradients ``(n, 1, d)``, held as recorded numbers.

    Args:
        points: n.
        dimension: d.
        grid: points of the integer lattice instead of random ones.
        function: one of the seven functions, sampled in its box, or None for normal numbers that have nothing to do
            with each other.
        test: further points; without a function there is nothing to compare with.
        seed: of points and numbers.

    Attributes:
        x, value_at, gradient_at: the set, in float64.

    Raises:
        ComponentError: options that exclude each other.
    """

    fixed_points = True
    max_order = 1

    def __init__(self, points: int, dimension: int, grid: bool, function: str | None, test: int, seed: int) -> None:
        random = generator(seed, "finite-set")
        self.labels = tuple(f"x{i + 1}" for i in range(dimension))
        if function is None:
            if test:
                raise ComponentError("target 'finite-set': test points need a 'function' to compare with")
            self.x = _lattice(points, dimension) if grid else _normal(random, points, dimension)
            self.value_at = _normal(random, points, 1)
            self.gradient_at = _normal(random, points, 1, dimension)
            return self._split(points)
        if grid:
            raise ComponentError("target 'finite-set': 'grid' and 'function' exclude each other")
        known = FUNCTIONS[function]
        if dimension != 2 and not (dimension > 2 and known.any_dimension):
            raise ComponentError(f"target 'finite-set': {function!r} is no function of {dimension} variables")
        low, high = (
            torch.tensor([*edge, *[edge[-1]] * dimension][:dimension], dtype=torch.float64)
            for edge in (known.low, known.high)
        )
        self.x = low + (high - low) * torch.rand(points + test, dimension, dtype=torch.float64, generator=random)
        x = self.x.clone().requires_grad_()
        value = known.value(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        self.value_at, self.gradient_at = value.detach()[:, None], gradient[:, None, :]
        self._split(points)

    def _split(self, points: int) -> None:
        self.first = {"train": 0, "test": points}
        self.sizes = {"train": points, "test": len(self.x) - points}

    def prepare(self, context: Context) -> None:
        """Move the numbers to where the run computes."""
        moved = [t.to(device=context.device, dtype=context.dtype) for t in (self.x, self.value_at, self.gradient_at)]
        self._x, self._value, self._gradient = moved

    def sites(self) -> Mapping[str, Site]:
        """Return the one site, ``set``."""
        return {"set": Site({"x": (self.x.shape[1],)}, 1, ("x",))}

    def size(self, split: str) -> int:
        """Return the number of points of a split."""
        return self.sizes.get(split, 0)

    def points(self, batch: Batch, training: bool) -> Mapping[str, Points]:
        """Return the points."""
        ids = batch.ids.to(self._x.device) + self.first[batch.split]
        return {"set": Points({"x": self._x[ids]}, ("x",), batch.ids, context=ids)}

    def answer(
        self, points: Mapping[str, Points], probes: Mapping[str, Probe], prediction: Mapping[str, Jet] | None
    ) -> Mapping[str, Jet]:
        """Return the recorded numbers, contracted as asked."""
        ids: Tensor = points["set"].context
        if ids is None:
            raise ComponentError("target 'finite-set' has answers at its own points only")
        asked = probes["set"].contractions
        derivatives = {key: contract(self._gradient[ids], c)[0] for key, c in asked.items()}
        return {"set": Jet(self._value[ids], derivatives)}

    def axes(self, site: str) -> Axes:
        """Return the names of the coordinates."""
        return Axes(self.labels, ("f",))


def _normal(random: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=random)


def _lattice(points: int, dimension: int) -> Tensor:
    side = 1
    while side**dimension < points:
        side += 1
    axis = torch.arange(side, dtype=torch.float64)
    return torch.cartesian_prod(*[axis] * dimension).reshape(-1, dimension)[:points]
