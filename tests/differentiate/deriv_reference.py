"""The slow, obvious way to every derivative: one component after the other, one autograd call each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sobolev.vocabulary import Contraction


def full_derivative(function: Callable[[Tensor], Tensor], x: Tensor, order: int) -> Tensor:
    """Return ``(B, m, *x, ..., *x)`` with graph; ``function`` treats samples independently and is called once each."""
    return torch.stack([_sample(function, x[i : i + 1], order) for i in range(len(x))])


def _sample(function: Callable[[Tensor], Tensor], x: Tensor, order: int) -> Tensor:
    x = x.detach().requires_grad_()
    current = function(x)[0]
    for _ in range(order):
        rows = [_gradient(element, x)[0] for element in current.reshape(-1)]
        current = torch.stack(rows).reshape(*current.shape, *x.shape[1:])
    return current


def coupled_derivative(function: Callable[[Tensor], Tensor], x: Tensor, order: int) -> Tensor:
    """Return the derivatives of the sum of all samples' values by each ``x_i``; ``function`` is called once."""
    x = x.detach().requires_grad_()
    current = function(x)
    for _ in range(order):
        columns = current.reshape(len(x), -1).unbind(dim=1)
        rows = torch.stack([_gradient(column.sum(), x) for column in columns], dim=1)
        current = rows.reshape(*current.shape, *x.shape[1:])
    return current


def coupled_contracted(function: Callable[[Tensor], Tensor], x: Tensor, contraction: Contraction) -> Tensor:
    """Differentiate sums over all samples, each weighted with its own vectors; for samples that are not independent."""
    x = x.detach().requires_grad_()
    value = function(x)
    probes = []
    for j in range(contraction.probes or 1):
        current = value
        if contraction.output is not None:
            current = (value * contraction.output[:, j]).sum(dim=1)
        for vector in contraction.inputs:
            columns = current.reshape(len(x), -1).unbind(dim=1)
            rows = torch.stack([_gradient(column.sum(), x) for column in columns], dim=1)
            if vector is None:
                current = rows.reshape(*current.shape, *x.shape[1:])
            else:
                current = (rows * vector[:, j, None]).flatten(2).sum(dim=2).reshape(current.shape)
        probes.append(current)
    return probes[0] if contraction.full else torch.stack(probes, dim=1)


def _gradient(scalar: Tensor, x: Tensor) -> Tensor:
    if not scalar.requires_grad:
        return torch.zeros_like(x)
    (row,) = torch.autograd.grad(scalar, x, create_graph=True, allow_unused=True)
    return torch.zeros_like(x) if row is None else row


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


class WrittenNorm(nn.Module):
    """Layer, batch or instance norm, over the statistics of its input, from elementary operations."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, h: Tensor) -> Tensor:
        if isinstance(self.layer, nn.LayerNorm):
            dims, shape = (-1,), (1, -1)
        elif isinstance(self.layer, nn.InstanceNorm2d):
            dims, shape = (2, 3), (1, -1, 1, 1)
        else:
            dims, shape = tuple(i for i in range(h.ndim) if i != 1), (1, -1, *(1,) * (h.ndim - 2))
        mean = h.mean(dims, keepdim=True)
        var = ((h - mean) ** 2).mean(dims, keepdim=True)
        normal = (h - mean) / torch.sqrt(var + self.layer.eps)
        return normal * self.layer.weight.reshape(shape) + self.layer.bias.reshape(shape)


@contextmanager
def written_out(module: nn.Module) -> Iterator[None]:
    """Replace norm layers whose kernels differentiate wrongly, and fused attention."""
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            batch = isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.training
            if batch or isinstance(layer, nn.LayerNorm | nn.InstanceNorm2d):
                replaced.append((parent, name, layer))
                setattr(parent, name, WrittenNorm(layer))
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for parent, name, layer in replaced:
            setattr(parent, name, layer)
