"""Proposition 1 of the paper: a network with no Sobolev loss on a finite set, built and not trained.

In one dimension every point gets a function that is 0 away from it and the wanted line beside it: four kinks, four
ReLUs. In d dimensions the points are mapped by an invertible A so that no two share a coordinate, and
h(x) = sum_k p_k((A x)_k) with p_k((A x_i)_k) = f_i / d and p_k'((A x_i)_k) = s_ik. The gradient of h is A^T s_i; it is
g_i where s_i = A^-T g_i. (The paper prints A^-1 g_i, which is right only where A is symmetric.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sobolev.builtin.theory.finite import FiniteSet
from sobolev.components import Student, Target
from sobolev.errors import ComponentError
from sobolev.vocabulary import Site

_LEAK = 0.01  # slope of torch's LeakyReLU
_TRIES = 200


class Constructive(Student):
    """The network of Proposition 1.

    Raises:
        ComponentError: built for something else than a finite set, or for one that does not fit the target.
    """

    def __init__(self, of: Target, slopes: str, activation: str) -> None:
        if not isinstance(of, FiniteSet):
            raise ComponentError(
                "student 'constructive': 'of' is a finite-set, with the options of the recipe's target"
            )
        points = of.size("train")
        self.x, self.value, self.gradient = of.x[:points], of.value_at[:points, 0], of.gradient_at[:points, 0]
        self.slopes = slopes
        self.leaky = activation == "leaky-relu"

    def build(self, site: Site) -> nn.Module:
        """Return ``Linear, ReLU, Linear`` in float64."""
        d = self.x.shape[1]
        if list(site.inputs.values()) != [(d,)] or site.outputs != 1:
            raise ComponentError(f"student 'constructive' was built for {d} inputs and one output, the target differs")
        a = _spread(self.x)
        inverse = torch.linalg.inv(a)
        slopes = self.gradient @ (inverse if self.slopes == "inverse-transpose" else inverse.T)
        z = self.x @ a.T
        weights, biases, outer = [], [], []
        for k in range(d):
            kinks, changes = _line(z[:, k], self.value / d, slopes[:, k])
            weights.append(a[k].expand(len(kinks), d))
            biases.append(-kinks)
            outer.append(changes)
        weight, bias, out = torch.cat(weights), torch.cat(biases), torch.cat(outer)
        activation: nn.Module = nn.ReLU()
        if self.leaky:
            # relu(t) = (leaky(t) + c leaky(-t)) / (1 - c^2) for the slope c on the negative side.
            weight, bias = torch.cat([weight, -weight]), torch.cat([bias, -bias])
            out = torch.cat([out, _LEAK * out]) / (1 - _LEAK**2)
            activation = nn.LeakyReLU(_LEAK)
        first, last = nn.Linear(d, len(weight)).double(), nn.Linear(len(out), 1).double()
        with torch.no_grad():
            first.weight.copy_(weight)
            first.bias.copy_(bias)
            last.weight.copy_(out[None])
            last.bias.zero_()
        return nn.Sequential(first, activation, last)


def _spread(x: Tensor) -> Tensor:
    """Return a ``(d, d)`` rotation under which no two points share a coordinate, the best of some random ones.

    Best is the one with the widest smallest gap: the slopes of the network grow with its inverse.
    """
    d = x.shape[1]
    if d == 1:
        return torch.ones(1, 1, dtype=x.dtype)
    random = torch.Generator().manual_seed(0)
    tried: list[Tensor] = []
    for _ in range(_TRIES):
        a = torch.linalg.qr(torch.randn(d, d, dtype=x.dtype, generator=random))[0]
        a[0] *= torch.linalg.det(a).sign()  # no reflections
        tried.append(a)
    return max(tried, key=lambda a: float(_gaps(x @ a.T)))


def _gaps(z: Tensor) -> Tensor:
    """Return the smallest gap between neighbours in any column of ``(n, d)``."""
    if len(z) < 2:
        return torch.ones(())
    gaps: Tensor = z.sort(dim=0).values.diff(dim=0)
    return gaps.min()


def _line(z: Tensor, value: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return kinks ``(4 n,)`` and changes of slope at them: the function p of the paper's proof, summed over points."""
    gap = float(_gaps(z[:, None]))
    if gap <= 0:
        raise ComponentError(
            "student 'constructive': two points of the set are equal, yet a function has one value there"
        )
    half = gap / 6  # the paper's epsilon: below a fifth of the smallest gap
    up, down = (value - slope * half) / half, -(value + slope * half) / half
    kinks = torch.cat([z - 2 * half, z - half, z + half, z + 2 * half])
    return kinks, torch.cat([up, slope - up, down - slope, -down])
