"""Held-out measurement: squared-L2 error of value and first derivatives, whatever was trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from sobolev.build import Experiment
from sobolev.differentiate.contract import restrict
from sobolev.errors import ComponentError
from sobolev.losses import per_sample
from sobolev.noise import Noise
from sobolev.registry import did_you_mean
from sobolev.sampler import some
from sobolev.vocabulary import VALUE, Batch, Contraction, Jet, Key, Mean, Points, Probe, key_name

_PROBES = 8
"""Projections of a derivative that is too large to be measured whole; equal for all variants and steps."""


def evaluate(
    experiment: Experiment, split: str, poll: Callable[[], None] = lambda: None, limit: int | None = None
) -> dict[str, float]:
    """Return metrics ``split/site/value``, ``split/site/d/dx`` and the target's own, averaged over a split.

    Derivatives are measured whole where ``B * m * d`` numbers fit the recipe's bound, or where projections would need
    as many; else by fixed projections whose mean square, times m, estimates the same sum. Batches are cut so that
    one derivative fits the bound. The dictionary is empty where the split is. ``poll`` is called before every batch
    and may raise. At most ``limit`` samples are looked at: of a split that has more the same ones every time, spread
    over all of it.
    """
    recipe = experiment.plan.recipe.evaluate
    size = experiment.target.size(split)
    count = min(n for n in (size, recipe.points, limit) if n is not None)
    if not count:
        return {}
    modes = {module: module.training for module in experiment.module.modules()}
    experiment.module.eval()
    sums: dict[str, Mean] = {}
    try:
        for ids in some(size, count).split(min(recipe.batch_size, _rows(experiment, recipe.memory))):
            poll()
            ids = experiment.context.world.shard(ids)
            if not len(ids):
                continue
            batch = Batch(split, ids, experiment.target.load(split, ids))
            for name, mean in _measure(experiment, batch).items():
                old = sums.get(name)
                sums[name] = old + mean if old else mean
    finally:
        for module, mode in modes.items():
            module.training = mode
    return {f"{split}/{name}": value for name, value in experiment.context.world.means(sums).items()}


def _size(experiment: Experiment, site: str, key: Key) -> int:
    """Return the bytes of one row of a derivative: the gradient of one component by one sample."""
    return math.prod(experiment.sites[site].inputs[key[0]]) * experiment.context.dtype.itemsize


def _rows(experiment: Experiment, memory: int) -> int:
    """Return the largest batch whose derivatives, whole or projected, fit a bound."""
    sizes = [
        min(experiment.outputs(site), _PROBES) * _size(experiment, site, key)
        for site in experiment.sites
        for key in experiment.wanted(site)
    ]
    return max(1, memory // max(sizes, default=1))


def _measure(experiment: Experiment, batch: Batch) -> dict[str, Mean]:
    points = experiment.target.points(batch, training=False)
    probes = {site: _probe(experiment, site, where) for site, where in points.items()}
    prediction = {
        site: experiment.measurers[site].measure(where, probes[site], create_graph=False)
        for site, where in points.items()
    }
    reference = experiment.reference(points, probes, prediction)
    means = {}
    for site, where in points.items():
        for key in (VALUE, *probes[site].keys):
            means[f"{site}/{key_name(key)}"] = _error(key, where, probes[site], prediction[site], reference[site])
    means |= experiment.target.metrics(points, reference, prediction)
    for site in points:
        # A member's own error says less than that of the mean, where there is one.
        ensemble = experiment.sites[site].ensemble
        for key in (VALUE, *probes[site].keys) if ensemble else ():
            if f"{ensemble}/{key_name(key)}" in means:
                del means[f"{site}/{key_name(key)}"]
    return means


def _probe(experiment: Experiment, site: str, points: Points) -> Probe:
    m, recipe = experiment.outputs(site), experiment.plan.recipe.evaluate
    contractions: dict[Key, Contraction] = {}
    if experiment.target.max_order != 0:
        for key in experiment.wanted(site):
            x = points.inputs[key[0]]
            # Decided by the recipe's batch, not by this one, so that all batches are measured alike.
            if m <= _PROBES or recipe.batch_size * m * _size(experiment, site, key) <= recipe.memory:
                contractions[key] = Contraction(None, (None,))
            else:
                noise = Noise(0, "evaluation", 0, experiment.sites[site].ensemble or site)
                vectors = noise.sphere(points.index.to(x.device), _PROBES, (m,), *key, dtype=x.dtype)
                # Scaled so that the mean squared norm estimates the squared norm of the whole Jacobian.
                contractions[key] = Contraction(vectors * math.sqrt(m), (None,))
    return restrict(Probe(contractions), points)


def _error(key: Key, points: Points, probe: Probe, prediction: Jet, reference: Jet) -> Mean:
    probes = probe.contractions[key].probes if key else None
    losses, fraction = per_sample(
        "squared-l2", prediction[key].detach(), reference[key], reference.known.get(key), probes
    )
    weight = torch.ones_like(losses) if points.weight is None else points.weight
    return Mean((losses * weight).sum(), (fraction * weight).sum())


def default_splits(experiment: Experiment) -> list[str]:
    """Return the splits of the recipe that the target has."""
    return [split for split in experiment.plan.recipe.evaluate.splits if experiment.target.size(split)]


def metric_named(metrics: Mapping[str, float], name: str) -> float:
    """Return a metric of an evaluation.

    Raises:
        ComponentError: there is none of that name.
    """
    if name not in metrics:
        raise ComponentError(f"there is no metric {name!r} in an evaluation; {did_you_mean(name, metrics)}")
    return metrics[name]


def check_names(experiment: Experiment) -> None:
    """Evaluate a few samples, to find out before the first step whether the metrics that the recipe names exist.

    Raises:
        ComponentError: one does not.
    """
    recipe = experiment.plan.recipe
    stop = recipe.train.stop.metric if recipe.train.stop else None
    named = [(place, name) for place, name in (("evaluate.best", recipe.evaluate.best), ("train.stop", stop)) if name]
    if not named:
        return
    metrics: dict[str, float] = {}
    for split in default_splits(experiment):
        metrics |= evaluate(experiment, split, limit=2 * experiment.context.world.size)
    for place, name in named:
        try:
            metric_named(metrics, name)
        except ComponentError as error:
            raise ComponentError(f"{place}: {error}") from None
