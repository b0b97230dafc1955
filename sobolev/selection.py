"""How a surrogate should be trained, decided by samples that are held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sobolev.arrays import ArrayTarget, Samples
from sobolev.components import Tracker
from sobolev.errors import NonFiniteError
from sobolev.recording import Recorder
from sobolev.scaling import positive

LEAST = 10
"""Of fewer samples, those held out say nothing."""

FOLDS = 3
FEW = 100
"""Samples up to which every fold is held out once; of more, one fold says enough."""

MANY = 330
"""Samples from which a tenth is held out, and not a fold of few: what is trained on should be nearly all there is, as
whether it resolves a function can hang on a few samples more."""

TIE = 0.2
"""Scores as close as this are one and the same: errors 10 % apart. The longer training is taken."""

Errors = Mapping[str, float]
Train = Callable[[ArrayTarget, Recorder], None]


@dataclass(frozen=True)
class Candidate:
    """A way of training.

    Attributes:
        train: trains one network on a target with a validation split and records evaluations.
        earliest: the first step at which it may end.
    """

    train: Train
    earliest: int


def best(samples: Samples, candidates: Mapping[str, Candidate], order: Tensor) -> tuple[str, int, dict[str, float]]:
    """Return which candidate has the smallest held-out error, after how many steps, and the scores.

    A score is the mean of the logarithms of the relative squared errors of values and, where there are any, of
    partials: a factor weighs alike in both, whatever their units. All errors are pooled over the folds before.

    Args:
        samples: the data; at least `LEAST` of them, and such that errors of different outputs may be added up.
        candidates: by name; among equal scores the first wins.
        order: ``(n,)`` samples in an order that says what is held out together; those it leaves out are not used.

    Raises:
        NonFiniteError: no candidate can be trained.
    """
    scores: dict[str, float] = {}
    steps: dict[str, int] = {}
    broken: NonFiniteError | None = None
    for name, candidate in candidates.items():
        try:
            curve = _curve(candidate, samples, order)
        except NonFiniteError as error:  # it might break on all samples too; the others may not
            broken = error
            continue
        scored = {step: _score(errors) for step, errors in curve.items() if step >= candidate.earliest}
        scores[name] = min(scored.values())
        steps[name] = max(step for step, score in scored.items() if score <= scores[name] + TIE)
    if broken and not scores:
        raise broken
    winner = min(scores, key=scores.__getitem__)
    return winner, steps[winner], scores


def _curve(candidate: Candidate, samples: Samples, order: Tensor) -> dict[int, list[Errors]]:
    """Return the held-out errors after every number of steps, a number per fold."""
    curve: dict[int, list[Errors]] = {}
    for train, held in folds(samples, order):
        tracker = _Curve()
        candidate.train(ArrayTarget(train, held), Recorder([("curve", tracker)], say=lambda _: None))
        for step, errors in tracker.found.items():
            curve.setdefault(step, []).append(errors)
    return curve


def folds(samples: Samples, order: Tensor) -> Iterator[tuple[Samples, Samples]]:
    """Yield what is trained on and what is held out.

    Every third in turn; of more than `FEW` samples, 33 or, of more than `MANY`, a tenth.
    """
    n = len(order)
    apart = FOLDS if n <= FEW else min(10, n // (FEW // FOLDS))
    for fold in range(FOLDS if n <= FEW else 1):
        held = torch.arange(n) % apart == fold
        yield samples.take(order[~held]), samples.take(order[held])


def in_unit_scale(samples: Samples) -> Samples:
    """Return the samples with inputs and values of deviation 1, so that errors of different outputs add up.

    Students that standardise for themselves train on these exactly as on the samples.
    """
    counts = slice(None) if samples.weight is None else samples.weight > 0

    def deviation(t: Tensor) -> Tensor:
        return positive(t[counts].std(0, correction=0), t[counts].mean(0))

    x, y = deviation(samples.x), deviation(samples.y)
    dydx = None if samples.dydx is None else samples.dydx * x / y[:, None]
    return Samples(samples.x / x, samples.y / y, dydx, samples.weight)


def _score(errors: list[Errors]) -> float:
    names = {name for each in errors for name in each}
    pooled = [[each[name] for each in errors if math.isfinite(each.get(name, math.nan))] for name in sorted(names)]
    logs = [math.log(sum(each) / len(each) + 1e-30) for each in pooled if each]
    return sum(logs) / len(logs) if logs else math.inf


class _Curve(Tracker):
    """Keeps the held-out errors of every evaluation."""

    def __init__(self) -> None:
        self.found: dict[int, Errors] = {}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the errors of value and partials, if these numbers are an evaluation's."""
        names = ("validation/data/value", "validation/data/d/dx")
        errors = {name: metrics[name] for name in names if name in metrics}
        if errors:
            self.found[step] = errors
