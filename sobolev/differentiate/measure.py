"""The student's side of a step: value and derivatives of ``head(student(x))``, with graph."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sobolev.differentiate.autograd import differentiate
from sobolev.differentiate.linearize import Linearizer
from sobolev.differentiate.program import Program, Unrecognised, recognise
from sobolev.errors import ComponentError, DerivativeError
from sobolev.heads import Head
from sobolev.vocabulary import Contraction, Jet, Key, Points, Probe, Site, key_name

PASSES = "passes"
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
        self._choices: dict[str, str] = {}
        self._programs: dict[bool, Program | str] = {}
        self._linearizers: dict[int, Linearizer] = {}

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
            engine = self.engine(points, probe, detached if create_graph else frozenset())
            if engine == PASSES and len(points):  # a process without samples only takes part
                jet = self._by_passes(points, probe, create_graph)
            else:
                jet = differentiate(self.value, points, probe, create_graph, detached, couples(self.module))
        return jet if create_graph else jet.detach()

    def engine(self, points: Points, probe: Probe, detached: frozenset[Key] = frozenset()) -> str:
        """Return which engine measures a probe, by a rule that looks at structure alone; `describe` tells it.

        Raises:
            DerivativeError: order 2 of a piecewise linear student under a linear head, which is zero everywhere.
        """
        asked = " and ".join(f"{key_name(key)} ({kind(c)})" for key, c in probe.contractions.items())
        program = self._program()
        if isinstance(program, Program) and not program.curved and self.head.linear:
            for key in probe.keys:
                if len(key) > 1 and key not in detached:
                    raise DerivativeError(
                        f"{key_name(key)} of the student {type(self.module).__name__} is zero everywhere: it is "
                        f"piecewise linear, and so is the head {self.head.name!r}. Use a smooth activation (tanh, "
                        "softplus, silu, gelu), or set the weight of this order to 0"
                    )
        reason = program if isinstance(program, str) else self._unsuitable(program, probe, detached)
        engine = self._recorded.get(asked, "").partition(":")[0] or (GENERAL if reason else PASSES)
        if engine == PASSES and reason:  # recorded for another network or mode
            engine = GENERAL
        self._choices.setdefault(asked, f"{engine}: {reason or 'recognised layer by layer'}")
        return engine

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
            self._linearizers.pop(mode, None)
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

    def _by_passes(self, points: Points, probe: Probe, create_graph: bool) -> Jet:
        ((key, contraction),) = probe.contractions.items()
        x = points.inputs[key[0]].detach()
        program = self._program()
        assert isinstance(program, Program)
        mode = self.module.training
        linearizer = self._linearizers.get(mode)
        if linearizer is None:
            # The pass draws random numbers where there is dropout; the caller's stream must not notice.
            with torch.no_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
                width, outputs = program.width(x[:1])
            linearizer = self._linearizers[mode] = Linearizer(program, self.head, width, outputs)
            if outputs != self.site.outputs:
                with torch.no_grad():
                    self._check(self.module(x), points.inputs)
        value, derivative = linearizer.measure(x, points.inputs, contraction, create_graph)
        return Jet(value, {key: derivative})

    def describe(self) -> dict[str, str]:
        """Return which engine measured what, and why; recorded with the run."""
        return dict(self._choices)
