"""Whole derivatives of a target on a fixed training set, computed once; every probe is answered by contraction."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sobolev.differentiate.autograd import differentiate_target
from sobolev.differentiate.contract import contract
from sobolev.vocabulary import VALUE, Batch, Jet, Key, Points, Probe, Site

_ROWS = 100  # samples that are differentiated at once, in the order of their ids: the same numbers in every run


class DerivativeCache:
    """Values and whole first derivatives of one site by sample id.

    Exact where a sample id always means the same point and the target does not change.

    Args:
        points: batch -> points of the site.
        value: points -> the target's function there.
        count: samples of the training set.
    """

    def __init__(
        self,
        points: Callable[[Tensor], Points],
        value: Callable[[Points], Callable[[Mapping[str, Tensor]], Tensor]],
        count: int,
    ) -> None:
        self.points, self.value, self.count = points, value, count
        self._held: dict[Key, Tensor] = {}

    @staticmethod
    def bytes(site: Site, outputs: int, keys: tuple[Key, ...], count: int, dtype: torch.dtype) -> int:
        """Return what a training set of ``count`` samples takes."""
        numbers = sum(outputs * math.prod(site.inputs[key[0]]) for key in keys) + outputs
        return count * numbers * dtype.itemsize

    def answer(self, batch: Batch, probe: Probe) -> Jet:
        """Return the jet of a training batch as the probe asks."""
        if any(key not in self._held for key in probe.keys):
            self._fill(probe.keys)
        return Jet(
            self._held[VALUE][batch.ids],
            {key: contract(self._held[key][batch.ids], c)[0] for key, c in probe.contractions.items()},
        )

    def _fill(self, keys: tuple[Key, ...]) -> None:
        probe = Probe.full(keys)
        for ids in torch.arange(self.count).split(_ROWS):
            where = self.points(ids)
            jet = differentiate_target(self.value(where), where, probe)
            for key in (VALUE, *keys):
                if len(ids) and key not in self._held:
                    self._held[key] = jet[key].new_empty(self.count, *jet[key].shape[1:])
                self._held[key][ids] = jet[key]
