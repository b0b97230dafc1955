"""The student's side of a step: value and derivatives of ``head(student(x))``, with graph."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sobolev.devices import full_precision
from sobolev.differentiate.autograd import differentiate
from sobolev.differentiate.blame import first_cut
from sobolev.differentiate.compile import Compiler, reason_against
from sobolev.differentiate.compile_general import GeneralCompiler
from sobolev.differentiate.contract import check
from sobolev.differentiate.linearize import Linearizer
from sobolev.differentiate.program import Program, Unrecognised, recognise
from sobolev.differentiate.recompute import Pieces, graph_bytes, pieces, recomputed
from sobolev.differentiate.stages import run_eagerly
from sobolev.errors import ComponentError, DerivativeError
from sobolev.heads import Head
from sobolev.vocabulary import Contraction, Jet, Key, Points, Probe, Site, key_name

PASSES = "passes"
COMPILED = "compiled passes"
GENERAL = "double backward"
COMPILED_GENERAL = "compiled double backward"
_LARGE = 1024  # rows; measured at 256 (1.04 times double backward, and 1.13 with several outputs) and 4096 (0.93)


@dataclass(frozen=True)
class Policy:
    """What the choice of an engine may depend on; never on timing.

    Attributes:
        steps: how many steps the run takes, line searches included, summed over the students that are built alike;
            compiling pays only over many.
        compile: ``auto`` or ``never``; smoke runs never compile.
        memory: bound in bytes for the derivatives of one measurement, or None.
        precision: ``float32``: a measurement with derivatives leaves autocast; ``autocast``: it stays.
        autocast: the type of matrix products where autocast is used, or None: then an autocast that is already
            active decides.
    """

    steps: int
    compile: str = "auto"
    memory: int | None = None
    precision: str = "float32"
    autocast: torch.dtype | None = None


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


@dataclass
class _Choice:
    """Which engine measures a probe, and why; whether it is known that there is something to differentiate."""

    engine: str
    reason: str
    checked: bool = False


def _asked(probe: Probe) -> tuple[tuple[Key, str], ...]:
    return tuple((key, kind(contraction)) for key, contraction in probe.contractions.items())


def _name(asked: tuple[tuple[Key, str], ...]) -> str:
    return " and ".join(f"{key_name(key)} ({what})" for key, what in asked)


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
        self._graphs: dict[Any, tuple[int, int]] = {}
        self._linearizers: dict[tuple[bool, bool], Linearizer] = {}
        self._compiler: GeneralCompiler | None = None

    def value(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the value ``(B, m)`` after the head.

        Raises:
            ComponentError: the student returns another shape than ``(B, site.outputs)``.
        """
        return self._headed(self.module(*(inputs[name] for name in self.names)), inputs)

    def _value_with(self, tensors: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
        """Return `value` with other parameters and buffers."""
        z = functional_call(self.module, dict(tensors), tuple(inputs[name] for name in self.names))
        return self._headed(z, inputs)

    def _headed(self, z: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        self._check(z, inputs)
        if self.policy.autocast is not None:
            z = z.to(next(iter(inputs.values())).dtype)  # heads and losses compute in full precision
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
        with self._precision(points, bool(probe.contractions)):
            if not probe.contractions:
                with torch.set_grad_enabled(create_graph):
                    return Jet(self.value(points.inputs))
            check(probe, points, self.head.outputs(self.site.outputs))
            cut = self._cut(points, probe) if create_graph and self.policy.memory is not None else None
            if cut is not None:
                m = self.head.outputs(self.site.outputs)
                within = partial(self._precision, points, True)
                return recomputed(self._whole, within, self.module, points, probe, m, cut, detached)
            jet = self._whole(points, probe, create_graph, detached)
        return jet if create_graph else jet.detach()

    def _whole(self, points: Points, probe: Probe, create_graph: bool, detached: frozenset[Key] = frozenset()) -> Jet:
        if not probe.contractions:
            with torch.set_grad_enabled(create_graph):
                return Jet(self.value(points.inputs))
        choice = self._choice(points, probe, detached if create_graph else frozenset(), create_graph)
        general = choice.engine in (GENERAL, COMPILED_GENERAL)
        if general or not len(points):  # a process without samples only takes part
            if create_graph and not choice.checked and len(points):
                self._check_differentiable(points, probe)
                choice.checked = True
            if choice.engine == COMPILED_GENERAL and create_graph and len(points):
                return self._general_compiler()(points, probe, detached)
            return differentiate(self.value, points, probe, create_graph, detached, couples(self.module))
        return self._by_passes(points, probe, create_graph, choice)

    def _check_differentiable(self, points: Points, probe: Probe) -> None:
        """Raise `DerivativeError` where the student's output does not depend on an input through autograd."""
        if not any(p.requires_grad for p in self.module.parameters()):
            return  # a student without parameters may well be constant
        for name in self.names:
            if any(name in key for key in probe.contractions):
                culprit = first_cut(self.module, self.names, points.inputs, name)
                if culprit is not None:
                    raise DerivativeError(
                        f"d/d{name} of the student {type(self.module).__name__} cannot be taken: its output does not "
                        f"depend on {name} through autograd, which ends at {culprit}. It detaches, rounds, or leaves "
                        "torch there; use differentiable operations, or set the weight of the derivative to 0"
                    )

    def _precision(self, points: Points, derivatives: bool) -> AbstractContextManager[object]:
        """Return the context that gives matrix products their type."""
        device = next(iter(points.inputs.values())).device
        if derivatives and self.policy.precision == "float32":
            return full_precision(device)
        if self.policy.autocast is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.policy.autocast)

    def _cut(self, points: Points, probe: Probe) -> Pieces | None:
        """Return into which pieces a measurement under a memory bound is cut; None where it fits as a whole.

        Raises:
            DerivativeError: samples that influence each other, which cannot be measured apart.
        """
        whole = [key for key, contraction in probe.contractions.items() if contraction.full]
        if not whole or not len(points) or self.policy.memory is None:
            return None
        if couples(self.module):
            raise DerivativeError(
                "estimator: a bound 'memory' needs independent samples, but the student has BatchNorm with the "
                "statistics of the batch: remove the bound, or use GroupNorm or LayerNorm"
            )
        m = self.head.outputs(self.site.outputs)
        kept = 0
        for key in whole:
            sizes = math.prod(math.prod(points.inputs[name].shape[1:]) for name in key)
            kept += len(points) * m * sizes * points.inputs[key[0]].element_size()
        asked = (tuple(whole), self.module.training)
        if asked not in self._graphs:
            self._graphs[asked] = self._graph_bytes(points, probe)
        cut = pieces(self.policy.memory, kept, *self._graphs[asked], len(points), m)
        if cut is not None:
            name = _name(_asked(probe))
            known = self._choices.get(name)
            text = f"computed again in the backward pass, {cut.rows} samples and {cut.outputs} outputs at a time"
            if known is not None and text not in known.reason:
                self._choices[name] = replace(known, reason=f"{known.reason}; {text}")
        return cut

    def _graph_bytes(self, points: Points, probe: Probe) -> tuple[int, int]:
        """Return the bytes per sample that the graphs of its value and of one component's derivatives keep."""
        x = next(iter(points.inputs.values()))
        choice = self._choice(points, probe, frozenset(), True)
        if choice.engine != GENERAL:
            numbers = sum(self._linearizer(points.inputs[self.names[0]], False).widths)
            # Values and what is saved of them; adjoints, tangents, and products of both on their way to a sum. A whole
            # Jacobian goes along the inputs where they are fewer than the outputs.
            m, d = self.head.outputs(self.site.outputs), points.inputs[self.names[0]].shape[1:].numel()
            component = 4 * numbers * x.element_size() * min(1.0, d / m)
            return 3 * numbers * x.element_size(), math.ceil(component)
        one = replace(
            points,
            inputs={name: tensor[:1] for name, tensor in points.inputs.items()},
            index=points.index[:1],
            weight=None,
            known={},
        )
        m = self.head.outputs(self.site.outputs)
        unit = torch.eye(m, dtype=x.dtype, device=x.device)[:1].expand(1, 1, m)
        first = Probe({
            key: Contraction(unit, (None,) * len(key)) for key, c in probe.contractions.items() if c.full
        })  # fmt: skip
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            value = graph_bytes(self.module, lambda: self.value(one.inputs))
            both = graph_bytes(self.module, lambda: self._whole(one, first, True))
        # The backward pass through what was saved holds pending gradients of about twice its size.
        return value, max(1, 3 * (both - value))

    def engine(self, points: Points, probe: Probe, detached: frozenset[Key] = frozenset()) -> str:
        """Return which engine measures a probe, by a rule that looks at structure alone; `describe` tells it.

        Raises:
            DerivativeError: order 2 of a piecewise linear student under a linear head, which is zero everywhere.
        """
        return self._choice(points, probe, detached, True).engine

    def _choice(self, points: Points, probe: Probe, detached: frozenset[Key], create_graph: bool) -> _Choice:
        program = self._program()
        asked = _asked(probe)
        # A program is made anew when the module changes; then the choice is too.
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
        name = _name(asked)
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
        if recorded == GENERAL:
            choice = _Choice(GENERAL, reason or "as when the run began")
        elif reason or recorded == COMPILED_GENERAL:
            choice = self._general(points, probe, detached, reason, recorded, create_graph)
        else:
            choice = self._passes(points, probe, recorded, create_graph)
        if create_graph:  # what is only looked at is not the run's choice
            self._choices.setdefault(name, choice)
        return choice

    def _general(
        self, points: Points, probe: Probe, detached: frozenset[Key], reason: str, recorded: str, create_graph: bool
    ) -> _Choice:
        """Return which form of double backward measures a probe: compiled or eager."""
        if not create_graph:
            return _Choice(GENERAL, reason)
        if recorded:
            return _Choice(COMPILED_GENERAL, reason)
        against = ""
        if self.policy.compile == "never":
            against = "not compiled, as the recipe or a smoke run asks"
        elif self.policy.memory is not None:
            against = "not compiled under a bound of memory"
        elif self.policy.autocast is not None or torch.is_autocast_enabled(
            next(iter(points.inputs.values())).device.type
        ):
            against = "not compiled under autocast"
        elif couples(self.module):
            against = "not compiled, as samples influence each other"
        elif len(points):
            against = self._general_compiler().reason_against(points, probe, detached, self.policy.steps)
        return _Choice(GENERAL if against else COMPILED_GENERAL, f"{reason}; {against}" if against else reason)

    def _general_compiler(self) -> GeneralCompiler:
        if self._compiler is None:
            self._compiler = GeneralCompiler(self.module, self._value_with)
        return self._compiler

    def _passes(self, points: Points, probe: Probe, recorded: str, create_graph: bool) -> _Choice:
        """Return which passes measure a probe that a program can measure: compiled or eager ones."""
        why = "recognised layer by layer"
        linearizer = self._linearizer(points.inputs[self.names[0]], False)
        if not create_graph:
            against = "not compiled, as no gradient is asked"
        elif recorded:
            against = "" if recorded == COMPILED else "not compiled, as when the run began"
        elif self.policy.compile == "never":
            against = "not compiled, as the recipe or a smoke run asks"
        else:
            x = points.inputs[self.names[0]]
            against = reason_against(linearizer.program, sum(linearizer.widths), len(x), self.policy.steps, x.device)
            if against and linearizer.program.curved and not self._worth_it(len(x)):
                return _Choice(GENERAL, f"{against}; eager passes of a smooth network cost more than double backward")
        return _Choice(PASSES if against else COMPILED, f"{why}; {against}" if against else why)

    def _worth_it(self, rows: int) -> bool:
        """Whether eager passes of a smooth network are as cheap as double backward: large batches, one output."""
        return rows >= _LARGE and self.site.outputs == 1

    def _program(self) -> Program | str:
        """Return the program of the module as it is now, or why it is none; what is none once stays it in its mode."""
        mode = self.module.training
        known = self._programs.get(mode)
        if known is None or (isinstance(known, Program) and not known.current):
            try:
                known = recognise(self.module) if len(self.names) == 1 else "the student reads several inputs"
            except Unrecognised as reason:
                known = str(reason)
            former = self._programs.get(mode)
            self._known = {key: made for key, made in self._known.items() if key[0] is not former}
            self._programs[mode] = known
            self._linearizers = {key: made for key, made in self._linearizers.items() if key[0] != mode}
        return known

    def _unsuitable(self, program: Program, probe: Probe, detached: frozenset[Key]) -> str:
        """Return why the passes cannot measure a probe; empty where they can."""
        (name,) = self.names
        if detached:
            return "some derivatives come without graph"
        if (name,) not in probe.keys or any(len(key) != 1 for key in probe.keys):
            return f"the passes measure first derivatives, d/d{name} among them"
        if name in self.head.inputs:
            return f"the head reads {name} too"
        if self.policy.precision != "float32":
            return "the passes compute in full precision"
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
        (name,) = self.names
        x = points.inputs[name].detach()
        linearizer = self._linearizer(x, choice.engine == COMPILED)
        held = {key[0]: contraction for key, contraction in probe.contractions.items() if key != (name,)}
        value, derivative, by_held = linearizer.measure(x, points.inputs, probe.contractions[name,], create_graph, held)
        if not held:
            return Jet(value, {(name,): derivative})
        found = {name: derivative, **by_held}
        return Jet(value, {key: found[key[0]] for key in probe.keys})

    def describe(self) -> dict[str, str]:
        """Return which engine measured what, and why; recorded with the run."""
        failures = [
            made.run.failure
            for made in self._linearizers.values()
            if isinstance(made.run, Compiler) and made.run.failure
        ]
        fallen = {COMPILED: (PASSES, failures[0])} if failures else {}
        if self._compiler is not None and self._compiler.failure:
            fallen[COMPILED_GENERAL] = GENERAL, self._compiler.failure
        described = {}
        for name, choice in self._choices.items():
            engine, failure = fallen.get(choice.engine, (choice.engine, ""))
            described[name] = f"{engine}: {choice.reason}" + (f"; {failure}" if failure else "")
        return described
