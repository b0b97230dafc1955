"""Before the first step: is the parameter gradient of this recipe's very loss right?"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from sobolev.build import Drawn, Experiment
from sobolev.devices import without_default
from sobolev.differentiate.measure import Measurer
from sobolev.differentiate.preflight import Agreement, check_gradient
from sobolev.nonfinite import report_nonfinite
from sobolev.sampler import Sampler
from sobolev.vocabulary import Batch, Contraction, Jet, Points, Probe

_SAMPLES = 8  # more samples mean more kinks of a piecewise linear network within reach of a finite difference


@without_default
def preflight(experiment: Experiment) -> Agreement | None:
    """Compare autograd's parameter gradient with finite differences, in float64 on a copy of the student.

    Returns:
        What was found, or None where there is nothing to train.

    Raises:
        DerivativeError: the gradient is wrong; names the layer.
        SobolevError: parts that do not fit together.
    """
    drawn, reference = first_batch(experiment)
    if not experiment.trainable or not _finite(experiment, drawn, reference):
        return None
    drawn = Drawn({s: _double_points(p) for s, p in drawn.points.items()},
                  {s: _double_probe(p) for s, p in drawn.probes.items()}, None)  # fmt: skip
    reference = {site: _double_jet(jet) for site, jet in reference.items()}
    module = copy.deepcopy(experiment.module).double()
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    head, sites = experiment.objective.head, experiment.sites
    measurers = {
        name: Measurer(module[name], head, sites[name], replace(m.policy, compile="never"))
        for name, m in experiment.measurers.items()
    }

    def loss() -> Tensor:
        torch.manual_seed(0)  # the same dropout mask every time
        for name, buffer in module.named_buffers():  # running statistics must not move between two calls
            buffer.data.copy_(buffers[name])
        total = torch.zeros((), dtype=torch.float64, device=experiment.context.device)
        for site, where in drawn.points.items():
            probe = drawn.probes[site]
            jet = measurers[site].measure(where, probe)
            for term in experiment.objective.terms(site, where, probe, jet, reference[site]):
                total = total + term.weight * term.sum / term.count.clamp_min(1e-300)
        return total

    with torch.random.fork_rng(devices=[]):
        return check_gradient(loss, module)


def _finite(experiment: Experiment, drawn: Drawn, reference: Mapping[str, Jet]) -> bool:
    """Return whether the check makes sense.

    Raises:
        NonFiniteError: it does not, and the recipe does not say that such steps are skipped.
    """
    prediction = experiment.measure(drawn.points)
    seen = [tensor for where in drawn.points.values() for tensor in where.inputs.values()]
    for jet in (*reference.values(), *prediction.values()):
        seen += [jet.value, *jet.derivatives.values()]
    if all(bool(tensor.isfinite().all()) for tensor in seen):
        return True
    if experiment.plan.recipe.train.on_nonfinite == "skip":
        return False
    raise report_nonfinite(0, drawn, prediction, reference, experiment.module, experiment.context.world, None)


def first_batch(experiment: Experiment) -> tuple[Drawn, dict[str, Jet]]:
    """Draw a few samples of the first batch and answer for them: every part is used once before training."""
    size = min(_SAMPLES, experiment.target.size("train"))
    ids = Sampler(experiment.target.size("train"), size, experiment.plan.seed).ids(0)
    batch = Batch("train", ids, experiment.target.load("train", ids))
    drawn = experiment.draw(batch, 0, training=True)
    prediction = experiment.measure(drawn.points) if drawn.reference is None else None
    reference = drawn.reference or experiment.reference(drawn.points, drawn.probes, prediction)
    return drawn, dict(reference)


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _double_points(points: Points) -> Points:
    weight = None if points.weight is None else _double(points.weight)
    return replace(points, inputs={name: _double(t) for name, t in points.inputs.items()}, weight=weight)


def _double_probe(probe: Probe) -> Probe:
    return Probe({
        key: Contraction(
            None if c.output is None else _double(c.output), tuple(None if v is None else _double(v) for v in c.inputs)
        )
        for key, c in probe.contractions.items()
    })  # fmt: skip


def _double_jet(jet: Jet) -> Jet:
    return replace(jet, value=_double(jet.value), derivatives={k: _double(d) for k, d in jet.derivatives.items()})
