"""What components are tested with: a small student, an objective that compares everything, a run around a target."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from sobolev.build import Experiment, build
from sobolev.components import Objective, Student
from sobolev.distributed import connect
from sobolev.heads import HEADS
from sobolev.losses import per_sample
from sobolev.recipe.model import Evaluate, Recipe, Train
from sobolev.recipe.plan import RunPlan
from sobolev.testing.subject import Subject
from sobolev.vocabulary import VALUE, Jet, Key, Points, Probe, Site, Term

NAME = "conformance"


class _Network(nn.Module):
    """One hidden layer of four tanh units on one input, by whatever name the site gives it."""

    def __init__(self, name: str, size: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(size, 4), nn.Tanh(), nn.Linear(4, outputs))
        parameter = inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)

        def forward(x: Tensor) -> Tensor:
            result: Tensor = self.layers(x)
            return result

        forward.__signature__ = inspect.Signature([parameter])  # type: ignore[attr-defined]
        self.forward = forward


class _SmallStudent(Student):
    """A small smooth network of the first input that is differentiated."""

    def build(self, site: Site) -> nn.Module:
        name = next(iter(site.differentiate or site.inputs))
        return _Network(name, math.prod(site.inputs[name]), site.outputs)


class _Everything(Objective):
    """Squared errors of the value and of every first derivative."""

    def __init__(self, head: str, derivatives: bool) -> None:
        self.head = HEADS[head]
        self.derivatives = derivatives

    def keys(self, site: Site) -> tuple[Key, ...]:
        return tuple((name,) for name in site.differentiate) if self.derivatives else ()

    def terms(self, site: str, points: Points, probe: Probe, prediction: Jet, reference: Jet) -> list[Term]:
        made = []
        for key in (VALUE, *probe.keys):
            probes = probe.contractions[key].probes if key else None
            losses, fraction = per_sample(
                "squared-l2", prediction[key], reference[key], reference.known.get(key), probes
            )
            weight = torch.ones_like(losses) if points.weight is None else points.weight
            made.append(Term(site, key, (losses * weight).sum(), (fraction * weight).sum(), 1.0))
        return made


def small_student() -> Student:
    """Return the student that targets are tested with."""
    return _SmallStudent()


def everything(
    *, head: Annotated[str, "name of the head"], derivatives: Annotated[bool, "whether to compare them"]
) -> Objective:
    """Return the objective that targets are tested with."""
    return _Everything(head, derivatives)


EXACT: Mapping[str, Any] = {"use": "exact"}
DIFFERENCES: Mapping[str, Any] = {"use": "finite-difference", "of": EXACT}
"""Estimators by which a target that offers its value is differentiated."""


def experiment(
    target: Subject, folder: Path, steps: int = 2, seed: int = 0, estimator: Mapping[str, Any] = EXACT
) -> Experiment:
    """Return the parts of a small run of a target, in float64 on the CPU."""
    probed: Any = target.make()
    registry = target.registry
    if NAME not in registry.entries["student"]:
        registry.register("student", NAME, small_student, NAME)
        registry.register("objective", NAME, everything, NAME)
    recipe = Recipe(
        name=NAME,
        target=target.spec,
        student={"use": NAME},
        estimator=dict(estimator),
        objective={"use": NAME, "head": probed.heads[0], "derivatives": probed.max_order != 0},
        train=Train(steps=steps, batch_size=4, preflight=False),
        evaluate=Evaluate(splits=[], points=4),
        dtype="float64",
    )
    for kind, spec in (("estimator", recipe.estimator), ("objective", recipe.objective)):
        checked, _ = registry.check(kind, spec, ())
        setattr(recipe, kind, checked)
    optimizer, _ = registry.check("optimizer", recipe.train.optimizer, ())
    recipe.train.optimizer = optimizer
    plan = RunPlan(recipe, NAME, seed, Path.cwd() / "recipe.yaml")
    output = folder / "run"
    output.mkdir(parents=True, exist_ok=True)
    return build(plan, registry, connect("cpu"), output=output, cache=folder / "cache", say=lambda _: None, smoke=True)
