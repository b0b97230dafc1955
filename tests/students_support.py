"""Small runs whose parts the tests look into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sobolev.arrays import ArrayTarget, Samples
from sobolev.build import Experiment, build
from sobolev.components import Target
from sobolev.distributed import connect
from sobolev.host import default_host
from sobolev.recipe.model import Recipe
from sobolev.recipe.plan import RunPlan
from sobolev.registry import Registry
from sobolev.train import Trainer


def samples(rows: int = 12, outputs: int = 1, seed: int = 0) -> Samples:
    """Return a smooth function of two inputs of very different sizes, with its partials."""
    random = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, 2, generator=random, dtype=torch.float64) * torch.tensor([1.0, 1000.0]) + 50
    a, b = x[:, 0], x[:, 1] / 500
    values = [100 * a * b, torch.sin(b) + a][:outputs]
    partials = [torch.stack([100 * b, 100 * a / 500], 1), torch.stack([torch.ones_like(a), torch.cos(b) / 500], 1)]
    return Samples(x, torch.stack(values, 1), torch.stack(partials[:outputs], 1))


def experiment(target: Target, **recipe: Any) -> Experiment:
    """Build the parts of a run on a target that is there."""
    registry = Registry()
    for kind, entries in default_host().registry.entries.items():
        registry.entries[kind] = dict(entries)
    registry.register("target", "given", lambda: target, "tests")
    defaults: dict[str, Any] = {"name": "t", "target": "given", "student": "mlp", "dtype": "float64"}
    if "objective" in recipe:
        recipe["objective"] = {"use": "sobolev", **recipe["objective"]}
    plan = RunPlan(Recipe(**defaults | recipe), "default", 0, Path("t"))
    made = build(plan, registry, connect("cpu"), say=lambda _: None)
    made.registry = registry  # type: ignore[attr-defined]
    return made


def trained(made: Experiment) -> dict[str, float]:
    """Train; return the final numbers."""
    return Trainer(made, made.registry).run().summary  # type: ignore[attr-defined]


__all__ = ["ArrayTarget", "Samples", "experiment", "samples", "trained"]
