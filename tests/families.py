"""Two tiny families of problems that the core knows nothing of, and what the tests of a run share.

``tabulated`` holds recorded values and partials with holes; ``online`` has two sites and learns from its student. The
module is a plugin too: a copy of it in a folder serves ``sobolev --plugins-dir``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sobolev import (
    Batch,
    Context,
    Estimator,
    Jet,
    Key,
    Learner,
    Mean,
    Noise,
    Points,
    Probe,
    Register,
    Site,
    Student,
    Target,
    Tracker,
    hookimpl,
)
from sobolev.build import Experiment, build
from sobolev.differentiate.contract import contract
from sobolev.differentiate.exact import Exact
from sobolev.distributed import World
from sobolev.host import Host, load_host
from sobolev.recipe.plan import RunPlan, load_plans

DEVICE = torch.device(os.environ.get("SOBOLEV_TEST_DEVICE", "cpu"))
H: Key = ("h",)
X: Key = ("x",)


class Tabulated(Target):
    """Rows of a table: x ``(2,)``, two values and their four partials, some of them not recorded (NaN)."""

    fixed_points = True
    max_order = 1

    def __init__(self, rows: int, holes: bool, weights: bool) -> None:
        self.rows, self.holes, self.weights = rows, holes, weights

    def prepare(self, context: Context) -> None:
        generator = torch.Generator().manual_seed(7)
        draw = {"generator": generator, "dtype": torch.float64}
        x = torch.rand(self.rows + 8, 2, **draw) * 4 - 2
        a, b = x.unbind(1)
        value = torch.stack([a * b + a.sin(), a.square() - b], dim=1)
        partials = torch.stack([torch.stack([b + a.cos(), a], 1), torch.stack([2 * a, -torch.ones_like(a)], 1)], 1)
        if self.holes:
            value[torch.rand(value.shape, **draw) < 0.2] = torch.nan
            partials[torch.rand(partials.shape, **draw) < 0.3] = torch.nan
            partials[3] = torch.nan  # a row without any
        self.x, self.value_, self.partials = (t.to(context.device, context.dtype) for t in (x, value, partials))
        self.weight = torch.rand(len(x), **draw).to(context.device, context.dtype) * 3 if self.weights else None

    def sites(self) -> Mapping[str, Site]:
        return {"table": Site({"x": (2,)}, 2, ("x",))}

    def size(self, split: str) -> int:
        return {"train": self.rows, "test": 8, "validation": 8}[split]

    def points(self, batch: Batch, training: bool) -> Mapping[str, Points]:
        ids = batch.ids if batch.split == "train" else batch.ids + self.rows
        known = {(): ~self.value_[ids].isnan(), X: ~self.partials[ids].isnan()}
        weight = None if self.weight is None else self.weight[ids]
        return {"table": Points({"x": self.x[ids]}, ("x",), batch.ids, weight, known, context=ids)}

    def answer(
        self, points: Mapping[str, Points], probes: Mapping[str, Probe], prediction: Mapping[str, Jet] | None
    ) -> Mapping[str, Jet]:
        assert prediction is None
        where = points["table"]
        derivatives, known = {}, {(): where.known[()]}
        for key, contraction in probes["table"].contractions.items():
            derivatives[key], mask = contract(self.partials[where.context], contraction, where.known[key])
            if mask is not None:
                known[key] = mask
        return {"table": Jet(self.value_[where.context].nan_to_num(), derivatives, known)}


class Online(Target):
    """A network of two layers in training: each site sees the output of a layer and learns the loss from there.

    The second site's loss is the true one, the first site's value is what the student says at the second. The
    layers are updated with the student's derivatives alone.
    """

    needs = frozenset({"prediction", "gradient"})

    def __init__(self, rows: int, rate: float) -> None:
        self.rows, self.rate = rows, rate
        self.prepared = self.closed = 0
        self.updates = 0

    def prepare(self, context: Context) -> None:
        self.prepared += 1
        self.world = context.world
        generator = context.generator("online")
        draw = {"generator": generator, "dtype": torch.float64}
        x = torch.randn(self.rows + 6, 4, **draw)
        y, first, second = (x @ torch.randn(4, 2, **draw)).tanh(), torch.randn(4, 3, **draw), torch.randn(3, 2, **draw)
        where = context.device, context.dtype
        self.x, self.y, self.layers = x.to(*where), y.to(*where), [first.to(*where), second.to(*where)]
        self.velocity = [torch.zeros_like(w) for w in self.layers]

    def sites(self) -> Mapping[str, Site]:
        return {"first": Site({"h": (3,)}, 1, ("h",)), "second": Site({"h": (2,)}, 1, ("h",))}

    def size(self, split: str) -> int:
        return {"train": self.rows, "test": 6, "validation": 0}[split]

    def points(self, batch: Batch, training: bool) -> Mapping[str, Points]:
        ids = batch.ids if batch.split == "train" else batch.ids + self.rows
        one = (self.x[ids] @ self.layers[0]).tanh()
        two = (one @ self.layers[1]).tanh()
        return {
            "first": Points({"h": one}, ("h",), batch.ids, context=ids),
            "second": Points({"h": two}, ("h",), batch.ids, context=ids),
        }

    def answer(
        self, points: Mapping[str, Points], probes: Mapping[str, Probe], prediction: Mapping[str, Jet] | None
    ) -> Mapping[str, Jet]:
        assert prediction is not None and not prediction["second"].value.requires_grad
        two = points["second"].inputs["h"]
        error = two - self.y[points["second"].context]
        slopes = {"second": error, "first": (error * (1 - two.square())) @ self.layers[1].T}
        values = {"second": 0.5 * error.square().sum(1, keepdim=True), "first": prediction["second"].value}
        jets = {}
        for site in points:
            asked = probes[site].contractions
            jets[site] = Jet(values[site], {key: contract(slopes[site][:, None], c)[0] for key, c in asked.items()})
        return jets

    def advance(
        self,
        points: Mapping[str, Points],
        reference: Mapping[str, Jet],
        prediction: Mapping[str, Jet],
        learner: Learner,
    ) -> Mapping[str, Mean]:
        assert set(learner.module) == {"first", "second"}
        below = {"first": self.x[points["first"].context], "second": points["first"].inputs["h"]}
        own = torch.tensor(float(len(points["first"])), dtype=torch.float64, device=self.world.device)
        rows = float(self.world.sum(own))
        for site, layer, velocity in zip(("first", "second"), self.layers, self.velocity, strict=True):
            slope = prediction[site].derivatives[H][:, 0] * (1 - points[site].inputs["h"].square())
            velocity.mul_(0.9).add_(self.world.sum(below[site].T @ slope) / rows)
            layer.sub_(self.rate * velocity)
        self.updates += 1
        return {"main": Mean.of(reference["second"].value[:, 0])}

    def finish(self, learner: Learner) -> Mapping[str, float]:
        return {"score": float(learner.value("first", {"h": torch.zeros(1, 3).to(self.x)}))}

    def state_dict(self) -> dict[str, Any]:
        return {"layers": list(self.layers), "velocity": list(self.velocity), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.layers, self.velocity = ([t.to(self.x) for t in state[name]] for name in ("layers", "velocity"))
        self.updates = state["updates"]

    def close(self) -> None:
        self.closed += 1


class Sines(Target):
    """f(x) = (sum of sines, product), differentiated by the estimator; one sample can be made to go wrong."""

    fixed_points = True

    def __init__(self, rows: int, bad: str, sample: int) -> None:
        self.rows, self.bad, self.sample = rows, bad, sample

    def prepare(self, context: Context) -> None:
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(self.rows + 8, 3, generator=generator, dtype=torch.float64)
        self.x = x.to(context.device, context.dtype)

    def sites(self) -> Mapping[str, Site]:
        return {"sines": Site({"x": (3,)}, 2, ("x",))}

    def size(self, split: str) -> int:
        return {"train": self.rows, "test": 8, "validation": 0}[split]

    def points(self, batch: Batch, training: bool) -> Mapping[str, Points]:
        ids = batch.ids if batch.split == "train" else batch.ids + self.rows
        return {"sines": Points({"x": self.x[ids]}, ("x",), batch.ids)}

    def value(self, site: str, inputs: Mapping[str, Tensor], points: Points) -> Tensor:
        x = inputs["x"]
        value = torch.stack([x.sin().sum(1), x.prod(1)], dim=1)
        wrong = (points.index == self.sample).to(x.device).repeat(len(x) // len(points))[:, None]
        if self.bad == "value":
            return value.masked_fill(wrong, torch.nan)
        if self.bad == "derivative":  # the square root of 0 has no slope
            first = x[:, :1]
            root = torch.where(wrong, first - first.detach(), torch.ones_like(first)).abs().sqrt()
            return value + torch.where(wrong, root, torch.zeros_like(root))
        return value


class Faulty(Exact):
    """Draws directions for the input side, and something that is none in one step."""

    def __init__(self, step: int) -> None:
        super().__init__(memory=None)
        self.step = step

    def probe(self, points: Points, outputs: int, keys: tuple[Key, ...], noise: Noise) -> Probe:
        from sobolev import Contraction

        vectors = noise.sphere(points.index.to(points.inputs["x"].device), 1, (3,), dtype=points.inputs["x"].dtype)
        if noise.step == self.step and noise.split == "train":
            vectors = vectors.clone()
            vectors[1] = torch.nan
        return Probe({key: Contraction(None, (vectors,)) for key in keys})


class Dropping(Student):
    """A smooth network with dropout: its random numbers must survive an interruption too."""

    def build(self, site: Site) -> nn.Module:
        (shape,) = site.inputs.values()
        return nn.Sequential(nn.Linear(shape[0], 5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, site.outputs))


def tabulated(*, rows: int = 24, holes: bool = True, weights: bool = True) -> Target:
    """Recorded values and partials."""
    return Tabulated(rows, holes, weights)


def online(*, rows: int = 24, rate: float = 0.01) -> Target:
    """A network that learns from its student."""
    return Online(rows, rate)


def sines(*, rows: int = 40, bad: str = "", sample: int = -1) -> Target:
    """A function."""
    return Sines(rows, bad, sample)


def faulty(*, step: int) -> Estimator:
    """Breaks in one step."""
    return Faulty(step)


def dropping() -> Student:
    """With dropout."""
    return Dropping()


@hookimpl
def register_target(register: Register) -> None:
    """Offer the two families and a function."""
    register("tabulated", tabulated)
    register("online", online)
    register("sines", sines)


@hookimpl
def register_estimator(register: Register) -> None:
    """Offer one that breaks."""
    register("faulty", faulty)


@hookimpl
def register_student(register: Register) -> None:
    """Offer one with dropout."""
    register("dropping", dropping)


# -- what the tests share ----------------------------------------------------------------------------------------------


def host() -> Host:
    """The host with the families of this module."""
    made = load_host()
    for kind, hook in (("target", register_target), ("estimator", register_estimator), ("student", register_student)):
        hook(lambda name, factory, k=kind: made.registry.register(k, name, factory, "families"))
    return made


HOST = host()

RECIPE = """
name: r
target: {use: sines}
student: {use: mlp, hidden: [6], activation: tanh}
objective: {derivatives: [{order: 1}]}
train: {steps: 6, batch_size: 8, compile: never, log_every: 1}
dtype: float64
"""


def plan(folder: Path, *changes: str, text: str = RECIPE) -> RunPlan:
    """The first run of a recipe with changes ``a.b=value``."""
    file = folder / "recipe.yaml"
    file.write_text(text)
    return load_plans(file, HOST.registry, changes)[0]


def experiment(folder: Path, *changes: str, world: World | None = None, text: str = RECIPE) -> Experiment:
    """The parts of that run, on the device that the environment names."""
    made = plan(folder, *changes, text=text)
    world = world or World(DEVICE)
    return build(made, HOST.registry, world, cache=folder / "cache", say=lambda _: None)


class Records(Tracker):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append((step, dict(metrics)))


def at_step(step: int, call: Callable[[], None]) -> Callable[[int, int, Mapping[str, float]], None]:
    """A progress function that does something after a step."""

    def progress(taken: int, steps: int, metrics: Mapping[str, float]) -> None:
        if taken == step:
            call()

    return progress
