"""Engines in a run: recorded, reused on resume; the recipe's precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sobolev.build import build
from sobolev.differentiate import compile as compilation
from sobolev.differentiate.measure import COMPILED, GENERAL, PASSES
from sobolev.distributed import World
from sobolev.host import load_host
from sobolev.preflight import preflight
from sobolev.recipe.plan import load_plans

RECIPE = """
name: engines
target: {use: mccormick, train: 64, test: 10}
student: {use: mlp, hidden: [8], activation: tanh}
estimator: {use: exact}
objective: {value: {loss: squared-l2, weight: 1.0}, derivatives: [{order: 1, weight: 1.0}]}
train: {steps: 100000000, batch_size: 16}
"""


def experiment(folder: Path, text: str = RECIPE, **options: object):
    recipe = folder / "recipe.yaml"
    recipe.write_text(text)
    host = load_host()
    (plan,) = load_plans(recipe, host.registry)
    return build(plan, host.registry, World(torch.get_default_device()), cache=folder, say=lambda _: None, **options)


def chosen(made, rows: int = 16) -> str:
    measurer = made.measurers["function"]
    site = made.sites["function"]
    from sobolev.vocabulary import Points, Probe

    points = Points({"x": torch.zeros(rows, *site.inputs["x"])}, ("x",), torch.arange(rows))
    return measurer.engine(points, Probe.full((("x",),)))


def test_a_resumed_run_measures_as_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "missing_compiler", lambda _: "")
    assert chosen(experiment(tmp_path)) == COMPILED
    assert chosen(experiment(tmp_path, smoke=True)) == PASSES
    assert chosen(experiment(tmp_path, engines={"function": {"d/dx (full)": "passes: then"}})) == PASSES


def test_short_runs_are_not_compiled_and_smooth_ones_differentiate_twice(tmp_path: Path) -> None:
    short = RECIPE.replace("100000000", "100")
    assert chosen(experiment(tmp_path, short)) == GENERAL
    assert chosen(experiment(tmp_path, short), rows=4096) == PASSES
    assert chosen(experiment(tmp_path, short.replace("tanh", "relu"))) == PASSES
    assert chosen(experiment(tmp_path, short, engines={"function": {"d/dx (full)": "passes: then"}})) == PASSES


@pytest.mark.parametrize("memory", ["", ", memory: 1"])
def test_the_check_before_training_passes(tmp_path: Path, memory: str) -> None:
    found = preflight(experiment(tmp_path, RECIPE.replace("use: exact", "use: exact" + memory), smoke=True))
    assert sorted(found.errors)[1] < 1e-6


def test_precision_of_a_recipe(tmp_path: Path) -> None:
    for name, autocast, precision in (
        ("full", None, "float32"),
        ("bfloat16", torch.bfloat16, "float32"),
        ("bfloat16-derivatives", torch.bfloat16, "autocast"),
    ):
        policy = experiment(tmp_path, RECIPE + f"precision: {name}\n").measurers["function"].policy
        assert (policy.autocast, policy.precision) == (autocast, precision)
    found = preflight(experiment(tmp_path, RECIPE + "precision: bfloat16-derivatives\n", smoke=True))
    assert sorted(found.errors)[1] < 1e-6  # checked in double precision
