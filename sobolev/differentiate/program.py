"""Recognition of networks: a module becomes a list of operations, or a reason why it does not."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from sobolev.differentiate import operations as ops
from sobolev.differentiate.elementwise import activation_of, activation_of_function
from sobolev.differentiate.operations import Operation
from sobolev.differentiate.structure import Structure, hooks_everywhere
from sobolev.scaling import Restore, Scaling, Standardise

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_FRESH = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _Tracer(fx.Tracer):
    """Sees layers of scaling whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Scaling) or super().is_leaf_module(m, module_qualified_name)


class Unrecognised(Exception):
    """Why a module is not a program."""


@dataclass(frozen=True)
class Node:
    """One operation, or a sum of two nodes where ``operation`` is None.

    Attributes:
        operation: what is applied.
        sources: numbers of the nodes that it reads; 0 is the input of the network, node i of the list is i + 1.
    """

    operation: Operation | None
    sources: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Program:
    """A network as operations in the order of their execution; the last node is the output.

    Attributes:
        nodes: the operations.
        sources: parameters and buffers that they read, as (layer, name): a layer's tensor may be replaced at any time.
        curved: whether any operation is other than piecewise linear.
        random: whether any operation draws random numbers.
        structure: of the module, as it was recognised.
        values, adjoints, tangents: numbers of the nodes whose values and so on a parameter gradient needs.
        first: number of the first node that has parameters.
    """

    nodes: tuple[Node, ...]
    sources: tuple[tuple[nn.Module, str], ...]
    curved: bool
    random: bool
    structure: Structure
    values: frozenset[int]
    adjoints: frozenset[int]
    tangents: frozenset[int]
    first: int

    @property
    def tensors(self) -> list[Tensor]:
        """The present parameters and buffers."""
        return [
            layer._parameters[name] if name in layer._parameters else layer._buffers[name]  # type: ignore[misc]
            for layer, name in self.sources
        ]

    @property
    def current(self) -> bool:
        """Whether the module is still what was recognised, in the same mode; its tensors may be others."""
        return self.structure.current()

    def widths(self, x: Tensor) -> list[int]:
        """Return the numbers per sample of the input and of every node, from a pass over ``x``."""
        present, tensors = [x], self.tensors
        for node in self.nodes:
            read = [present[i] for i in node.sources]
            if node.operation is None:
                present.append(read[0] + read[1])
            else:
                present.append(node.operation.value(read[0], [tensors[i] for i in node.operation.tensors])[0])
        return [math.prod(value.shape[1:]) for value in present]


def recognise(module: nn.Module) -> Program:
    """Return the program of a module with one input.

    Known are Linear, Conv1d-3d, element-wise activations, fixed scaling, Flatten, Dropout, average and maximum pooling
    of images, BatchNorm in eval mode, and sums of two branches.

    Raises:
        Unrecognised: anything else, a layer that is used twice, hooks, parametrisations.
    """
    _check_hooks(module)
    root = nn.Sequential(module)
    try:
        graph = _Tracer().trace(root)
    except Exception as error:
        # Whatever a forward does that tracing refuses (control flow on values, other libraries) is not a program.
        raise Unrecognised(f"its forward cannot be traced: {type(error).__name__}: {error}") from error
    return _Builder(root, graph).build(Structure(module))


def _check_hooks(module: nn.Module) -> None:
    if hooks_everywhere():
        raise Unrecognised("all modules have hooks")
    seen: dict[int, str] = {}
    for name, layer in module.named_modules(remove_duplicate=False):
        if any(getattr(layer, hooks, None) for hooks in HOOKS):
            raise Unrecognised(f"layer {name!r} has hooks")
        if "forward" in vars(layer):
            raise Unrecognised(f"the forward of layer {name!r} is replaced on the instance")
        for tensor_name, tensor in layer.named_parameters(recurse=False):
            where = f"{name}.{tensor_name}"
            if seen.setdefault(id(tensor), where) != where:
                raise Unrecognised(f"parameter {where!r} is shared with {seen[id(tensor)]!r}")
            if type(tensor) is not nn.Parameter:
                raise Unrecognised(f"parameter {where!r} is a {type(tensor).__name__}")


