"""What a target must do."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sobolev.build import Experiment, answers
from sobolev.components import Axes, Target
from sobolev.differentiate.contract import contract, restrict
from sobolev.errors import ComponentError
from sobolev.evaluate import evaluate
from sobolev.noise import Noise
from sobolev.testing.findings import Checks, NotApplicable, check_plain, difference, first_difference, shape_of
from sobolev.testing.stage import DIFFERENCES, EXACT, experiment
from sobolev.testing.subject import Component, Subject
from sobolev.train import Trainer
from sobolev.vocabulary import VALUE, Batch, Contraction, Jet, Key, Mean, Points, Probe, Site, key_name

SPLITS = ("train", "validation", "test")
_ROWS = 4


class TargetCase:
    """A target under test, in a small run of its own."""

    def __init__(self, component: Component, registry: Any = None) -> None:
        self.subject = Subject("target", component, registry)
        self._folder = tempfile.TemporaryDirectory()
        self._made: list[Experiment] = []

    def fresh(self) -> Experiment:
        """Return a new run with a new target; expensive things may come from the case's cache folder."""
        return self._new(self._estimator)

    def _new(self, estimator: Mapping[str, Any]) -> Experiment:
        made = experiment(self.subject, Path(self._folder.name), estimator=estimator)
        self._made.append(made)
        return made

    @cached_property
    def _estimator(self) -> Mapping[str, Any]:
        """Differences where the target says itself that its value cannot be differentiated, else autograd."""
        with suppress(Exception):  # what is wrong otherwise, the checks will say
            if answers(self.subject.make()):
                return EXACT
            run = self._new(EXACT)
            for site, where in run.target.points(self.batch(run=run, rows=1), training=False).items():
                leaves = {n: x.clone().requires_grad_(n in where.differentiate) for n, x in where.inputs.items()}
                try:
                    run.target.value(site, leaves, where)
                except ComponentError:
                    return DIFFERENCES
        return EXACT

    @cached_property
    def _first(self) -> Experiment | Exception:
        try:
            return self.fresh()
        except Exception as error:
            return error

    @property
    def run(self) -> Experiment:
        """The run that checks look at without training it."""
        if isinstance(self._first, Exception):
            raise NotApplicable("the target could not be prepared")
        return self._first

    @property
    def target(self) -> Target:
        """The target of that run."""
        return self.run.target

    def batch(self, split: str = "train", run: Experiment | None = None, rows: int = _ROWS) -> Batch:
        """Return the first samples of a split."""
        target = (run or self.run).target
        ids = torch.arange(min(rows, target.size(split)))
        return Batch(split, ids, target.load(split, ids))

    def full(self, points: Mapping[str, Points], run: Experiment | None = None) -> Mapping[str, Jet]:
        """Return the target's value and full first derivatives."""
        return self.answer(points, {site: Probe.full((run or self.run).keys[site]) for site in points}, run)

    def answer(
        self, points: Mapping[str, Points], probes: Mapping[str, Probe], run: Experiment | None = None
    ) -> Mapping[str, Jet]:
        """Return the target's jets, by the way that a step takes."""
        run = run or self.run
        prediction = run.measure(points) if "prediction" in run.target.needs else None
        return run.reference(points, probes, prediction)

    def close(self) -> None:
        """Close the targets that were made."""
        for made in self._made:
            with suppress(Exception):
                made.target.close()
        self._folder.cleanup()


def check_sides(case: TargetCase) -> None:
    """It defines exactly one of 'answer' and 'value'."""
    target = case.subject.make()
    if not isinstance(target, Target):
        raise ComponentError(f"The factory returns a {type(target).__name__}, not a sobolev.Target.")
    answers(target)


def check_options(case: TargetCase) -> None:
    """Its options have descriptions."""
    case.subject.check_options()


def check_prepare(case: TargetCase) -> None:
    """It can be prepared, and a student and an objective fit to it."""
    if isinstance(case._first, Exception):
        raise case._first


