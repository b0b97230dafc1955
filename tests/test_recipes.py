"""Every recipe is valid and runs in its smoke form, with the losses that it had before.

The losses of the first steps are kept under ``golden/``: float64, no compiled engine, equal to 1e-6. After a change
that is meant to move numbers, write them anew: ``python tests/test_recipes.py [NAME ...]``.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from families import DEVICE

from sobolev.distributed import connect
from sobolev.host import default_host
from sobolev.recipe.plan import RunPlan, load_plans
from sobolev.run import Settings, execute
from sobolev.rundir import RunDirectory, read_metrics

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
GOLDEN = Path(__file__).parent / "golden"
_OVERRIDES = ("dtype=float64", "track=[]", "train.log_every=1")
_STEPS = 20
_RELATIVE = 1e-6
_SAMPLED = ("distillation-", "paper-figure4")
"""Recipes whose data are made in the run, by float32 networks that are trained or sampled: another processor's rounding
gives other states, so for them only the number of losses and that they are finite is compared."""


def name_of(recipe: Path) -> str:
    return "-".join(recipe.relative_to(ROOT / "recipes").with_suffix("").parts)


def smoke(recipe: Path, root: Path) -> dict[str, list[float]]:
    """Run a recipe's smoke form; returns the losses of the first steps by run."""
    torch.set_num_threads(1)
    losses = {}
    for plan in load_plans(recipe, default_host().registry, _OVERRIDES, smoke=True):
        result = execute(plan, default_host(), connect(str(DEVICE)), Settings(root, smoke=True), say=lambda _: None)
        assert result.status == "finished", result.message
        losses[f"{plan.variant}/seed-{plan.seed}"] = _losses(plan, root)
    return losses


def _losses(plan: RunPlan, root: Path) -> list[float]:
    records = read_metrics(RunDirectory(root / plan.directory).metrics)
    return [float(record["train/loss"]) for record in records if "train/loss" in record][:_STEPS]


def write(losses: dict[str, list[float]], file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    lines = [json.dumps({"run": run, "loss": [float(f"{loss:.12g}") for loss in row]}) for run, row in losses.items()]
    file.write_text("\n".join(lines) + "\n")


def read(file: Path) -> dict[str, list[float]]:
    return {line["run"]: line["loss"] for line in map(json.loads, file.read_text().splitlines())}


def test_there_are_recipes() -> None:
    assert len(RECIPES) > 10
    assert {file.stem for file in GOLDEN.glob("*.jsonl")} == {name_of(recipe) for recipe in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES, ids=map(name_of, RECIPES))
def test_a_recipe_is_valid_and_says_what_it_is(recipe: Path) -> None:
    plans = load_plans(recipe, default_host().registry)
    assert plans
    assert plans[0].recipe.description, "a recipe has a description"
    assert recipe.read_text().startswith("#"), "a recipe begins with a comment: what it is, how it is run"


@pytest.mark.parametrize("recipe", RECIPES, ids=map(name_of, RECIPES))
def test_a_recipe_runs_as_it_did(recipe: Path, tmp_path: Path) -> None:
    found = smoke(recipe, tmp_path)
    expected = read(GOLDEN / f"{name_of(recipe)}.jsonl")
    assert list(found) == list(expected)
    for run, losses in expected.items():
        assert len(found[run]) == len(losses), run
        for step, (got, loss) in enumerate(zip(found[run], losses, strict=True), start=1):
            if name_of(recipe).startswith(_SAMPLED):
                assert math.isfinite(got), f"{run}, step {step}: {got}"
                continue
            assert math.isclose(got, loss, rel_tol=_RELATIVE, abs_tol=1e-12), f"{run}, step {step}: {got}, was {loss}"


if __name__ == "__main__":
    for chosen in RECIPES:
        if sys.argv[1:] and name_of(chosen) not in sys.argv[1:]:
            continue
        started = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            write(smoke(chosen, Path(folder)), GOLDEN / f"{name_of(chosen)}.jsonl")
        print(f"{name_of(chosen)}: {time.process_time() - started:.1f} s", flush=True)
