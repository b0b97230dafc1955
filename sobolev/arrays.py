"""Samples in memory as a target: what `SobolevRegressor` trains on, and anybody with arrays and a recipe's parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sobolev.components import Axes, Context, Target
from sobolev.differentiate.contract import contract
from sobolev.vocabulary import Batch, Jet, Key, Points, Probe, Site


@dataclass(frozen=True)
class Samples:
    """Inputs with values and, where there are any, first derivatives.

    Attributes:
        x: ``(n, d)``.
        y: ``(n, m)``.
        dydx: ``(n, m, d)``; NaN where a partial is missing; or None.
        weight: ``(n,)`` or None.
    """

    x: Tensor
    y: Tensor
    dydx: Tensor | None = None
    weight: Tensor | None = None

    def take(self, rows: Tensor) -> Samples:
        """Return the samples of some rows."""
        return Samples(
            self.x[rows],
            self.y[rows],
            None if self.dydx is None else self.dydx[rows],
            None if self.weight is None else self.weight[rows],
        )


class ArrayTarget(Target):
    """Answers from recorded values and partials at the one site ``data`` with the input ``x``.

    Args:
        train, validation: samples of both splits.
    """

    fixed_points = True

    def __init__(self, train: Samples, validation: Samples | None = None) -> None:
        self.splits = {"train": train} | ({} if validation is None else {"validation": validation})
        self.max_order = 0 if train.dydx is None else 1

    def prepare(self, context: Context) -> None:
        """Move the samples to the run's device; missing partials become 0 under a mask."""
        self._ready: dict[str, tuple[Samples, Tensor | None]] = {}
        for name, s in self.splits.items():

            def moved(t: Tensor | None) -> Tensor | None:
                return None if t is None else t.to(device=context.device, dtype=context.dtype)

            x, y, dydx = moved(s.x), moved(s.y), moved(s.dydx)
            assert x is not None and y is not None
            known = None if dydx is None else ~dydx.isnan()
            if known is not None and bool(known.all()):
                known = None
            filled = dydx if dydx is None or known is None else torch.where(known, dydx, torch.zeros_like(dydx))
            self._ready[name] = (Samples(x, y, filled, moved(s.weight)), known)

    def sites(self) -> Mapping[str, Site]:
        """Return the one site, ``data``."""
        train = self.splits["train"]
        return {"data": Site({"x": tuple(train.x.shape[1:])}, train.y.shape[1], () if train.dydx is None else ("x",))}

    def size(self, split: str) -> int:
        """Return the number of samples of a split."""
        return len(self.splits[split].x) if split in self.splits else 0

    def points(self, batch: Batch, training: bool) -> Mapping[str, Points]:
        """Return the inputs of a batch, with masks of the partials that are known."""
        samples, known = self._ready[batch.split]
        rows = batch.ids.to(samples.x.device)
        masks: dict[Key, Tensor] = {} if known is None else {("x",): known[rows]}
        weight = None if samples.weight is None else samples.weight[rows]
        differentiate = () if samples.dydx is None else ("x",)
        return {"data": Points({"x": samples.x[rows]}, differentiate, batch.ids, weight, masks, context=batch.split)}

    def answer(
        self, points: Mapping[str, Points], probes: Mapping[str, Probe], prediction: Mapping[str, Jet] | None
    ) -> Mapping[str, Jet]:
        """Return the recorded values, and the recorded partials contracted as the probe asks."""
        where = points["data"]
        samples, known = self._ready[where.context]
        rows = where.index.to(samples.x.device)
        derivatives, masks = {}, {}
        for key, contraction in probes["data"].contractions.items():
            assert samples.dydx is not None
            mask = None if known is None else known[rows]
            derivatives[key], present = contract(samples.dydx[rows], contraction, mask)
            if present is not None:
                masks[key] = present
        return {"data": Jet(samples.y[rows], derivatives, masks)}

    def axes(self, site: str) -> Axes:
        """Return plain names."""
        train = self.splits["train"]
        d, m = train.x.shape[1], train.y.shape[1]
        return Axes([f"x{i}" for i in range(d)], [f"y{i}" for i in range(m)] if m > 1 else ["y"])
