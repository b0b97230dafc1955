"""The student's side of a step: value and derivatives of ``head(student(x))``, with graph."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sobolev.differentiate.autograd import differentiate
from sobolev.differentiate.compile import Compiler, reason_against
from sobolev.differentiate.linearize import Linearizer
from sobolev.differentiate.program import Program, Unrecognised, recognise
from sobolev.differentiate.stages import run_eagerly
from sobolev.errors import ComponentError, DerivativeError
from sobolev.heads import Head
from sobolev.vocabulary import Contraction, Jet, Key, Points, Probe, Site, key_name

PASSES = "passes"
COMPILED = "compiled passes"
GENERAL = "double backward"


@dataclass(frozen=True)
class Policy:
    """What the choice of an engine may depend on; never on timing.

    Attributes:
        steps: how many steps the run takes; compiling pays only over many.
        compile: ``auto`` or ``never``; smoke runs never compile.
        memory: bound in bytes for the derivatives of one measurement, or None.
        precision: ``float32``: a measurement with derivatives leaves autocast; ``autocast``: it stays.
    """

    steps: int
    compile: str = "auto"
    memory: int | None = None
    precision: str = "float32"


def kind(contraction: Contraction) -> str:
    """Return the name of what a contraction asks."""
    if contraction.full:
        return "full"
    open_slots = sum(vector is None for vector in contraction.inputs)
    if contraction.output is not None:
        return "output side" if open_slots == len(contraction.inputs) else "output and input side"
    return "input side" if not open_slots else "product"


def couples(module: nn.Module) -> bool:
    """Return whether a module's samples influence each other: BatchNorm with the statistics of the batch."""
    return any(
        isinstance(layer, nn.modules.batchnorm._BatchNorm) and (layer.training or layer.running_mean is None)
        for layer in module.modules()
    )


@dataclass(frozen=True)
class _Choice:
    """Which engine measures a probe, and why."""

    engine: str
    reason: str