def check_sites(case: TargetCase) -> None:
    """Its sites are described completely."""
    sites = case.target.sites()
    if not sites:
        raise ComponentError("sites() returns none; a target is measured at one site at least.")
    for name, site in sites.items():
        if not isinstance(site, Site):
            raise ComponentError(f"sites()[{name!r}] is a {type(site).__name__}, not a sobolev.Site.")
        if "." in name or "/" in name or not name:
            raise ComponentError(f"The site {name!r} names a module and a metric: use letters, digits, '-' and '_'.")
        unknown = [given for given in site.differentiate if given not in site.inputs]
        if unknown:
            raise ComponentError(
                f"Site {name!r} differentiates {unknown}, which are none of its inputs {[*site.inputs]}."
            )
        if site.outputs < 1:
            raise ComponentError(f"Site {name!r} has {site.outputs} outputs; at least 1 is needed.")
    again = case.target.sites()
    if list(again) != list(sites):
        raise ComponentError(f"sites() changed between two calls: {[*sites]}, then {[*again]}.")


def check_sizes(case: TargetCase) -> None:
    """It says how many samples each split has."""
    for split in SPLITS:
        size = case.target.size(split)
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ComponentError(
                f"size({split!r}) is {size!r}; expected a number of samples, 0 where there is no split."
            )
    if case.target.size("train") < 1:
        raise ComponentError("size('train') is 0; there is nothing to train on.")


def check_points(case: TargetCase) -> None:
    """Its points have the shapes that its sites declare."""
    sites = case.target.sites()
    for split in SPLITS:
        if not case.target.size(split):
            continue
        batch = case.batch(split)
        for training in (False, True) if split == "train" else (False,):
            points = case.target.points(batch, training)
            where = f"points() of {split!r}"
            if list(points) != list(sites):
                raise ComponentError(f"{where} has the sites {[*points]}; sites() has {[*sites]}.")
            for name, site in sites.items():
                _check_points(f"{where}, site {name!r}", points[name], site, batch, case.run.context.dtype)


def _check_points(where: str, points: Points, site: Site, batch: Batch, dtype: torch.dtype) -> None:
    rows = len(batch.ids)
    if set(points.inputs) != set(site.inputs):
        raise ComponentError(f"{where}: the inputs are {sorted(points.inputs)}, the site has {sorted(site.inputs)}.")
    for name, shape in site.inputs.items():
        given = points.inputs[name]
        if not isinstance(given, Tensor) or tuple(given.shape) != (rows, *shape):
            raise ComponentError(
                f"{where}: input {name!r} has the shape {shape_of(given)}; expected {(rows, *shape)}: {rows} samples "
                f"of the site's {shape}."
            )
        if given.requires_grad:
            raise ComponentError(f"{where}: input {name!r} carries a graph; detach it.")
        if name in site.differentiate and given.dtype != dtype:
            raise ComponentError(
                f"{where}: input {name!r} is {given.dtype}; it is differentiated, so it must have the run's dtype, "
                f"{dtype} here (context.dtype)."
            )
    if tuple(points.differentiate) != tuple(site.differentiate):
        raise ComponentError(f"{where} differentiates {points.differentiate}; the site says {site.differentiate}.")
    if tuple(points.index.shape) != (rows,) or not torch.equal(points.index.cpu(), batch.ids):
        raise ComponentError(
            f"{where}: 'index' must be the ids of the batch, {batch.ids.tolist()}, not {points.index.tolist()}: probes "
            "and caches hang on them."
        )
    if points.weight is not None and (tuple(points.weight.shape) != (rows,) or bool((points.weight < 0).any())):
        raise ComponentError(f"{where}: 'weight' must have the shape {(rows,)} and no negative numbers.")
    for key, mask in points.known.items():
        inner = [n for name in key for n in site.inputs[name]]
        if mask.dtype != torch.bool or mask.shape[0] != rows or list(mask.shape[2:]) != inner:
            raise ComponentError(
                f"{where}: known[{key}] is {mask.dtype} of shape {tuple(mask.shape)}; expected bool of shape "
                f"({rows}, m, {', '.join(map(str, inner))})."
            )


def check_empty(case: TargetCase) -> None:
    """A batch without samples passes: a process may get none of a small batch."""
    run = case.run
    ids = torch.arange(0)
    batch = Batch("train", ids, run.target.load("train", ids))
    drawn = run.draw(batch, 0, training=False)
    for name, where in drawn.points.items():
        if len(where) or any(len(given) for given in where.inputs.values()):
            raise ComponentError(f"points() of a batch without ids returns samples at site {name!r}.")
    reference = drawn.reference or run.reference(drawn.points, drawn.probes, run.measure(drawn.points))
    if any(len(jet.value) for jet in reference.values()):
        raise ComponentError("The answer to a batch without samples has rows.")


