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
from dataclasses import dataclass, field

from torch import Tensor

from sobolev.differentiate.operations import Saved
from sobolev.differentiate.program import Program

Gradients = list[Tensor | None]


@dataclass
class Tape:
    """What the passes of one batch leave for each other; every list is indexed by node number, 0 the input.

    Attributes:
        program, tensors: the network and its present parameters.
        values: outputs of the nodes, where a parameter gradient needs them.
        saved: by operation.
        adjoints, tangents: ``(kB, ...)`` at the outputs of the nodes.
    """

    program: Program
    tensors: Sequence[Tensor]
    values: list[Tensor | None]
    saved: list[Saved]
    adjoints: list[Tensor | None] = field(default_factory=list)
    tangents: list[Tensor | None] = field(default_factory=list)

    @property
    def x(self) -> Tensor:
        """The input ``(B, *x)``."""
        return _there(self.values[0])

    @property
    def complete(self) -> bool:
        """Whether adjoints and tangents are there, so that derivatives enter the gradient."""
        return bool(self.adjoints) and bool(self.tangents)

    def own(self, node: int) -> list[Tensor]:
        """Return the tensors of a node's operation."""
        operation = self.program.nodes[node].operation
        return [] if operation is None else [self.tensors[i] for i in operation.tensors]


def forward(program: Program, tensors: Sequence[Tensor], x: Tensor) -> tuple[Tensor, Tape]:
    """Return the outputs ``(B, n)`` and the tape."""
    values: list[Tensor | None] = [x]  # node 0 is small, and the first layer needs it
    tape = Tape(program, tensors, values, [])
    present: list[Tensor] = [x]
    for number, node in enumerate(program.nodes):
        if node.operation is None:
            out, saved = present[node.sources[0]] + present[node.sources[1]], None
        else:
            out, saved = node.operation.value(present[node.sources[0]], tape.own(number))
        present.append(out)
        values.append(out if number + 1 in program.values else None)
        tape.saved.append(saved)
    return present[-1], tape


def adjoints(tape: Tape, s: Tensor) -> Tensor:
    """Pull ``s`` ``(kB, n)`` back to the input, ``(kB, *x)``; the tape keeps the adjoints of all nodes."""
    nodes = tape.program.nodes
    found: list[Tensor | None] = [None] * (len(nodes) + 1)
    found[-1] = s
    for number in range(len(nodes) - 1, -1, -1):
        node, adjoint = nodes[number], _there(found[number + 1])
        pulled = (
            adjoint if node.operation is None else node.operation.pull(adjoint, tape.saved[number], tape.own(number))
        )
        for source in node.sources:
            before = found[source]
            found[source] = pulled if before is None else before + pulled
    tape.adjoints = [adjoint if i in tape.program.adjoints else None for i, adjoint in enumerate(found)]
    return _there(found[0])


def tangents(tape: Tape, u: Tensor) -> Tensor:
    """Push ``u`` ``(kB, *x)`` forward to the output, ``(kB, n)``; the tape keeps the tangents of all nodes."""
    found: list[Tensor] = [u]
    for number, node in enumerate(tape.program.nodes):
        if node.operation is None:
            found.append(found[node.sources[0]] + found[node.sources[1]])
        else:
            found.append(node.operation.push(found[node.sources[0]], tape.saved[number], tape.own(number)))
    tape.tangents = [tangent if i in tape.program.tangents else None for i, tangent in enumerate(found)]
    return found[-1]


def gradients(tape: Tape, e: Tensor | None) -> Gradients:
    """Return the gradients of the program's tensors.

    Args:
        tape: with adjoints and tangents, or with neither where no derivative enters the loss.
        e: cotangent of z ``(B, n)``, or None where z itself does not enter the loss.
    """
    nodes = tape.program.nodes
    result: Gradients = [None] * len(tape.tensors)
    contracted = tape.complete
    q: list[Tensor | None] = [None] * (len(nodes) + 1)
    q[-1] = e
    for number in range(len(nodes) - 1, -1, -1):
        node, operation = nodes[number], nodes[number].operation
        here, source = q[number + 1], node.sources[0]
        if operation is None:
            for branch in node.sources:
                q[branch] = _plus(q[branch], here)
            continue
        own, saved = tape.own(number), tape.saved[number]
        if operation.tensors:
            values = None if here is None else (here, _there(tape.values[source]))
            pair = (_there(tape.adjoints[number + 1]), _there(tape.tangents[source])) if contracted else None
            if values is not None or pair is not None:
                for position, gradient in zip(
                    operation.tensors, operation.gradients(values, pair, saved, own), strict=True
                ):
                    result[position] = gradient
        if source < tape.program.first:  # nothing before it has parameters
            continue
        if here is not None:
            q[source] = _plus(q[source], operation.pull(here, saved, own))
        if contracted and operation.curved:
            bent = operation.bend(_there(tape.tangents[source]), _there(tape.adjoints[number + 1]), saved)
            q[source] = _plus(q[source], bent)
    return result


def merged_gradients(tape: Tape, e: Tensor) -> Gradients:
    """Return the gradients where the program is piecewise linear with one output and one probe; ``e`` is ``(B, 1)``."""
    result: Gradients = [None] * len(tape.tensors)
    for number, node in enumerate(tape.program.nodes):
        operation = node.operation
        if operation is None or not operation.tensors:
            continue
        adjoint, source = _there(tape.adjoints[number + 1]), node.sources[0]
        found = operation.merged(
            adjoint, e, _there(tape.values[source]), _there(tape.tangents[source]), tape.saved[number], tape.own(number)
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
