"""Fully connected students."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sobolev.components import Student
from sobolev.errors import ComponentError
from sobolev.scaling import Restore, Standardise
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


def with_scaling(layers: Sequence[nn.Module], site: Site, name: str) -> nn.Sequential:
    """Return layers between those that standardise the site's input ``name`` and restore its output.

    Raises:
        ComponentError: the values that are compared are not those that the student returns.
    """
    statistics = site.statistics
    assert statistics is not None
    if statistics.output is None:
        raise ComponentError(
            "student: 'scale: standard' restores the units of values, but the objective's head stands between the "
            "student's output and the values; use the head 'identity', or 'scale: inputs'"
        )
    return nn.Sequential(Standardise(statistics.inputs[name]), *layers, Restore(statistics.output))


class Feedforward(Student):
    """A student with one input: what the families of this module share.

    Args:
        activation: a name in `ACTIVATIONS`.
        scale: ``none``; ``inputs``: inputs are standardised; ``standard``: inputs and outputs.
    """

    name = ""

    def __init__(self, activation: str, scale: str) -> None:
        self.activation = activation
        self.scale = scale
        self.needs = frozenset() if scale == "none" else frozenset({"statistics"})

    def layers(self, size: int, outputs: int) -> list[nn.Module]:
        """Return the layers from ``(B, size)`` to ``(B, outputs)``."""
        raise NotImplementedError

    def build(self, site: Site) -> nn.Module:
        """Return an ``nn.Sequential``; an input of several dimensions is flattened after scaling."""
        name = only_input(site, self.name)
        shape = site.inputs[name]
        layers: list[nn.Module] = [nn.Flatten()] if len(shape) != 1 else []
        layers += self.layers(math.prod(shape), site.outputs)
        if self.scale == "standard":
            return with_scaling(layers, site, name)
        if self.scale == "inputs":
            assert site.statistics is not None
            layers.insert(0, Standardise(site.statistics.inputs[name]))
        return nn.Sequential(*layers)


class MLP(Feedforward):
    """Linear layers with an activation between them; torch's default initialisation."""

    name = "mlp"

    def __init__(self, hidden: Sequence[int], activation: str, scale: str = "none") -> None:
        super().__init__(activation, scale)
        self.hidden = tuple(hidden)

    def layers(self, size: int, outputs: int) -> list[nn.Module]:
        """Return linear layers and activations."""
        layers: list[nn.Module] = []
        for width in self.hidden:
            layers += [nn.Linear(size, width), ACTIVATIONS[self.activation]()]
            size = width
        return [*layers, nn.Linear(size, outputs)]


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
