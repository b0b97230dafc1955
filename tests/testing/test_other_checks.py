"""Every check of estimators, students, objectives, trackers and reports finds a component broken in that way."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sobolev import (
    HEADS,
    VALUE,
    Contraction,
    Estimator,
    Jet,
    Key,
    Noise,
    Objective,
    Points,
    Probe,
    Report,
    RunInfo,
    RunRecord,
    Site,
    Student,
    Term,
    Tracker,
    Trained,
)
from sobolev.errors import ComponentError
from sobolev.registry import Registry
from sobolev.testing import check, estimator, objective, report, student, tracker

# -- estimators --------------------------------------------------------------------------------------------------------


class Directions(Estimator):
    """Two directional derivatives per sample; independent directions in every slot."""

    def probe(self, points: Points, outputs: int, keys: tuple[Key, ...], noise: Noise) -> Probe:
        return Probe({key: self.contraction(points, outputs, key, noise) for key in keys})

    def contraction(self, points: Points, outputs: int, key: Key, noise: Noise) -> Contraction:
        return Contraction(None, tuple(self.draw(points, noise, i) for i in range(len(key))))

    def draw(self, points: Points, noise: Noise, slot: int) -> Tensor:
        return noise.sphere(points.index, 2, (3,), "mine", slot, dtype=torch.float64)


class WrongKeys(Directions):
    def probe(self, points: Points, outputs: int, keys: tuple[Key, ...], noise: Noise) -> Probe:
        return super().probe(points, outputs, (("x",),), noise)


class OneSlot(Directions):
    def contraction(self, points: Points, outputs: int, key: Key, noise: Noise) -> Contraction:
        return Contraction(None, (self.draw(points, noise, 0),))


class NoProbeDimension(Directions):
    def draw(self, points: Points, noise: Noise, slot: int) -> Tensor:
        return super().draw(points, noise, slot)[:, 0]


class SinglePrecisionVectors(Directions):
    def draw(self, points: Points, noise: Noise, slot: int) -> Tensor:
        return super().draw(points, noise, slot).float()


class GlobalDraw(Directions):
    def draw(self, points: Points, noise: Noise, slot: int) -> Tensor:
        return torch.randn(len(points), 2, 3, dtype=torch.float64)


class DrawsByPlace(Directions):
    def draw(self, points: Points, noise: Noise, slot: int) -> Tensor:
        return noise.sphere(torch.arange(len(points)), 2, (3,), "mine", slot, dtype=torch.float64)


class Anisotropic(Directions):
    def draw(self, points: Points, noise: Noise, slot: int) -> Tensor:
        return super().draw(points, noise, slot) * torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64)


class SameInBothSlots(Directions):
    def draw(self, points: Points, noise: Noise, slot: int) -> Tensor:
        return super().draw(points, noise, 0)


class WrongDifferentiation(Directions):
    def differentiate(self, value: Any, points: Points, probe: Probe) -> Jet:
        jet = super().differentiate(value, points, probe)
        return replace(jet, derivatives={k: 0.5 * d for k, d in jet.derivatives.items()})


class WholeDifferentiation(Directions):
    def differentiate(self, value: Any, points: Points, probe: Probe) -> Jet:
        return super().differentiate(value, points, Probe.full(probe.keys))


class GraphDifferentiation(Directions):
    def differentiate(self, value: Any, points: Points, probe: Probe) -> Jet:
        jet = super().differentiate(value, points, probe)
        return replace(jet, value=jet.value.clone().requires_grad_())


class TextCounters(Directions):
    def metrics(self) -> Any:
        return {"evaluations": "many"}


class NoEstimator:
    pass


class Counts(Directions):
    """Counts evaluations, as finite differences do, and keeps the count."""

    evaluations = 0

    def differentiate(self, value: Any, points: Points, probe: Probe) -> Jet:
        self.evaluations += 1
        return super().differentiate(value, points, probe)

    def metrics(self) -> Any:
        return {"evaluations": self.evaluations}

    def state_dict(self) -> dict[str, Any]:
        return {"evaluations": self.evaluations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.evaluations = state["evaluations"]


class ForgetsCounts(Counts):
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class LoadsNothing(Counts):
    def metrics(self) -> Any:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class KeepsObjects(Counts):
    def state_dict(self) -> Any:
        return {"evaluations": self.evaluations, "owner": self}


class ForgetsDirections(Directions):
    """Leans towards where it looked before; the same noise gives the same probe until the next answer."""

    lean = 0.0

    def draw(self, points: Points, noise: Noise, slot: int) -> Tensor:
        return super().draw(points, noise, slot) + self.lean

    def differentiate(self, value: Any, points: Points, probe: Probe) -> Jet:
        self.lean += 0.1
        return super().differentiate(value, points, probe)


class CountsTwice(Counts):
    """Is faithful at first sight: what it keeps grows otherwise after it was restored."""

    pace = 1

    def differentiate(self, value: Any, points: Points, probe: Probe) -> Jet:
        self.evaluations += self.pace - 1
        return super().differentiate(value, points, probe)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.pace = 2


ESTIMATORS = [
    ("options", NoEstimator, "returns a NoEstimator, not a sobolev.Estimator"),
    ("shapes", WrongKeys, "probe() was asked for [('x', 'x')] and returned [('x',)]"),
    ("shapes", OneSlot, "has 1 input slots; expected 2"),
    ("shapes", NoProbeDimension, "expected (6, 3, 3): (B, k, *x)"),
    ("shapes", SinglePrecisionVectors, "is torch.float32; expected the dtype of the input"),
    ("repeatable", GlobalDraw, "draw from the 'noise' that probe() receives"),
    ("per-sample", DrawsByPlace, "changes with its place in the batch"),
    ("unbiased", Anisotropic, "is biased"),
    ("unbiased", SameInBothSlots, "but"),
    ("contraction", WrongDifferentiation, "not the contraction of the full derivative: at"),
    ("contraction", WholeDifferentiation, "expected the shape"),
    ("contraction", GraphDifferentiation, "returns a jet with a graph"),
    ("metrics", TextCounters, "'evaluations' as a str, not a number"),
    ("state", ForgetsCounts, "After a round trip through state_dict() metrics()['evaluations'] differs"),
    ("state", LoadsNothing, "After a round trip through state_dict() state_dict()['evaluations'] differs"),
    ("state", KeepsObjects, "state_dict()['owner'] is a KeepsObjects; a state consists of tensors, numbers"),
    ("state", ForgetsDirections, "goes on with another probe of d/dx: at"),
    ("state", CountsTwice, "1 step after a round trip metrics()['evaluations'] differs"),
]

# -- students ----------------------------------------------------------------------------------------------------------


class Network(nn.Module):
    def __init__(self, site: Site) -> None:
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.last = nn.Linear(8, site.outputs)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(torch.tanh(self.first(x)))
        return result


def family(network: type[nn.Module], accepted: Mapping[str, tuple[int, ...]] | None = None) -> type[Student]:
    """Return a student that builds a network for sites of one shape."""
    inputs = accepted or {"x": (3,)}

    class Family(Student):
        def build(self, site: Site) -> nn.Module:
            if dict(site.inputs) != inputs or not site.differentiate:
                raise ComponentError("another site")
            return network(site)

    Family.__name__ = network.__name__
    return Family


class TwoInputs(nn.Module):
    def __init__(self, site: Site) -> None:
        super().__init__()
        self.h = nn.Linear(32, site.outputs)
        self.y = nn.Linear(3, site.outputs)

    def forward(self, y: Tensor, h: Tensor) -> Tensor:
        result: Tensor = torch.tanh(self.h(h.flatten(1))) * self.y(y)
        return result


class OtherNames(TwoInputs):
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return super().forward(second, first)


class ByOrder(TwoInputs):
    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.sign = 1.0 if next(iter(site.inputs)) == "h" else -1.0

    def forward(self, y: Tensor, h: Tensor) -> Tensor:
        return self.sign * super().forward(y, h)


class SqueezedOutput(Network):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, 0]


class FixedDtype(Network):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()


class Infinite(Network):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 0.0


class OwnGenerator(Network):
    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.first.weight.data = torch.from_numpy(np.random.default_rng().normal(size=(8, 3))).float()


class Noisy(Network):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(())


class Coupled(Network):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(dim=0, keepdim=True))


class LostTensor(Network):
    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.scale = torch.rand(()) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * super().forward(x)


class GrowingState(Network):
    count = 0

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        GrowingState.count += 1
        self.register_buffer(f"buffer{GrowingState.count}", torch.zeros(()))


class DetachedInput(Network):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(0.5 * x + 0.5 * x.detach())


class _WrongSecond(torch.autograd.Function):
    """tanh, whose backward pass is right and cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(torch.tanh(x).detach())
        return torch.tanh(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return gradients[0] * (1 - y.square()).detach()


class WrongSecondDerivative(Network):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(_WrongSecond.apply(self.first(x)))  # type: ignore[no-untyped-call]
        return result


class NoStudent:
    def build(self, site: Site) -> nn.Module:
        return Network(site)


class NoModule(Student):
    def build(self, site: Site) -> Any:
        return lambda x: x


class Picky(Student):
    def build(self, site: Site) -> nn.Module:
        raise ComponentError("never")


STUDENTS: list[tuple[str, Any, str]] = [
    ("options", NoStudent, "returns a NoStudent, not a sobolev.Student"),
    ("accepts", Picky, "build() refuses every site that it was tried on"),
    ("shapes", NoModule, "build() returns a function, not a torch.nn.Module"),
    (
        "inputs",
        family(OtherNames, {"h": (2, 4, 4), "y": (3,)}),
        "forward() takes ['first', 'second']; the site has the",
    ),
    ("inputs", family(ByOrder, {"h": (2, 4, 4), "y": (3,)}), "changes with the order in which the site lists"),
    ("shapes", family(SqueezedOutput), "For 1 samples forward() returns (1,); expected (1, 2): (B, site.outputs)"),
    ("float64", family(FixedDtype), "After .double() forward() returns torch.float32"),
    ("float64", family(Infinite), "returns NaN or infinities"),
    ("repeatable", family(OwnGenerator), "differ in 'first.weight': initialise from torch's generator"),
    ("repeatable", family(Noisy), "gave two answers for the same inputs"),
    ("independent", family(Coupled), "depends on the others in its batch"),
    ("state", family(LostTensor), "neither a parameter nor a buffer would be lost"),
    ("state", family(GrowingState), "does not take the first one's state_dict"),
    ("derivative", family(DetachedInput), "The derivative by 'x' is not that of the output"),
    ("parameter-gradient", family(WrongSecondDerivative), "Training on derivatives would go wrong"),
]

# -- objectives --------------------------------------------------------------------------------------------------------


class Squared(Objective):
    """2 * squared error of the value + 0.5 * that of the gradient."""

    def __init__(self) -> None:
        self.head = HEADS["identity"]

    def keys(self, site: Site) -> tuple[Key, ...]:
        return tuple((name,) for name in site.differentiate)

    def terms(self, site: str, points: Points, probe: Probe, prediction: Jet, reference: Jet) -> list[Term]:
        return [self.term(site, key, points, prediction, reference) for key in (VALUE, *probe.keys)]

    def term(self, site: str, key: Key, points: Points, prediction: Jet, reference: Jet) -> Term:
        if prediction[key].shape != reference[key].shape:
            raise ComponentError("shapes differ")
        known = reference.known.get(key, torch.ones_like(reference[key], dtype=torch.bool))
        errors = self.loss(prediction[key] - reference[key], key) * known
        weight = self.weight(points)
        count = (weight * known.flatten(1).double().mean(dim=1)).sum()
        return Term(site, key, (weight * errors.flatten(1).sum(dim=1)).sum(), count, 2.0 if key == VALUE else 0.5)

    def weight(self, points: Points) -> Tensor:
        return torch.ones(len(points), dtype=torch.float64) if points.weight is None else points.weight

    def loss(self, difference: Tensor, key: Key) -> Tensor:
        return difference.square()


class UnknownKey(Squared):
    def keys(self, site: Site) -> Any:
        return ("x",)


class KeyTwice(Squared):
    def keys(self, site: Site) -> tuple[Key, ...]:
        return (("x",), ("x",))


def changed(**changes: Any) -> Any:
    def term(self: Squared, site: str, key: Key, points: Points, prediction: Jet, reference: Jet) -> Term:
        made = Squared.term(self, site, key, points, prediction, reference)
        return replace(made, **{name: change(made) for name, change in changes.items()})

    return term


class DetachedTerm(Squared):
    term = changed(sum=lambda t: t.sum.detach())


class VectorTerm(Squared):
    term = changed(sum=lambda t: t.sum[None])


class NegativeWeight(Squared):
    term = changed(weight=lambda t: -1.0)


class ForgetsDerivative(Squared):
    def terms(self, *arguments: Any) -> list[Term]:
        return super().terms(*arguments)[:1]


class NotZero(Squared):
    def loss(self, difference: Tensor, key: Key) -> Tensor:
        return (difference + 0.1).square()


class RootAtZero(Squared):
    def loss(self, difference: Tensor, key: Key) -> Tensor:
        return difference.square().sum(dim=1, keepdim=True).sqrt().expand_as(difference)


class Blind(Squared):
    def loss(self, difference: Tensor, key: Key) -> Tensor:
        return 0.0 * difference if key else difference.square()


class _WeightTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 0.5 * gradients[0]


class GradientOfAnotherLoss(Squared):
    """As in a known package: the gradient scales with another power of the weight than the loss."""

    def loss(self, difference: Tensor, key: Key) -> Tensor:
        return _WeightTwice.apply(difference.square()) if key else difference.square()  # type: ignore[no-untyped-call]


class IgnoresWeights(Squared):
    def weight(self, points: Points) -> Tensor:
        return torch.ones(len(points), dtype=torch.float64)


class CountsSamples(Squared):
    term = changed(count=lambda t: torch.tensor(5.0, dtype=torch.float64))


class MeansOfBatch(Squared):
    term = changed(sum=lambda t: t.sum / t.count, count=lambda t: t.count / t.count)


class IgnoresMasks(Squared):
    def term(self, site: str, key: Key, points: Points, prediction: Jet, reference: Jet) -> Term:
        return super().term(site, key, points, prediction, replace(reference, known={}))


class Broadcasts(Squared):
    def term(self, site: str, key: Key, points: Points, prediction: Jet, reference: Jet) -> Term:
        wide = reference[key].expand_as(prediction[key])
        same = replace(reference, value=wide) if key == VALUE else replace(reference, derivatives={key: wide})
        return super().term(site, key, points, prediction, same)


class InPlace(Squared):
    def loss(self, difference: Tensor, key: Key) -> Tensor:
        return difference.square()

    def terms(self, site: str, points: Points, probe: Probe, prediction: Jet, reference: Jet) -> list[Term]:
        made = super().terms(site, points, probe, prediction, reference)
        reference.value.mul_(1.5)
        return made


class NoHead(Squared):
    def __init__(self) -> None:
        self.head = "identity"  # type: ignore[assignment]


class NoObjective:
    head = HEADS["identity"]

    def prepare(self, sites: Any) -> None: ...


OBJECTIVES = [
    ("options", NoObjective, "returns a NoObjective, not a sobolev.Objective"),
    ("keys", UnknownKey, "keys() returns 'x'; expected tuples of names"),
    ("keys", KeyTwice, "keys() returns a key twice"),
    ("terms", DetachedTerm, "has lost the prediction's graph"),
    ("terms", VectorTerm, "has a sum of shape (1,); expected a scalar"),
    ("terms", NegativeWeight, "has the weight -1.0; expected a number of at least 0"),
    ("terms", ForgetsDerivative, "keys() asks for d/dx, and no term uses it"),
    ("zero", NotZero, "where prediction and reference are equal; expected 0"),
    ("zero", RootAtZero, "is NaN or infinite at equality; take the subgradient 0"),
    ("zero", Blind, "for jets that differ; expected a positive number"),
    ("gradient", GradientOfAnotherLoss, "The gradient by the student's d/dx is not that of the loss that is reported"),
    ("sample-weights", IgnoresWeights, "Leaving samples of weight 0 out changes the term of value"),
    ("sample-weights", CountsSamples, "does not double the count of the term of value"),
    ("additive", MeansOfBatch, "sums and counts must be sums over samples, not means"),
    ("masks", IgnoresMasks, "changes with the prediction where the reference is unknown"),
    ("refuses", Broadcasts, "broadcasting hides mistakes"),
    ("repeatable", InPlace, "terms() returned other numbers the second time"),
]  # fmt: skip

# -- trackers ----------------------------------------------------------------------------------------------------------


class File(Tracker):
    """Appends lines to a file."""

    def start(self, run: RunInfo, resumed_at: int | None) -> None:
        self.stream = (run.directory / "lines.txt").open("a")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.stream.write(f"{step} {dict(metrics)}\n")

    def finish(self, status: str, summary: Mapping[str, float], figures: Sequence[Path], student: Path | None) -> None:
        self.stream.close()


class FiniteOnly(File):
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.stream.close()
        assert all(abs(value) < 1e9 for value in metrics.values()), "not finite"


class ChangesConfig(File):
    def start(self, run: RunInfo, resumed_at: int | None) -> None:
        super().start(run, resumed_at)
        run.config["seen"] = True  # type: ignore[index]


class RemovesFiles(File):
    def start(self, run: RunInfo, resumed_at: int | None) -> None:
        (run.directory / "recipe.yaml").unlink()
        super().start(run, resumed_at)


class StartsOnce(File):
    def start(self, run: RunInfo, resumed_at: int | None) -> None:
        (run.directory / "mine").mkdir()
        super().start(run, resumed_at)


class NeedsNumbers(File):
    count = 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.count += 1

    def finish(self, status: str, summary: Mapping[str, float], figures: Sequence[Path], student: Path | None) -> None:
        super().finish(status, summary, figures, student)
        self.mean = 1 / self.count


class NeedsNetwork(File):
    def start(self, run: RunInfo, resumed_at: int | None) -> None:
        super().start(run, resumed_at)
        try:
            urllib.request.urlopen("http://tracking.example/api", timeout=2)
        except BaseException:
            self.stream.close()
            raise


class Waits(File):
    def start(self, run: RunInfo, resumed_at: int | None) -> None:
        super().start(run, resumed_at)
        time.sleep(0.3)


class LeavesOpen(File):
    streams: ClassVar[list[Any]] = []

    def finish(self, status: str, summary: Mapping[str, float], figures: Sequence[Path], student: Path | None) -> None:
        self.stream.flush()
        LeavesOpen.streams.append(self.stream)


class LeavesThread(File):
    threads: ClassVar[list[threading.Event]] = []

    def start(self, run: RunInfo, resumed_at: int | None) -> None:
        super().start(run, resumed_at)
        event = threading.Event()
        LeavesThread.threads.append(event)
        threading.Thread(target=event.wait, name="uploader").start()


class NoTracker:
    say = print


TRACKERS = [
    ("options", NoTracker, "returns a NoTracker, not a sobolev.Tracker"),
    ("life", FiniteOnly, "AssertionError: not finite"),
    ("life", ChangesConfig, "It changes the configuration that RunInfo shows it"),
    ("life", RemovesFiles, "It removes files of the run directory"),
    ("interrupted", StartsOnce, "FileExistsError"),
    ("failed", NeedsNumbers, "ZeroDivisionError"),
    ("outage", NeedsNetwork, "Record on this machine first, and upload from there"),
    ("outage", Waits, "Without a network a short run took"),
    ("close", LeavesOpen, "lines.txt is still open; close it there"),
    ("close", LeavesThread, "the thread 'uploader' still runs; end it there"),
]

# -- reports -----------------------------------------------------------------------------------------------------------


class Table(Report):
    """A text file with the largest value of every run."""

    name = "table"

    def record(self, trained: Trained) -> Mapping[str, np.ndarray] | None:
        for site, axes in trained.axes.items():
            if axes is not None and axes.low is not None:
                value, _ = trained.student(site, {"x": np.zeros((3, 2))})
                return {"value": value}
        return None

    def draw(self, runs: Sequence[RunRecord], directory: Path) -> list[Path]:
        lines = []
        for run in runs:
            file = run.directory / "records" / "table.npz"
            if run.status == "finished" and file.is_file():
                with np.load(file) as arrays:
                    lines.append(f"{run.variant} {arrays['value'].max():.3g}")
        return [self.write(directory, lines)] if lines else []

    def write(self, directory: Path, lines: Sequence[str]) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "table.txt").write_text("\n".join(lines) + "\n")
        return directory / "table.txt"


