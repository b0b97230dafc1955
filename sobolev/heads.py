"""Heads: the function of the student's output whose jet is compared, declared once for both sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """A function of the output ``z`` ``(B, n)`` and of named inputs.

    Attributes:
        name: as in a recipe.
        function: (z, inputs) -> value ``(B, m)``.
        outputs: ``n`` -> ``m``.
        inputs: names of the inputs that it reads, such as the label ``y``.
        linear: whether it is linear in z, so that second derivatives of a piecewise linear student vanish.
    """

    name: str
    function: Callable[[Tensor, Mapping[str, Tensor]], Tensor]
    outputs: Callable[[int], int]
    inputs: tuple[str, ...] = ()
    linear: bool = False

    def __call__(self, z: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the value ``(B, m)``."""
        return self.function(z, inputs)


def _log_loss(z: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    # y is a distribution over classes (one-hot floats), so that the loss can be differentiated by it too.
    return -(torch.log_softmax(z, dim=-1) * inputs["y"]).sum(dim=-1, keepdim=True)


HEADS: dict[str, Head] = {
    head.name: head
    for head in (
        Head("identity", lambda z, _: z, lambda n: n, linear=True),
        Head("log-softmax", lambda z, _: torch.log_softmax(z, dim=-1), lambda n: n),
        Head("log-loss", _log_loss, lambda _: 1, inputs=("y",)),
    )
}
