"""A trained student, back in Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from sobolev import ensembles
from sobolev.build import Experiment, build
from sobolev.devices import without_default
from sobolev.distributed import World
from sobolev.errors import ComponentError, RecipeError
from sobolev.host import Host, default_host
from sobolev.recipe.model import Recipe
from sobolev.recipe.plan import RunPlan
from sobolev.registry import did_you_mean
from sobolev.rundir import RunDirectory, find_runs, read_yaml
from sobolev.vocabulary import Jet, Points

Inputs = Any
"""A tensor ``(B, *x)``, what ``torch.as_tensor`` takes for one, or a mapping of names to such."""


class LoadedStudent:
    """A trained student with its derivatives.

    An ensemble answers under its own name with the mean over its members, and says by `spread` how far they differ;
    a member answers under the name of its site.

    Attributes:
        module: the student of each site.
        experiment: the parts that it was trained with.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.module: nn.ModuleDict = experiment.module

    def __call__(self, inputs: Inputs, site: str | None = None) -> Jet:
        """Return value ``(B, m)`` and full first derivatives ``(B, m, *x)`` at ``inputs`` ``(B, *x)``.

        Args:
            inputs: a tensor, or whatever torch makes one of (arrays, lists); several inputs by name.
            site: which, where there are several; the first by default.

        Raises:
            RecipeError: no such site.
            ComponentError: inputs of another shape or of other names.
        """
        return ensembles.mean(self._members(inputs, site))

    def spread(self, inputs: Inputs, site: str | None = None) -> Jet | None:
        """Return the standard deviation of the members' values and first derivatives, or None for a single student."""
        return ensembles.spread(self._members(inputs, site))

    @property
    def names(self) -> list[str]:
        """Names that ``site`` may be: ensembles first, then sites."""
        sites = self.experiment.sites
        groups = dict.fromkeys(site.ensemble for site in sites.values() if site.ensemble)
        return [*(name for name in groups if name), *sites]

    def members(self, site: str | None = None) -> list[str]:
        """Return the sites of an ensemble, or the one site of that name; the first there is by default.

        Raises:
            RecipeError: there is no such site.
        """
        sites = self.experiment.sites
        site = site or self.names[0]
        found = [name for name, where in sites.items() if site == name or where.ensemble == site]
        if not found:
            raise RecipeError(f"the run has no site {site!r}; {did_you_mean(site, self.names)}")
        return found

    @without_default
    def _members(self, inputs: Inputs, site: str | None) -> list[Jet]:
        names = self.members(site)
        where = self.experiment.sites[names[0]]
        given = inputs if isinstance(inputs, Mapping) else {next(iter(where.inputs)): inputs}
        if set(given) != set(where.inputs):
            raise ComponentError(f"the student reads the inputs {[*where.inputs]}, given are {[*given]}")
        context = self.experiment.context
        tensors = {n: torch.as_tensor(t, dtype=context.dtype, device=context.device) for n, t in given.items()}
        for name, shape in where.inputs.items():
            if tuple(tensors[name].shape[1:]) != tuple(shape) or not tensors[name].ndim:
                expected = ", ".join(("B", *map(str, shape)))
                raise ComponentError(
                    f"the student's input {name!r} has the shape {tuple(tensors[name].shape)}, expected ({expected}): "
                    "a row per sample"
                )
        points = Points(tensors, where.differentiate, torch.arange(len(next(iter(tensors.values())))))
        jets = self.experiment.measure(dict.fromkeys(names, points))
        return [jets[name] for name in names]


@without_default
def load(run: Path | str, host: Host | None = None) -> LoadedStudent:
    """Load the student of a run directory.

    Raises:
        RecipeError: no run directory, or the run is not finished.
    """
    directory = RunDirectory(Path(run))
    if not (directory.path / "recipe.yaml").is_file():
        below = [str(record.directory) for record in find_runs(directory.path)]
        way_out = f"; there are {', '.join(below[:4])}" + (", ..." if len(below) > 4 else "") if below else ""
        raise RecipeError(f"{run}: no run directory (it has no recipe.yaml){way_out}")
    if not directory.student.is_file():
        raise RecipeError(f"{run}: the run has no student yet; finish it with `sobolev run`")
    data = read_yaml(directory.path / "recipe.yaml")
    variant, seed = data.pop("variant"), data.pop("seed")
    plan = RunPlan(Recipe(**data), variant, seed, directory.origin())  # relative paths start from where it was read
    root = directory.path.resolve().parents[len(plan.directory.parts) - 1]
    experiment = build(
        plan, (host or default_host()).registry, World(torch.device("cpu")), cache=root / ".cache", smoke=True,
        blank=True, saved=directory.path,
    )  # fmt: skip
    experiment.module.load_state_dict(load_file(directory.student))
    experiment.module.eval()
    return LoadedStudent(experiment)