class OtherName(Table):
    name = "tables"


class RecordsObjects(Table):
    def record(self, trained: Trained) -> Any:
        return {"value": np.array([{}], dtype=object)} if trained.target else None


class RecordsLists(Table):
    def record(self, trained: Trained) -> Any:
        return {"value": [1.0]}


class NeedsTarget(Table):
    def record(self, trained: Trained) -> Any:
        assert trained.target is not None, "no target"
        return super().record(trained)


class NeedsModel(Table):
    def draw(self, runs: Sequence[RunRecord], directory: Path) -> list[Path]:
        for run in runs:
            (run.directory / "student.safetensors").read_bytes()
        return []


class ForgetsFile(Table):
    def draw(self, runs: Sequence[RunRecord], directory: Path) -> list[Path]:
        super().draw(runs, directory)
        return []


class WritesElsewhere(Table):
    def draw(self, runs: Sequence[RunRecord], directory: Path) -> list[Path]:
        return super().draw(runs, directory.parent)


class NeedsTwoSeeds(Table):
    def draw(self, runs: Sequence[RunRecord], directory: Path) -> list[Path]:
        if runs:
            assert len({run.seed for run in runs}) > 1, "two seeds"
        return super().draw(runs, directory)


class DrawsNothingness(Table):
    def draw(self, runs: Sequence[RunRecord], directory: Path) -> list[Path]:
        return super().draw(runs, directory) or [self.write(directory, ["nothing"])]


