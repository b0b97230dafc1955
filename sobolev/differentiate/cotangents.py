"""First derivatives of heads by z, written out, so that one backward pass differentiates them again.

With ``y = head(z)`` of size m: the cotangent of v is ``s = (dy/dz)' v``, the tangent of ż is ``(dy/dz) ż``. Shapes: z
``(B, n)``, v ``(k, B, m)``, s and ż ``(k, B, n)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sobolev.heads import Head

Inputs = Mapping[str, Tensor]


def cotangent(head: Head, z: Tensor, value: Tensor, v: Tensor, inputs: Inputs) -> Tensor:
    """Return ``s``, differentiable by z.

    Args:
        head: the head.
        z: its argument, with graph.
        value: ``head(z)``, with graph.
        v: cotangents at the value.
        inputs: what else the head reads.
    """
    known = _PULL.get(head.name)
    if known is not None:
        return known(value, v, z, inputs)
    with torch.enable_grad():
        rows = [
            torch.autograd.grad(value, z, part.expand_as(value), create_graph=True, materialize_grads=True)[0]
            for part in v
        ]
    return torch.stack(rows)


def tangent(head: Head, z: Tensor, value: Tensor, moving: Tensor, inputs: Inputs) -> Tensor:
    """Return ``(dy/dz) ż`` ``(k, B, m)``, differentiable by z and by ``moving`` ``(k, B, n)``."""
    known = _PUSH.get(head.name)
    if known is not None:
        return known(value, moving, z, inputs)
    parts = [torch.func.jvp(lambda a: head(a, inputs), (z,), (part,))[1] for part in moving]
    return torch.stack(parts)


def _pull_log_softmax(value: Tensor, v: Tensor, z: Tensor, _: Inputs) -> Tensor:
    return v - value.exp() * v.sum(-1, keepdim=True)


def _push_log_softmax(value: Tensor, moving: Tensor, z: Tensor, _: Inputs) -> Tensor:
    return moving - (value.exp() * moving).sum(-1, keepdim=True)


def _residual(z: Tensor, y: Tensor) -> Tensor:
    """Gradient of the log loss by z; ``y`` need not sum to 1."""
    return torch.softmax(z, dim=-1) * y.sum(-1, keepdim=True) - y


def _pull_log_loss(value: Tensor, v: Tensor, z: Tensor, inputs: Inputs) -> Tensor:
    return v * _residual(z, inputs["y"])


def _push_log_loss(value: Tensor, moving: Tensor, z: Tensor, inputs: Inputs) -> Tensor:
    return (_residual(z, inputs["y"]) * moving).sum(-1, keepdim=True)


_Written = Callable[[Tensor, Tensor, Tensor, Inputs], Tensor]

_PULL: dict[str, _Written] = {
    "identity": lambda value, v, z, _: v.expand(-1, *value.shape),
    "log-softmax": _pull_log_softmax,
    "log-loss": _pull_log_loss,
}

_PUSH: dict[str, _Written] = {
    "identity": lambda value, moving, z, _: moving,
    "log-softmax": _push_log_softmax,
    "log-loss": _push_log_loss,
}
