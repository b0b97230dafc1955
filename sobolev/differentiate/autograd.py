"""Derivatives of any function of named inputs by reverse-mode autograd: the general, obvious way."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sobolev.vocabulary import Contraction, Jet, Key, Points, Probe

ValueFunction = Callable[[Mapping[str, Tensor]], Tensor]


def differentiate(
    function: ValueFunction, points: Points, probe: Probe, create_graph: bool, detached: frozenset[Key] = frozenset()
) -> Jet:
    """Return the jet of a function that treats samples independently.

    Args:
        function: inputs by name -> value ``(B, m)``.
        points: where; inputs named by the probe's keys are differentiated, the others are held.
        probe: what is asked, contracted or full.
        create_graph: whether the result can be differentiated by parameters.
        detached: keys whose derivative is wanted without graph all the same: they share the forward pass, and
            cost no second differentiation.

    Returns:
        The value with its graph, and every derivative in the shape of its contraction.
    """
    named = {name for key in probe.keys for name in key}
    inputs = {
        name: tensor.detach().requires_grad_() if name in named else tensor for name, tensor in points.inputs.items()
    }
    with torch.enable_grad():
        value = function(inputs)
        derivatives = {
            key: _derivative(
                value, tuple(inputs[name] for name in key), contraction, create_graph and key not in detached
            )
            for key, contraction in probe.contractions.items()
        }
    return Jet(value, derivatives)


def _derivative(value: Tensor, by: tuple[Tensor, ...], contraction: Contraction, create_graph: bool) -> Tensor:
    k = contraction.probes
    if contraction.output is not None:
        rows = [(value * contraction.output[:, j]).sum(dim=1) for j in range(k or 0)]
        return torch.stack([_row(row, by, contraction, 0, j, create_graph) for j, row in enumerate(rows)], dim=1)
    rows = list(value.unbind(dim=1))
    if k is None:
        return torch.stack([_row(row, by, contraction, 0, None, create_graph) for row in rows], dim=1)
    per_probe = [torch.stack([_row(row, by, contraction, 0, j, create_graph) for row in rows], dim=1) for j in range(k)]
    return torch.stack(per_probe, dim=1)


def _row(
    component: Tensor, by: tuple[Tensor, ...], contraction: Contraction, slot: int, j: int | None, create_graph: bool
) -> Tensor:
    """Differentiate one component ``(B,)`` by the slots from ``slot`` on; returns ``(B, *open slots)``."""
    last = slot == len(by) - 1
    x = by[slot]
    if component.requires_grad:
        # The graph is kept in any case: other rows, slots and keys pass through it too.
        (gradient,) = torch.autograd.grad(
            component.sum(), x, create_graph=create_graph or not last, retain_graph=True, materialize_grads=True
        )
    else:
        gradient = torch.zeros_like(x)
    vector = contraction.inputs[slot]
    if vector is not None:
        contracted = (gradient * vector[:, j]).flatten(1).sum(dim=1)
        return contracted if last else _row(contracted, by, contraction, slot + 1, j, create_graph)
    if last:
        return gradient
    elements = gradient.flatten(1).unbind(dim=1)
    rows = torch.stack([_row(e, by, contraction, slot + 1, j, create_graph) for e in elements], dim=1)
    return rows.reshape(len(rows), *x.shape[1:], *rows.shape[2:])


def key_shape(key: Key, inputs: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return the shape of the open slots of a key's full derivative, without batch and value."""
    return tuple(size for name in key for size in inputs[name].shape[1:])
