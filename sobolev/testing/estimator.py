"""What an estimator must do."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sobolev.components import Context, Estimator, Target
from sobolev.differentiate.contract import contract
from sobolev.distributed import connect
from sobolev.errors import ComponentError
from sobolev.heads import HEADS
from sobolev.noise import Noise
from sobolev.testing.findings import Checks, NotApplicable, check_plain, difference, first_difference, shape_of
from sobolev.testing.subject import Component, Subject
from sobolev.vocabulary import Batch, Contraction, Jet, Key, Points, Probe, Site, key_name

_D, _M, _ROWS = 3, 2, 6
_KEYS: tuple[Key, ...] = (("x",), ("x", "x"))
_DRAWS = 20_000


class _Waves(Target):
    """A smooth function of three variables with two outputs, whose derivatives are all different."""

    def sites(self) -> Mapping[str, Site]:
        return {"waves": Site({"x": (_D,)}, _M, ("x",), {"x": (-1.0, 1.0)})}

    def size(self, split: str) -> int:
        return 64

    def points(self, batch: Batch, training: bool) -> Mapping[str, Points]:
        return {"waves": _points(batch.ids)}

    def value(self, site: str, inputs: Mapping[str, Tensor], points: Points) -> Tensor:
        return _function(inputs)


def _function(inputs: Mapping[str, Tensor]) -> Tensor:
    a, b, c = inputs["x"].unbind(dim=1)
    return torch.stack([torch.exp(0.3 * a) * b * b + a * c, torch.exp(0.5 * b) * a + c**3 - a * b], dim=1)


def _points(ids: Tensor) -> Points:
    # Different paces, so that the points fill the box: an estimator may fit something to them.
    paces = torch.tensor([1.7, 2.9, 4.3], dtype=torch.float64)
    return Points({"x": torch.sin(ids[:, None] * paces + torch.arange(_D))}, ("x",), ids)


def _noise(step: int) -> Noise:
    return Noise(0, "train", step, "waves")


class EstimatorCase:
    """An estimator under test, beside a function whose derivatives are known."""

    def __init__(self, component: Component, registry: object = None) -> None:
        self.subject = Subject("estimator", component, registry)  # type: ignore[arg-type]
        self.estimator: Estimator = self.subject.make()
        world = connect("cpu")
        folder = Path.cwd()
        self.context = Context(world.device, torch.float64, world, 0, HEADS["identity"], folder, folder)
        self.points = _points(torch.arange(_ROWS))
        self.prepared = False

    def fresh(self) -> Estimator:
        """Return another one with the same options, prepared."""
        made: Estimator = self.subject.make()
        made.prepare(_Waves(), self.context)
        return made

    def probe(self, key: Key, points: Points | None = None, step: int = 0) -> Probe:
        """Return what the estimator asks of one key."""
        if not self.prepared:
            self.estimator.prepare(_Waves(), self.context)
            self.prepared = True
        return self.estimator.probe(points or self.points, _M, (key,), _noise(step))

    def keys(self) -> list[Key]:
        """Return the keys that the estimator does not refuse."""
        kept = []
        for key in _KEYS:
            try:
                self.probe(key)
            except ComponentError:
                continue
            kept.append(key)
        if not kept:
            raise NotApplicable(f"it refuses a function of {_D} variables with {_M} outputs; give other options")
        return kept

    def vectors(self, key: Key, points: Points | None = None, step: int = 0) -> list[Tensor]:
        """Return the vectors of a probe, output side first."""
        contraction = self.probe(key, points, step).contractions[key]
        return [vector for vector in (contraction.output, *contraction.inputs) if vector is not None]

    def close(self) -> None:
        """Nothing to release."""


def check_options(case: EstimatorCase) -> None:
    """Its options have descriptions."""
    if not isinstance(case.estimator, Estimator):
        raise ComponentError(f"The factory returns a {type(case.estimator).__name__}, not a sobolev.Estimator.")
    case.subject.check_options()


def check_shapes(case: EstimatorCase) -> None:
    """It asks for every key that is wanted, and no other, with vectors of the right shapes."""
    for key in case.keys():
        probe = case.probe(key)
        if not isinstance(probe, Probe) or list(probe.contractions) != [key]:
            found = [*probe.contractions] if isinstance(probe, Probe) else type(probe).__name__
            raise ComponentError(f"probe() was asked for {[key]} and returned {found}.")
        asked = probe.contractions[key]
        if len(asked.inputs) != len(key):
            raise ComponentError(
                f"The contraction of {key_name(key)} has {len(asked.inputs)} input slots; expected {len(key)}, one per "
                "name in the key, None where a slot stays open."
            )
        k = asked.probes
        for what, vector, size in (
            ("output", asked.output, _M), *((f"inputs[{i}]", v, _D) for i, v in enumerate(asked.inputs)),
        ):  # fmt: skip
            if vector is not None and tuple(vector.shape) != (_ROWS, k, size):
                letters = "(B, k, m)" if what == "output" else "(B, k, *x)"
                raise ComponentError(
                    f"The contraction of {key_name(key)} has '{what}' of shape {shape_of(vector)}; expected "
                    f"{(_ROWS, k, size)}: {letters}."
                )
            if vector is not None and vector.dtype != torch.float64:
                raise ComponentError(
                    f"'{what}' of {key_name(key)} is {vector.dtype}; expected the dtype of the input, torch.float64 "
                    "here."
                )


def check_repeatable(case: EstimatorCase) -> None:
    """The same noise gives the same probe."""
    for key in case.keys():
        for first, second in zip(case.vectors(key), case.vectors(key), strict=True):
            if not torch.equal(first, second):
                raise ComponentError(
                    f"Two probes of {key_name(key)} with the same noise differ: draw from the 'noise' that probe() "
                    "receives, never from a global generator, or a resumed run would not continue as it began."
                )


def check_per_sample(case: EstimatorCase) -> None:
    """What is drawn for a sample depends on its id, not on the batch that it comes in."""
    order = torch.tensor([4, 1, 3])
    some = _points(order)
    for key in case.keys():
        whole, part = case.vectors(key), case.vectors(key, some)
        if any(not torch.equal(w[order], p) for w, p in zip(whole, part, strict=True)):
            raise ComponentError(
                f"The probe of {key_name(key)} for a sample changes with its place in the batch: draw by points.index, "
                "or several devices would draw other numbers than one."
            )


def check_contraction(case: EstimatorCase) -> None:
    """What it differentiates is the contraction of the full derivative."""
    full = _reference(case.points.inputs["x"])
    for key in case.keys():
        probe = case.probe(key)
        jet: Jet = case.estimator.differentiate(_function, case.points, probe)
        wrong = difference(jet.value, _function(case.points.inputs), 1e-10)
        if tuple(jet.value.shape) != (_ROWS, _M) or wrong:
            raise ComponentError(
                f"differentiate() returns a value that is not the function's: {wrong or shape_of(jet.value)}."
            )
        expected, _ = contract(full[key], probe.contractions[key])
        given = jet[key] if key in jet else None
        if given is None or tuple(given.shape) != tuple(expected.shape):
            raise ComponentError(
                f"differentiate() returns {key_name(key)} as {shape_of(given)}; expected the shape "
                f"{tuple(expected.shape)} that sobolev.Contraction documents."
            )
        wrong = difference(given, expected, 1e-4)
        if wrong:
            raise ComponentError(
                f"differentiate() returns {key_name(key)} that is not the contraction of the full derivative: {wrong}."
            )
        if given.requires_grad or jet.value.requires_grad:
            raise ComponentError("differentiate() returns a jet with a graph; the target's side is detached.")


def _reference(x: Tensor) -> dict[Key, Tensor]:
    """Return full derivatives the slow way: sample by sample, output by output, component by component."""
    gradients, hessians = [], []
    for row in x:
        leaf = row.clone().requires_grad_()
        first = [torch.autograd.grad(y, leaf, create_graph=True)[0] for y in _function({"x": leaf[None]})[0]]
        second = [torch.stack([torch.autograd.grad(g, leaf, retain_graph=True)[0] for g in rows]) for rows in first]
        gradients.append(torch.stack(first).detach())
        hessians.append(torch.stack(second))
    return {("x",): torch.stack(gradients), ("x", "x"): torch.stack(hessians)}


def check_unbiased(case: EstimatorCase) -> None:
    """If it draws at random, the mean square of what it asks is proportional to the square of the whole derivative."""
    random = False
    for key in case.keys():
        vectors = case.vectors(key)
        if all(torch.equal(a, b) for a, b in zip(vectors, case.vectors(key, step=1), strict=True)):
            continue
        random = True
        asked = case.probe(key, _points(torch.arange(_DRAWS))).contractions[key]
        factors = {}
        for name, tensor in _examples(key).items():
            squares = _squares(tensor, asked)
            factors[name] = (float(squares.mean()) / float(tensor.square().sum()), float(squares.std(correction=0)))
        _compare(key, factors, _examples(key))
    if not random:
        raise NotApplicable("it asks the same whatever the noise")


def _examples(key: Key) -> dict[str, Tensor]:
    """Return derivative tensors ``(m, *x...)`` on which estimators that are not isotropic disagree."""
    generator = torch.Generator().manual_seed(1)
    shape = (_M, *(_D,) * len(key))
    one = torch.zeros(shape, dtype=torch.float64)
    one[(0,) * len(shape)] = 1.0
    last = torch.zeros(shape, dtype=torch.float64)
    last[(-1,) * len(shape)] = 1.0
    made = {
        "one component": one,
        "the last component": last,
        "random numbers": torch.randn(shape, generator=generator, dtype=torch.float64),
    }
    if len(key) == 2:
        made["the identity matrix"] = torch.eye(_D, dtype=torch.float64).expand(shape).clone()
    return made


def _squares(tensor: Tensor, asked: Contraction) -> Tensor:
    rows = next(len(v) for v in (asked.output, *asked.inputs) if v is not None)
    contracted, _ = contract(tensor.expand(rows, *tensor.shape), asked)
    return contracted.reshape(rows, asked.probes or 1, -1).square().sum(dim=2).mean(dim=1)


def _compare(key: Key, factors: dict[str, tuple[float, float]], examples: dict[str, Tensor]) -> None:
    base_name, (base, base_spread) = next(iter(factors.items()))
    for name, (factor, spread) in factors.items():
        size, base_size = float(examples[name].square().sum()), float(examples[base_name].square().sum())
        error = 6 * (spread / size + base_spread / base_size) / math.sqrt(_DRAWS)
        if abs(factor - base) > error + 1e-9:
            raise ComponentError(
                f"What is asked of {key_name(key)} is biased: its mean square is {base:.4g} times the square of a "
                f"derivative of {base_name}, but {factor:.4g} times that of {name}. Directions must be uniform (or "
                "normal), and those of different slots independent of each other."
            )


def check_metrics(case: EstimatorCase) -> None:
    """Its counters are numbers."""
    for name, value in case.estimator.metrics().items():
        if not isinstance(value, int | float):
            raise ComponentError(f"metrics() returns {name!r} as a {type(value).__name__}, not a number.")


def check_state(case: EstimatorCase) -> None:
    """What state_dict returns is enough to go on with: an interrupted run continues as if nothing had happened."""
    keys = case.keys()
    first, second = case.fresh(), case.fresh()
    for step in range(3):
        _use(first, case.points, keys, step)
    state = copy.deepcopy(first.state_dict())
    check_plain(state, "state_dict()")
    second.load_state_dict(copy.deepcopy(state))
    _compare_states(first, second, "After a round trip through state_dict()")
    for step in (3, 4):
        pairs = zip(*(_use(one, case.points, keys, step) for one in (first, second)), strict=True)
        for what, wrong in ((what, difference(there, here, 1e-12)) for (what, here), (_, there) in pairs):
            if wrong:
                raise ComponentError(
                    f"A new estimator with the state of one that had been used goes on with another {what}: {wrong}. "
                    "Something that it remembers from step to step is missing from state_dict() or load_state_dict()."
                )
        _compare_states(first, second, f"{step - 2} {'step' if step == 3 else 'steps'} after a round trip")


def _use(estimator: Estimator, points: Points, keys: list[Key], step: int) -> list[tuple[str, Tensor]]:
    """Take a step; returns what was asked and what was found."""
    seen = []
    for key in keys:
        probe = estimator.probe(points, _M, (key,), _noise(step))
        asked = probe.contractions[key]
        seen += [(f"probe of {key_name(key)}", v) for v in (asked.output, *asked.inputs) if v is not None]
        seen.append((f"answer for {key_name(key)}", estimator.differentiate(_function, points, probe)[key]))
    return seen


def _compare_states(first: Estimator, second: Estimator, when: str) -> None:
    for name, one, other in (
        ("metrics", dict(first.metrics()), dict(second.metrics())),
        ("state_dict", first.state_dict(), second.state_dict()),
    ):
        place = first_difference(one, other, f"{name}()")
        if place:
            raise ComponentError(
                f"{when} {place} differs from what it was without the interruption: keep in state_dict() whatever "
                "changes while it is used, counters too, and restore it in load_state_dict()."
            )


CHECKS: Checks[EstimatorCase] = {
    "options": check_options,
    "shapes": check_shapes,
    "repeatable": check_repeatable,
    "per-sample": check_per_sample,
    "contraction": check_contraction,
    "unbiased": check_unbiased,
    "metrics": check_metrics,
    "state": check_state,
}