class Measurer:
    """Measures one site's student.

    Args:
        module: the student of the site.
        head: applied to its output.
        site: what the module receives and returns.
        policy: see there.
        recorded: what `describe` returned when the run began, so that a resumed run measures in the same way.
    """

    def __init__(
        self, module: nn.Module, head: Head, site: Site, policy: Policy, recorded: Mapping[str, str] | None = None
    ) -> None:
        self.module = module
        self.head = head
        self.site = site
        self.policy = policy
        named = [name for name in inspect.signature(module.forward).parameters if name in site.inputs]
        # A module that calls its argument otherwise (nn.Sequential) gets the only input.
        self.names = tuple(named) if named or len(site.inputs) > 1 else tuple(site.inputs)
        self._recorded = dict(recorded or {})
        self._choices: dict[str, _Choice] = {}
        self._known: dict[Any, _Choice] = {}
        self._programs: dict[bool, Program | str] = {}
        self._linearizers: dict[tuple[bool, bool], Linearizer] = {}

    def value(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the value ``(B, m)`` after the head.

        Raises:
            ComponentError: the student returns another shape than ``(B, site.outputs)``.
        """
        z = self.module(*(inputs[name] for name in self.names))
        self._check(z, inputs)
        return self.head(z, inputs)

    def _check(self, z: Tensor, inputs: Mapping[str, Tensor]) -> None:
        rows = len(next(iter(inputs.values())))
        if z.shape != (rows, self.site.outputs):
            raise ComponentError(
                f"the student {type(self.module).__name__} returns the shape {tuple(z.shape)}, expected "
                f"{(rows, self.site.outputs)} (B, outputs of the site)"
            )

    def measure(
        self, points: Points, probe: Probe, create_graph: bool = True, detached: frozenset[Key] = frozenset()
    ) -> Jet:
        """Return the jet that the probe asks for; without graph it is detached.

        The keys in ``detached`` come without graph in any case, from the same forward pass.

        Raises:
            DerivativeError: a second derivative that is zero everywhere.
            ComponentError: a student or a probe whose shape does not fit.
        """
        if not probe.contractions:
            with torch.set_grad_enabled(create_graph):
                return Jet(self.value(points.inputs))
        context: AbstractContextManager[object] = nullcontext()
        device = next(iter(points.inputs.values())).device.type
        if self.policy.precision == "float32" and torch.is_autocast_enabled(device):
            context = torch.autocast(device, enabled=False)
        with context:
            choice = self._choice(points, probe, detached if create_graph else frozenset(), create_graph)
            if choice.engine == GENERAL or not len(points):  # a process without samples only takes part
                jet = differentiate(self.value, points, probe, create_graph, detached, couples(self.module))
            else:
                jet = self._by_passes(points, probe, create_graph, choice)
        return jet if create_graph else jet.detach()

    def engine(self, points: Points, probe: Probe, detached: frozenset[Key] = frozenset()) -> str:
        """Return which engine measures a probe, by a rule that looks at structure alone; `describe` tells it.

        Raises:
            DerivativeError: order 2 of a piecewise linear student under a linear head, which is zero everywhere.
        """
        return self._choice(points, probe, detached, True).engine

    def _choice(self, points: Points, probe: Probe, detached: frozenset[Key], create_graph: bool) -> _Choice:
        program = self._program()
        asked = tuple((key, kind(contraction)) for key, contraction in probe.contractions.items())
        # A program is made anew when a layer changes its mode; then the choice is too.
        known = self._known.get((program, asked, detached, create_graph))
        if known is None:
            known = self._choose(program, asked, points, probe, detached, create_graph)
            self._known[program, asked, detached, create_graph] = known
        return known

    def _choose(
        self,
        program: Program | str,
        asked: tuple[tuple[Key, str], ...],
        points: Points,
        probe: Probe,
        detached: frozenset[Key],
        create_graph: bool,
    ) -> _Choice:
        name = " and ".join(f"{key_name(key)} ({what})" for key, what in asked)
        if isinstance(program, Program) and not program.curved and self.head.linear:
            for key in probe.keys:
                if len(key) > 1 and key not in detached:
                    raise DerivativeError(
                        f"{key_name(key)} of the student {type(self.module).__name__} is zero everywhere: it is "
                        f"piecewise linear, and so is the head {self.head.name!r}. Use a smooth activation (tanh, "
                        "softplus, silu, gelu), or set the weight of this order to 0"
                    )
        recorded = self._recorded.get(name, "").partition(":")[0]
        reason = program if isinstance(program, str) else self._unsuitable(program, probe, detached)
        if reason or recorded == GENERAL:
            choice = _Choice(GENERAL, reason or "as when the run began")
        else:
            choice = self._passes(points, probe, recorded, create_graph)
        if create_graph:  # what is only looked at is not the run's choice
            self._choices.setdefault(name, choice)
        return choice

    def _passes(self, points: Points, probe: Probe, recorded: str, create_graph: bool) -> _Choice:
        """Return which passes measure a probe that a program can measure: compiled or eager ones."""
        why = "recognised layer by layer"
        linearizer = self._linearizer(points.inputs[probe.keys[0][0]], False)
        if not create_graph:
            against = "not compiled, as no gradient is asked"
        elif recorded:
            against = "" if recorded == COMPILED else "not compiled, as when the run began"
        elif self.policy.compile == "never":
            against = "not compiled, as the recipe or a smoke run asks"
        else:
            x = points.inputs[probe.keys[0][0]]
            against = reason_against(linearizer.program, sum(linearizer.widths), len(x), self.policy.steps, x.device)
        return _Choice(PASSES if against else COMPILED, f"{why}; {against}" if against else why)

    def _program(self) -> Program | str:
        """Return the program of the module in its present mode, or why it is none."""
        mode = self.module.training
        known = self._programs.get(mode)
        if known is None or (isinstance(known, Program) and not known.current):
            try:
                known = recognise(self.module) if len(self.names) == 1 else "the student reads several inputs"
            except Unrecognised as reason:
                known = str(reason)
            self._programs[mode] = known
            self._linearizers = {key: made for key, made in self._linearizers.items() if key[0] != mode}
        return known

    def _unsuitable(self, program: Program, probe: Probe, detached: frozenset[Key]) -> str:
        """Return why the passes cannot measure a probe; empty where they can."""
        (name,) = self.names
        if detached:
            return "some derivatives come without graph"
        if probe.keys != ((name,),):
            return f"the passes measure d/d{name} alone"
        if name in self.head.inputs:
            return f"the head reads {name} too"
        return ""

    def _linearizer(self, x: Tensor, compiled: bool) -> Linearizer:
        mode = self.module.training
        found = self._linearizers.get((mode, compiled))
        if found is None:
            program = self._program()
            assert isinstance(program, Program)
            # The pass draws random numbers where there is dropout; the caller's stream must not notice.
            with torch.no_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
                widths = program.widths(x[:1])
                if widths[-1] != self.site.outputs:
                    self._check(self.module(x), {"x": x})
            run = Compiler() if compiled else run_eagerly
            found = self._linearizers[mode, compiled] = Linearizer(program, self.head, tuple(widths), run)
        return found

    def _by_passes(self, points: Points, probe: Probe, create_graph: bool, choice: _Choice) -> Jet:
        ((key, contraction),) = probe.contractions.items()
        x = points.inputs[key[0]].detach()
        linearizer = self._linearizer(x, choice.engine == COMPILED)
        value, derivative = linearizer.measure(x, points.inputs, contraction, create_graph)
        return Jet(value, {key: derivative})

    def describe(self) -> dict[str, str]:
        """Return which engine measured what, and why; recorded with the run."""
        failures = [
            made.run.failure
            for made in self._linearizers.values()
            if isinstance(made.run, Compiler) and made.run.failure
        ]
        return {
            name: f"{PASSES}: {choice.reason}; {failures[0]}"
            if failures and choice.engine == COMPILED
            else f"{choice.engine}: {choice.reason}"
            for name, choice in self._choices.items()
        }
