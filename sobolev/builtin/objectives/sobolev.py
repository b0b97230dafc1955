"""The Sobolev objective: Eq. 1 with full derivatives, Eq. 2 with projected ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from sobolev.builtin.objectives import DerivativeTerm, ValueTerm
from sobolev.builtin.objectives.balance import BALANCES, Scales
from sobolev.builtin.objectives.weights import ComponentWeights
from sobolev.components import Objective
from sobolev.errors import ComponentError
from sobolev.heads import HEADS
from sobolev.losses import KL, per_sample
from sobolev.vocabulary import VALUE, Jet, Key, Points, Probe, Site, Term


class SobolevObjective(Objective):
    """Weighted sum of a value loss and one loss per derivative.

    Raises:
        ComponentError: a KL divergence without the log-softmax head.
    """

    def __init__(
        self, head: str, value: ValueTerm, derivatives: Sequence[DerivativeTerm], balance: str = "none"
    ) -> None:
        if value.loss in KL and head != "log-softmax":
            raise ComponentError(
                f"objective: the value loss {value.loss!r} compares log-probabilities; set 'head: log-softmax'"
            )
        self.head = HEADS[head]
        self.value = value
        self.derivatives = tuple(derivatives)
        self.balance = balance
        self.needs = frozenset() if balance == "none" else frozenset({"statistics"})
        self._scales: dict[str, Scales] = {}
        self._weights: dict[str, ComponentWeights] = {}

    def prepare(self, sites: Mapping[str, Site]) -> None:
        """Take the weights of components from the sites, and the scales of the errors from their statistics."""
        self._weights = {name: ComponentWeights.of(site) for name, site in sites.items() if site.weights}
        if self.balance == "none":
            return
        for name, site in sites.items():
            assert site.statistics is not None
            weights = {self._key(t, site.differentiate): t.weight for t in self.derivatives if t.weight > 0}
            self._scales[name] = BALANCES[self.balance](site.statistics, weights)

    def _key(self, term: DerivativeTerm, names: Sequence[str]) -> Key:
        if isinstance(term.input, list):
            if len(term.input) != term.order:
                raise ComponentError(
                    f"objective: a mixed derivative by {term.input} has order {len(term.input)}, not {term.order}"
                )
            wanted = tuple(term.input)
        elif term.input is not None:
            wanted = (term.input,) * term.order
        elif len(names) == 1:
            wanted = (names[0],) * term.order
        elif not names:
            raise ComponentError(
                "objective: the target has no derivatives to match; set the weight of the derivative term to 0"
            )
        else:
            raise ComponentError(f"objective: say by 'input' which of {list(names)} a derivative term means")
        for name in wanted:
            if name not in names:
                raise ComponentError(f"objective: input {name!r} is not differentiated here; allowed: {list(names)}")
        return wanted

    def keys(self, site: Site) -> tuple[Key, ...]:
        """Return the derivatives that carry weight."""
        keys = [self._key(term, site.differentiate) for term in self.derivatives if term.weight > 0]
        if len(set(keys)) != len(keys):
            raise ComponentError(f"objective: two derivative terms are for the same derivative: {keys}")
        return tuple(keys)

    def terms(self, site: str, points: Points, probe: Probe, prediction: Jet, reference: Jet) -> list[Term]:
        """Return one term for the value and one per derivative, where they carry weight."""
        active: list[tuple[Key, ValueTerm | DerivativeTerm]] = []
        if self.value.weight > 0:
            active.append((VALUE, self.value))
        active += [(self._key(t, points.differentiate), t) for t in self.derivatives if t.weight > 0]
        return [self._term(site, key, term, points, probe, prediction, reference) for key, term in active]

    def _term(
        self,
        site: str,
        key: Key,
        term: ValueTerm | DerivativeTerm,
        points: Points,
        probe: Probe,
        prediction: Jet,
        reference: Jet,
    ) -> Term:
        if prediction[key].shape != reference[key].shape:
            raise ComponentError(
                f"site {site!r}: the student's {key or 'value'} has shape {tuple(prediction[key].shape)}, "
                f"the target's {tuple(reference[key].shape)}"
            )
        contraction = probe.contractions[key] if key else None
        probes = contraction.probes if contraction else None
        ours, theirs, weight = prediction[key], reference[key], term.weight
        scales = self._scales.get(site)
        if scales is not None:
            scale = scales.of(key, contraction, ours)
            ours, theirs, weight = ours / scale, theirs / scale, weight * scales.share
        weights = self._weights[site].left(key, contraction, ours) if site in self._weights else None
        losses, fraction = per_sample(
            term.loss, ours, theirs, reference.known.get(key), probes, term.reduce, term.delta, weights
        )
        total: Tensor
        if points.weight is None:
            total, count = losses.sum(), fraction.sum()
        else:
            total, count = (losses * points.weight).sum(), (fraction * points.weight).sum()
        return Term(site, key, total, count, weight)