class _Builder:
    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self.root, self.graph = root, graph
        self.modules = dict(root.named_modules())
        self.nodes: list[Node] = []
        self.tensors: list[tuple[nn.Module, str]] = []
        self.numbers: dict[fx.Node, int] = {}
        self.used: set[str] = set()

    def build(self, structure: Structure) -> Program:
        result: int | None = None
        for node in self.graph.nodes:
            if node.op == "placeholder":
                if self.numbers:
                    raise Unrecognised("it has several inputs")
                self.numbers[node] = 0
            elif node.op == "call_module":
                self._module(node)
            elif node.op in ("call_function", "call_method"):
                self._function(node)
            elif node.op == "output":
                if not isinstance(node.args[0], fx.Node):
                    raise Unrecognised("it returns something other than one tensor")
                result = self.numbers[node.args[0]]
            else:
                raise Unrecognised(f"it reads the attribute {node.target!r} directly")
        if not self.nodes or result != len(self.nodes):
            raise Unrecognised("its output is not the last operation")
        if any(not node.users for node in self.numbers):
            raise Unrecognised("it computes something that its output does not use")
        made = [(i, node.operation, node.sources) for i, node in enumerate(self.nodes, 1) if node.operation is not None]
        with_tensors = [(i, sources) for i, operation, sources in made if operation.tensors]
        curved = [(i, sources) for i, operation, sources in made if operation.curved]
        if not with_tensors:
            raise Unrecognised("it has no parameters")
        values = frozenset(source for _, sources in with_tensors for source in sources)
        return Program(
            tuple(self.nodes),
            tuple(self.tensors),
            curved=bool(curved),
            random=any(isinstance(operation, ops.Dropout) for _, operation, _ in made),
            structure=structure,
            values=values,
            adjoints=frozenset(i for i, _ in with_tensors + curved),
            tangents=values | frozenset(source for _, sources in curved for source in sources),
            first=with_tensors[0][0],
        )

    def _add(self, node: fx.Node, operation: Operation | None, *sources: Any) -> None:
        numbers = []
        for source in sources:
            if not isinstance(source, fx.Node):
                raise Unrecognised(f"{node.target!r} combines a tensor with {source!r}")
            numbers.append(self.numbers[source])
        self.nodes.append(Node(operation, tuple(numbers)))
        self.numbers[node] = len(self.nodes)

    def _module(self, node: fx.Node) -> None:
        name = str(node.target)
        layer = self.modules[name]
        shown = f"layer {name.removeprefix('0.')!r} ({type(layer).__name__})"
        if name in self.used:
            raise Unrecognised(f"{shown} is called twice")
        self.used.add(name)
        if len(node.args) != 1 or node.kwargs:
            raise Unrecognised(f"{shown} is called with several arguments")
        if getattr(layer, "inplace", False):
            self._check_in_place(node, shown, node.args[0])
        operation = self._operation(layer)
        if operation is None:
            raise Unrecognised(f"{shown} is not one of the known layers")
        self._add(node, operation, node.args[0])

    def _check_in_place(self, node: fx.Node, shown: str, source: Any) -> None:
        # Overwriting its input changes nothing for the result if that was made for it and nobody else reads it.
        fresh = isinstance(source, fx.Node) and (
            source.target in (operator.add, operator.iadd, torch.add)
            or (source.op == "call_module" and isinstance(self.modules[str(source.target)], _FRESH))
        )
        if not fresh or len(source.users) != 1:
            raise Unrecognised(f"{shown} works in place on a tensor that others may read")

    def _keep(self, layer: nn.Module, *names: str) -> tuple[int, ...]:
        present = [(layer, name) for name in names if getattr(layer, name) is not None]
        self.tensors += present
        return tuple(range(len(self.tensors) - len(present), len(self.tensors)))

    def _operation(self, layer: nn.Module) -> Operation | None:
        activation = activation_of(layer)
        if activation is not None:
            return ops.Elementwise(activation)
        kind: type[nn.Module] = type(layer)
        if kind is nn.Identity:
            return ops.Identity()
        if kind in (Standardise, Restore):
            return ops.Scale(kind is Restore, tensors=self._keep(layer, "mean", "deviation"))
        if kind is nn.Linear:
            return ops.Linear(tensors=self._keep(layer, "weight", "bias"))
        if kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
            return self._convolution(layer)
        if isinstance(layer, nn.Flatten) and layer.start_dim == 1 and layer.end_dim == -1:
            return ops.Flatten()
        if isinstance(layer, nn.Dropout) and kind is nn.Dropout:
            return ops.Dropout(layer.p) if layer.training and layer.p > 0 else ops.Identity()
        if kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            return self._norm(layer)
        return self._pool(layer)

    def _convolution(self, layer: Any) -> Operation:
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise Unrecognised(f"padding {layer.padding!r}, {layer.padding_mode!r} of {type(layer).__name__}")
        return ops.Convolution(
            list(layer.stride),
            list(layer.padding),
            list(layer.dilation),
            layer.groups,
            tensors=self._keep(layer, "weight", "bias"),
        )

    def _norm(self, layer: Any) -> Operation:
        if layer.training or layer.running_mean is None:
            raise Unrecognised(f"{type(layer).__name__} with the statistics of the batch couples its samples")
        return ops.FrozenNorm(layer.eps, tensors=self._keep(layer, "running_mean", "running_var", "weight", "bias"))

    def _pool(self, layer: Any) -> Operation | None:
        kind = type(layer)
        if kind is nn.AvgPool2d:
            return ops.AveragePool(
                _two(layer.kernel_size),
                _two(layer.stride),
                _two(layer.padding),
                layer.ceil_mode,
                layer.count_include_pad,
                layer.divisor_override,
            )
        if kind is nn.AdaptiveAvgPool2d and layer.output_size in (1, (1, 1)):
            return ops.GlobalAverage()
        if kind is nn.MaxPool2d and not layer.return_indices:
            return ops.MaxPool(
                _two(layer.kernel_size), _two(layer.stride), _two(layer.padding), _two(layer.dilation), layer.ceil_mode
            )
        return None

    def _function(self, node: fx.Node) -> None:
        activation = activation_of_function(node.target)
        if activation is not None and len(node.args) == 1 and not any(node.kwargs.values()):
            self._add(node, ops.Elementwise(activation), node.args[0])
        elif node.target is operator.iadd and len(node.args) == 2:
            self._check_in_place(node, "+=", node.args[0])
            self._add(node, None, *node.args)
        elif node.target in (operator.add, torch.add) and len(node.args) == 2 and not node.kwargs:
            self._add(node, None, *node.args)
        elif node.target in (torch.flatten, "flatten") and node.args[1:] == (1,) and not node.kwargs:
            self._add(node, ops.Flatten(), node.args[0])
        else:
            name = getattr(node.target, "__name__", node.target)
            raise Unrecognised(f"it calls {name!r}, which is not one of the known functions")


def _two(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value, value]
