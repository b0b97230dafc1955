"""Every check of targets finds a target that is broken in just that way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sobolev import Axes, Batch, Context, Jet, Learner, Mean, Points, Probe, Site, Target
from sobolev.differentiate.contract import contract
from sobolev.errors import ComponentError
from sobolev.registry import Registry
from sobolev.testing import check
from sobolev.testing.target import CHECKS, TargetCase, check_options

X = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(12, 2)


class Analytic(Target):
    """f(x) = (x1^2 x2, sin x1), differentiated by the estimator."""

    fixed_points = True

    def prepare(self, context: Context) -> None:
        self.context = context

    def sites(self) -> Mapping[str, Site]:
        return {"f": Site({"x": (2,)}, 2, ("x",), {"x": (-1.0, 1.0)})}

    def size(self, split: str) -> int:
        return {"train": 8, "validation": 0, "test": 4}[split]

    def points(self, batch: Batch, training: bool) -> Mapping[str, Points]:
        x = X[batch.ids + (8 if batch.split == "test" else 0)]
        return {"f": Points({"x": x.to(self.context.dtype)}, ("x",), batch.ids)}

    def value(self, site: str, inputs: Mapping[str, Tensor], points: Points) -> Tensor:
        a, b = inputs["x"].unbind(dim=1)
        return torch.stack([a * a * b, torch.sin(a)], dim=1)

    def axes(self, site: str) -> Axes | None:
        return Axes(("a", "b"), ("f", "g"), (-1.0, -1.0), (1.0, 1.0))


class Learning(Target):
    """w * (x1^2 x2, sin x1), where w follows the student; answers itself."""

    def __init__(self) -> None:
        self.w = torch.ones((), dtype=torch.float64)
        self.momentum = torch.zeros((), dtype=torch.float64)

    prepare, sites, size, points = Analytic.prepare, Analytic.sites, Analytic.size, Analytic.points

    def answer(
        self, points: Mapping[str, Points], probes: Mapping[str, Probe], prediction: Mapping[str, Jet] | None
    ) -> Mapping[str, Jet]:
        jets = {}
        for site, where in points.items():
            a, b = where.inputs["x"].unbind(dim=1)
            zero = torch.zeros_like(a)
            value = self.w * torch.stack([a * a * b, torch.sin(a)], dim=1)
            full = self.w * torch.stack(
                [torch.stack([2 * a * b, a * a], dim=1), torch.stack([torch.cos(a), zero], dim=1)], dim=1
            )
            jets[site] = Jet(value, {k: contract(full, c)[0] for k, c in probes[site].contractions.items()})
        return jets

    def advance(
        self,
        points: Mapping[str, Points],
        reference: Mapping[str, Jet],
        prediction: Mapping[str, Jet],
        learner: Learner,
    ) -> Mapping[str, Mean]:
        self.momentum = 0.9 * self.momentum + 0.1 * prediction["f"].value.detach().double().mean()
        self.w = self.w + self.momentum
        return {"w": Mean(self.w, torch.ones(()))}

    def state_dict(self) -> dict[str, Any]:
        return {"w": self.w, "momentum": self.momentum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.w, self.momentum = state["w"], state["momentum"]


class Both(Analytic):
    answer = Learning.answer


class Neither(Analytic):
    value = Target.value


class NoTarget:
    heads = ("identity",)


class CannotPrepare(Analytic):
    def prepare(self, context: Context) -> None:
        raise ComponentError("the data are not there")


class DottedSite(Analytic):
    def sites(self) -> Mapping[str, Site]:
        return {"f.g": super().sites()["f"]}


class ChangingSites(Analytic):
    calls = 0

    def sites(self) -> Mapping[str, Site]:
        self.calls += 1
        return super().sites() if self.calls < 2 else {f"f{self.calls}": super().sites()["f"]}


class NoSamples(Analytic):
    def size(self, split: str) -> int:
        return 0


class OddSize(Analytic):
    def size(self, split: str) -> Any:
        return 3.5 if split == "validation" else super().size(split)


def _points(**changes: Any) -> Any:
    def points(self: Analytic, batch: Batch, training: bool) -> Mapping[str, Points]:
        where = Analytic.points(self, batch, training)["f"]
        return {"f": replace(where, **{name: change(where) for name, change in changes.items()})}

    return points


class FlatInput(Analytic):
    points = _points(inputs=lambda p: {"x": p.inputs["x"].flatten()})


class SinglePrecision(Analytic):
    points = _points(inputs=lambda p: {"x": p.inputs["x"].float()})


class GraphInInput(Analytic):
    points = _points(inputs=lambda p: {"x": p.inputs["x"].clone().requires_grad_()})


class PlaceInsteadOfId(Analytic):
    points = _points(index=lambda p: p.index + 100)


class OtherInputs(Analytic):
    points = _points(inputs=lambda p: {"x": p.inputs["x"], "y": p.inputs["x"]})


class ShortWeight(Analytic):
    points = _points(weight=lambda p: torch.ones(1))


class ShortMask(Analytic):
    points = _points(known=lambda p: {("x",): torch.ones(len(p), 2, 3, dtype=torch.bool)})


class ForgetsToDifferentiate(Analytic):
    points = _points(differentiate=lambda p: ())


class NeedsSamples(Analytic):
    def points(self, batch: Batch, training: bool) -> Mapping[str, Points]:
        batch.ids.max()
        return super().points(batch, training)


class Squeezed(Analytic):
    def value(self, site: str, inputs: Mapping[str, Tensor], points: Points) -> Tensor:
        return super().value(site, inputs, points)[:, 0]


class NotANumber(Analytic):
    def value(self, site: str, inputs: Mapping[str, Tensor], points: Points) -> Tensor:
        value = super().value(site, inputs, points)
        return torch.where(inputs["x"][:, :1] < -0.9, value * torch.nan, value)


class LeavesDerivativesOut(Learning):
    def answer(self, points: Any, probes: Any, prediction: Any) -> Any:
        return {s: Jet(j.value) for s, j in super().answer(points, probes, prediction).items()}


class KeepsGraph(Learning):
    def answer(self, points: Any, probes: Any, prediction: Any) -> Any:
        self.w.requires_grad_()
        return super().answer(points, probes, prediction)

    def advance(self, points: Any, reference: Any, prediction: Any, learner: Learner) -> Any:
        return {}


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2 * gradients[0]


class WrongBackward(Analytic):
    def value(self, site: str, inputs: Mapping[str, Tensor], points: Points) -> Tensor:
        return super().value(site, {"x": _Doubled.apply(inputs["x"])}, points)  # type: ignore[no-untyped-call]


class LeavesTorch(Analytic):
    def value(self, site: str, inputs: Mapping[str, Tensor], points: Points) -> Tensor:
        return super().value(site, {"x": inputs["x"].detach()}, points)


class WrongRecordedDerivative(Learning):
    def answer(self, points: Any, probes: Any, prediction: Any) -> Any:
        jets = super().answer(points, probes, prediction)
        return {s: Jet(j.value, {k: -d for k, d in j.derivatives.items()}) for s, j in jets.items()}


class IgnoresProbe(Learning):
    def answer(self, points: Any, probes: Any, prediction: Any) -> Any:
        ones = {
            s: Probe({k: c if c.full else replace(c, output=None if c.output is None else torch.ones_like(c.output))
                      for k, c in p.contractions.items()})
            for s, p in probes.items()
        }  # fmt: skip
        return super().answer(points, ones, prediction)


class GlobalRandomness(Analytic):
    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self.shift = torch.rand(())

    points = _points(inputs=lambda p: p.inputs)

    def value(self, site: str, inputs: Mapping[str, Tensor], points: Points) -> Tensor:
        return super().value(site, {"x": inputs["x"] + self.shift}, points)


class MovingPoints(Analytic):
    calls = 0

    def points(self, batch: Batch, training: bool) -> Mapping[str, Points]:
        self.calls += 1
        where = super().points(batch, training)["f"]
        return {"f": replace(where, inputs={"x": where.inputs["x"] + 0.01 * self.calls})}


class PlainMetrics(Analytic):
    def metrics(self, points: Any, reference: Any, prediction: Any) -> Any:
        return {"accuracy": 0.5}


class TextScore(Analytic):
    def finish(self, learner: Learner) -> Any:
        return {"score": "good"}


class ForgetsState(Learning):
    def state_dict(self) -> dict[str, Any]:
        return {"momentum": self.momentum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.momentum = state["momentum"]


class ForgetsMomentum(Learning):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.w = state["w"]


class OddState(Learning):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "note": object()}


class NoState(Learning):
    state_dict, load_state_dict = Target.state_dict, Target.load_state_dict


class WrongAxes(Analytic):
    def axes(self, site: str) -> Axes | None:
        return Axes(("a", "b", "c"), ("f", "g"))


class UnevenBox(Analytic):
    def axes(self, site: str) -> Axes | None:
        return Axes(("a", "b"), ("f", "g"), (-1.0,), (1.0, 1.0))


class CannotClose(Analytic):
    def close(self) -> None:
        raise OSError("the worker is gone")


BROKEN: list[tuple[str, Any, str]] = [
    ("sides", Both, "defines both 'answer' and 'value'; exactly one is needed"),
    ("sides", Neither, "defines neither 'answer' nor 'value'"),
    ("sides", NoTarget, "returns a NoTarget, not a sobolev.Target"),
    ("prepare", CannotPrepare, "the data are not there"),
    ("sites", ChangingSites, "sites() changed between two calls"),
    ("sizes", OddSize, "size('validation') is 3.5; expected a number of samples"),
    ("points", FlatInput, "input 'x' has the shape (8,); expected (4, 2)"),
    ("points", SinglePrecision, "input 'x' is torch.float32; it is differentiated, so it must have the run's dtype"),
    ("points", GraphInInput, "carries a graph; detach it"),
    ("points", PlaceInsteadOfId, "'index' must be the ids of the batch, [0, 1, 2, 3], not [100, 101, 102, 103]"),
    ("points", OtherInputs, "the inputs are ['x', 'y'], the site has ['x']"),
    ("points", ShortWeight, "'weight' must have the shape (4,)"),
    ("points", ShortMask, "known[('x',)] is torch.bool of shape (4, 2, 3); expected bool of shape (4, m, 2)"),
    ("points", ForgetsToDifferentiate, "differentiates (); the site says ('x',)"),
    ("empty", NeedsSamples, "RuntimeError"),
    ("answers", Squeezed, "returns (4,); expected (4, 2): (B, m), where m is never squeezed"),
    ("answers", NotANumber, "is NaN or infinite at sample 0"),
    ("answers", LeavesDerivativesOut, "d/dx was asked for and is not in the answer"),
    ("no-graph", KeepsGraph, "The target's value at site 'f' carries a graph; return it detached"),
    ("derivative", WrongBackward, "d/dx at site 'f' is not the derivative of the target's value by 'x'"),
    ("derivative", LeavesTorch, "does not depend on x through autograd"),
    ("derivative", WrongRecordedDerivative, "is not the derivative of the target's value"),
    ("contractions", IgnoresProbe, "that is not the contraction of its full answer"),
    ("repeatable", GlobalRandomness, "Two targets with the same seed answer differently at the same points"),
    ("repeatable", MovingPoints, "fixed_points is set, but the same ids gave other points"),
    ("step", PlainMetrics, "metrics() returns 'accuracy' as a float; expected a sobolev.Mean"),
    ("step", TextScore, "finish() returns 'score' as a str, not a number"),
    ("state", ForgetsState, "Something that advance() changes is missing from state_dict()"),
    ("state", ForgetsMomentum, "Two steps after a round trip through state_dict() the states differ at ["),
    ("state", OddState, "state_dict()['note'] is a object; a state consists of tensors"),
    ("state", NoState, "Something that advance() changes is missing"),
    ("axes", WrongAxes, "axes('f') names 3 inputs"),
    ("axes", UnevenBox, "axes('f') bounds 1 inputs and names 2"),
    ("close", CannotClose, "OSError: the worker is gone"),
]


def verdicts(component: Any) -> dict[str, tuple[str, str]]:
    return {f.check: (f.verdict, f.message) for f in check("target", component)}


@pytest.mark.parametrize("component", [Analytic, Learning])
def test_a_good_target_passes(component: Any) -> None:
    found = verdicts(component)
    assert {name: message for name, (verdict, message) in found.items() if verdict == "wrong"} == {}
    if component is Learning:
        assert [name for name, (verdict, _) in found.items() if verdict == "not applicable"] == ["axes"]


@pytest.mark.parametrize(("name", "component", "said"), BROKEN, ids=[b[1].__name__ for b in BROKEN])
def test_a_broken_target_is_found(name: str, component: Any, said: str) -> None:
    verdict, message = verdicts(component)[name]
    assert verdict == "wrong", f"{name}: {verdict} {message}"
    assert said in message


def test_sites_that_no_student_could_be_built_for_are_named_by_the_check_of_preparation() -> None:
    assert verdicts(DottedSite)["prepare"][0] == "wrong"
    assert verdicts(NoSamples)["sizes"] == ("wrong", "size('train') is 0; there is nothing to train on.")


def test_options_without_description_are_found() -> None:
    registry = Registry()

    def silent(*, size: int = 3) -> Target:
        """A target."""
        return Analytic()

    def unnamed() -> Target:
        return Analytic()

    registry.register("target", "silent", silent, "mine 1")
    registry.register("target", "unnamed", unnamed, "mine 1")
    for name, said in (("silent", "The options size say nothing of themselves"), ("unnamed", "It has no summary")):
        case = TargetCase(name, registry)
        with pytest.raises(ComponentError, match=said):
            check_options(case)
        case.close()
    with pytest.raises(ComponentError, match="cannot be made from its options: size: expected a whole number"):
        TargetCase({"use": "silent", "size": "big"}, registry)


def test_every_check_has_a_target_that_fails_it() -> None:
    assert {name for name, _, _ in BROKEN} | {"options"} == set(CHECKS)
