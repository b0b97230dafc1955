"""The fast way: first derivatives of a recognised network under a head, by the passes of its program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sobolev.differentiate.cotangents import cotangent, tangent
from sobolev.differentiate.functions import Along, Batch, Forward, Jet, Reverse, Values, block_rows
from sobolev.differentiate.program import Program
from sobolev.heads import Head
from sobolev.vocabulary import Contraction


@dataclass(frozen=True)
class Linearizer:
    """Measures ``head(program(x))`` and one first derivative of it by x.

    Attributes:
        program: the network.
        head: of its output.
        width: numbers per sample of its widest value.
        outputs: n, the size of z.
    """

    program: Program
    head: Head
    width: int
    outputs: int

    def measure(
        self, x: Tensor, inputs: Mapping[str, Tensor], contraction: Contraction, create_graph: bool
    ) -> tuple[Tensor, Tensor]:
        """Return value ``(B, m)`` and derivative in the contraction's shape.

        Args:
            x: ``(B, *x)``, held fixed.
            inputs: what the head reads besides z.
            contraction: of the key ``(x,)``.
            create_graph: whether parameter gradients will be asked for.
        """
        (direction,) = contraction.inputs
        forward = direction is not None
        if contraction.full:
            forward = x.shape[1:].numel() < self.head.outputs(self.outputs)
        with torch.set_grad_enabled(create_graph):
            if forward:
                return self._input_side(x, inputs, contraction)
            return self._output_side(x, inputs, contraction)

    def _output_side(self, x: Tensor, inputs: Mapping[str, Tensor], contraction: Contraction) -> tuple[Tensor, Tensor]:
        m = self.head.outputs(self.outputs)
        v = contraction.output
        # (k, B or 1, m): the rows of the identity where the whole Jacobian is asked.
        stacked = torch.eye(m, dtype=x.dtype, device=x.device)[:, None] if v is None else v.transpose(0, 1)
        if self.head.name == "identity":
            unit = m == 1 and v is None
            s = stacked.expand(-1, len(x), -1)
            z, rows = Jet.apply(self._batch(x, unit), s, x, *self.program.tensors)
            return z, rows.transpose(0, 1)
        batch = self._batch(x)
        z, token = Values.apply(batch, x, *self.program.tensors)
        value = self.head(z, inputs)
        s = cotangent(self.head, z, value, stacked, inputs)
        return value, Reverse.apply(batch, token, s).transpose(0, 1)

    def _input_side(self, x: Tensor, inputs: Mapping[str, Tensor], contraction: Contraction) -> tuple[Tensor, Tensor]:
        (direction,) = contraction.inputs
        if direction is None:
            size = x.shape[1:].numel()
            axes = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *x.shape[1:])
            v = axes.expand(size, *x.shape)
        else:
            v = direction.transpose(0, 1)
        if self.head.name == "identity" and self.outputs == 1 and not self.program.curved:
            value, rows = Along.apply(self._batch(x, unit=True), v, x, *self.program.tensors)
        else:
            batch = self._batch(x)
            z, token = Values.apply(batch, x, *self.program.tensors)
            value = self.head(z, inputs)
            rows = tangent(self.head, z, value, Forward.apply(batch, token, v), inputs)
        if direction is None:  # (d, B, m) -> (B, m, *x)
            return value, rows.permute(1, 2, 0).reshape(*value.shape, *x.shape[1:])
        if contraction.output is not None:
            return value, (rows.transpose(0, 1) * contraction.output).sum(-1)
        return value, rows.transpose(0, 1)

    def _batch(self, x: Tensor, unit: bool = False) -> Batch:
        return Batch(self.program, block_rows(self.program, x, self.width), unit)
