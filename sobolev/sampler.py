"""Which samples a step uses: a function of (seed, step), so that nothing about it needs saving."""

from __future__ import annotations

import torch
from torch import Tensor

from sobolev.noise import generator


class Sampler:
    """Epochs over ``size`` samples in fresh random order; the last, smaller batch of an epoch is used too."""

    def __init__(self, size: int, batch_size: int | str, seed: int) -> None:
        self.size = size
        self.batch_size = size if batch_size == "all" else min(int(batch_size), size)
        self.seed = seed
        self.per_epoch = -(-size // self.batch_size)
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def ids(self, step: int) -> Tensor:
        """Return the sample ids ``(B,)`` of a step."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._order = torch.randperm(self.size, generator=generator(self.seed, f"epoch {epoch}"))
            self._epoch = epoch
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]


def some(size: int, count: int, seed: int = 0) -> Tensor:
    """Return at most ``count`` of the ids of a split, in order: one at random from each of as many equal parts.

    The first ones would not do: samples may be sorted by time, by an input, by the case that they came from. The same
    ones for the same seed.
    """
    if count >= size:
        return torch.arange(size)
    edges = torch.arange(count + 1) * size // count
    places = torch.rand(count, dtype=torch.float64, generator=generator(seed, "some samples"))
    return edges[:-1] + (places * edges.diff()).long()
