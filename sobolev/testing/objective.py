"""What an objective must do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sobolev.components import Objective
from sobolev.errors import ComponentError, SobolevError
from sobolev.heads import Head
from sobolev.statistics import neutral
from sobolev.testing.findings import Checks, NotApplicable, difference, shape_of
from sobolev.testing.subject import Component, Subject
from sobolev.vocabulary import VALUE, Jet, Key, Points, Probe, Site, Term, key_name

_ROWS, _OUTPUTS, _D = 5, 4, 3


class ObjectiveCase:
    """An objective under test, with jets of random numbers to compare."""

    def __init__(self, component: Component, registry: object = None) -> None:
        self.subject = Subject("objective", component, registry)  # type: ignore[arg-type]
        self.objective: Objective = self.subject.make()
        head = getattr(self.objective, "head", None)
        if not isinstance(head, Head):
            raise ComponentError(f"'head' is {head!r}; set it to one of sobolev.HEADS.")
        self.m = head.outputs(_OUTPUTS)
        inputs = {"x": (_D,)} | {name: (_OUTPUTS,) for name in head.inputs}
        site = Site(inputs, _OUTPUTS, ("x",), {"x": (-1.0, 1.0)})
        self.site = replace(site, statistics=neutral({"site": site}, {"site": self.m})["site"])
        self.objective.prepare({"site": self.site})
        self.keys: tuple[Key, ...] = ()
        self.points = self._points(torch.tensor([0.5, 1.0, 2.0, 3.0, 0.25], dtype=torch.float64))

    def _points(self, weight: Tensor | None) -> Points:
        generator = torch.Generator().manual_seed(5)
        inputs = {"x": torch.randn(_ROWS, _D, generator=generator, dtype=torch.float64)}
        for name in self.site.inputs:
            if name != "x":
                inputs[name] = torch.eye(_OUTPUTS, dtype=torch.float64)[torch.arange(_ROWS) % _OUTPUTS]
        return Points(inputs, ("x",), torch.arange(_ROWS), weight)

    def jet(self, seed: int) -> Jet:
        """Return a jet of random numbers; log-probabilities where the head gives such."""
        generator = torch.Generator().manual_seed(seed)
        value = torch.randn(_ROWS, self.m, generator=generator, dtype=torch.float64)
        if self.objective.head.name == "log-softmax":
            value = torch.log_softmax(value, dim=1)
        return Jet(
            value,
            {
                key: torch.randn(_ROWS, self.m, *(_D,) * len(key), generator=generator, dtype=torch.float64)
                for key in self.wanted()
            },
        )

    def wanted(self) -> tuple[Key, ...]:
        """Return the derivatives that carry weight."""
        return tuple(self.objective.keys(self.site))

    def terms(self, prediction: Jet, reference: Jet, points: Points | None = None) -> list[Term]:
        """Return the terms of a full probe."""
        probe = Probe.full(self.wanted())
        return list(self.objective.terms("site", points or self.points, probe, prediction, reference))

    def close(self) -> None:
        """Nothing to release."""


def total(terms: list[Term]) -> Tensor:
    """Return the loss that a step would follow: weighted sums over counts."""
    zero = torch.zeros((), dtype=torch.float64)
    return sum((term.weight * term.sum / term.count.clamp_min(1e-300) for term in terms), zero)


def _number(tensor: Tensor) -> float:
    return float(tensor.detach())


def check_options(case: ObjectiveCase) -> None:
    """Its options have descriptions."""
    if not isinstance(case.objective, Objective):
        raise ComponentError(f"The factory returns a {type(case.objective).__name__}, not a sobolev.Objective.")
    case.subject.check_options()


def check_keys(case: ObjectiveCase) -> None:
    """It asks for derivatives by inputs that are differentiated, each once."""
    keys = case.wanted()
    for key in keys:
        if not isinstance(key, tuple) or not key or any(name not in case.site.differentiate for name in key):
            raise ComponentError(
                f"keys() returns {key!r}; expected tuples of names such as ('x',) or ('x', 'x') from "
                f"site.differentiate, {case.site.differentiate} here."
            )
    if len(set(keys)) != len(keys):
        raise ComponentError(f"keys() returns a key twice: {keys}.")


def check_terms(case: ObjectiveCase) -> None:
    """Each term is a sum with graph and a count without, for a quantity that was measured."""
    prediction = _with_graph(case.jet(1))
    terms = case.terms(prediction, case.jet(2))
    for term in terms:
        if not isinstance(term, Term):
            raise ComponentError(f"terms() returns a {type(term).__name__}; expected sobolev.Term.")
        what = f"The term of {key_name(term.key)}"
        if term.site != "site" or term.key not in (VALUE, *case.wanted()):
            raise ComponentError(f"{what} at site {term.site!r} is for something that was not measured.")
        for name, number in (("sum", term.sum), ("count", term.count)):
            if not isinstance(number, Tensor) or number.ndim:
                raise ComponentError(f"{what} has a {name} of shape {shape_of(number)}; expected a scalar.")
        if not term.sum.requires_grad:
            raise ComponentError(f"{what} has lost the prediction's graph: nothing would be trained by it.")
        if term.count.requires_grad or _number(term.count) <= 0:
            raise ComponentError(f"{what} has the count {term.count}; expected a positive number without graph.")
        if not isinstance(term.weight, int | float) or term.weight < 0:
            raise ComponentError(f"{what} has the weight {term.weight!r}; expected a number of at least 0.")
    names = [term.name for term in terms]
    if len(set(names)) != len(names):
        raise ComponentError(f"Two terms have one name: {names}.")
    absent = [key_name(key) for key in case.wanted() if key not in {term.key for term in terms}]
    if absent:
        raise ComponentError(f"keys() asks for {', '.join(absent)}, and no term uses it.")


def _with_graph(jet: Jet) -> Jet:
    return Jet(
        jet.value.clone().requires_grad_(),
        {k: v.clone().requires_grad_() for k, v in jet.derivatives.items()},
        jet.known,
    )


def check_zero(case: ObjectiveCase) -> None:
    """It is zero at equality and positive elsewhere, with a finite gradient at both."""
    same = case.jet(1)
    prediction = _with_graph(same)
    for term in case.terms(prediction, same):
        if abs(_number(term.sum)) > 1e-10:
            raise ComponentError(
                f"The term of {key_name(term.key)} is {_number(term.sum):.4g} where prediction and reference are "
                "equal; expected 0."
            )
        (gradient,) = torch.autograd.grad(term.sum, prediction[term.key], retain_graph=True, allow_unused=True)
        if gradient is not None and not bool(torch.isfinite(gradient).all()):
            raise ComponentError(
                f"The gradient of the term of {key_name(term.key)} is NaN or infinite at equality; take the "
                "subgradient 0 there (norms and square roots need care)."
            )
    for term in case.terms(case.jet(1), case.jet(2)):
        if _number(term.sum) <= 1e-12:
            raise ComponentError(
                f"The term of {key_name(term.key)} is {_number(term.sum):.4g} for jets that differ; expected a "
                "positive number."
            )


def check_gradient(case: ObjectiveCase) -> None:
    """Its gradient is that of the loss it reports, against finite differences, with weights other than 1."""
    reference = case.jet(2)
    prediction = _with_graph(case.jet(1))
    loss = total(case.terms(prediction, reference))
    if not loss.requires_grad:
        raise NotApplicable("no term carries weight")
    for key in (VALUE, *case.wanted()):
        (gradient,) = torch.autograd.grad(loss, prediction[key], retain_graph=True, allow_unused=True)
        generator = torch.Generator().manual_seed(7)
        agreed, said = 0, ""
        for _ in range(3):
            direction = torch.randn(prediction[key].shape, generator=generator, dtype=torch.float64)
            expected = 0.0 if gradient is None else float((gradient * direction).sum())
            slope = _slope(case, prediction, reference, key, direction)
            close = abs(expected - slope) <= 1e-5 * max(abs(expected), abs(slope), 1e-3)
            agreed += close
            said = said if close else f"{expected:.6g} by autograd, {slope:.6g} by finite differences"
        if agreed < 2:
            raise ComponentError(
                f"The gradient by the student's {key_name(key)} is not that of the loss that is reported: {said}. A "
                "part is detached, or weighted in one place and not in the other."
            )


def _slope(case: ObjectiveCase, prediction: Jet, reference: Jet, key: Key, direction: Tensor) -> float:
    values = []
    for sign in (1.0, -1.0):
        moved = prediction[key].detach() + sign * 1e-6 * direction
        jet = prediction.detach()
        jet = replace(jet, value=moved) if key == VALUE else replace(jet, derivatives={**jet.derivatives, key: moved})
        values.append(_number(total(case.terms(jet, reference))))
    return (values[0] - values[1]) / 2e-6


def check_sample_weights(case: ObjectiveCase) -> None:
    """Sample weights enter sum and count: a sample of weight 0 counts like one that is not there."""
    prediction, reference = case.jet(1), case.jet(2)
    weight = torch.tensor([0.0, 1.0, 2.0, 0.0, 0.5], dtype=torch.float64)
    kept = weight > 0
    weighted = case.terms(prediction, reference, replace(case.points, weight=weight))
    without = case.terms(
        _rows(prediction, kept), _rows(reference, kept), _rows_of_points(replace(case.points, weight=weight), kept)
    )
    doubled = case.terms(prediction, reference, replace(case.points, weight=2 * weight))
    for a, b, c in zip(weighted, without, doubled, strict=True):
        what = f"the term of {key_name(a.key)}"
        if abs(_number(a.sum / a.count) - _number(b.sum / b.count)) > 1e-9 * max(1.0, abs(_number(b.sum / b.count))):
            raise ComponentError(
                f"Leaving samples of weight 0 out changes {what}: weights (Points.weight) must multiply each sample's "
                "loss and its share of the count."
            )
        if abs(_number(c.sum) - 2 * _number(a.sum)) > 1e-9 * max(1.0, abs(_number(a.sum))):
            raise ComponentError(f"Doubling all sample weights does not double the sum of {what}.")
        if abs(_number(c.count) - 2 * _number(a.count)) > 1e-9 * abs(_number(a.count)):
            raise ComponentError(f"Doubling all sample weights does not double the count of {what}.")


def _rows(jet: Jet, kept: Tensor) -> Jet:
    return Jet(
        jet.value[kept], {k: v[kept] for k, v in jet.derivatives.items()}, {k: v[kept] for k, v in jet.known.items()}
    )


def _rows_of_points(points: Points, kept: Tensor) -> Points:
    weight = None if points.weight is None else points.weight[kept]
    inputs = {name: given[kept] for name, given in points.inputs.items()}
    return replace(points, inputs=inputs, index=points.index[kept], weight=weight)


def check_additive(case: ObjectiveCase) -> None:
    """Sums and counts of two halves of a batch add up to those of the whole: devices see parts."""
    prediction, reference = case.jet(1), case.jet(2)
    kept = torch.tensor([True, True, False, False, False])
    whole = case.terms(prediction, reference)
    parts = [
        case.terms(_rows(prediction, half), _rows(reference, half), _rows_of_points(case.points, half))
        for half in (kept, ~kept)
    ]
    for a, b, c in zip(whole, *parts, strict=True):
        for name in ("sum", "count"):
            expected, got = _number(getattr(a, name)), _number(getattr(b, name) + getattr(c, name))
            if abs(expected - got) > 1e-9 * max(1.0, abs(expected)):
                raise ComponentError(
                    f"The {name} of the term of {key_name(a.key)} is {expected:.6g} for a batch and {got:.6g} for its "
                    "two parts together; sums and counts must be sums over samples, not means."
                )


def check_masks(case: ObjectiveCase) -> None:
    """What is missing in the reference has no influence, and is not counted."""
    keys = [key for key in (VALUE, *case.wanted()) if key in {t.key for t in case.terms(case.jet(1), case.jet(2))}]
    for key in keys:
        reference, prediction = case.jet(2), case.jet(1)
        mask = torch.ones_like(reference[key], dtype=torch.bool)
        mask[0] = False
        held = torch.where(mask, reference[key], torch.zeros_like(reference[key]))
        reference = replace(reference, known={key: mask})
        reference = (
            replace(reference, value=held)
            if key == VALUE
            else replace(reference, derivatives={**reference.derivatives, key: held})
        )
        moved = prediction[key] + 3.0 * ~mask
        other = (
            replace(prediction, value=moved)
            if key == VALUE
            else replace(prediction, derivatives={**prediction.derivatives, key: moved})
        )
        if key == VALUE and case.objective.head.name == "log-softmax":
            continue  # no target knows part of a distribution
        first = next(t for t in case.terms(prediction, reference) if t.key == key)
        second = next(t for t in case.terms(other, reference) if t.key == key)
        complete = next(t for t in case.terms(prediction, case.jet(2)) if t.key == key)
        if _number(first.sum) != _number(second.sum):
            raise ComponentError(
                f"The term of {key_name(key)} changes with the prediction where the reference is unknown (Jet.known is "
                "False)."
            )
        if not _number(first.count) < _number(complete.count):
            raise ComponentError(
                f"The term of {key_name(key)} counts a sample of which nothing is known; its share of the count is 0."
            )


def check_refuses(case: ObjectiveCase) -> None:
    """It refuses jets of different shapes instead of broadcasting them."""
    prediction, reference = case.jet(1), case.jet(2)
    narrow: Callable[[Tensor], Tensor] = lambda t: t[:, :1] if t.shape[1] > 1 else t[:1]  # noqa: E731
    for key in (VALUE, *case.wanted()):
        cut = narrow(reference[key])
        other = (
            replace(reference, value=cut)
            if key == VALUE
            else replace(reference, derivatives={**reference.derivatives, key: cut})
        )
        try:
            terms = case.terms(prediction, other)
        except SobolevError:
            continue
        if any(term.key == key for term in terms):
            raise ComponentError(
                f"A prediction of shape {shape_of(prediction[key])} was compared with a reference of shape "
                f"{shape_of(cut)} for {key_name(key)}: broadcasting hides mistakes; raise a ComponentError that names "
                "both shapes."
            )


def check_repeatable(case: ObjectiveCase) -> None:
    """The same jets give the same terms, and are left as they were."""
    prediction, reference = case.jet(1), case.jet(2)
    first, second = case.terms(prediction, reference), case.terms(prediction, reference)
    if [(t.name, _number(t.sum), _number(t.count)) for t in first] != [
        (t.name, _number(t.sum), _number(t.count)) for t in second
    ]:
        raise ComponentError("terms() returned other numbers the second time.")
    for key in (VALUE, *case.wanted()):
        if difference(prediction[key], case.jet(1)[key], 0.0) or difference(reference[key], case.jet(2)[key], 0.0):
            raise ComponentError(f"terms() changes the {key_name(key)} that it is given in place.")


CHECKS: Checks[ObjectiveCase] = {
    "options": check_options,
    "keys": check_keys,
    "terms": check_terms,
    "zero": check_zero,
    "gradient": check_gradient,
    "sample-weights": check_sample_weights,
    "additive": check_additive,
    "masks": check_masks,
    "refuses": check_refuses,
    "repeatable": check_repeatable,
}