class NeedsRecords(Table):
    def draw(self, runs: Sequence[RunRecord], directory: Path) -> list[Path]:
        for run in runs:
            assert (run.directory / "records" / "table.npz").is_file() or run.seed > 90, "no record"
        return super().draw(runs, directory)


class NeedsFinite(Table):
    def draw(self, runs: Sequence[RunRecord], directory: Path) -> list[Path]:
        for run in runs:
            assert all(value == value for value in run.summary.values()), "not a number"
        return super().draw(runs, directory)


class NewNames(Table):
    count = 0

    def write(self, directory: Path, lines: Sequence[str]) -> Path:
        NewNames.count += 1
        return super().write(directory, lines).rename(directory / f"table-{NewNames.count}.txt")


class LeavesFigure(Table):
    def write(self, directory: Path, lines: Sequence[str]) -> Path:
        from matplotlib import pyplot

        pyplot.figure()
        return super().write(directory, lines)


class NoReport:
    name = "none"

    def record(self, trained: Trained) -> None: ...


REPORTS = [
    ("options", NoReport, "returns a NoReport, not a sobolev.Report"),
    ("record", RecordsObjects, "record() returns 'value' as objects"),
    ("record", RecordsLists, "record() returns 'value' as a list"),
    ("record-refuses", NeedsTarget, "AssertionError: no target"),
    ("draw", NeedsModel, "FileNotFoundError"),
    ("draw", ForgetsFile, "draw() writes table.txt and does not return it"),
    ("draw", WritesElsewhere, "outside of the folder that it was given"),
    ("few", NeedsTwoSeeds, "AssertionError: two seeds"),
    ("none", DrawsNothingness, "draw() makes files although there are no runs"),
    ("missing", NeedsRecords, "AssertionError: no record"),
    ("bad-numbers", NeedsFinite, "AssertionError: not a number"),
    ("again", NewNames, "Drawn twice it makes"),
    ("again", LeavesFigure, "A figure of matplotlib.pyplot stays open"),
]

