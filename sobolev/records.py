"""What reports may know of a trained run, in numbers, kept as ``records/<name>.npz``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from sobolev import ensembles
from sobolev.build import Experiment, answers
from sobolev.components import Answers, Report, Trained
from sobolev.rundir import RunDirectory
from sobolev.sampler import some
from sobolev.vocabulary import VALUE, Batch, Jet, Key, Points, Probe


def trained(experiment: Experiment) -> Trained:
    """Return the view of a run that reports get."""
    experiment.module.eval()
    members = ensembles.together(experiment.sites)
    sites = {site: experiment.sites[names[0]] for site, names in members.items()}
    context = experiment.context

    def points(site: str, inputs: Mapping[str, np.ndarray]) -> Points:
        tensors = {name: torch.as_tensor(a, dtype=context.dtype, device=context.device) for name, a in inputs.items()}
        rows = len(next(iter(tensors.values())))
        return Points(tensors, sites[site].differentiate, torch.arange(rows))

    def measured(site: str, inputs: Mapping[str, np.ndarray]) -> list[Jet]:
        jets = experiment.measure(dict.fromkeys(members[site], points(site, inputs)))
        return [jets[name] for name in members[site]]

    def student(site: str, inputs: Mapping[str, np.ndarray]) -> Answers:
        return _arrays(ensembles.mean(measured(site, inputs)))

    def spread(site: str, inputs: Mapping[str, np.ndarray]) -> Answers | None:
        found = ensembles.spread(measured(site, inputs)) if len(members[site]) > 1 else None
        return None if found is None else _arrays(found)

    def probe(name: str) -> Probe:
        return Probe.full(experiment.wanted(name) if experiment.target.max_order != 0 else ())

    def target(site: str, inputs: Mapping[str, np.ndarray]) -> Answers:
        name = members[site][0]
        return _arrays(experiment.reference({name: points(site, inputs)}, {name: probe(name)}, None)[name])

    def drawn(split: str, limit: int) -> Mapping[str, Points]:
        ids = some(experiment.target.size(split), limit)
        if not len(ids):
            return {}
        return experiment.target.points(Batch(split, ids, experiment.target.load(split, ids)), training=False)

    def samples(split: str, limit: int) -> dict[str, dict[str, np.ndarray]]:
        found = drawn(split, limit)
        here = {site: found[names[0]] for site, names in members.items() if names[0] in found}
        return {site: {n: _numpy(t) for n, t in where.inputs.items()} for site, where in here.items()}

    def compared(split: str, limit: int) -> dict[str, tuple[Answers, Answers]]:
        where = drawn(split, limit)
        if not where:
            return {}
        prediction = experiment.measure(where)
        reference = experiment.reference(where, {name: probe(name) for name in where}, prediction)
        return {
            site: (_arrays(reference[names[0]]), _arrays(ensembles.mean([prediction[name] for name in names])))
            for site, names in members.items()
        }

    return Trained(
        sites=sites,
        axes={site: experiment.target.axes(names[0]) for site, names in members.items()},
        student=student,
        target=None if answers(experiment.target) else target,
        samples=samples,
        compared=compared,
        spread=spread,
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
