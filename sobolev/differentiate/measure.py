"""The student's side of a step: value and derivatives of ``head(student(x))``, with graph."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from sobolev.differentiate.autograd import differentiate
from sobolev.heads import Head
from sobolev.vocabulary import Jet, Key, Points, Probe, Site


@dataclass(frozen=True)
class Policy:
    """What the choice of an engine may depend on; never on timing.

    Attributes:
        steps: how many steps the run takes; compiling pays only over many.
        compile: ``auto`` or ``never``; smoke runs never compile.
        memory: bound in bytes for the derivatives of one measurement, or None.
    """

    steps: int
    compile: str = "auto"
    memory: int | None = None


class Measurer:
    """Measures one site's student."""

    def __init__(self, module: nn.Module, head: Head, site: Site, policy: Policy) -> None:
        self.module = module
        self.head = head
        self.site = site
        self.policy = policy
        named = [name for name in inspect.signature(module.forward).parameters if name in site.inputs]
        # A module that calls its argument otherwise (nn.Sequential) gets the only input.
        self.names = tuple(named) if named or len(site.inputs) > 1 else tuple(site.inputs)

    def value(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the value ``(B, m)`` after the head."""
        return self.head(self.module(*(inputs[name] for name in self.names)), inputs)

    def measure(
        self, points: Points, probe: Probe, create_graph: bool = True, detached: frozenset[Key] = frozenset()
    ) -> Jet:
        """Return the jet that the probe asks for; without graph it is detached.

        The keys in ``detached`` come without graph in any case, from the same forward pass.
        """
        jet = differentiate(self.value, points, probe, create_graph, detached)
        return jet if create_graph else jet.detach()

    def describe(self) -> dict[str, str]:
        """Return which engine measures what, and why; recorded with the run."""
        return {"engine": "double backward", "reason": "general path"}
