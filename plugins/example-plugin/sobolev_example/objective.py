"""An objective: how two jets are compared, as sums and counts that any number of devices can add up."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from sobolev import HEADS, VALUE, ComponentError, Jet, Key, Objective, Points, Probe, Site, Term


class LogCosh(Objective):
    """Sum over components of log cosh(error), for the value and for each first derivative."""

    def __init__(
        self,
        *,
        value: Annotated[float, Field(ge=0, description="weight of the value")] = 1.0,
        derivative: Annotated[float, Field(ge=0, description="weight of the derivatives; 0 computes none")] = 1.0,
    ) -> None:
        self.head = HEADS["identity"]
        self.value = value
        self.derivative = derivative

    def keys(self, site: Site) -> tuple[Key, ...]:
        """Return the derivatives that are measured: none at weight 0."""
        return tuple((name,) for name in site.differentiate) if self.derivative else ()

    def terms(self, site: str, points: Points, probe: Probe, prediction: Jet, reference: Jet) -> list[Term]:
        """Return a term for the value and one for each derivative."""
        weights = {VALUE: self.value, **dict.fromkeys(probe.keys, self.derivative)}
        return [
            self._term(site, key, points, probe, prediction, reference, weight)
            for key, weight in weights.items() if weight
        ]  # fmt: skip

    @staticmethod
    def _term(
        site: str, key: Key, points: Points, probe: Probe, prediction: Jet, reference: Jet, weight: float
    ) -> Term:
        if prediction[key].shape != reference[key].shape:
            raise ComponentError(f"shapes {tuple(prediction[key].shape)} and {tuple(reference[key].shape)} differ")
        error = (prediction[key] - reference[key]).flatten(1)
        known = reference.known.get(key)
        share = torch.ones_like(error) if known is None else known.flatten(1).to(error.dtype)
        probes = probe.contractions[key].probes if key else None
        losses = (_log_cosh(error) * share).sum(dim=1) / (probes or 1)  # the k probes of a sample are averaged
        sample = torch.ones_like(losses) if points.weight is None else points.weight
        return Term(site, key, (sample * losses).sum(), (sample * share.mean(dim=1)).sum(), weight)


def _log_cosh(x: Tensor) -> Tensor:
    return x.abs() + torch.nn.functional.softplus(-2 * x.abs()) - math.log(2)
