"""Compilation of the passes: where it pays by rule, checked against the eager passes, eager where anything fails.

A stage is traced for the shapes and strides that it is called with, small matrix products are written out so that they
fuse with their neighbours, and torch's Inductor compiles the rest. Nothing is differentiated in what is compiled.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sobolev.differentiate import operations as ops
from sobolev.differentiate.program import Program
from sobolev.differentiate.stages import run_eagerly

SECONDS = 30.0
"""Saved time, by the estimate below, from which a run compiles: what compiling takes on one core, with a margin."""
_SAVED_PER_STEP = 2e-4
"""Of dispatch; measured on CPUs, and on an H200 (0.15 to 0.6 ms there)."""
_SAVED_PER_NUMBER = 6e-9
_SHAPES = 24
"""Sets of shapes that are compiled at most, over all stages; what comes later runs eagerly."""
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
_FUSED = (ops.Linear, ops.Elementwise, ops.Flatten, ops.Identity, ops.Scale)
_aten = torch.ops.aten


def reason_against(program: Program, numbers: int, rows: int, steps: int, device: torch.device) -> str:
    """Return why the passes of a run are not compiled, or nothing where they are.

    The rule looks at structure, shapes and the number of steps, never at timing: a network of fully connected layers
    and element-wise functions, on a CPU with a C++ compiler or on CUDA with Triton, and enough steps. Compiling saves
    about 200 us per step (dispatch) and, on a CPU, 6 ns per number that the layers hold (memory traffic); that must add
    up to 30 s.

    Args:
        program: the network.
        numbers: values per sample over all its layers.
        rows: batch size.
        steps: of the run, see `Policy`.
        device: where it runs.
    """
    if device.type not in DEVICES:
        return f"not compiled on {device.type}: not measured there"
    for node in program.nodes:
        if node.operation is not None and not isinstance(node.operation, _FUSED):
            return f"not compiled: {type(node.operation).__name__} gains nothing from it"
    per_number = _SAVED_PER_NUMBER if device.type == "cpu" else 0.0
    saved = steps * (_SAVED_PER_STEP + per_number * rows * numbers)
    if saved < SECONDS:
        return f"not compiled: {steps} steps would save about {saved:.2g} s, compiling takes about {SECONDS:.0f}"
    missing = missing_compiler(device)
    return f"not compiled: {missing}" if missing else ""


DEVICES = ("cpu", "cuda")
"""Where compiling was measured."""


def missing_compiler(device: torch.device) -> str:
    """Return what Inductor lacks on a device, or nothing: a C++ compiler on a CPU, Triton on CUDA."""
    if device.type == "cuda":
        new = torch.cuda.get_device_capability(device) >= (7, 0)  # what Triton needs
        return "" if new and importlib.util.find_spec("triton") else "there is no Triton for this device"
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        found = bool(get_cpp_compiler())
    except Exception:  # whatever is wrong with the compiler, the eager passes remain
        found = False
    return "" if found else "there is no C++ compiler"


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence the compiler's imports, which warn about torch's own old parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _Kept:
    """Tensors that one compiled stage leaves for another, with the form in which the stages know them."""

    __slots__ = ("form", "tensors")

    def __init__(self, tensors: list[Tensor], form: _Form) -> None:
        self.tensors, self.form = tensors, form


class _Form:
    """The nesting of a value: a number for a tensor's place in a flat list, anything else as it is."""

    __slots__ = ("nested",)

    def __init__(self, nested: Any) -> None:
        self.nested = nested


class _Place(int):
    """Position of a tensor in a flat list."""


def _flatten(value: Any, flat: list[Tensor]) -> Any:
    """Append the tensors of a nested value to ``flat``; return its form."""
    if isinstance(value, Tensor):
        flat.append(value)
        return _Place(len(flat) - 1)
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return tuple(_flatten(part, flat) for part in value)
    return value


def _nest(form: Any, flat: Sequence[Tensor], start: int = 0) -> Any:
    """Undo `_flatten`."""
    if isinstance(form, _Place):
        return flat[start + form]
    if isinstance(form, tuple) and not isinstance(form, torch.Size):
        return [_nest(part, flat, start) for part in form]
    return form


class Compiler:
    """Runs stages compiled; falls back to the eager ones, for good, as soon as anything fails.

    Attributes:
        failure: why it fell back, or empty.
        stages: names of the stages that were compiled, once per set of shapes.
    """

    def __init__(self) -> None:
        self.failure = ""
        self.stages: list[str] = []
        self._made: dict[Any, _Compiled] = {}

    def __call__(self, name: str, stage: Callable[..., Any], *arguments: Any) -> Any:
        """Return ``stage(*arguments)``; nested parts of a result come in a form that only other stages read."""
        if self.failure:
            return run_eagerly(name, stage, *(_opened(a) for a in arguments))
        flat: list[Tensor] = []
        forms: list[Any] = []
        shapes: list[Any] = []
        for argument in arguments:
            if isinstance(argument, _Kept):
                flat += argument.tensors
                forms.append(argument.form)
                continue
            start = len(flat)
            forms.append(_flatten(argument, flat))
            shapes += [(t.shape, t.stride(), t.dtype) for t in flat[start:]]
        key = (name, *forms, *shapes)
        made = self._made.get(key)
        if made is None and len(self._made) >= _SHAPES:
            return run_eagerly(name, stage, *(_opened(a) for a in arguments))
        if made is None:
            try:
                with without_warnings():
                    made = self._made[key] = _Compiled(stage, arguments, flat)
                self.stages.append(name)
            except Exception as error:  # compilers fail in many ways, and none of them may stop a run
                first = str(error).strip().partition("\n")[0]
                self.failure = f"{name} could not be compiled ({type(error).__name__}: {first[:200]})"
                return run_eagerly(name, stage, *(_opened(a) for a in arguments))
        return made(flat)


