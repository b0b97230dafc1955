"""A trained student, back in Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sobolev.build import Experiment, build
from sobolev.distributed import connect
from sobolev.errors import RecipeError
from sobolev.host import Host, default_host
from sobolev.recipe.model import Recipe
from sobolev.recipe.plan import RunPlan
from sobolev.rundir import RunDirectory, read_yaml
from sobolev.vocabulary import Jet, Points


class LoadedStudent:
    """A trained student with its derivatives.

    Attributes:
        module: the student of each site.
        experiment: the parts that it was trained with.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.module: nn.ModuleDict = experiment.module

    def __call__(self, inputs: Tensor | Mapping[str, Tensor], site: str | None = None) -> Jet:
        """Return value ``(B, m)`` and full first derivatives ``(B, m, *x)`` at ``inputs`` ``(B, *x)``."""
        site = site or next(iter(self.experiment.sites))
        where = self.experiment.sites[site]
        if isinstance(inputs, Tensor):
            inputs = {next(iter(where.inputs)): inputs}
        context = self.experiment.context
        tensors = {n: torch.as_tensor(t, dtype=context.dtype, device=context.device) for n, t in inputs.items()}
        rows = len(next(iter(tensors.values())))
        return self.experiment.measure({site: Points(tensors, where.differentiate, torch.arange(rows))})[site]


def load(run: Path | str, host: Host | None = None) -> LoadedStudent:
    """Load the student of a run directory.

    Raises:
        RecipeError: no run directory, or the run is not finished.
    """
    directory = RunDirectory(Path(run))
    if not (directory.path / "recipe.yaml").is_file():
        raise RecipeError(f"{run}: no run directory (it has no recipe.yaml)")
    if not directory.student.is_file():
        raise RecipeError(f"{run}: the run has no student yet; finish it with `sobolev run`")
    data = read_yaml(directory.path / "recipe.yaml")
    variant, seed = data.pop("variant"), data.pop("seed")
    plan = RunPlan(Recipe(**data), variant, seed, directory.path / "recipe.yaml")
    experiment = build(plan, (host or default_host()).registry, connect("cpu"), smoke=True)
    experiment.module.load_state_dict(load_file(directory.student))
    experiment.module.eval()
    return LoadedStudent(experiment)