def check_answers(case: TargetCase) -> None:
    """Its values and derivatives have the right shapes, and are numbers."""
    run = case.run
    for split in SPLITS:
        if not run.target.size(split):
            continue
        points = run.target.points(case.batch(split), training=False)
        if not answers(run.target):
            for name, where in points.items():
                value, expected = run.target.value(name, where.inputs, where), (len(where), run.outputs(name))
                if not isinstance(value, Tensor) or tuple(value.shape) != expected:
                    raise ComponentError(
                        f"value() at site {name!r} returns {shape_of(value)}; expected {expected}: (B, m), where m is "
                        "never squeezed."
                    )
        jets = case.full(points)
        if list(jets) != list(points):
            raise ComponentError(f"The answer has the sites {[*jets]}; expected {[*points]}.")
        for name, jet in jets.items():
            m = run.outputs(name)
            for key in (VALUE, *run.keys[name]):
                shape = (len(points[name]), m, *(n for i in key for n in points[name].inputs[i].shape[1:]))
                _check_answer(f"{split}, site {name!r}: {key_name(key)}", jet, key, shape)


def _check_answer(where: str, jet: Jet, key: Key, shape: tuple[int, ...]) -> None:
    if key not in jet:
        raise ComponentError(f"{where} was asked for and is not in the answer.")
    given = jet[key]
    if not isinstance(given, Tensor) or tuple(given.shape) != shape:
        raise ComponentError(
            f"{where} has the shape {shape_of(given)}; expected {shape}: (B, m, *x), where m is never squeezed."
        )
    if not bool(torch.isfinite(given).all()):
        raise ComponentError(
            f"{where} is NaN or infinite at sample {int((~torch.isfinite(given)).flatten(1).any(1).nonzero()[0])}. "
            "What is computed must be finite; what is missing in recorded data is held as 0 and masked in Jet.known."
        )
    mask = jet.known.get(key)
    if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) != shape):
        raise ComponentError(
            f"{where}: its mask is {mask.dtype} of shape {tuple(mask.shape)}; expected bool of {shape}."
        )


def check_no_graph(case: TargetCase) -> None:
    """Its answer is detached: the student's gradient never flows into the target."""
    points = case.target.points(case.batch(), training=True)
    for name, jet in case.full(points).items():
        for key in (VALUE, *jet.derivatives):
            if jet[key].requires_grad:
                raise ComponentError(
                    f"The target's {key_name(key)} at site {name!r} carries a graph; return it detached, or the "
                    "student's backward pass would run through the target."
                )


def check_derivative(case: TargetCase) -> None:
    """Its derivative is that of its own value, by central differences in float64."""
    points = case.target.points(case.batch(), training=False)
    full = case.full(points)
    generator = torch.Generator().manual_seed(0)
    checked = False
    for site, where in points.items():
        for key in case.run.keys[site]:
            checked |= _check_slope(case, points, full, site, key, where.inputs[key[0]], generator)
    if not checked:
        raise NotApplicable(
            "its answers are recorded, or do not depend on where they are asked: they cannot be displaced"
        )


def _check_slope(
    case: TargetCase,
    points: Mapping[str, Points],
    full: Mapping[str, Jet],
    site: str,
    key: Key,
    x: Tensor,
    generator: torch.Generator,
) -> bool:
    """Compare slopes along three directions; False where the value does not move."""
    (name,) = key
    known = full[site].known.get(key)
    agreed, moved, sample = torch.zeros(len(x), dtype=torch.int64), False, ""
    for _ in range(3):
        direction = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        direction = direction / direction.flatten(1).norm(dim=1).reshape(-1, *(1,) * (x.ndim - 1))
        expected = (full[site][key] * direction[:, None]).flatten(2).sum(dim=2)
        errors = []
        for step in (1e-5, 1e-6):  # the larger one may cross a kink, the smaller one drown in rounding
            h = step * max(1.0, float(x.abs().max()))
            ahead, behind = (_value_at(case, points, site, name, x + s * h * direction) for s in (1.0, -1.0))
            moved |= not torch.equal(ahead, behind)
            slope = (ahead - behind) / (2 * h)
            rounding = 1e-14 * float(ahead.abs().max()) / h
            scale = torch.maximum(slope.abs(), expected.abs()) + 1e-3 * float(expected.abs().max()) + 1e-12
            error = (((slope - expected).abs() - rounding).clamp_min(0) / scale).amax(dim=1)
            errors.append(error)
            if not sample and float(error.max()) > 1e-3:
                i = int(error.argmax())
                sample = f"sample {i}: {expected[i].tolist()} along a direction, {slope[i].tolist()} by differences"
        agreed += torch.minimum(*errors).cpu() <= 1e-3
    if not moved:
        return False
    if known is not None and not bool(known.all()):
        raise NotApplicable("part of the derivative is unknown")
    if int((agreed >= 2).sum()) * 2 < len(x) + 1:  # single samples may sit on a kink
        raise ComponentError(
            f"{key_name(key)} at site {site!r} is not the derivative of the target's value by {name!r} ({sample}). If "
            "'value' leaves torch (numpy, .item(), .detach()), autograd sees a constant: such a target needs the "
            "estimator finite-difference."
        )
    return True


