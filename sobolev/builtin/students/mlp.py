"""Fully connected students."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sobolev.components import Student
from sobolev.errors import ComponentError
from sobolev.vocabulary import Site

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


def only_input(site: Site, student: str) -> str:
    """Return the name of the site's only input.

    Raises:
        ComponentError: it has several.
    """
    if len(site.inputs) != 1:
        raise ComponentError(f"student {student!r} takes one input; the target gives {sorted(site.inputs)}")
    return next(iter(site.inputs))


class MLP(Student):
    """Linear layers with an activation between them; torch's default initialisation."""

    def __init__(self, hidden: Sequence[int], activation: str) -> None:
        self.hidden = tuple(hidden)
        self.activation = activation

    def build(self, site: Site) -> nn.Module:
        """Return an ``nn.Sequential``; an input of several dimensions is flattened first."""
        shape = site.inputs[only_input(site, "mlp")]
        layers: list[nn.Module] = [nn.Flatten()] if len(shape) != 1 else []
        size = math.prod(shape)
        for width in self.hidden:
            layers += [nn.Linear(size, width), ACTIVATIONS[self.activation]()]
            size = width
        return nn.Sequential(*layers, nn.Linear(size, site.outputs))


class _Zeros(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), self.outputs, dtype=x.dtype, device=x.device)


class Null(Student):
    """No parameters; 0 everywhere."""

    def build(self, site: Site) -> nn.Module:
        """Return a module without parameters."""
        return _Zeros(site.outputs)
