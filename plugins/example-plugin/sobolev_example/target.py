"""A target: where it is sampled, and its value there. The derivatives come from the recipe's estimator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from sobolev import Axes, Batch, Context, Points, Site, Target


class Ripple(Target):
    """f(x) = cos(frequency * x1) exp(-(x1^2 + x2^2) / 2), sampled uniformly in [-2, 2]^2."""

    fixed_points = True  # a sample id always means the same point

    def __init__(
        self,
        *,
        frequency: Annotated[float, Field(gt=0, description="waves per 2 pi along the first coordinate")] = 2.0,
        train: Annotated[int, Field(ge=1, description="training points, drawn anew for every seed")] = 50,
        test: Annotated[int, Field(ge=0, description="test points")] = 1000,
    ) -> None:
        self.frequency = frequency
        self.sizes = {"train": train, "validation": 0, "test": test}

    def prepare(self, context: Context) -> None:
        """Draw the points; random numbers come from the context, so that a seed gives the same run everywhere."""
        self.x = {
            split: (4 * torch.rand(count, 2, generator=context.generator(f"ripple {split}"), dtype=torch.float64) - 2)
            .to(device=context.device, dtype=context.dtype)
            for split, count in self.sizes.items()
        }  # fmt: skip

    def sites(self) -> Mapping[str, Site]:
        """Return the one site: an input x of shape (2,), one output, differentiated by x."""
        return {"ripple": Site({"x": (2,)}, 1, ("x",), {"x": (-2.0, 2.0)})}

    def size(self, split: str) -> int:
        """Return the number of points of a split."""
        return self.sizes[split]

    def points(self, batch: Batch, training: bool) -> Mapping[str, Points]:
        """Return the points ``(B, 2)`` of a batch of sample ids."""
        x = self.x[batch.split]
        return {"ripple": Points({"x": x[batch.ids.to(x.device)]}, ("x",), batch.ids)}

    def value(self, site: str, inputs: Mapping[str, Tensor], points: Points) -> Tensor:
        """Return f(x) ``(B, 1)``; autograd differentiates it."""
        x = inputs["x"]
        f = torch.cos(self.frequency * x[:, 0]) * torch.exp(-0.5 * x.square().sum(dim=1))
        return f[:, None]

    def axes(self, site: str) -> Axes:
        """Name the coordinates, so that figures can be drawn."""
        return Axes(("x1", "x2"), ("f",), (-2.0, -2.0), (2.0, 2.0))
