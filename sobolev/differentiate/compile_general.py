"""Double backward, compiled: value and derivatives of any module as one graph, of which autograd sees first order only.

torch refuses to differentiate a compiled function twice. Here the inner derivatives are taken while the module is
traced to elementary operations, so that they are part of what is compiled, and autograd differentiates the trace once,
by the parameters. A trace knows nothing of Python: what it cannot represent is refused, and what it computes is
compared with the eager way, parameter gradients included, in the first call and again in the 10th, 100th, ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sobolev.differentiate.autograd import differentiate
from sobolev.differentiate.compile import DEVICES, TOLERANCE, Disagreement, missing_compiler, without_warnings
from sobolev.differentiate.structure import Structure
from sobolev.vocabulary import VALUE, Contraction, Jet, Key, Points, Probe

_SAVED_PER_OPERATION = 7e-6
_SECONDS, _SECONDS_PER_OPERATION = 20.0, 0.1
_OPERATIONS = 2000
"""Longer traces (whole Hessians in many dimensions) are not compiled: minutes, and code without end."""
_SHAPES = 3
"""Sets of shapes that are compiled at most; what comes later runs eagerly."""

Function = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]
"""(parameters and buffers by name, inputs by name) -> value ``(B, m)``."""


class Untraceable(Exception):
    """Why a module is not compiled."""


class GeneralCompiler:
    """Measures a module by one compiled graph per set of shapes; eagerly, for good, as soon as anything fails.

    Args:
        module: the student.
        function: its value with the head, as a function of its tensors too.

    Attributes:
        failure: why it fell back, or empty.
    """

    def __init__(self, module: nn.Module, function: Function) -> None:
        self.module, self.function = module, function
        self.failure = ""
        self._made: dict[Any, _Compiled] = {}
        self._structure = Structure(module)

    def reason_against(self, points: Points, probe: Probe, detached: frozenset[Key], steps: int) -> str:
        """Return why a run does not compile this measurement, or nothing where it does.

        Compiling saves about 7 us per elementary operation and step (measured at batch 64, and more with larger ones),
        and takes about 20 s and 0.1 s per operation. Seen are structure, shapes and the number of steps, never timing.
        """
        device = next(iter(points.inputs.values())).device
        if device.type not in DEVICES:
            return f"not compiled on {device.type}: not measured there"
        if steps * _SAVED_PER_OPERATION <= _SECONDS_PER_OPERATION:  # no number of operations would make it worth it
            return f"not compiled: {steps:,} steps are too few"
        try:
            operations = len(_trace(self.function, _Inputs(self.module, points, probe), detached).graph.nodes)
        except Exception as error:  # tracing fails in as many ways as there are modules
            return f"not compiled: {_first_line(error)}"
        saved, spent = steps * operations * _SAVED_PER_OPERATION, _SECONDS + _SECONDS_PER_OPERATION * operations
        if saved < spent:
            return f"not compiled: {steps:,} steps would save about {saved:.2g} s, compiling takes about {spent:.2g}"
        missing = missing_compiler(device)
        return f"not compiled: {missing}" if missing else ""

    def __call__(self, points: Points, probe: Probe, detached: frozenset[Key]) -> Jet:
        """Return the jet, with graph, detached where asked."""
        if not self.failure and not self._structure.current(modes=False):
            self.failure = "layers, attributes or hooks of the module changed since it was traced"
        if self.failure:
            return self._eagerly(points, probe, detached)
        inputs = _Inputs(self.module, points, probe)
        key = (inputs.shapes, detached, *(layer.training for layer in self.module.modules()))
        made = self._made.get(key)
        if made is None and len(self._made) >= _SHAPES:
            return self._eagerly(points, probe, detached)
        try:
            with without_warnings() if made is None else nullcontext():
                if made is None:
                    made = self._made[key] = _Compiled(self.function, inputs, detached)
                made.calls += 1
                if made.calls in _CHECKED:
                    parameters = list(self.module.parameters())
                    _compare(made(inputs), self._eagerly(points, probe, detached), parameters)
            return made(inputs)
        except Exception as error:  # compilers fail in many ways, and none of them may stop a run
            self.failure = f"not compiled: {_first_line(error)}"
            return self._eagerly(points, probe, detached)

    def _eagerly(self, points: Points, probe: Probe, detached: frozenset[Key]) -> Jet:
        tensors = _tensors(self.module)
        return differentiate(lambda inputs: self.function(tensors, inputs), points, probe, True, detached)


_CHECKED = frozenset(10**i for i in range(12))


class _Inputs:
    """What a measurement depends on, as a flat list of tensors.

    Attributes:
        flat: parameters and buffers, inputs, vectors of the probe.
        shapes: of all of them, with strides, types and whether they are trained, and what the probe asks.
    """

    def __init__(self, module: nn.Module, points: Points, probe: Probe) -> None:
        tensors = _tensors(module)
        self.names, self.points, self.probe = list(tensors), points, probe
        vectors = [v for c in probe.contractions.values() for v in (c.output, *c.inputs) if v is not None]
        self.flat = [*tensors.values(), *(t.detach() for t in points.inputs.values()), *vectors]
        asked = tuple((key, c.output is None, *(v is None for v in c.inputs)) for key, c in probe.contractions.items())
        self.shapes = (asked, *((t.shape, t.stride(), t.dtype, t.requires_grad) for t in self.flat))

    def nested(self, flat: Sequence[Tensor]) -> tuple[dict[str, Tensor], Points, Probe]:
        """Return tensors, points and probe with other numbers."""
        left = iter(flat)
        tensors = {name: next(left) for name in self.names}
        points = replace(self.points, inputs={name: next(left) for name in self.points.inputs})

        def like(vector: Tensor | None) -> Tensor | None:
            return None if vector is None else next(left)

        contractions = {}
        for key, c in self.probe.contractions.items():
            output = like(c.output)
            contractions[key] = Contraction(output, tuple(like(v) for v in c.inputs))
        return tensors, points, Probe(contractions)


class _Compiled:
    """One measurement for one set of shapes."""

    def __init__(self, function: Function, inputs: _Inputs, detached: frozenset[Key]) -> None:
        from torch._functorch import config
        from torch._functorch.aot_autograd import aot_function
        from torch._functorch.partitioners import min_cut_rematerialization_partition
        from torch._inductor.compile_fx import compile_fx_inner
        from torch._inductor.decomposition import select_decomp_table

        graph = _trace(function, inputs, detached)
        # For the whole process, as torch reads it in every backward pass: otherwise no graph could be kept for a second
        # backward pass, which uncompiled measurements allow.
        config.donated_buffer = False
        self.calls = 0
        self._keys = (VALUE, *inputs.probe.keys)
        self._call = aot_function(
            lambda *flat: graph(*flat),
            fw_compiler=compile_fx_inner,
            bw_compiler=compile_fx_inner,
            partition_fn=min_cut_rematerialization_partition,
            decompositions=select_decomp_table(),
        )

    def __call__(self, inputs: _Inputs) -> Jet:
        value, *derivatives = self._call(*inputs.flat)
        return Jet(value, dict(zip(self._keys[1:], derivatives, strict=True)))


def _trace(function: Function, inputs: _Inputs, detached: frozenset[Key]) -> torch.fx.GraphModule:
    """Return the measurement as elementary operations, a function of ``inputs.flat``.

    Raises:
        Untraceable: random numbers, tensors that are written to, too many operations.
    """
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    # Backward formulas read what the forward pass saved, and autograd saves it detached. Among these forms is that of
    # detach, as nothing: so the trace depends on it as the formulas mean it. A detach of the module's own is lost as
    # well, which the comparison finds. Changes of type stay whole: their parts have no derivative.
    written_out = {op: form for op, form in select_decomp_table().items() if op is not torch.ops.aten._to_copy.default}

    def measured(*flat: Tensor) -> list[Tensor]:
        tensors, points, probe = inputs.nested(flat)
        jet = differentiate(lambda found: function(tensors, found), points, probe, True, detached)
        return [jet.value, *(jet[key] for key in probe.keys)]

    examples = [t.detach().requires_grad_(t.requires_grad) for t in inputs.flat]
    graph = make_fx(measured, decomposition_table=written_out, tracing_mode="fake")(*examples)
    _hold(graph.graph, [key in detached for key in (VALUE, *inputs.probe.keys)])
    graph.graph.eliminate_dead_code()
    graph.recompile()
    if len(graph.graph.nodes) > _OPERATIONS:
        raise Untraceable(f"{len(graph.graph.nodes):,} operations are too many")
    for node in graph.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            raise Untraceable(f"it draws random numbers ({node.target})")
        given = [a for a in node.args if isinstance(a, torch.fx.Node) and a.op in ("placeholder", "get_attr")]
        if node.target._schema.is_mutable and given:
            raise Untraceable(f"it writes to its own tensors ({node.target})")
    return graph


def _hold(graph: torch.fx.Graph, held: Sequence[bool]) -> None:
    """Detach some of the outputs; what the trace itself detaches is lost in it."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    with graph.inserting_before(output):
        detach = torch.ops.aten.detach.default
        made = [graph.call_function(detach, (n,)) if h else n for n, h in zip(output.args[0], held, strict=True)]
    output.args = (made,)


