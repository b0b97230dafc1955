"""The passes of a program as differentiable functions: values and derivatives with one ordinary backward pass.

Nothing here differentiates twice, so nothing needs a second derivative from PyTorch. Differentiating the results
once more is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sobolev.devices import full_precision
from sobolev.differentiate.stages import Runner, Stages, State, run_eagerly
from sobolev.differentiate.sweeps import Gradients

_BLOCK_BYTES = 2**19  # of the widest value: then what one block reads and writes stays in a core's second-level cache


class Batch:
    """What the passes over one batch leave for each other; the batch is processed in blocks of rows.

    Args:
        stages: of the network.
        tensors: its present parameters and buffers.
        rows: rows per block.
        run: how stages are called.
    """

    def __init__(self, stages: Stages, tensors: Sequence[Tensor], rows: int, run: Runner = run_eagerly) -> None:
        self.stages = stages
        self.tensors = tensors
        self.rows = rows
        self.run = run
        self.states: list[State] = []
        self.adjoints: list[State] = []
        self.tangents: list[State] = []

    def parts(self, tensor: Tensor | None, dim: int = 0) -> Sequence[Tensor | None]:
        """Return the blocks of a tensor whose rows lie along ``dim``; None for each where it is None."""
        if tensor is None:
            return [None] * len(self.states)
        return [tensor] if tensor.shape[dim] <= self.rows else tensor.split(self.rows, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs ``(B, n)``."""
        outputs = []
        for part in self.parts(x):
            z, tape = self.run("values", self.stages.values, self.tensors, part)
            outputs.append(z)
            self.states.append(tape)
        return _joined(outputs, 0)

    def pull(self, s: Tensor) -> Tensor:
        """Pull ``s`` ``(k, B, n)`` back: ``(k, B, *x)``."""
        results = []
        self.adjoints = []
        for tape, part in zip(self.states, self.parts(s, 1), strict=True):
            pulled, adjoints = self.run("pull", self.stages.pull, self.tensors, tape, part)
            results.append(pulled)
            self.adjoints.append(adjoints)
        return _joined(results, 1)

    def push(self, u: Tensor) -> Tensor:
        """Push ``u`` ``(k, B, *x)`` forward: ``(k, B, n)``."""
        results = []
        self.tangents = []
        for tape, part in zip(self.states, self.parts(u, 1), strict=True):
            pushed, tangents = self.run("push", self.stages.push, self.tensors, tape, part)
            results.append(pushed)
            self.tangents.append(tangents)
        return _joined(results, 1)

    def gradients(self, e: Tensor | None) -> Gradients:
        """Return the gradients of the program's tensors; derivatives enter where both `pull` and `push` ran."""
        nothing: list[State] = [None] * len(self.states)
        both = bool(self.adjoints and self.tangents)
        adjoints, tangents = (self.adjoints, self.tangents) if both else (nothing, nothing)
        return _summed([
            self.run("gradients", self.stages.gradients, self.tensors, *state)
            for state in zip(self.states, adjoints, tangents, self.parts(e), strict=True)
        ])  # fmt: skip


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def _summed(parts: Sequence[Gradients]) -> Gradients:
    """Return the sum over blocks, in the tensors of the first."""
    total = parts[0]
    for part in parts[1:]:
        pairs = [(a, b) for a, b in zip(total, part, strict=True) if a is not None and b is not None]
        torch._foreach_add_([a for a, _ in pairs], [b for _, b in pairs])
    return total


