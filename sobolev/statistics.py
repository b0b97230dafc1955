"""Statistics of the training data, for students that scale and objectives that balance; for any target alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sobolev.errors import ComponentError
from sobolev.sampler import some
from sobolev.scaling import positive, unit
from sobolev.vocabulary import VALUE, Batch, Jet, Key, Moments, Points, Probe, Site, Statistics

if TYPE_CHECKING:
    from sobolev.build import Experiment

SAMPLES = 4096
"""Training samples that are looked at, at most."""
_BYTES = 2**26  # of the derivatives that one batch holds


class _Sum:
    """Weighted sums of a quantity and of its square, component by component, shifted by the first sample that counts.

    The shift keeps the deviation of numbers that are large beside their spread.
    """

    def __init__(self) -> None:
        self.shift: Tensor | None = None

    def add(self, numbers: Tensor, known: Tensor | None, weight: Tensor | None) -> None:
        numbers = numbers.detach().double().cpu()
        count = torch.ones_like(numbers) if known is None else known.detach().double().cpu()
        if weight is not None:
            count = count * weight.detach().double().cpu().reshape(-1, *(1,) * (numbers.ndim - 1))
        if self.shift is None:
            self.shift = numbers.gather(0, (count > 0).long().argmax(0, keepdim=True))[0]
            self.count, self.first, self.second, self.square = (torch.zeros_like(self.shift) for _ in range(4))
        shifted = numbers - self.shift
        self.count += count.sum(0)
        self.first += (count * shifted).sum(0)
        self.second += (count * shifted.square()).sum(0)
        self.square += (count * numbers.square()).sum(0)

    def moments(self) -> Moments:
        assert self.shift is not None
        count = self.count.clamp_min(1e-300)
        mean = self.first / count
        deviation = (self.second / count - mean.square()).clamp_min(0).sqrt()
        return Moments(self.shift + mean, deviation)

    def mean_square(self) -> Tensor:
        return self.square / self.count.clamp_min(1e-300)


def measure_statistics(experiment: Experiment, derivatives: bool) -> dict[str, Statistics]:
    """Return statistics by site, of up to `SAMPLES` training samples; the same on every rank.

    Args:
        experiment: with target, estimator, objective and sites.
        derivatives: whether mean squares of the objective's derivatives are wanted.

    Raises:
        ComponentError: a target whose answers depend on the student: it has none before training.
    """
    target = experiment.target
    if "prediction" in target.needs:
        raise ComponentError(
            f"target {experiment.plan.recipe.target['use']!r} answers from the student's prediction, so that nothing "
            "is known of its values before training; use 'scale: none' in the student and 'balance: none' in the "
            "objective"
        )
    count = min(SAMPLES, target.size("train"))
    if not count:
        return neutral(experiment.sites, {name: experiment.outputs(name) for name in experiment.sites})
    sums: dict[str, dict[str | Key, _Sum]] = {site: {} for site in experiment.sites}
    for ids in some(target.size("train"), count, experiment.plan.seed).split(_rows(experiment, derivatives)):
        points = target.points(Batch("train", ids, target.load("train", ids)), training=False)
        keys = {site: experiment.keys[site] if derivatives else () for site in points}
        jets = experiment.reference(points, {site: Probe.full(keys[site]) for site in points}, None)
        for site, where in points.items():
            _add(sums[site], where, jets[site], keys[site])
    identity = experiment.objective.head.name == "identity"
    return {name: _finished(sums[name], site, experiment, count, identity) for name, site in experiment.sites.items()}


def neutral(sites: Mapping[str, Site], outputs: Mapping[str, int]) -> dict[str, Statistics]:
    """Return statistics that scale nothing, for students whose scaling is read from a file afterwards."""
    return {
        name: Statistics(
            0, {n: unit(shape) for n, shape in site.inputs.items()}, unit((outputs[name],)), unit((site.outputs,))
        )
        for name, site in sites.items()
    }


def _rows(experiment: Experiment, derivatives: bool) -> int:
    largest = 1
    for name, site in experiment.sites.items():
        for key in experiment.keys[name] if derivatives else ():
            largest = max(largest, experiment.outputs(name) * math.prod(math.prod(site.inputs[n]) for n in key))
    return max(1, min(1024, _BYTES // (8 * largest)))


def _add(sums: dict[str | Key, _Sum], points: Points, jet: Jet, keys: Iterable[Key]) -> None:
    for name, tensor in points.inputs.items():
        if tensor.is_floating_point():
            sums.setdefault(name, _Sum()).add(tensor, None, points.weight)
    for key in (VALUE, *keys):
        sums.setdefault(key, _Sum()).add(jet[key], jet.known.get(key), points.weight)


def _finished(
    sums: dict[str | Key, _Sum], site: Site, experiment: Experiment, count: int, identity: bool
) -> Statistics:
    inputs = {n: sums[n].moments() if n in sums else unit(shape) for n, shape in site.inputs.items()}
    value = sums[VALUE].moments()
    squares = {key: total.mean_square() for key, total in sums.items() if isinstance(key, tuple) and key}
    return Statistics(count, inputs, value, value if identity else None, squares)


def chain(statistics: Statistics, key: Key) -> Tensor:
    """Return what a derivative of 1 in standardised units is in the user's: ``(m, *x1, ..., *xK)``."""
    scale = positive(statistics.value.deviation, statistics.value.mean)
    for name in key:
        moments = statistics.inputs[name]
        deviation = positive(moments.deviation, moments.mean)
        scale = scale.reshape(*scale.shape, *(1,) * deviation.ndim) / deviation
    return scale
