"""The operations of which recognised networks are made, with their linear maps in both directions.

Rows are samples. Adjoints and tangents of k probes are stacked along the rows, ``(kB, ...)``, probe after probe;
what the forward pass saved has ``B`` rows and serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sobolev.differentiate.elementwise import Activation

_aten = torch.ops.aten
Saved = Any
Pair = tuple[Tensor, Tensor]
"""An adjoint at the output of an operation, and what stands at its input: rows by rows."""


def per_probe(function: Callable[..., Tensor], moving: Tensor, *saved: Tensor | None) -> Tensor:
    """Apply an element-wise function to ``(kB, ...)`` and to saved tensors of ``B`` rows."""
    rows = next(len(s) for s in saved if s is not None)
    if len(moving) == rows:
        return function(moving, *saved)
    k = len(moving) // rows
    wide = [None if s is None else s.expand(k, *s.shape) for s in saved]
    return function(moving.reshape(k, rows, *moving.shape[1:]), *wide).reshape(moving.shape)


class Operation:
    """One input, one output; linear in its input unless ``bend`` is overridden.

    Attributes:
        tensors: positions of its parameters and buffers in the program's list.
        curved: whether its second derivative is other than 0 anywhere.
    """

    tensors: tuple[int, ...] = ()
    curved: bool = False

    def value(self, h: Tensor, p: Sequence[Tensor]) -> tuple[Tensor, Saved]:
        """Return the output and what the other methods need of this pass."""
        raise NotImplementedError

    def pull(self, adjoint: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        """Return the adjoint at the input."""
        raise NotImplementedError

    def push(self, tangent: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        """Return the tangent at the output."""
        raise NotImplementedError

    def bend(self, tangent: Tensor, adjoint: Tensor, saved: Saved) -> Tensor:
        """Return ``sum_j sigma''(a) * tangent_j * adjoint_j``, ``(B, ...)``: tangents at the input, adjoints after."""
        raise NotImplementedError

    def gradients(
        self, values: Pair | None, derivatives: Pair | None, saved: Saved, p: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Return the gradients of ``tensors`` of ``<q, op(h)> + <p, linear part of op(t)>``.

        Args:
            values: (q, h), or None where there is no such term.
            derivatives: (p, t) of all probes, or None.
            saved: of the forward pass.
            p: the operation's tensors.
        """
        return []

    def merged(
        self, adjoint: Tensor, e: Tensor, h: Tensor, tangent: Tensor, saved: Saved, p: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Return `gradients` where q is ``e * p``, with ``e`` ``(B, 1)``."""
        return self.gradients((_scaled(e, adjoint), h), (adjoint, tangent), saved, p)


def _scaled(e: Tensor, by_row: Tensor) -> Tensor:
    """Return every row of a tensor times its sample's number."""
    return e.reshape(-1, *(1,) * (by_row.ndim - 1)) * by_row


def _joined(e: Tensor, h: Tensor, tangent: Tensor) -> Tensor:
    """Return ``e * h + t``."""
    return torch.addcmul(tangent, e.reshape(-1, *(1,) * (h.ndim - 1)), h)


_FEW = 8
"""Products with so few columns are several times faster in transposed form (measured with MKL)."""


def _outer(adjoint: Tensor, source: Tensor) -> Tensor:
    """Return ``adjoint' source``, contiguous."""
    if source.shape[1] <= _FEW:
        return (source.t() @ adjoint).t().contiguous()
    return adjoint.t() @ source


def _total(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


@dataclass
class Linear(Operation):
    """``h W' + b`` on the last dimension."""

    tensors: tuple[int, ...] = field(kw_only=True)

    def value(self, h: Tensor, p: Sequence[Tensor]) -> tuple[Tensor, Saved]:
        return F.linear(h, *p), None

    def pull(self, adjoint: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        if p[0].shape[1] <= _FEW:
            return F.linear(adjoint, p[0].t().contiguous())
        return adjoint @ p[0]

    def push(self, tangent: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        return F.linear(tangent, p[0])

    def gradients(
        self, values: Pair | None, derivatives: Pair | None, saved: Saved, p: Sequence[Tensor]
    ) -> list[Tensor | None]:
        flat = [(a.flatten(0, -2), h.flatten(0, -2)) for a, h in filter(None, (values, derivatives))]
        weight = _outer(*flat[0])
        for adjoint, source in flat[1:]:
            weight = (
                weight + _outer(adjoint, source)
                if source.shape[1] <= _FEW
                else torch.addmm(weight, adjoint.t(), source)
            )
        if len(p) == 1:
            return [weight]
        return [weight, None if values is None else flat[0][0].sum(0)]

    def merged(
        self, adjoint: Tensor, e: Tensor, h: Tensor, tangent: Tensor, saved: Saved, p: Sequence[Tensor]
    ) -> list[Tensor | None]:
        if adjoint.ndim > 2:
            return super().merged(adjoint, e, h, tangent, saved, p)
        weight = _outer(adjoint, _joined(e, h, tangent))
        found: list[Tensor | None] = [weight, torch.mv(adjoint.t(), e[:, 0])]
        return found[: len(p)]


@dataclass
class Convolution(Operation):
    """Convolution in 1, 2 or 3 dimensions with zero padding."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    tensors: tuple[int, ...] = field(kw_only=True)

    def value(self, h: Tensor, p: Sequence[Tensor]) -> tuple[Tensor, Saved]:
        return self._forward(h, p[0], p[1] if len(p) > 1 else None), h

    def _forward(self, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        zero = [0] * len(self.stride)
        return torch.convolution(h, weight, bias, self.stride, self.padding, self.dilation, False, zero, self.groups)

    def _backward(
        self, adjoint: Tensor, h: Tensor, weight: Tensor, mask: list[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        zero = [0] * len(self.stride)
        bias = [weight.shape[0]] if mask[2] else None
        found: tuple[Tensor | None, Tensor | None, Tensor | None] = _aten.convolution_backward(
            adjoint, h, weight, bias, self.stride, self.padding, self.dilation, False, zero, self.groups, mask
        )
        return found

    def pull(self, adjoint: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        like = saved if len(saved) == len(adjoint) else saved.new_empty(1).expand(len(adjoint), *saved.shape[1:])
        found = self._backward(adjoint, like, p[0], [True, False, False])[0]
        assert found is not None
        return found

    def push(self, tangent: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        return self._forward(tangent, p[0], None)

    def gradients(
        self, values: Pair | None, derivatives: Pair | None, saved: Saved, p: Sequence[Tensor]
    ) -> list[Tensor | None]:
        weights: list[Tensor] = []
        bias: Tensor | None = None
        if values is not None:
            _, weight, bias = self._backward(*values, p[0], [False, True, len(p) > 1])
            assert weight is not None
            weights.append(weight)
        if derivatives is not None:
            weight = self._backward(*derivatives, p[0], [False, True, False])[1]
            assert weight is not None
            weights.append(weight)
        return [_total(weights), bias][: len(p)]

    def merged(
        self, adjoint: Tensor, e: Tensor, h: Tensor, tangent: Tensor, saved: Saved, p: Sequence[Tensor]
    ) -> list[Tensor | None]:
        weight = self._backward(adjoint, _joined(e, h, tangent), p[0], [False, True, False])[1]
        if len(p) == 1:
            return [weight]
        return [weight, torch.mv(adjoint.flatten(2).sum(2).t(), e[:, 0])]


@dataclass
class FrozenNorm(Operation):
    """BatchNorm in eval mode: an affine map per channel with fixed statistics.

    ``tensors`` are mean, variance and, where the layer is affine, weight and bias.
    """

    eps: float
    tensors: tuple[int, ...] = field(kw_only=True)

    def _wide(self, channel: Tensor, h: Tensor) -> Tensor:
        return channel.reshape(1, -1, *(1,) * (h.ndim - 2))

    def _scale(self, p: Sequence[Tensor]) -> Tensor:
        return torch.rsqrt(p[1] + self.eps)

    def value(self, h: Tensor, p: Sequence[Tensor]) -> tuple[Tensor, Saved]:
        scale = self._scale(p)
        normal = (h - self._wide(p[0], h)) * self._wide(scale, h)
        if len(p) == 2:
            return normal, None
        return normal * self._wide(p[2], h) + self._wide(p[3], h), None

    def push(self, tangent: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        scale = self._scale(p) if len(p) == 2 else self._scale(p) * p[2]
        return tangent * self._wide(scale, tangent)

    def pull(self, adjoint: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        return self.push(adjoint, saved, p)

    def gradients(
        self, values: Pair | None, derivatives: Pair | None, saved: Saved, p: Sequence[Tensor]
    ) -> list[Tensor | None]:
        if len(p) == 2:
            return [None, None]
        weights: list[Tensor] = []
        bias: Tensor | None = None
        if values is not None:
            q, h = values
            over = [i for i in range(q.ndim) if i != 1]
            weights.append(((q * (h - self._wide(p[0], h))).sum(over)) * self._scale(p))
            bias = q.sum(over)
        if derivatives is not None:
            adjoint, tangent = derivatives
            over = [i for i in range(adjoint.ndim) if i != 1]
            weights.append((adjoint * tangent).sum(over) * self._scale(p))
        return [None, None, _total(weights), bias]


@dataclass
class Scale(Operation):
    """Standardisation by a fixed mean and deviation, or its inverse; ``tensors`` are both."""

    inverse: bool
    tensors: tuple[int, ...] = field(kw_only=True)

    def value(self, h: Tensor, p: Sequence[Tensor]) -> tuple[Tensor, Saved]:
        return (h * p[1] + p[0] if self.inverse else (h - p[0]) / p[1]), None

    def push(self, tangent: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        return tangent * p[1] if self.inverse else tangent / p[1]

    def pull(self, adjoint: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        return self.push(adjoint, saved, p)

    def gradients(
        self, values: Pair | None, derivatives: Pair | None, saved: Saved, p: Sequence[Tensor]
    ) -> list[Tensor | None]:
        return [None, None]


@dataclass
class Elementwise(Operation):
    """An activation."""

    activation: Activation

    def __post_init__(self) -> None:
        self.curved = self.activation.bend is not None

    def value(self, h: Tensor, p: Sequence[Tensor]) -> tuple[Tensor, Saved]:
        out = self.activation.value(h)
        return out, (h if self.activation.keeps_input else None, out)

    def pull(self, adjoint: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        return per_probe(self.activation.slope, adjoint, *saved)

    def push(self, tangent: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        return per_probe(self.activation.slope, tangent, *saved)

    def bend(self, tangent: Tensor, adjoint: Tensor, saved: Saved) -> Tensor:
        assert self.activation.bend is not None
        product = tangent * adjoint
        rows = len(saved[1])
        if len(product) > rows:
            product = product.reshape(-1, rows, *product.shape[1:]).sum(0)
        return product * self.activation.bend(*saved)


@dataclass
class Flatten(Operation):
    """All dimensions after the first into one."""

    def value(self, h: Tensor, p: Sequence[Tensor]) -> tuple[Tensor, Saved]:
        return h.flatten(1), h.shape[1:]

    def pull(self, adjoint: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        return adjoint.reshape(len(adjoint), *saved)

    def push(self, tangent: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        return tangent.flatten(1)


@dataclass
class Identity(Operation):
    """The input itself (also dropout in eval mode)."""

    def value(self, h: Tensor, p: Sequence[Tensor]) -> tuple[Tensor, Saved]:
        return h, None

    def pull(self, adjoint: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        return adjoint

    def push(self, tangent: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        return tangent


@dataclass
class Dropout(Operation):
    """Dropout in training mode: one mask for value and derivatives."""

    p: float

    def value(self, h: Tensor, p: Sequence[Tensor]) -> tuple[Tensor, Saved]:
        mask = F.dropout(torch.ones_like(h), self.p, training=True)
        return h * mask, mask

    def pull(self, adjoint: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        return per_probe(torch.mul, adjoint, saved)

    def push(self, tangent: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        return per_probe(torch.mul, tangent, saved)


@dataclass
class AveragePool(Operation):
    """Average pooling over windows of an image."""

    kernel: list[int]
    stride: list[int]
    padding: list[int]
    ceil: bool
    count_padding: bool
    divisor: int | None

    def _options(self) -> tuple[Any, ...]:
        return (self.kernel, self.stride, self.padding, self.ceil, self.count_padding, self.divisor)

    def value(self, h: Tensor, p: Sequence[Tensor]) -> tuple[Tensor, Saved]:
        return _aten.avg_pool2d(h, *self._options()), h.shape[1:]

    def pull(self, adjoint: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        like = adjoint.new_empty(len(adjoint), *saved)
        found: Tensor = _aten.avg_pool2d_backward(adjoint, like, *self._options())
        return found

    def push(self, tangent: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        found: Tensor = _aten.avg_pool2d(tangent, *self._options())
        return found


@dataclass
class GlobalAverage(Operation):
    """Average over all positions of an image, kept as 1 x 1."""

    def value(self, h: Tensor, p: Sequence[Tensor]) -> tuple[Tensor, Saved]:
        return h.mean((2, 3), keepdim=True), h.shape[2:]

    def pull(self, adjoint: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        spread: Tensor = adjoint.expand(*adjoint.shape[:2], *saved) / (saved[0] * saved[1])
        return spread

    def push(self, tangent: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        return tangent.mean((2, 3), keepdim=True)


@dataclass
class MaxPool(Operation):
    """Maximum over windows of an image; linear around almost every input."""

    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    ceil: bool

    def value(self, h: Tensor, p: Sequence[Tensor]) -> tuple[Tensor, Saved]:
        out, indices = _aten.max_pool2d_with_indices(
            h, self.kernel, self.stride, self.padding, self.dilation, self.ceil
        )
        return out, (indices, h.shape[2:])

    def _indices(self, moving: Tensor, indices: Tensor) -> Tensor:
        k = len(moving) // len(indices)
        return indices if k == 1 else indices.repeat(k, 1, 1, 1)

    def pull(self, adjoint: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        indices = self._indices(adjoint, saved[0]).flatten(2)
        height, width = saved[1]
        zeros = adjoint.new_zeros(*adjoint.shape[:2], height * width)
        # Windows may overlap: one input can be the maximum of several.
        return zeros.scatter_add(2, indices, adjoint.flatten(2)).reshape(*adjoint.shape[:2], height, width)

    def push(self, tangent: Tensor, saved: Saved, p: Sequence[Tensor]) -> Tensor:
        indices = self._indices(tangent, saved[0])
        return tangent.flatten(2).gather(2, indices.flatten(2)).reshape(len(tangent), *indices.shape[1:])