def block_rows(x: Tensor, width: int) -> int:
    """Return how many rows a block has: all on an accelerator; a cache-sized piece of a large batch on a CPU.

    Args:
        x: the input of the network ``(B, *x)``.
        width: numbers per sample of its widest value.
    """
    rows = max(32, _BLOCK_BYTES // (x.element_size() * max(1, width)) // 32 * 32)
    if x.device.type != "cpu" or len(x) <= 2 * rows:
        return max(1, len(x))
    return -(-len(x) // -(-len(x) // rows))  # pieces of nearly equal size


def _unchanged(ctx: Any) -> Batch:
    """Return the batch of a function whose parameters were not overwritten since its forward pass."""
    _ = ctx.saved_tensors  # raises where one was
    batch: Batch = ctx.batch
    return batch


class Jet(torch.autograd.Function):
    """z and ``<z, v_j>``'s gradients by x, for cotangents that do not depend on z (identity head)."""

    @staticmethod
    def forward(ctx: Any, batch: Batch, merged: bool, s: Tensor, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """``s`` is ``(k, B, n)``, ones for the only output where ``merged``; returns ``(B, n)`` and ``(k, B, *x)``."""
        ctx.set_materialize_grads(False)
        ctx.batch, ctx.merged = batch, merged
        ctx.save_for_backward(*tensors)
        values, rows = [], []
        for part, cotangents in zip(batch.parts(x), batch.parts(s, 1), strict=True):
            z, pulled, state = batch.run("jet", batch.stages.jet, tensors, part, cotangents)
            values.append(z)
            rows.append(pulled)
            batch.states.append(state)
        return _joined(values, 0), _joined(rows, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, e: Tensor | None, u: Tensor | None) -> tuple[Tensor | None, ...]:
        batch = _unchanged(ctx)
        merged = ctx.merged and e is not None and u is not None
        name = "merged_gradients" if merged else "jet_gradients"
        stage = batch.stages.merged_gradients if merged else batch.stages.jet_gradients
        parts = zip(batch.states, batch.parts(e), batch.parts(u, 1), strict=True)
        with full_precision(batch.tensors[0].device):
            found = [batch.run(name, stage, batch.tensors, *part) for part in parts]
        return None, None, None, None, *_summed(found)


class Values(torch.autograd.Function):
    """z, and a token that ties the derivatives of the same batch to it.

    Its backward runs after that of every function that took the token, and gathers all parameter gradients.
    """

    @staticmethod
    def forward(ctx: Any, batch: Batch, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.batch = batch
        ctx.save_for_backward(*tensors)
        return batch.forward(x), x.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, e: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        batch = _unchanged(ctx)
        with full_precision(batch.tensors[0].device):
            return None, None, *batch.gradients(e)


class Reverse(torch.autograd.Function):
    """``J(x)' s_j``, differentiable by s and, through the token, by the parameters."""

    @staticmethod
    def forward(ctx: Any, batch: Batch, token: Tensor, s: Tensor) -> Tensor:
        """``s`` is ``(k, B, n)``; returns ``(k, B, *x)``."""
        ctx.batch = batch
        # Without its graph: what the batch keeps would hold that graph, which holds the batch, for ever.
        return batch.pull(s.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        with full_precision(u.device):
            return None, u.new_zeros(()), ctx.batch.push(u)


class Forward(torch.autograd.Function):
    """``J(x) v_j``, differentiable, through the token, by the parameters."""

    @staticmethod
    def forward(ctx: Any, batch: Batch, token: Tensor, v: Tensor) -> Tensor:
        """``v`` is ``(k, B, *x)``; returns ``(k, B, n)``."""
        ctx.batch = batch
        return batch.push(v.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, ...]:
        with full_precision(w.device):
            ctx.batch.pull(w)
        return None, w.new_zeros(()), None


class Along(torch.autograd.Function):
    """z and ``J(x) v_j`` of a piecewise linear network with one output (identity head): no second pass for q."""

    @staticmethod
    def forward(ctx: Any, batch: Batch, v: Tensor, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """``v`` is ``(k, B, *x)``; returns ``(B, 1)`` and ``(k, B, 1)``."""
        ctx.batch = batch
        ctx.save_for_backward(*tensors)
        values, rows = [], []
        for part, directions in zip(batch.parts(x), batch.parts(v, 1), strict=True):
            z, pushed, state = batch.run("along", batch.stages.along, tensors, part, directions)
            values.append(z)
            rows.append(pushed)
            batch.states.append(state)
        return _joined(values, 0), _joined(rows, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, e: Tensor, w: Tensor) -> tuple[Tensor | None, ...]:
        batch = _unchanged(ctx)
        parts = zip(batch.states, batch.parts(e), batch.parts(w, 1), strict=True)
        stage = batch.stages.along_gradients
        with full_precision(batch.tensors[0].device):
            found = [batch.run("along_gradients", stage, batch.tensors, *part) for part in parts]
        return None, None, None, *_summed(found)


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """Return ``function.apply(*arguments)``; torch leaves that method without types."""
    return function.apply(*arguments)
