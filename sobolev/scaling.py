"""Affine layers that let a student work in standardised units while every jet stays in the user's.

With mean and deviation fixed, the chain rule does the rest: value and derivatives of the wrapped network are those of
one ordinary function of the user's inputs, so no metric, no plot and no exported graph needs a scaler beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sobolev.vocabulary import Moments


class Scaling(nn.Module):
    """An element-wise map by a fixed mean and deviation.

    Attributes:
        mean: of one sample, ``(*x)``; a buffer, saved with the student.
        deviation: of the same shape, positive.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, moments: Moments) -> None:
        super().__init__()
        self.register_buffer("mean", moments.mean.detach().clone())
        self.register_buffer("deviation", positive(moments.deviation, moments.mean).detach().clone())


class Standardise(Scaling):
    """``(x - mean) / deviation`` for inputs ``(B, *x)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, *x)`` in standardised units."""
        return (x - self.mean) / self.deviation


class Restore(Scaling):
    """``z * deviation + mean`` for outputs ``(B, m)``."""

    def forward(self, z: Tensor) -> Tensor:
        """Return ``(B, m)`` in the user's units."""
        return z * self.deviation + self.mean


def positive(deviation: Tensor, mean: Tensor) -> Tensor:
    """Return deviations with 1 where a quantity is constant, up to rounding beside its mean."""
    constant = deviation <= mean.abs() * 1e-12
    return torch.where(constant, torch.ones_like(deviation), deviation)


def unit(shape: tuple[int, ...]) -> Moments:
    """Return the moments that change nothing, for one sample of a shape."""
    return Moments(torch.zeros(shape, dtype=torch.float64), torch.ones(shape, dtype=torch.float64))
