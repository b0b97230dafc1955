"""Balanced errors: in which units the components of a jet count, taken from the training data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sobolev import rounding
from sobolev.scaling import positive
from sobolev.statistics import chain
from sobolev.vocabulary import VALUE, Contraction, Key, Statistics


@dataclass
class Scales:
    """What an error is divided by, component by component.

    Attributes:
        squares: squared scales ``(m, *x1, ..., *xK)`` by key; ``(m,)`` of the value.
        slots: by key, the number of dimensions of each input slot.
        share: factor of the whole loss, so that its parts add up to 1 (Huge and Savine's alpha).
    """

    squares: Mapping[Key, Tensor]
    slots: Mapping[Key, tuple[int, ...]]
    share: float
    _made: dict[tuple[Key, tuple[bool, ...]], Tensor] = field(default_factory=dict)

    def of(self, key: Key, contraction: Contraction | None, like: Tensor) -> Tensor:
        """Return the scale of a measured derivative, of a shape that broadcasts to it.

        A slot that the probe contracts with a direction has no component left to scale: there the mean of the
        squared scales over the slot stands.
        """
        contracted = () if contraction is None else tuple(v is not None for v in contraction.inputs)
        output = contraction is not None and contraction.output is not None
        made = self._made.get((key, (output, *contracted)))
        if made is None or made.device != like.device or made.dtype != like.dtype:
            square = self.squares[key]
            start, averaged = 1, [0] if output else []
            for closed, size in zip(contracted, self.slots.get(key, ()), strict=True):
                averaged += range(start, start + size) if closed else ()
                start += size
            if averaged:
                square = square.mean(averaged)
            made = square.sqrt().to(device=like.device, dtype=like.dtype)
            self._made[key, (output, *contracted)] = made
        return made


def rms(statistics: Statistics, weights: Mapping[Key, float]) -> Scales:
    """Values by their deviation, every partial by its own root mean square; all partials then weigh alike.

    Of the whole, values have alpha = 1 / (1 + sum of lambda n), where a derivative of weight lambda has n partials
    (Huge and Savine, Differential Machine Learning, 2020). A partial that is 0 everywhere, up to rounding, counts as
    in `joint`: divided by its own size, rounding would outweigh all else.
    """
    plain = joint(statistics, weights)
    squares = {VALUE: plain.squares[VALUE]}
    for key in weights:
        found = statistics.squares[key]
        squares[key] = torch.where(found > rounding.PARTIAL**2 * plain.squares[key], found, plain.squares[key])
    partials = sum(weight * math.prod(squares[key].shape[1:]) for key, weight in weights.items())
    return Scales(squares, plain.slots, 1.0 / (1.0 + partials))


def joint(statistics: Statistics, weights: Mapping[Key, float]) -> Scales:
    """The plain loss of standardised inputs and values, by the chain rule: partials keep their relative sizes."""
    squares = {VALUE: positive(statistics.value.deviation, statistics.value.mean).square()}
    squares |= {key: chain(statistics, key).square() for key in weights}
    slots = {key: tuple(statistics.inputs[name].mean.ndim for name in key) for key in weights}
    return Scales(squares, slots, 1.0)


BALANCES: dict[str, Callable[[Statistics, Mapping[Key, float]], Scales]] = {"rms": rms, "joint": joint}
