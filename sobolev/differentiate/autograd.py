"""Derivatives of any function of named inputs by autograd: the general way."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from sobolev.differentiate.composite import differentiable_forms
from sobolev.errors import ComponentError, DerivativeError
from sobolev.vocabulary import Contraction, Jet, Key, Points, Probe, key_name

ValueFunction = Callable[[Mapping[str, Tensor]], Tensor]


def differentiate(
    function: ValueFunction,
    points: Points,
    probe: Probe,
    create_graph: bool,
    detached: frozenset[Key] = frozenset(),
    coupled: bool = False,
    connected: bool = False,
) -> Jet:
    """Return the jet of a function that treats samples independently.

    Where it does not (BatchNorm in training mode), the derivative of sample i is that of the sum over all samples,
    each contracted with its own vectors, by x_i.

    Args:
        function: inputs by name -> value ``(B, m)``.
        points: where; inputs named by the probe's keys are differentiated, the others are held.
        probe: what is asked, contracted or full.
        create_graph: whether the result can be differentiated by parameters.
        detached: keys whose derivative is wanted without graph all the same: they share the forward pass, and
            cost no second differentiation.
        coupled: whether samples influence each other; then forward mode, which moves all samples at once, is not used.
        connected: whether it is an error that the value does not depend on an input through autograd at all.

    Returns:
        The value with its graph, and every derivative in the shape of its contraction.

    Raises:
        DerivativeError: an operation without the derivative that is needed; a Hessian of coupled samples.
        Disconnected: a value that leaves autograd, where ``connected``.
    """
    if coupled:
        _check_coupled(probe)
    named = {name for key in probe.keys for name in key}
    try:
        if not coupled and _forward_mode(probe, detached):
            return _by_forward_mode(function, points, probe, create_graph, connected)
        leaves = {name: points.inputs[name].detach().requires_grad_() for name in named}
        with torch.enable_grad(), differentiable_forms(norms=_twice(probe, create_graph, detached)):
            # Copies: a first layer may work in place.
            value = function({**points.inputs, **{name: leaf.clone() for name, leaf in leaves.items()}})
            for name, leaf in leaves.items() if connected else ():
                if not _reaches(value, leaf):
                    raise Disconnected(name)
            derivatives = {
                key: derivative(
                    value,
                    tuple(leaves[name] for name in key),
                    contraction,
                    create_graph and key not in detached,
                    coupled,
                )
                for key, contraction in probe.contractions.items()
            }
        return Jet(value, derivatives)
    except (NotImplementedError, RuntimeError) as error:
        raise explained(error, probe) from error


class Disconnected(Exception):
    """A value does not depend through autograd on the input of this name."""


def differentiate_target(function: ValueFunction, points: Points, probe: Probe) -> Jet:
    """Return the jet of a target's value, detached.

    Raises:
        ComponentError: a value that does not depend on a differentiated input through autograd.
    """
    try:
        return differentiate(function, points, probe, create_graph=False, connected=True).detach()
    except Disconnected as name:
        raise ComponentError(
            f"d/d{name} of the target cannot be taken: its value does not depend on {name} through autograd, so every "
            "derivative would come out as 0. Somewhere it detaches, rounds or leaves torch (NumPy, a simulator). Use "
            "torch operations there, the estimator 'finite-difference', or let the target return derivatives of its "
            f"own; if it really is constant in {name}, add 0 * {name} to it"
        ) from None


def _reaches(value: Tensor, leaf: Tensor) -> bool:
    """Return whether the graph of ``value`` ends at ``leaf``."""
    seen, left = set(), [value.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if getattr(node, "variable", None) is leaf:
            return True
        seen.add(node)
        left += [before for before, _ in node.next_functions]
    return False


def _check_coupled(probe: Probe) -> None:
    for key, contraction in probe.contractions.items():
        if any(vector is None for vector in contraction.inputs[:-1]):
            raise DerivativeError(
                f"{key_name(key)}: the student has BatchNorm with the statistics of the batch, so a sample alone has "
                "no second derivative to compare (the sum over the batch, shifted as a whole, does not change at all). "
                "Use GroupNorm or LayerNorm, put BatchNorm in eval mode, or compare Hessian-vector products "
                "(estimator: {use: projected, side: input})"
            )


_NO_DERIVATIVE = (
    "is not implemented",
    "not differentiable",
    "does not support",
    "derivative for",
    "differentiate twice",
    "double backward",
)


def lacks_derivative(error: Exception) -> bool:
    """Return whether an error of torch says that an operation has no derivative of the order that is needed."""
    return any(part in str(error) for part in _NO_DERIVATIVE)


def explained(error: Exception, probe: Probe) -> Exception:
    """Return an error that says what to do where an operation lacks a derivative; any other error as it is."""
    if isinstance(error, DerivativeError) or not lacks_derivative(error):
        return error
    first = str(error).strip().partition("\n")[0]
    return DerivativeError(
        f"{', '.join(key_name(key) for key in probe.keys)} cannot be taken: {first}. An operation of the network has "
        "no derivative of the order that is needed. Replace it by elementary operations (fused attention: "
        "torch.nn.attention.sdpa_kernel(SDPBackend.MATH), timm: set_fused_attn(False); recurrent layers on a GPU: "
        "torch.backends.cudnn.flags(enabled=False)), or give the target's derivatives by finite differences"
    )


def _twice(probe: Probe, create_graph: bool, detached: frozenset[Key]) -> bool:
    """Whether a derivative beyond the first gradient will be differentiated by parameters."""
    return create_graph and any(
        len(key) > 1 or (c.output is None and c.inputs[0] is not None)
        for key, c in probe.contractions.items()
        if key not in detached
    )


def _forward_mode(probe: Probe, detached: frozenset[Key]) -> bool:
    """Whether forward mode is the cheaper way: one directional derivative of first order, and nothing else.

    Several would need several forward passes, which move the statistics of BatchNorm several times.
    """
    if len(probe.contractions) != 1 or detached:
        return False
    ((key, contraction),) = probe.contractions.items()
    return len(key) == 1 and contraction.output is None and contraction.probes == 1


@cache
def _load_forward_rules() -> None:
    # torch scripts some of them when first used, and warns that it should not.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        x = torch.ones(1)
        torch.func.jvp(torch.tanh, (x,), (x,))


def _by_forward_mode(function: ValueFunction, points: Points, probe: Probe, create_graph: bool, connected: bool) -> Jet:
    ((key, contraction),) = probe.contractions.items()
    (vector,) = contraction.inputs
    assert vector is not None
    _load_forward_rules()
    with torch.set_grad_enabled(create_graph), differentiable_forms(norms=create_graph):
        along, x, v = (lambda x: function({**points.inputs, key[0]: x})), points.inputs[key[0]], vector[:, 0]
        try:
            value, row, *_ = torch.func.jvp(along, (x,), (v,), strict=connected)
        except RuntimeError as error:
            # What leaves torch finds no numbers in the tensors of forward mode.
            if connected and any(part in str(error) for part in ("independent of", "doesn't have storage")):
                raise Disconnected(key[0]) from error
            raise
    return Jet(value, {key: row[:, None]})


def derivative(
    value: Tensor, by: tuple[Tensor, ...], contraction: Contraction, create_graph: bool, coupled: bool = False
) -> Tensor:
    """Return the contracted derivative of ``value`` ``(B, m)`` by one input per slot; they are leaves of its graph."""
    output, k = contraction.output, contraction.probes
    if output is not None:
        rows = [(value * vector).sum(dim=1) for vector in _parts(output)]
        return _stack([_row(row, by, contraction, 0, j, create_graph) for j, row in enumerate(rows)], dim=1)
    if len(by) == 1 and k is not None and value.shape[1] > k + 1 and not coupled:
        return _along(value, by[0], contraction, create_graph)
    rows = [_row(row, by, contraction, 0, None, create_graph) for row in _components(value)]
    return _stack(rows, dim=1 if k is None else 2)


def _parts(tensor: Tensor) -> Sequence[Tensor]:
    """Return the slices along dimension 1."""
    return (tensor.squeeze(1),) if tensor.shape[1] == 1 else tensor.unbind(dim=1)


def _components(tensor: Tensor) -> Sequence[Tensor]:
    """Return the columns of ``(B, n)``, of which only sums will be asked: a single one as it is."""
    return (tensor,) if tensor.shape[1] == 1 else tensor.unbind(dim=1)


def _stack(rows: Sequence[Tensor], dim: int) -> Tensor:
    return rows[0].unsqueeze(dim) if len(rows) == 1 else torch.stack(list(rows), dim=dim)


def _along(value: Tensor, x: Tensor, contraction: Contraction, create_graph: bool) -> Tensor:
    """Return ``J v_j`` ``(B, k, m)`` as derivatives of ``J' c``, which is linear in c, by c."""
    (vectors,) = contraction.inputs
    assert vectors is not None
    if not value.requires_grad:
        return value.new_zeros(len(value), vectors.shape[1], value.shape[1])
    c = torch.zeros_like(value, requires_grad=True)
    (pulled,) = torch.autograd.grad(value, x, c, create_graph=True, materialize_grads=True)
    rows = [
        torch.autograd.grad(pulled, c, v, create_graph=create_graph, retain_graph=True, materialize_grads=True)[0]
        for v in _parts(vectors)
    ]
    return _stack(rows, dim=1)


