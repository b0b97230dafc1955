"""The passes over one block of rows as pure functions of tensors: what a step runs, eagerly or compiled.

Stacks of k probes are ``(k, B, ...)`` outside and ``(kB, ...)`` inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from sobolev.differentiate import sweeps
from sobolev.differentiate.program import Program
from sobolev.differentiate.sweeps import ByNode, Gradients, Tape

Tensors = Sequence[Tensor]
State = Any
"""What one stage leaves for others: nested lists of tensors, or their compiled form."""


class Runner(Protocol):
    """Calls a stage; a compiler may call something equal and faster."""

    def __call__(self, name: str, stage: Callable[..., Any], *arguments: Any) -> Any:
        """Return ``stage(*arguments)``; ``name`` tells stages of one program apart."""
        ...


def run_eagerly(name: str, stage: Callable[..., Any], *arguments: Any) -> Any:
    """Return ``stage(*arguments)``."""
    return stage(*arguments)


class Stages:
    """The stages of one program.

    Args:
        program: the network.
    """

    def __init__(self, program: Program) -> None:
        self.program = program

    def values(self, tensors: Tensors, x: Tensor) -> tuple[Tensor, Tape]:
        """Return z ``(B, n)`` and the tape."""
        return sweeps.forward(self.program, tensors, x)

    def pull(self, tensors: Tensors, tape: Tape, s: Tensor) -> tuple[Tensor, ByNode]:
        """Return ``J' s_j`` ``(k, B, *x)`` of ``s`` ``(k, B, n)``, and the adjoints of the nodes."""
        pulled, kept = sweeps.adjoints(self.program, tensors, Tape(*tape), s.flatten(0, 1))
        return pulled.reshape(*s.shape[:2], *pulled.shape[1:]), kept

    def push(self, tensors: Tensors, tape: Tape, u: Tensor) -> tuple[Tensor, ByNode]:
        """Return ``J u_j`` ``(k, B, n)`` of ``u`` ``(k, B, *x)``, and the tangents of the nodes."""
        pushed, kept = sweeps.tangents(self.program, tensors, Tape(*tape), u.flatten(0, 1))
        return pushed.reshape(*u.shape[:2], *pushed.shape[1:]), kept

    def gradients(
        self, tensors: Tensors, tape: Tape, adjoints: ByNode | None, tangents: ByNode | None, e: Tensor | None
    ) -> Gradients:
        """Return the gradients of the tensors."""
        return sweeps.gradients(self.program, tensors, Tape(*tape), adjoints, tangents, e)

    def jet(self, tensors: Tensors, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor, State]:
        """Return z, ``J' s_j``, and what `jet_gradients` needs."""
        z, tape = self.values(tensors, x)
        pulled, adjoints = self.pull(tensors, tape, s)
        return z, pulled, (tape, adjoints)

    def jet_gradients(self, tensors: Tensors, state: State, e: Tensor | None, u: Tensor | None) -> Gradients:
        """Return the gradients where e and u are the cotangents of both results of `jet`."""
        tape, adjoints = state
        if u is None:
            return self.gradients(tensors, tape, None, None, e)
        tangents = sweeps.inner_tangents(self.program, tensors, Tape(*tape), u.flatten(0, 1))
        return self.gradients(tensors, tape, adjoints, tangents, e)

    def merged_gradients(self, tensors: Tensors, state: State, e: Tensor, u: Tensor) -> Gradients:
        """Return `jet_gradients` of a piecewise linear program with one output, whose only cotangent was 1."""
        tape, adjoints = state
        tangents = sweeps.inner_tangents(self.program, tensors, Tape(*tape), u[0])
        return sweeps.merged_gradients(self.program, tensors, Tape(*tape), adjoints, tangents, e)

    def along(self, tensors: Tensors, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, State]:
        """Return z, ``J v_j`` ``(k, B, n)``, and what `along_gradients` needs."""
        z, tape = self.values(tensors, x)
        pushed, tangents = self.push(tensors, tape, v)
        return z, pushed, (tape, tangents)

    def along_gradients(self, tensors: Tensors, state: State, e: Tensor, w: Tensor) -> Gradients:
        """Return the gradients of a piecewise linear program with one output; w ``(k, B, 1)`` belongs to ``J v_j``."""
        tape, tangents = state
        ones = e.new_ones(()).expand(e.shape)
        _, adjoints = sweeps.adjoints(self.program, tensors, Tape(*tape), ones)
        combined = [_combined(t, w) for t in tangents]
        return sweeps.merged_gradients(self.program, tensors, Tape(*tape), adjoints, combined, e)


def _combined(tangents: Tensor | None, w: Tensor) -> Tensor | None:
    """Return ``sum_j w_j t_j`` of stacked tangents ``(kB, ...)`` and weights ``(k, B, 1)``."""
    if tangents is None:
        return None
    k, rows = w.shape[:2]
    return (tangents.reshape(k, rows, *tangents.shape[1:]) * w.reshape(k, rows, *(1,) * (tangents.ndim - 1))).sum(0)
