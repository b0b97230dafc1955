"""The passes through a program: values, adjoints, tangents, parameter gradients.

For ``L`` a function of the outputs z and of derivatives ``<s_j, J u_j>``, the parameter gradient is that of

    sum_i  <e_i, z(x_i)>  +  sum_j <s_ij, J(x_i) u_ij>,      e = dL/dz,  s or u given by the loss.

With h the values, p the adjoints that started from s, t the tangents that started from u, and q the adjoint of z's
own term, an affine layer has

    dW = sum_i  q_i (x) h_i  +  sum_j p_ij (x) t_ij,         db = sum_i q_i,

where q is e, pulled back; at an activation of pre-activation a and adjoint r at its output it gains the curvature term
``sigma''(a) * sum_j t_ij * r_ij`` (t the tangent of a). Where the network is piecewise linear, has one output and one
probe, q = e * p, so that ``dW = sum_i p_i (x) (e_i h_i + t_i)``: one product less, and no pass for q.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from sobolev.differentiate.operations import Saved
from sobolev.differentiate.program import Program

ByNode = Sequence[Tensor | None]
"""A tensor per node, 0 the input; None where no later pass reads it."""

Gradients = list[Tensor | None]


class Tape(NamedTuple):
    """What the forward pass of one block leaves for the other passes.

    Attributes:
        values: outputs of the nodes ``(B, ...)``.
        saved: by operation, what `Operation.value` returned beside its output.
    """

    values: ByNode
    saved: Sequence[Saved]


def forward(program: Program, tensors: Sequence[Tensor], x: Tensor) -> tuple[Tensor, Tape]:
    """Return the outputs ``(B, n)`` and the tape."""
    present: list[Tensor] = [x]
    every_saved: list[Saved] = []
    for node in program.nodes:
        operation, source = node.operation, present[node.sources[0]]
        if operation is None:
            out, saved = source + present[node.sources[1]], None
        else:
            out, saved = operation.value(source, [tensors[i] for i in operation.tensors])
        present.append(out)
        every_saved.append(saved)
    kept = [value if i in program.values else None for i, value in enumerate(present)]
    return present[-1], Tape(kept, every_saved)


def adjoints(program: Program, tensors: Sequence[Tensor], tape: Tape, s: Tensor) -> tuple[Tensor, ByNode]:
    """Pull ``s`` ``(kB, n)`` back to the input; return ``(kB, *x)`` and the adjoints at the outputs of the nodes."""
    nodes = program.nodes
    found: list[Tensor | None] = [None] * (len(nodes) + 1)
    found[-1] = s
    for number in range(len(nodes) - 1, -1, -1):
        node, pulled = nodes[number], _there(found[number + 1])
        operation = node.operation
        if operation is not None:
            pulled = operation.pull(pulled, tape.saved[number], [tensors[i] for i in operation.tensors])
        for source in node.sources:
            before = found[source]
            found[source] = pulled if before is None else before + pulled
    kept = [adjoint if i in program.adjoints else None for i, adjoint in enumerate(found)]
    return _there(found[0]), kept


def tangents(program: Program, tensors: Sequence[Tensor], tape: Tape, u: Tensor) -> tuple[Tensor, ByNode]:
    """Push ``u`` ``(kB, *x)`` forward; return ``(kB, n)`` and the tangents at the outputs of the nodes."""
    found: list[Tensor] = [u]
    for node, saved in zip(program.nodes, tape.saved, strict=True):
        operation, source = node.operation, found[node.sources[0]]
        if operation is None:
            found.append(source + found[node.sources[1]])
        else:
            found.append(operation.push(source, saved, [tensors[i] for i in operation.tensors]))
    return found[-1], [tangent if i in program.tangents else None for i, tangent in enumerate(found)]


def inner_tangents(program: Program, tensors: Sequence[Tensor], tape: Tape, u: Tensor) -> ByNode:
    """Return the tangents without that of the output, where only parameter gradients need them."""
    found: list[Tensor | None] = [u]
    last = max(program.tangents)
    for node, saved in zip(program.nodes[:last], tape.saved, strict=False):
        operation, source = node.operation, _there(found[node.sources[0]])
        if operation is None:
            found.append(source + _there(found[node.sources[1]]))
        else:
            found.append(operation.push(source, saved, [tensors[i] for i in operation.tensors]))
    return [tangent if i in program.tangents else None for i, tangent in enumerate(found)]


def gradients(
    program: Program,
    tensors: Sequence[Tensor],
    tape: Tape,
    adjoints: ByNode | None,
    tangents: ByNode | None,
    e: Tensor | None,
) -> Gradients:
    """Return the gradients of the program's tensors.

    Args:
        program: the network.
        tensors: its parameters and buffers.
        tape: of the forward pass.
        adjoints: of the nodes, or None where no derivative enters the loss.
        tangents: of the nodes, or None where no derivative enters the loss.
        e: cotangent of z ``(B, n)``, or None where z itself does not enter the loss.
    """
    nodes = program.nodes
    result: Gradients = [None] * len(tensors)
    contracted = adjoints is not None and tangents is not None
    q: list[Tensor | None] = [None] * (len(nodes) + 1)
    q[-1] = e
    for number in range(len(nodes) - 1, program.first - 2, -1):
        node, operation = nodes[number], nodes[number].operation
        here, source = q[number + 1], node.sources[0]
        if operation is None:
            for branch in node.sources:
                q[branch] = _plus(q[branch], here)
            continue
        own, saved = [tensors[i] for i in operation.tensors], tape.saved[number]
        if own:
            values = None if here is None else (here, _there(tape.values[source]))
            pair = None
            if adjoints is not None and tangents is not None:
                pair = (_there(adjoints[number + 1]), _there(tangents[source]))
            if values is not None or pair is not None:
                for position, gradient in zip(
                    operation.tensors, operation.gradients(values, pair, saved, own), strict=True
                ):
                    result[position] = gradient
        if source < program.first:  # nothing before it has parameters
            continue
        if here is not None:
            q[source] = _plus(q[source], operation.pull(here, saved, own))
        if contracted and operation.curved:
            assert adjoints is not None and tangents is not None
            bent = operation.bend(_there(tangents[source]), _there(adjoints[number + 1]), saved)
            q[source] = _plus(q[source], bent)
    return result


def merged_gradients(
    program: Program, tensors: Sequence[Tensor], tape: Tape, adjoints: ByNode, tangents: ByNode, e: Tensor
) -> Gradients:
    """Return the gradients where the program is piecewise linear with one output and one probe; ``e`` is ``(B, 1)``."""
    result: Gradients = [None] * len(tensors)
    for number, node in enumerate(program.nodes):
        operation = node.operation
        if operation is None or not operation.tensors:
            continue
        source = node.sources[0]
        found = operation.merged(
            _there(adjoints[number + 1]),
            e,
            _there(tape.values[source]),
            _there(tangents[source]),
            tape.saved[number],
            [tensors[i] for i in operation.tensors],
        )
        for position, gradient in zip(operation.tensors, found, strict=True):
            result[position] = gradient
    return result


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None:
        return b
    return a if b is None else a + b


def _there(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