def _opened(argument: Any) -> Any:
    return _nest(argument.form.nested, argument.tensors) if isinstance(argument, _Kept) else argument


class Disagreement(Exception):
    """A compiled stage gave other numbers than the eager one."""


class _Compiled:
    """One stage for one set of shapes."""

    def __init__(self, stage: Callable[..., Any], arguments: Sequence[Any], flat: list[Tensor]) -> None:
        from torch._inductor.compile_fx import compile_fx_inner
        from torch.fx.experimental.proxy_tensor import make_fx

        nests = _nesting(arguments)
        examples = [t.detach() for t in flat]
        results: list[Any] = []

        def flattened(*tensors: Tensor) -> list[Tensor]:
            out = stage(*nests(tensors))
            found: list[Tensor] = []
            results[:] = [_flatten(out, found)]
            return found

        with torch.no_grad():
            graph = make_fx(flattened, decomposition_table=_written_out(), tracing_mode="fake")(*examples)
            self._outputs(graph, results[0])
            graph.graph.eliminate_dead_code()
            graph.recompile()
            self._call: Any = compile_fx_inner(graph, [*examples])
            self._compare(stage(*nests(examples)), examples)

    def _outputs(self, graph: torch.fx.GraphModule, form: Any) -> None:
        """Leave out of the graph what it merely hands through, and remember where everything comes from."""
        inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
        (output,) = (node for node in graph.graph.nodes if node.op == "output")
        computed: list[Any] = []
        self._places: list[tuple[bool, int]] = []
        for node in output.args[0]:
            if node in inputs:
                self._places.append((True, inputs.index(node)))
                continue
            if node not in computed:
                computed.append(node)
            self._places.append((False, computed.index(node)))
        output.args = (computed,)
        self._results: list[Any] = []
        top = form if isinstance(form, tuple) else (form,)
        for part in top:
            if isinstance(part, tuple):
                places = _places_of(part)
                shifted = _renumbered(part, {place: i for i, place in enumerate(places)})
                self._results.append((places, _Form(shifted)))
            else:
                self._results.append(part)

    def __call__(self, flat: list[Tensor]) -> tuple[Any, ...]:
        computed = self._call([*flat])  # it empties the list
        found = [flat[i] if given else computed[i] for given, i in self._places]
        return tuple(
            _Kept([found[place] for place in part[0]], part[1])
            if isinstance(part, tuple)
            else (found[part] if isinstance(part, _Place) else part)
            for part in self._results
        )

    def _compare(self, expected: Any, flat: list[Tensor]) -> None:
        wanted: list[Tensor] = []
        _flatten(expected, wanted)
        computed = self._call([*flat])
        for (given, i), reference in zip(self._places, wanted, strict=True):
            if given:
                continue
            tolerance = TOLERANCE.get(reference.dtype, 1e-4)
            size = reference.double().norm()
            error = (computed[i].double() - reference.double()).norm()
            if not error <= tolerance * size + 1e-12:
                raise Disagreement(f"relative error {float(error / size):.1e} against the eager pass")


def _nesting(arguments: Sequence[Any]) -> Callable[[Sequence[Tensor]], list[Any]]:
    """Return a function that gives flat tensors the nesting of ``arguments``."""
    forms: list[tuple[int, Any]] = []
    start = 0
    for argument in arguments:
        if isinstance(argument, _Kept):
            forms.append((start, argument.form.nested))
            start += len(argument.tensors)
        else:
            own: list[Tensor] = []
            forms.append((start, _flatten(argument, own)))
            start += len(own)
    return lambda flat: [_nest(form, flat, first) for first, form in forms]


def _places_of(form: Any) -> list[_Place]:
    if isinstance(form, _Place):
        return [form]
    if isinstance(form, tuple) and not isinstance(form, torch.Size):
        return [place for part in form for place in _places_of(part)]
    return []


def _renumbered(form: Any, numbers: dict[_Place, int]) -> Any:
    if isinstance(form, _Place):
        return _Place(numbers[form])
    if isinstance(form, tuple) and not isinstance(form, torch.Size):
        return tuple(_renumbered(part, numbers) for part in form)
    return form


_SMALL = 4


def _mm(a: Tensor, b: Tensor) -> Any:
    """A product with very few terms, columns or rows as element-wise work, which fuses with its neighbours."""
    if a.shape[1] <= _SMALL:
        total = a[:, :1] * b[:1]
        for i in range(1, a.shape[1]):
            total = total + a[:, i : i + 1] * b[i : i + 1]
        return total
    if b.shape[1] == 1:
        return (a * b[:, 0]).sum(1, keepdim=True)
    return NotImplemented


def _addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    if beta != 1 or alpha != 1:
        return NotImplemented
    product = _mm(a, b)
    return product if product is NotImplemented else c + product


def _tanh(a: Tensor) -> Any:
    """Hyperbolic tangent to a few units in the last place of float32, from one exponential."""
    if a.dtype != torch.float32:
        return NotImplemented
    s = a * a
    series = a + a * s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835))))
    return torch.where(a.abs() < 0.25, series, 1 - 2 / (torch.exp(2 * a) + 1))


def _written_out() -> dict[Any, Callable[..., Any]]:
    from torch._inductor.decomposition import select_decomp_table

    return {
        **select_decomp_table(),
        _aten.mm.default: _mm,
        _aten.addmm.default: _addmm,
        _aten.tanh.default: _tanh,
    }