def _row(
    component: Tensor, by: tuple[Tensor, ...], contraction: Contraction, slot: int, j: int | None, create_graph: bool
) -> Tensor:
    """Differentiate one component, ``(B,)`` or ``(B, 1)``, or its sum, by the slots from ``slot`` on.

    Returns ``(B, *open slots)`` for the probe ``j``, or ``(B, [k], *open slots)`` for all where ``j`` is None.
    """
    last = slot == len(by) - 1
    x = by[slot]
    if component.requires_grad:
        # The graph is kept in any case: other rows, slots and keys pass through it too.
        (gradient,) = torch.autograd.grad(
            component.sum() if component.ndim else component,
            x,
            create_graph=create_graph or not last,
            retain_graph=True,
            materialize_grads=True,
        )
    else:
        gradient = torch.zeros_like(x)
    vector = contraction.inputs[slot]
    if vector is not None:
        if j is not None:
            product = gradient * vector[:, j]
            if last:
                return product.flatten(1).sum(dim=1)
            return _row(product.sum(), by, contraction, slot + 1, j, create_graph)
        if not last and vector.shape[1] == 1:  # every operation less is one less to differentiate twice
            product = gradient * vector[:, 0]
            return _row(product.sum(), by, contraction, slot + 1, 0, create_graph).unsqueeze(1)
        contracted = (gradient[:, None] * vector).flatten(2).sum(dim=2)
        if last:
            return contracted
        parts = _components(contracted)
        return _stack([_row(c, by, contraction, slot + 1, i, create_graph) for i, c in enumerate(parts)], dim=1)
    if last:
        return gradient
    elements = _components(gradient.flatten(1))
    position = 2 if j is None and contraction.probes is not None else 1
    rows = _stack([_row(e, by, contraction, slot + 1, j, create_graph) for e in elements], dim=position)
    return rows.reshape(*rows.shape[:position], *x.shape[1:], *rows.shape[position + 1 :])
