"""A target seen by several students at once: one site per member on the same points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sobolev.build import answers
from sobolev.components import Axes, Context, Learner, Target
from sobolev.ensembles import mean
from sobolev.errors import ComponentError
from sobolev.vocabulary import Batch, Jet, Key, Mean, Points, Probe, Site, key_name


class Ensemble(Target):
    """Offers another target at ``members`` sites, whose students differ by their first weights alone.

    The sites of ``function`` are ``function-1``, ``function-2``, ...; metrics under the plain name are those of the
    mean over the members, and ``function/spread`` is the members' mean variance around it, summed over components.

    Raises:
        ComponentError: a target that learns from its student, or waits for its prediction.
    """

    def __init__(self, of: Target, members: int) -> None:
        if type(of).advance is not Target.advance or of.needs:
            raise ComponentError(
                f"target 'ensemble': {type(of).__name__} learns from one student's predictions, not from several"
            )
        self.of = of
        self.members = members
        self.version = of.version
        self.fixed_points = of.fixed_points
        self.heads = of.heads
        self.max_order = of.max_order

    def _names(self, site: str) -> list[str]:
        return [f"{site}-{i + 1}" for i in range(self.members)]

    def _inner(self, site: str) -> str:
        return site.rpartition("-")[0]

    def prepare(self, context: Context) -> None:
        """Prepare the target itself."""
        self.of.prepare(context)
        self.version = self.of.version  # a black box looks at its function first

    def sites(self) -> Mapping[str, Site]:
        """Return the sites of the members."""
        return {
            name: replace(site, ensemble=inner)
            for inner, site in self.of.sites().items()
            for name in self._names(inner)
        }

    def size(self, split: str) -> int:
        """Return the number of samples of a split."""
        return self.of.size(split)

    def load(self, split: str, ids: Tensor) -> Any:
        """Read samples."""
        return self.of.load(split, ids)

    def points(self, batch: Batch, training: bool) -> Mapping[str, Points]:
        """Return the same points for every member."""
        return {
            name: points for inner, points in self.of.points(batch, training).items() for name in self._names(inner)
        }

    def metrics(
        self, points: Mapping[str, Points], reference: Mapping[str, Jet], prediction: Mapping[str, Jet]
    ) -> Mapping[str, Mean]:
        """Return errors and spread of the mean over the members, where their probes agree, and the target's own."""
        found: dict[str, Mean] = {}
        for inner in self.of.sites():
            names = self._names(inner)
            first, answer = names[0], reference[names[0]]
            for key in ((), *answer.derivatives):
                if all(_alike(reference[name], answer, key) and key in prediction[name] for name in names):
                    stacked = torch.stack([prediction[name][key] for name in names])
                    found |= _of_mean(f"{inner}/", key, stacked, answer, points[first])
        # The target's own metrics are about one student: the members' are averaged by listing every member.
        for i in range(self.members):
            one = {inner: self._names(inner)[i] for inner in self.of.sites()}
            own = self.of.metrics(
                {inner: points[name] for inner, name in one.items()},
                {inner: reference[name] for inner, name in one.items()},
                {inner: prediction[name] for inner, name in one.items()},
            )
            for name, measured in own.items():
                before = found.get(name)
                found[name] = before + measured if before else measured
        return found

    def finish(self, learner: Learner) -> Mapping[str, float]:
        """Let the target finish with the mean over the members as its student."""
        return self.of.finish(MeanOfMembers(learner, {inner: self._names(inner) for inner in self.of.sites()}))

    def state_dict(self) -> dict[str, Any]:
        """Return what the target itself keeps."""
        return self.of.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self.of.load_state_dict(state)

    def axes(self, site: str) -> Axes | None:
        """Return names and box of a member's site, or of the ensemble."""
        return self.of.axes(self._inner(site) if site not in self.of.sites() else site)

    def close(self) -> None:
        """Close the target itself."""
        self.of.close()


class MeanOfMembers(Learner):
    """The members as one student, under the names of the target's own sites.

    Its values and derivatives are means after the head, as in metrics and in predictions. Its ``module`` averages
    what the members return before the head.
    """

    def __init__(self, learner: Learner, members: Mapping[str, Sequence[str]]) -> None:
        self.learner = learner
        self.members = members
        self.module = nn.ModuleDict(
            {inner: _Mean([learner.module[name] for name in names]) for inner, names in members.items()}
        )

    def value(self, site: str, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the mean of the members' values ``(B, m)``, without graph."""
        return torch.stack([self.learner.value(name, inputs) for name in self.members[site]]).mean(0)

    def measure(self, points: Mapping[str, Points]) -> dict[str, Jet]:
        """Measure the mean of the members' values and full first derivatives, without graph."""
        jets = self.learner.measure({name: where for site, where in points.items() for name in self.members[site]})
        return {site: mean([jets[name] for name in self.members[site]]) for site in points}


class _Mean(nn.Module):
    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *arguments: Tensor, **inputs: Tensor) -> Tensor:
        return torch.stack([member(*arguments, **inputs) for member in self.members]).mean(0)


class AnsweringEnsemble(Ensemble):
    """Of a target that answers jets: members with equal probes share one answer."""

    def answer(
        self, points: Mapping[str, Points], probes: Mapping[str, Probe], prediction: Mapping[str, Jet] | None
    ) -> Mapping[str, Jet]:
        """Return the target's jets for every member."""
        found: dict[str, Jet] = {}
        for i in range(self.members):
            one = {inner: self._names(inner)[i] for inner in self.of.sites()}
            first = {inner: self._names(inner)[0] for inner in one}
            if i and all(_whole(probes[name]) and _whole(probes[first[inner]]) for inner, name in one.items()):
                found |= {name: found[first[inner]] for inner, name in one.items()}
                continue
            jets = self.of.answer(
                {inner: points[name] for inner, name in one.items()},
                {inner: probes[name] for inner, name in one.items()},
                None,
            )
            found |= {name: jets[inner] for inner, name in one.items()}
        return found


class ValuedEnsemble(Ensemble):
    """Of a target that offers its value: every member's is asked of it."""

    def value(self, site: str, inputs: Mapping[str, Tensor], points: Points) -> Tensor:
        """Return the target's value ``(B, m)``."""
        return self.of.value(self._inner(site), inputs, points)


def ensemble_of(target: Target, members: int) -> Ensemble:
    """Return the ensemble of a target."""
    return AnsweringEnsemble(target, members) if answers(target) else ValuedEnsemble(target, members)


def _whole(probe: Probe) -> bool:
    return all(contraction.full for contraction in probe.contractions.values())


def _alike(one: Jet, other: Jet, key: Key) -> bool:
    # Random projections differ from member to member; then there is no mean to compare with.
    return one is other or (key in one and torch.equal(one[key], other[key]))


def _of_mean(prefix: str, key: Key, members: Tensor, answer: Jet, points: Points) -> dict[str, Mean]:
    known = answer.known.get(key)
    error = members.mean(0) - answer[key]
    variance = members.var(0, correction=0)
    fraction = members.new_ones(len(error))
    if known is not None:
        error, variance = error * known, variance * known
        fraction = known.flatten(1).to(error.dtype).mean(1)
    weight = torch.ones_like(fraction) if points.weight is None else points.weight
    count = (fraction * weight).sum()
    found = {f"{prefix}{key_name(key)}": Mean((error.square().flatten(1).sum(1) * weight).sum(), count)}
    if not key:
        found[f"{prefix}spread"] = Mean((variance.flatten(1).sum(1) * weight).sum(), count)
    return found