def _value_at(case: TargetCase, points: Mapping[str, Points], site: str, name: str, x: Tensor) -> Tensor:
    moved = {**points, site: replace(points[site], inputs={**points[site].inputs, name: x})}
    if answers(case.target):
        return case.answer(moved, {other: Probe() for other in moved})[site].value
    with torch.no_grad():
        return case.target.value(site, moved[site].inputs, points[site])


def check_contractions(case: TargetCase) -> None:
    """Its answer to a projected probe is the contraction of its full derivative."""
    run = case.run
    if not answers(run.target):
        raise NotApplicable("it offers its value; the estimator contracts")
    points = run.target.points(case.batch(), training=False)
    full = case.full(points)
    for side in ("output", "input"):
        probes = {
            site: restrict(Probe({k: _random(w, k, side, run.outputs(site)) for k in run.keys[site]}), w)
            for site, w in points.items()
        }
        try:
            answered = case.answer(points, probes)
        except ComponentError as refusal:
            raise NotApplicable(f"it refuses a probe of the {side} side: {refusal}") from None
        for site, probe in probes.items():
            for key, asked in probe.contractions.items():
                expected, mask = contract(full[site][key], asked, full[site].known.get(key))
                given = answered[site][key]
                what = f"To a probe of the {side} side it answers {key_name(key)} at site {site!r}"
                if tuple(given.shape) != tuple(expected.shape):
                    raise ComponentError(f"{what} in the shape {shape_of(given)}; expected {tuple(expected.shape)}.")
                known = expected * mask if mask is not None else expected
                wrong = difference(given * mask if mask is not None else given, known, 1e-5, 1e-10)
                if wrong:
                    raise ComponentError(f"{what} that is not the contraction of its full answer: {wrong}.")


def _random(points: Points, key: Key, side: str, outputs: int) -> Contraction:
    """Return a contraction of one side with two random vectors per sample."""
    noise = Noise(0, "train", 0, side)
    dtype = points.inputs[key[0]].dtype
    if side == "output":
        return Contraction(noise.sphere(points.index, 2, (outputs,), *key, dtype=dtype), (None,) * len(key))
    shapes = [tuple(points.inputs[name].shape[1:]) for name in key]
    vectors = (noise.sphere(points.index, 2, shape, *key, i, dtype=dtype) for i, shape in enumerate(shapes))
    return Contraction(None, tuple(vectors))


def check_repeatable(case: TargetCase) -> None:
    """The same seed gives the same points and the same answers."""
    seen = []
    for run in (case.fresh(), case.fresh()):
        points = run.target.points(case.batch(run=run), training=False)
        seen.append((points, case.full(points, run)))
    (points, first), (others, second) = seen
    for site in points:
        for name, given in points[site].inputs.items():
            if not torch.equal(given, others[site].inputs[name]):
                raise ComponentError(
                    f"Two targets with the same seed give other points at site {site!r}: take random numbers from "
                    "context.generator(name), never from torch's or numpy's global generator."
                )
        for key in (VALUE, *first[site].derivatives):
            wrong = difference(second[site][key], first[site][key], 1e-9, 1e-12)
            if wrong:
                raise ComponentError(
                    f"Two targets with the same seed answer differently at the same points, {key_name(key)} of site "
                    f"{site!r}: {wrong}."
                )
    if case.target.fixed_points:
        runs = [case.run.target.points(case.batch(), training=False) for _ in range(2)]
        if any(not torch.equal(runs[1][s].inputs[n], given) for s in points for n, given in runs[0][s].inputs.items()):
            raise ComponentError("fixed_points is set, but the same ids gave other points the second time.")


