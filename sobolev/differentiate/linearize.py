"""The fast way: first derivatives of a recognised network under a head, by the passes of its program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from sobolev.differentiate.autograd import derivative as general_derivative
from sobolev.differentiate.cotangents import cotangent, tangent
from sobolev.differentiate.functions import Along, Batch, Forward, Jet, Reverse, Values, apply, block_rows
from sobolev.differentiate.program import Program
from sobolev.differentiate.stages import Runner, Stages, run_eagerly
from sobolev.heads import Head
from sobolev.vocabulary import Contraction


class Linearizer:
    """Measures ``head(program(x))`` and one first derivative of it by x.

    Args:
        program: the network.
        head: of its output.
        widths: numbers per sample of its input and of every operation's output.
        run: how the passes are called where parameter gradients will be asked for.
    """

    def __init__(self, program: Program, head: Head, widths: Sequence[int], run: Runner = run_eagerly) -> None:
        self.program = program
        self.head = head
        self.widths = tuple(widths)
        self.run = run
        self._stages = Stages(program)
        self._units: dict[tuple[object, ...], Tensor] = {}

    @property
    def outputs(self) -> int:
        """n, the size of z."""
        return self.widths[-1]

    def measure(
        self,
        x: Tensor,
        inputs: Mapping[str, Tensor],
        contraction: Contraction,
        create_graph: bool,
        held: Mapping[str, Contraction] = MappingProxyType({}),
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return value ``(B, m)``, derivative by x in the contraction's shape, and the derivatives by held inputs.

        Args:
            x: ``(B, *x)``, held fixed.
            inputs: what the head reads besides z.
            contraction: of the key ``(x,)``.
            create_graph: whether parameter gradients will be asked for.
            held: contractions by name of inputs that the head alone reads.
        """
        (direction,) = contraction.inputs
        forward = direction is not None
        if contraction.full:
            forward = x.shape[1:].numel() < self.head.outputs(self.outputs)
        # What is only looked at comes seldom, in batches of other sizes.
        run = self.run if create_graph else run_eagerly
        batch = Batch(self._stages, self.program.tensors, block_rows(x, max(self.widths)), run)
        side = self._input_side if forward else self._output_side
        if create_graph == torch.is_grad_enabled() and not held:
            _, value, derivative = side(batch, x, inputs, contraction)
            return value, derivative, {}
        with torch.set_grad_enabled(create_graph):
            z, value, derivative = side(batch, x, inputs, contraction, bool(held))
            by_held = {name: self._by_head(z, inputs, name, asked, create_graph) for name, asked in held.items()}
        return value, derivative, by_held

    def _by_head(
        self, z: Tensor, inputs: Mapping[str, Tensor], name: str, contraction: Contraction, create_graph: bool
    ) -> Tensor:
        """Return the derivative by an input that only the head reads."""
        leaf = inputs[name].detach().requires_grad_()
        with torch.enable_grad():
            value = self.head(z, {**inputs, name: leaf})
            return general_derivative(value, (leaf,), contraction, create_graph)

    def _output_side(
        self, batch: Batch, x: Tensor, inputs: Mapping[str, Tensor], contraction: Contraction, apart: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return z, value and derivative; ``apart`` where others differentiate by z too."""
        m = self.head.outputs(self.outputs)
        v = contraction.output
        stacked = self._unit_rows(m, x) if v is None else v.transpose(0, 1)
        if self.head.name == "identity" and not apart:
            merged = m == 1 and v is None and not self.program.curved
            z, rows = apply(Jet, batch, merged, stacked, x, *batch.tensors)
            return z, z, rows.transpose(0, 1)
        z, token = apply(Values, batch, x, *batch.tensors)
        value = self.head(z, inputs)
        s = cotangent(self.head, z, value, stacked, inputs)
        return z, value, apply(Reverse, batch, token, s).transpose(0, 1)

    def _unit_rows(self, m: int, x: Tensor) -> Tensor:
        """Return the rows of the identity for every sample, ``(m, B, m)``: they ask for the whole Jacobian."""
        key = (m, len(x), x.dtype, x.device)
        found = self._units.get(key)
        if found is None:
            if len(self._units) > 8:  # batches of ever new sizes
                self._units.clear()
            rows = torch.eye(m, dtype=x.dtype, device=x.device)[:, None].expand(-1, len(x), -1)
            found = self._units[key] = rows
        return found

    def _input_side(
        self, batch: Batch, x: Tensor, inputs: Mapping[str, Tensor], contraction: Contraction, apart: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `_output_side` returns, by directions at the input."""
        (direction,) = contraction.inputs
        if direction is None:
            size = x.shape[1:].numel()
            axes = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *x.shape[1:])
            v = axes.expand(size, *x.shape)
        else:
            v = direction.transpose(0, 1)
        if self.head.name == "identity" and self.outputs == 1 and not self.program.curved and not apart:
            z, rows = apply(Along, batch, v, x, *batch.tensors)
            value = z
        else:
            z, token = apply(Values, batch, x, *batch.tensors)
            value = self.head(z, inputs)
            rows = tangent(self.head, z, value, apply(Forward, batch, token, v), inputs)
        if direction is None:  # (d, B, m) -> (B, m, *x)
            return z, value, rows.permute(1, 2, 0).reshape(*value.shape, *x.shape[1:])
        if contraction.output is not None:
            return z, value, (rows.transpose(0, 1) * contraction.output).sum(-1)
        return z, value, rows.transpose(0, 1)
