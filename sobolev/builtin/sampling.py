"""Designs: where in a box a target is sampled. Light: numbers and scipy are imported where points are drawn."""

from __future__ import annotations

import math
import typing
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Sampling = Literal["uniform", "sobol", "latin-hypercube"]
DESIGNS: tuple[str, ...] = typing.get_args(Sampling)


def sample(sampling: str, count: int, low: Tensor, high: Tensor, seed: int) -> Tensor:
    """Return ``count`` points ``(count, d)`` of a design in a box, in float64.

    ``uniform``: independent. ``sobol``: the scrambled sequence, which fills a box more evenly; whole powers of two
    are drawn, as the sequence wants, and cut. ``latin-hypercube``: every coordinate visits each of ``count`` equal
    slices once.

    Args:
        sampling: name of the design.
        count: how many points.
        low: smallest corner of the box, ``(d,)``.
        high: largest corner, ``(d,)``.
        seed: the same points for the same seed.

    Raises:
        ValueError: an unknown design.
    """
    import numpy as np
    import torch

    d = len(low)
    random = np.random.default_rng(seed)
    if sampling == "uniform":
        unit = random.random((count, d))
    elif sampling == "sobol":
        from scipy.stats import qmc

        unit = qmc.Sobol(d, rng=random).random_base2(max(0, math.ceil(math.log2(max(1, count)))))[:count]
    elif sampling == "latin-hypercube":
        from scipy.stats import qmc

        unit = qmc.LatinHypercube(d, rng=random).random(count)
    else:
        raise ValueError(f"there is no design {sampling!r}; there are {', '.join(DESIGNS)}")
    return low + torch.from_numpy(unit) * (high - low)
