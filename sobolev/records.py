"""What reports may know of a trained run, in numbers, kept as ``records/<name>.npz``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from sobolev.build import Experiment, answers
from sobolev.components import Answers, Report, Trained
from sobolev.rundir import RunDirectory
from sobolev.vocabulary import VALUE, Batch, Jet, Key, Points, Probe


def trained(experiment: Experiment) -> Trained:
    """Return the view of a run that reports get."""
    experiment.module.eval()
    sites = experiment.sites
    context = experiment.context

    def points(site: str, inputs: Mapping[str, np.ndarray]) -> Points:
        tensors = {name: torch.as_tensor(a, dtype=context.dtype, device=context.device) for name, a in inputs.items()}
        rows = len(next(iter(tensors.values())))
        return Points(tensors, sites[site].differentiate, torch.arange(rows))

    def student(site: str, inputs: Mapping[str, np.ndarray]) -> Answers:
        return _arrays(experiment.measure({site: points(site, inputs)})[site])

    def target(site: str, inputs: Mapping[str, np.ndarray]) -> Answers:
        where = points(site, inputs)
        probe = Probe.full(experiment.wanted(site) if experiment.target.max_order != 0 else ())
        return _arrays(experiment.reference({site: where}, {site: probe}, None)[site])

    def samples(split: str, limit: int) -> dict[str, dict[str, np.ndarray]]:
        count = min(limit, experiment.target.size(split))
        if not count:
            return {}
        ids = torch.arange(count)
        found = experiment.target.points(Batch(split, ids, experiment.target.load(split, ids)), training=False)
        return {site: {n: _numpy(t) for n, t in where.inputs.items()} for site, where in found.items()}

    def compared(split: str, limit: int) -> dict[str, tuple[Answers, Answers]]:
        count = min(limit, experiment.target.size(split))
        if not count:
            return {}
        ids = torch.arange(count)
        where = experiment.target.points(Batch(split, ids, experiment.target.load(split, ids)), training=False)
        keys = {site: experiment.wanted(site) if experiment.target.max_order != 0 else () for site in where}
        prediction = experiment.measure(where)
        reference = experiment.reference(where, {site: Probe.full(keys[site]) for site in where}, prediction)
        return {site: (_arrays(reference[site]), _arrays(prediction[site])) for site in where}

    return Trained(
        sites=sites,
        axes={site: experiment.target.axes(site) for site in sites},
        student=student,
        target=None if answers(experiment.target) else target,
        samples=samples,
        compared=compared,
    )


def record(
    experiment: Experiment, name: str, report: Report, directory: RunDirectory, warn: Callable[[str], None]
) -> None:
    """Let a report keep its numbers; one that fails costs a warning, not the run."""
    try:
        arrays = report.record(trained(experiment))
    except Exception as error:
        warn(f"warning: report {name} recorded nothing: {type(error).__name__}: {error}")
        return
    if arrays:
        directory.records.mkdir(exist_ok=True)
        np.savez_compressed(directory.records / f"{name}.npz", **dict(arrays))  # type: ignore[arg-type]


def _arrays(jet: Jet) -> Answers:
    return _numpy(_known(jet, VALUE)), {key[0]: _numpy(_known(jet, key)) for key in jet.derivatives}


def _known(jet: Jet, key: Key) -> Tensor:
    """Return the numbers of a key, NaN where they are not known."""
    known = jet.known.get(key)
    return jet[key] if known is None else jet[key].masked_fill(~known, float("nan"))


def _numpy(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().numpy()
    return array
