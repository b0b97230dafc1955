"""The estimator of full derivatives (paper, Eq. 1)."""

from __future__ import annotations

import math

from sobolev.components import Estimator
from sobolev.errors import ComponentError
from sobolev.noise import Noise
from sobolev.vocabulary import Key, Points, Probe, key_name


class Exact(Estimator):
    """Whole gradients, Jacobians, Hessians: every component of every key.

    Attributes:
        memory: bound in bytes for what one measurement of the derivatives keeps, or None. Under a bound the student's
            derivatives are computed in chunks and computed again in the backward pass; the result is the same.
    """

    def __init__(self, memory: int | None = None) -> None:
        self.memory = memory

    def probe(self, points: Points, outputs: int, keys: tuple[Key, ...], noise: Noise) -> Probe:
        """Return the full contraction of every key.

        Raises:
            ComponentError: the derivative alone is larger than the memory bound.
        """
        for key in keys:
            numbers = len(points) * outputs * math.prod(s for name in key for s in points.inputs[name].shape[1:])
            size = numbers * (points.inputs[key[0]].element_size() if key else 0)
            if self.memory is not None and size > self.memory:
                raise ComponentError(
                    f"estimator 'exact': {key_name(key)} of a batch of {len(points)} with {outputs} outputs takes "
                    f"{size:,} bytes, the bound 'memory' is {self.memory:,}: raise it, make the batch smaller, or use "
                    "the estimator 'projected'"
                )
        return Probe.full(keys)
