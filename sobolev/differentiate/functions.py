"""The passes of a program as differentiable functions: values and derivatives with one ordinary backward pass.

Nothing here differentiates twice, so nothing needs a second derivative from PyTorch. Differentiating the results
once more is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sobolev.differentiate import sweeps
from sobolev.differentiate.program import Program
from sobolev.differentiate.sweeps import Gradients, Tape

_BLOCK_BYTES = 2**19  # of the widest value: then what one block reads and writes stays in a core's second-level cache


class Batch:
    """The tapes of one batch, which is processed in blocks of rows.

    Args:
        program: the network.
        rows: rows per block.
        unit: whether the only cotangent is 1 for the only output: then the cheaper, merged gradients may be used.
    """

    def __init__(self, program: Program, rows: int, unit: bool = False) -> None:
        self.program = program
        self.rows = rows
        self.merged = unit and not program.curved
        self.tapes: list[Tape] = []

    def _blocks(self, rows: int) -> list[slice]:
        return [slice(start, min(start + self.rows, rows)) for start in range(0, rows, self.rows)]

    def forward(self, tensors: Sequence[Tensor], x: Tensor) -> Tensor:
        """Return the outputs ``(B, n)``."""
        outputs = []
        for block in self._blocks(len(x)):
            z, tape = sweeps.forward(self.program, tensors, x if self.rows >= len(x) else x[block])
            outputs.append(z)
            self.tapes.append(tape)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _each(self, function: Callable[[Tape, Tensor], Tensor], stacked: Tensor) -> Tensor:
        k, rows = stacked.shape[:2]
        parts = []
        for tape, block in zip(self.tapes, self._blocks(rows), strict=True):
            out = function(tape, (stacked if self.rows >= rows else stacked[:, block]).flatten(0, 1))
            parts.append(out.reshape(k, -1, *out.shape[1:]))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def adjoints(self, s: Tensor) -> Tensor:
        """Pull ``s`` ``(k, B, n)`` back: ``(k, B, *x)``."""
        return self._each(sweeps.adjoints, s)

    def tangents(self, u: Tensor) -> Tensor:
        """Push ``u`` ``(k, B, *x)`` forward: ``(k, B, n)``."""
        return self._each(sweeps.tangents, u)

    def gradients(self, e: Tensor | None) -> Gradients:
        """Return the gradients of the program's tensors, summed over the blocks."""
        total: Gradients = []
        for number, tape in enumerate(self.tapes):
            part = e if e is None or self.rows >= len(e) else e[number * self.rows : (number + 1) * self.rows]
            merged = self.merged and part is not None and tape.complete
            found = sweeps.merged_gradients(tape, part) if merged else sweeps.gradients(tape, part)
            if not total:
                total = found
                continue
            pairs = [(a, b) for a, b in zip(total, found, strict=True) if a is not None and b is not None]
            torch._foreach_add_([a for a, _ in pairs], [b for _, b in pairs])
        return total


def block_rows(program: Program, x: Tensor, width: int) -> int:
    """Return how many rows a block has: all on an accelerator; a cache-sized piece of a large batch on a CPU.

    Args:
        program: the network.
        x: its input ``(B, *x)``.
        width: numbers per sample of its widest value.
    """
    if x.device.type != "cpu":
        return max(1, len(x))
    rows = max(32, _BLOCK_BYTES // (x.element_size() * max(1, width)) // 32 * 32)
    return rows if len(x) > 2 * rows else max(1, len(x))


def _unchanged(ctx: Any) -> Batch:
    """Return the batch of a function whose parameters were not overwritten since its forward pass."""
    _ = ctx.saved_tensors  # raises where one was
    batch: Batch = ctx.batch
    return batch


class Jet(torch.autograd.Function):
    """z and ``<z, v_j>``'s gradients by x, for cotangents that do not depend on z (identity head)."""

    @staticmethod
    def forward(ctx: Any, batch: Batch, s: Tensor, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """``s`` is ``(k, B, n)``; returns ``(B, n)`` and ``(k, B, *x)``."""
        ctx.set_materialize_grads(False)
        ctx.batch = batch
        ctx.save_for_backward(*tensors)
        z = batch.forward(tensors, x)
        return z, batch.adjoints(s)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, e: Tensor | None, u: Tensor | None) -> tuple[Tensor | None, ...]:
        batch = _unchanged(ctx)
        if u is None:
            for tape in batch.tapes:
                tape.tangents = []
        else:
            batch.tangents(u)
        return None, None, None, *batch.gradients(e)


class Values(torch.autograd.Function):
    """z, and a token that ties the derivatives of the same batch to it.

    Its backward runs after that of every function that took the token, and gathers all parameter gradients.
    """

    @staticmethod
    def forward(ctx: Any, batch: Batch, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.batch = batch
        ctx.save_for_backward(*tensors)
        return batch.forward(tensors, x), x.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, e: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, None, *_unchanged(ctx).gradients(e)


class Reverse(torch.autograd.Function):
    """``J(x)' s_j``, differentiable by s and, through the token, by the parameters."""

    @staticmethod
    def forward(ctx: Any, batch: Batch, token: Tensor, s: Tensor) -> Tensor:
        """``s`` is ``(k, B, n)``; returns ``(k, B, *x)``."""
        ctx.batch = batch
        return batch.adjoints(s)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        return None, u.new_zeros(()), ctx.batch.tangents(u)


class Forward(torch.autograd.Function):
    """``J(x) v_j``, differentiable, through the token, by the parameters."""

    @staticmethod
    def forward(ctx: Any, batch: Batch, token: Tensor, v: Tensor) -> Tensor:
        """``v`` is ``(k, B, *x)``; returns ``(k, B, n)``."""
        ctx.batch = batch
        return batch.tangents(v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, ...]:
        ctx.batch.adjoints(w)
        return None, w.new_zeros(()), None


class Along(torch.autograd.Function):
    """z and ``J(x) v_j`` of a piecewise linear network with one output (identity head): no second pass for q."""

    @staticmethod
    def forward(ctx: Any, batch: Batch, v: Tensor, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """``v`` is ``(k, B, *x)``; returns ``(B, 1)`` and ``(k, B, 1)``."""
        ctx.batch = batch
        ctx.save_for_backward(*tensors)
        z = batch.forward(tensors, x)
        return z, batch.tangents(v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, e: Tensor, w: Tensor) -> tuple[Tensor | None, ...]:
        batch = _unchanged(ctx)
        batch.adjoints(torch.ones_like(e)[None])
        start = 0
        kept = [tape.tangents for tape in batch.tapes]
        for tape in batch.tapes:
            size = len(tape.x)
            tape.tangents = [_combined(t, w[:, start : start + size]) for t in tape.tangents]
            start += size
        found = batch.gradients(e)
        for tape, tangents in zip(batch.tapes, kept, strict=True):
            tape.tangents = tangents
        return None, None, None, *found


def _combined(tangents: Tensor | None, w: Tensor) -> Tensor | None:
    """Return ``sum_j w_j t_j`` of stacked tangents ``(kB, ...)`` and weights ``(k, B, 1)``."""
    if tangents is None:
        return None
    k, rows = w.shape[:2]
    return (tangents.reshape(k, rows, *tangents.shape[1:]) * w.reshape(k, rows, *(1,) * (tangents.ndim - 1))).sum(0)
