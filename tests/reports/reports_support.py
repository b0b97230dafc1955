"""Run directories of tiny recipes, really trained."""

from pathlib import Path

from sobolev.components import RunRecord
from sobolev.distributed import connect
from sobolev.host import default_host
from sobolev.recipe.plan import load_plans
from sobolev.run import Settings, execute
from sobolev.rundir import read_run

PLAIN = """
name: plain
target: {use: mccormick, train: 12, validation: 10, test: 40}
student: {use: mlp, hidden: [8], activation: tanh}
objective: {value: {loss: squared-l2}, derivatives: [{order: 1}]}
train: {steps: 12, batch_size: all, log_every: 3, preflight: false, optimizer: {use: adam, lr: 1.0e-2}}
evaluate: {every: 4}
seeds: 3
variants:
  regular: {objective.derivatives.0.weight: 0}
  sobolev: {}
figures:
  - {use: surface, grid: 7}
  - bars
  - curves
  - {use: parity, samples: 30}
  - {use: errors, samples: 30}
  - {use: profiles, grid: 9}
"""

MATRIX = (
    PLAIN.replace("name: plain", "name: matrix").replace("seeds: 3", "seeds: 2")
    + """
matrix:
  target.use: [booth, ackley]
  target.train: [20, 8]
"""
)


def train(folder: Path, text: str) -> list[RunRecord]:
    """Train all runs of a recipe and return them, read."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(text)
    host = default_host()
    world = connect("cpu")
    plans = load_plans(recipe, host.registry)
    for plan in plans:
        assert execute(plan, host, world, Settings(folder, smoke=True), say=_complain).status == "finished"
    return [read_run(folder / plan.directory) for plan in plans]


def _complain(text: str) -> None:
    assert "warning" not in text, text
