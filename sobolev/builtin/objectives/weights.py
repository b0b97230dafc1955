"""Weights of single components, as a probe leaves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from sobolev.errors import ComponentError
from sobolev.vocabulary import VALUE, Contraction, Key, Site


@dataclass
class ComponentWeights:
    """The weights of one site (``Site.weights``).

    Attributes:
        weights: ``(m, *x1, ..., *xK)`` by key; ``(m,)`` of the value.
        slots: by key, the number of dimensions of each input slot.
    """

    weights: Mapping[Key, Tensor]
    slots: Mapping[Key, Sequence[int]]
    _made: dict[tuple[Key, tuple[bool, ...]], Tensor] = field(default_factory=dict)

    @staticmethod
    def of(site: Site) -> ComponentWeights:
        """Return the weights that a site declares."""
        return ComponentWeights(site.weights, {key: [len(site.inputs[n]) for n in key] for key in site.weights})

    def left(self, key: Key, contraction: Contraction | None, like: Tensor) -> Tensor | None:
        """Return weights that broadcast to a measured derivative, or None where all are 1.

        Raises:
            ComponentError: weights that differ along a slot that the probe contracts, which mixes its components.
        """
        if key not in self.weights:
            return None
        vectors = () if key == VALUE or contraction is None else (contraction.output, *contraction.inputs)
        closed = tuple(vector is not None for vector in vectors)
        made = self._made.get((key, closed))
        if made is None or made.device != like.device or made.dtype != like.dtype:
            made = self.weights[key]
            position = 0
            for is_closed, size in zip(closed, (1, *self.slots[key]), strict=False):
                if not is_closed:
                    position += size
                    continue
                for _ in range(size):
                    made = _same(made, position)
            made = self._made[key, closed] = made.to(device=like.device, dtype=like.dtype)
        return made


def _same(weights: Tensor, dimension: int) -> Tensor:
    first = weights.select(dimension, 0)
    if not (weights == first.unsqueeze(dimension)).all():
        raise ComponentError(
            "objective: the target weighs the components of its derivatives differently, and this probe mixes them; "
            "use the estimator 'exact', or 'side: input' where only the weights of values differ"
        )
    return first
