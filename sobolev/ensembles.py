"""Several students as one: what answers for them, and how they are optimized.

The loss of an ensemble is a sum of losses that share no parameter. To a first-order optimizer that makes no
difference; one that builds a model of the curvature, and chooses one step length for all, would mix what has nothing
to do with each other. So under an optimizer with a line search each member takes its own steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sobolev.vocabulary import Jet, Site

if TYPE_CHECKING:
    from sobolev.build import Experiment


def together(sites: Mapping[str, Site]) -> dict[str, list[str]]:
    """Return the sites that answer under one name: an ensemble's in place of its members', every other one alone."""
    found: dict[str, list[str]] = {}
    for name, site in sites.items():
        found.setdefault(site.ensemble or name, []).append(name)
    return found


def mean(jets: Sequence[Jet]) -> Jet:
    """Return the mean of the members' values and derivatives; one jet stands for itself."""
    return _over(jets, lambda stacked: stacked.mean(0)) if len(jets) > 1 else jets[0]


def spread(jets: Sequence[Jet]) -> Jet | None:
    """Return the standard deviation of the members' values and derivatives, or None for a single one."""
    return _over(jets, lambda stacked: stacked.std(0, correction=0)) if len(jets) > 1 else None


def _over(jets: Sequence[Jet], combine: Callable[[Tensor], Tensor]) -> Jet:
    """Return the jet that a function of the members, stacked first, makes."""
    return Jet(
        combine(torch.stack([jet.value for jet in jets])),
        {key: combine(torch.stack([jet[key] for jet in jets])) for key in jets[0].derivatives},
    )


def members(experiment: Experiment) -> dict[str, list[nn.Parameter]]:
    """Return the trained parameters of every site where all sites are members of ensembles; else nothing."""
    if any(site.ensemble is None for site in experiment.sites.values()):
        return {}
    found = {name: [p for p in experiment.module[name].parameters() if p.requires_grad] for name in experiment.sites}
    return {name: parameters for name, parameters in found.items() if parameters}


class Separate:
    """An optimizer per site, as one to those who save and restore it.

    Attributes:
        optimizers: by site.
    """

    def __init__(self, optimizers: Mapping[str, Any]) -> None:
        self.optimizers = dict(optimizers)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all optimizers."""
        return [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every optimizer by site."""
        return {site: optimizer.state_dict() for site, optimizer in self.optimizers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for site, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[site])


class Together:
    """The schedules of several optimizers as one."""

    def __init__(self, schedules: Sequence[Any]) -> None:
        self.schedules = list(schedules)

    def step(self) -> None:
        """Let every schedule take its step."""
        for schedule in self.schedules:
            schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states in order."""
        return {str(i): schedule.state_dict() for i, schedule in enumerate(self.schedules)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for i, schedule in enumerate(self.schedules):
            schedule.load_state_dict(state[str(i)])
