"""An estimator: which derivatives are compared. Both sides, student and target, are asked the same."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from sobolev import Contraction, Estimator, Key, Noise, Points, Probe


class RandomAxes(Estimator):
    """Partial derivatives by k coordinates of each sample's input, drawn at random for every step.

    On average the squared result is the squared norm of the whole derivative divided by d, once per input slot.
    """

    def __init__(
        self, *, probes: Annotated[int, Field(ge=1, description="k, coordinates per sample and step")] = 1
    ) -> None:
        self.probes = probes

    def probe(self, points: Points, outputs: int, keys: tuple[Key, ...], noise: Noise) -> Probe:
        """Ask for the derivative along unit vectors: one contraction per key, all slots contracted."""
        made = {}
        for key in keys:
            slots = [self._unit_vectors(points, name, slot, key, noise) for slot, name in enumerate(key)]
            made[key] = Contraction(None, tuple(slots))
        return Probe(made)

    def _unit_vectors(self, points: Points, name: str, slot: int, key: Key, noise: Noise) -> Tensor:
        """Return ``(B, k, *x)``; the draw depends on seed, step and sample id, and on nothing else."""
        x = points.inputs[name]
        size = math.prod(x.shape[1:])
        drawn = noise.bits(points.index.to(x.device), self.probes, "example", *key, slot) % size
        return torch.nn.functional.one_hot(drawn, size).to(x.dtype).reshape(len(x), self.probes, *x.shape[1:])
