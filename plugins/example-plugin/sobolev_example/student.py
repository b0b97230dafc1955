"""A student: a family of networks, of which one is built for every site of the target."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from sobolev import ComponentError, Site, Student


class Sines(Student):
    """x -> W sin(F x + b) + c: the frequencies F are drawn once, the rest is trained."""

    def __init__(
        self,
        *,
        features: Annotated[int, Field(ge=1, description="number of sines")] = 64,
        scale: Annotated[float, Field(gt=0, description="standard deviation of the frequencies")] = 1.0,
    ) -> None:
        self.features = features
        self.scale = scale

    def build(self, site: Site) -> nn.Module:
        """Return the network of a site; torch's generator is seeded by the core."""
        if len(site.inputs) != 1:
            raise ComponentError(f"student 'example' takes one input; the target gives {sorted(site.inputs)}")
        (shape,) = site.inputs.values()
        return _Network(math.prod(shape), self.features, site.outputs, self.scale)


class _Network(nn.Module):
    def __init__(self, size: int, features: int, outputs: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", scale * torch.randn(features, size))  # saved, not trained
        self.phase = nn.Parameter(2 * math.pi * torch.rand(features))
        self.last = nn.Linear(features, outputs)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(torch.sin(x.flatten(1) @ self.frequencies.T + self.phase))  # type: ignore[operator]
        return result
