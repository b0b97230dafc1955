"""Runs trained together are those that `sobolev run` trains one by one."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from reports_support import train
from safetensors.torch import load_file

from sobolev.host import default_host
from sobolev.recipe.plan import load_plans
from sobolev.rundir import read_run

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs/experiments/regression/together.py"
RECIPE = """
name: alone
target: {use: booth, train: 12, validation: 5, test: 20}
student: {use: mlp, hidden: [6, 5], activation: relu}
objective: {value: {loss: squared-l2}, derivatives: [{order: 1, weight: 0.5}]}
dtype: float64
train:
  steps: 20
  batch_size: 5
  log_every: 5
  preflight: false
  optimizer: {use: adam, lr: 1.0e-2}
  schedule: {use: cosine}
evaluate: {every: 5, best: validation/function/value}
seeds: 2
variants:
  regular: {objective.derivatives.0.weight: 0}
  sobolev: {}
matrix: {target.use: [booth, styblinski-tang]}
"""


@pytest.fixture(scope="module")
def together() -> ModuleType:
    spec = importlib.util.spec_from_file_location("together", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_same_numbers_as_one_by_one(together: ModuleType, tmp_path: Path) -> None:
    alone = train(tmp_path, RECIPE)
    # Epochs end with a batch of two; the runs of a group must agree on that, and do.
    recipe = tmp_path / "together.yaml"
    recipe.write_text(RECIPE.replace("name: alone", "name: together"))
    plans = load_plans(recipe, default_host().registry)
    made = together.groups(plans, 3)
    assert sorted(map(len, made)) == [1, 1, 3, 3]
    for members in made:
        together.Group(members, default_host(), tmp_path).train()
    for one, plan in zip(alone, plans, strict=True):
        other = read_run(tmp_path / plan.directory)
        assert other.status == "finished"
        assert other.summary == pytest.approx(one.summary, rel=1e-9)
        mine, theirs = (load_file(d / "student.safetensors") for d in (other.directory, one.directory))
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert (tensor - theirs[name]).abs().max() < 1e-10
        records = [
            {
                r["step"]: r["train/loss"]
                for r in map(json.loads, (d / "metrics.jsonl").read_text().splitlines())
                if "train/loss" in r
            }
            for d in (other.directory, one.directory)
        ]
        assert records[0] == pytest.approx(records[1], rel=1e-9)


def test_an_interrupted_group_goes_on(together: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    plans = [p for p in load_plans(recipe, default_host().registry) if p.variant == "sobolev,target=booth"]
    together.Group(plans, default_host(), tmp_path / "whole").train()
    monkeypatch.setattr(together, "_SECONDS", -1.0)  # a checkpoint after every step
    group = together.Group(plans, default_host(), tmp_path / "broken")
    save, calls = group._save, []

    def save_and_stop(step: int) -> None:
        save(step)
        calls.append(step)
        if step == 11:
            raise KeyboardInterrupt

    monkeypatch.setattr(group, "_save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        group.train()
    assert read_run(tmp_path / "broken" / plans[0].directory).status == "interrupted"
    together.Group(plans, default_host(), tmp_path / "broken").train()
    for plan in plans:
        whole, broken = (read_run(tmp_path / folder / plan.directory) for folder in ("whole", "broken"))
        assert broken.summary == whole.summary
        steps = [json.loads(line)["step"] for line in (broken.directory / "metrics.jsonl").read_text().splitlines()]
        assert steps == sorted(steps) and steps[-1] == 20
    assert not list((tmp_path / "broken/.together").iterdir())


def test_other_networks_are_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("activation: relu", "activation: tanh"))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(recipe), "--runs", str(tmp_path / "runs")], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "use sobolev run" in done.stderr and "Traceback" not in done.stderr