def check_step(case: TargetCase) -> None:
    """Two training steps and an evaluation pass, with finite numbers."""
    run = case.fresh()
    points = run.target.points(case.batch(run=run), training=False)
    for name, mean in run.target.metrics(points, case.full(points, run), run.measure(points)).items():
        if not isinstance(mean, Mean):
            raise ComponentError(f"metrics() returns {name!r} as a {type(mean).__name__}; expected a sobolev.Mean.")
    outcome = Trainer(run, case.subject.registry).run()
    for name, value in outcome.summary.items():
        if not isinstance(value, float | int):
            raise ComponentError(f"finish() returns {name!r} as a {type(value).__name__}, not a number.")
    for split in SPLITS:
        errors = [f"{split}/{site}/{key_name(key)}" for site in run.sites for key in (VALUE, *run.wanted(site))]
        found = evaluate(run, split)
        for name in errors:
            if not math.isfinite(found.get(name, 0.0)):
                raise ComponentError(f"The metric {name!r} of an evaluation is {found[name]}.")


def check_state(case: TargetCase) -> None:
    """What state_dict returns is enough to go on with: an interrupted run continues as if nothing had happened."""
    first = case.fresh()
    learns = type(first.target).advance is not Target.advance
    if not learns and type(first.target).state_dict is Target.state_dict:
        raise NotApplicable("it does not learn and keeps no state")
    Trainer(first, case.subject.registry).run()
    state = copy.deepcopy(first.target.state_dict())
    check_plain(state, "state_dict()")
    second = case.fresh()
    second.target.load_state_dict(copy.deepcopy(state))
    second.module.load_state_dict(first.module.state_dict())
    points = [run.target.points(case.batch(run=run), training=False) for run in (first, second)]
    full = [case.full(where, run) for where, run in zip(points, (first, second), strict=True)]
    for site in full[0]:
        for key in (VALUE, *full[0][site].derivatives):
            wrong = difference(full[1][site][key], full[0][site][key], 1e-9, 1e-12)
            if wrong:
                raise ComponentError(
                    f"A new target with the state of one that had learned answers otherwise, {key_name(key)} of site "
                    f"{site!r}: {wrong}. Something that advance() changes is missing from state_dict()."
                )
    for run in (first, second):
        Trainer(run, case.subject.registry).run()
    place = first_difference(first.target.state_dict(), second.target.state_dict(), "")
    if place:
        raise ComponentError(
            f"Two steps after a round trip through state_dict() the states differ at {place}: something that advance() "
            "reads (an optimizer's moments, a counter, a generator) is missing from state_dict()."
        )


def check_axes(case: TargetCase) -> None:
    """Its axes, where it names them, fit its sites."""
    named = False
    for name, site in case.run.sites.items():
        axes: Axes | None = case.target.axes(name)
        if axes is None:
            continue
        named = True
        sizes = {i: math.prod(shape) for i, shape in site.inputs.items()}
        if len(axes.inputs) not in (sum(sizes.values()), *(sizes[i] for i in site.differentiate), *sizes.values()):
            raise ComponentError(f"axes({name!r}) names {len(axes.inputs)} inputs; the site has {sizes}.")
        if len(axes.outputs) != case.run.outputs(name):
            raise ComponentError(
                f"axes({name!r}) names {len(axes.outputs)} outputs; the value has {case.run.outputs(name)}."
            )
        for edge in (axes.low, axes.high):
            if edge is not None and len(edge) != len(axes.inputs):
                raise ComponentError(f"axes({name!r}) bounds {len(edge)} inputs and names {len(axes.inputs)}.")
    if not named:
        raise NotApplicable("it names no axes; figures that need a box leave it out")


def check_close(case: TargetCase) -> None:
    """It can be closed, also twice."""
    run = case.fresh()
    run.target.close()
    run.target.close()


CHECKS: Checks[TargetCase] = {
    "sides": check_sides,
    "options": check_options,
    "prepare": check_prepare,
    "sites": check_sites,
    "sizes": check_sizes,
    "points": check_points,
    "empty": check_empty,
    "answers": check_answers,
    "no-graph": check_no_graph,
    "derivative": check_derivative,
    "contractions": check_contractions,
    "repeatable": check_repeatable,
    "step": check_step,
    "state": check_state,
    "axes": check_axes,
    "close": check_close,
}
