"""Derivatives of any function of named inputs by autograd: the general way."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sobolev.differentiate.composite import differentiable_forms
from sobolev.errors import DerivativeError
from sobolev.vocabulary import Contraction, Jet, Key, Points, Probe, key_name

ValueFunction = Callable[[Mapping[str, Tensor]], Tensor]


def differentiate(
    function: ValueFunction, points: Points, probe: Probe, create_graph: bool, detached: frozenset[Key] = frozenset()
) -> Jet:
    """Return the jet of a function that treats samples independently.

    Where it does not (BatchNorm in training mode), the derivative of sample i is that of the sum of all samples'
    values by x_i, coupling included.

    Args:
        function: inputs by name -> value ``(B, m)``.
        points: where; inputs named by the probe's keys are differentiated, the others are held.
        probe: what is asked, contracted or full.
        create_graph: whether the result can be differentiated by parameters.
        detached: keys whose derivative is wanted without graph all the same: they share the forward pass, and
            cost no second differentiation.

    Returns:
        The value with its graph, and every derivative in the shape of its contraction.

    Raises:
        DerivativeError: an operation without the derivative that is needed.
    """
    named = {name for key in probe.keys for name in key}
    differentiated_often = any(len(key) > 1 and key not in detached for key in probe.keys)
    try:
        if _forward_mode(points, probe, detached):
            return _by_forward_mode(function, points, probe, create_graph)
        inputs = {
            name: tensor.detach().requires_grad_() if name in named else tensor
            for name, tensor in points.inputs.items()
        }
        with torch.enable_grad(), differentiable_forms(norms=create_graph and differentiated_often):
            value = function(inputs)
            derivatives = {
                key: derivative(
                    value, tuple(inputs[name] for name in key), contraction, create_graph and key not in detached
                )
                for key, contraction in probe.contractions.items()
            }
        return Jet(value, derivatives)
    except (NotImplementedError, RuntimeError) as error:
        raise explained(error, probe) from error


_NO_DERIVATIVE = ("is not implemented", "not differentiable", "not support", "derivative for")


def explained(error: Exception, probe: Probe) -> Exception:
    """Return an error that says what to do where an operation lacks a derivative; any other error as it is."""
    text = str(error)
    if isinstance(error, DerivativeError) or not any(part in text for part in _NO_DERIVATIVE):
        return error
    first = text.strip().partition("\n")[0]
    return DerivativeError(
        f"{', '.join(key_name(key) for key in probe.keys)} cannot be taken: {first}. An operation of the network has no "
        "derivative of the order that is needed. Replace it by elementary operations (fused attention: "
        "torch.nn.attention.sdpa_kernel(SDPBackend.MATH), timm: set_fused_attn(False); recurrent layers on a GPU: "
        "torch.backends.cudnn.flags(enabled=False)), or give the target's derivatives by finite differences"
    )


def _forward_mode(points: Points, probe: Probe, detached: frozenset[Key]) -> bool:
    """Whether forward mode is the cheaper way: directional derivatives of first order, and nothing else."""
    contractions = probe.contractions.values()
    return bool(probe.keys) and not detached and all(
        len(c.inputs) == 1 and c.inputs[0] is not None and c.output is None for c in contractions
    ) and all(points.inputs[key[0]].is_floating_point() for key in probe.keys)  # fmt: skip


def _by_forward_mode(function: ValueFunction, points: Points, probe: Probe, create_graph: bool) -> Jet:
    derivatives: dict[Key, Tensor] = {}
    value: Tensor | None = None
    rng = torch.get_rng_state()
    with torch.set_grad_enabled(create_graph), differentiable_forms(norms=create_graph):
        for key, contraction in probe.contractions.items():
            (name,), (vectors,) = key, contraction.inputs
            assert vectors is not None
            rows = []
            for j in range(vectors.shape[1]):
                torch.set_rng_state(rng)  # every pass draws the same dropout masks
                value, row = torch.func.jvp(
                    lambda x, name=name: function({**points.inputs, name: x}), (points.inputs[name],), (vectors[:, j],)
                )
                rows.append(row)
            derivatives[key] = torch.stack(rows, dim=1)
    assert value is not None
    return Jet(value, derivatives)


def derivative(value: Tensor, by: tuple[Tensor, ...], contraction: Contraction, create_graph: bool) -> Tensor:
    """Return the contracted derivative of ``value`` ``(B, m)`` by one input per slot; they are leaves of its graph."""
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