def _compare(jet: Jet, reference: Jet, parameters: Sequence[Tensor]) -> None:
    """Raise `Disagreement` where values, derivatives or parameter gradients differ; uses up both graphs."""
    names = [name for name in (VALUE, *reference.derivatives)]
    for name in names:
        _agree(jet[name].detach(), reference[name].detach(), 0.0, "values" if name == VALUE else "derivatives")
    differentiated = [p for p in parameters if p.requires_grad]
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.randn(reference[name].shape, generator=generator, device="cpu").to(reference[name]) for name in names
    ]
    found, expected = (
        torch.autograd.grad(
            [j[name] for name in names if j[name].requires_grad],
            differentiated,
            [w for name, w in zip(names, weights, strict=True) if j[name].requires_grad],
            materialize_grads=True,
            allow_unused=True,
        )
        for j in (jet, reference)
    )
    size = float(torch.stack([e.double().norm() for e in expected]).norm())
    for one, other in zip(found, expected, strict=True):
        _agree(one, other, 1e-2 * size, "parameter gradients")


def _agree(found: Tensor, expected: Tensor, size: float, what: str) -> None:
    tolerance = TOLERANCE.get(expected.dtype, 1e-4)
    error = float((found.double() - expected.double()).norm())
    if not error <= tolerance * max(size, float(expected.double().norm())) + 1e-12:
        raise Disagreement(f"{what} differ from the eager ones by {error:.1e}")


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _first_line(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    shown = f"{type(error).__name__}: {first}" if not isinstance(error, Untraceable | Disagreement) else first
    return shown[:200]
