"""The slow, obvious way to every derivative: one component after the other, one autograd call each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sobolev.vocabulary import Contraction


def full_derivative(function: Callable[[Tensor], Tensor], x: Tensor, order: int) -> Tensor:
    """Return ``(B, m, *x, ..., *x)`` with graph; ``function`` treats samples independently and is called once each."""
    return torch.stack([_sample(function, x[i : i + 1], order) for i in range(len(x))])


def _sample(function: Callable[[Tensor], Tensor], x: Tensor, order: int) -> Tensor:
    x = x.detach().requires_grad_()
    current = function(x)[0]
    for _ in range(order):
        rows = []
        for element in current.reshape(-1):
            if element.requires_grad:
                (row,) = torch.autograd.grad(element, x, create_graph=True, allow_unused=True)
            else:
                row = None
            rows.append(torch.zeros_like(x)[0] if row is None else row[0])
        current = torch.stack(rows).reshape(*current.shape, *x.shape[1:])
    return current


def contracted(derivative: Tensor, contraction: Contraction) -> Tensor:
    """Contract with explicit loops over samples and probes."""
    if contraction.full:
        return derivative
    samples = []
    for b in range(len(derivative)):
        probes = []
        for j in range(contraction.probes or 0):
            current = derivative[b]
            # From the last slot to the first, so that positions before it stay where they are.
            position = current.ndim
            for vector in reversed(contraction.inputs):
                size = (derivative.ndim - 2) // len(contraction.inputs)
                position -= size
                if vector is not None:
                    current = torch.tensordot(
                        current.movedim(list(range(position, position + size)), list(range(-size, 0))),
                        vector[b, j],
                        dims=size,
                    )
            if contraction.output is not None:
                current = torch.tensordot(contraction.output[b, j], current, dims=1)
            probes.append(current)
        samples.append(torch.stack(probes))
    return torch.stack(samples)
