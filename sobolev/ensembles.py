"""Students of an ensemble under an optimizer with a line search: each takes its own steps.

The loss of an ensemble is a sum of losses that share no parameter. To a first-order optimizer that makes no
difference; one that builds a model of the curvature, and chooses one step length for all, would mix what has nothing
to do with each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from sobolev.build import Experiment


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