# ----------------------------------------------------------------------------------------------------------------------

GOOD = [
    ("estimator", Directions), ("estimator", Counts), ("student", family(Network)),
    ("student", family(TwoInputs, {"h": (2, 4, 4), "y": (3,)})), ("objective", Squared), ("tracker", File),
    ("report", Table),
]  # fmt: skip
BROKEN = [
    (kind, *case)
    for kind, cases in (
        ("estimator", ESTIMATORS), ("student", STUDENTS), ("objective", OBJECTIVES), ("tracker", TRACKERS),
        ("report", REPORTS),
    )
    for case in cases
]  # fmt: skip


@pytest.fixture(autouse=True)
def _end_threads(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(tracker, "_PATIENCE", 0.2)
    yield
    for event in LeavesThread.threads:
        event.set()
    for stream in LeavesOpen.streams:
        stream.close()


def named(report_class: Any) -> Any:
    """Return a registry that knows a report as ``table``: its records are found by name."""
    registry = Registry()
    registry.register("report", "table", report_class, "the test")
    return registry


def verdicts(kind: str, component: Any) -> dict[str, tuple[str, str]]:
    if kind == "report":
        return {f.check: (f.verdict, f.message) for f in check(kind, "table", named(component))}
    return {f.check: (f.verdict, f.message) for f in check(kind, component)}


@pytest.mark.parametrize(("kind", "component"), GOOD, ids=[c.__name__ for _, c in GOOD])
def test_a_good_component_passes(kind: str, component: Any) -> None:
    found = verdicts(kind, component)
    assert {name: message for name, (verdict, message) in found.items() if verdict != "ok"} == {}


@pytest.mark.parametrize(("kind", "name", "component", "said"), BROKEN, ids=[f"{b[0]}-{b[2].__name__}" for b in BROKEN])
def test_a_broken_component_is_found(kind: str, name: str, component: Any, said: str) -> None:
    verdict, message = verdicts(kind, component)[name]
    if component is LeavesFigure:
        from matplotlib import pyplot

        pyplot.close("all")
    assert verdict == "wrong", f"{name}: {verdict} {message}"
    assert said in message


def test_an_objective_without_head_cannot_be_checked() -> None:
    with pytest.raises(ComponentError, match=r"'head' is 'identity'; set it to one of sobolev\.HEADS"):
        verdicts("objective", NoHead)


def test_a_report_reads_its_records_by_its_registered_name() -> None:
    registry = Registry()
    registry.register("report", "table", OtherName, "mine 1", "A table.")
    found = {f.check: f.message for f in check("report", "table", registry)}
    assert "Its 'name' is 'tables'; recipes call it 'table'" in found["name"]


def test_every_check_has_a_component_that_fails_it() -> None:
    modules = {
        "estimator": estimator, "student": student, "objective": objective, "tracker": tracker, "report": report,
    }  # fmt: skip
    for kind, module in modules.items():
        covered = {name for k, name, _, _ in BROKEN if k == kind} | ({"name"} if kind == "report" else set())
        assert covered == set(module.CHECKS), kind


def test_a_kind_without_checks_is_named() -> None:
    with pytest.raises(ComponentError, match="no checks of the kind 'targte'; did you mean 'target'"):
        list(check("targte", "mccormick"))
