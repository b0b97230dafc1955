"""Full derivatives under a memory bound: nothing is kept for the backward pass, which computes them again in pieces.

Differentiating in pieces with a graph would save nothing, because the graph of every piece stays until the backward
pass. Here the forward pass keeps no graph, and the backward pass builds that of one piece at a time: the same numbers
for about twice the time of the derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sobolev.vocabulary import VALUE, Contraction, Jet, Key, Points, Probe

Measure = Callable[[Points, Probe, bool], Jet]
"""(points, probe, create_graph) -> jet, without any bound."""
Precision = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Pieces:
    """Into which pieces a measurement is cut.

    Attributes:
        rows: samples per piece.
        outputs: components of the value whose derivatives are taken at once.
    """

    rows: int
    outputs: int


def pieces(bound: int, kept: int, sample: int, component: int, batch: int, outputs: int) -> Pieces | None:
    """Return how to cut a measurement, or None where it fits as a whole.

    Args:
        bound: bytes that may be used.
        kept: bytes of the derivatives themselves, which are there twice in the backward pass (with their cotangents).
        sample: bytes that the graph of one sample's value keeps.
        component: bytes that the graph of one component's derivative of one sample keeps.
        batch: samples.
        outputs: components of the value.
    """
    left = max(0, bound - 2 * kept)
    whole = sample + outputs * component
    if batch * whole <= left:
        return None
    if whole <= left:
        return Pieces(max(1, left // whole), outputs)
    return Pieces(1, max(1, min(outputs, (left - sample) // max(1, component))))


class _Work:
    """The pieces of one measurement, with the random state that each sample range began with."""

    def __init__(
        self, measure: Measure, precision: Precision, points: Points, probe: Probe, outputs: int, cut: Pieces
    ) -> None:
        self.measure, self.precision = measure, precision
        self.points, self.probe, self.outputs, self.cut = points, probe, outputs, cut
        self.states: list[Any] = []

    @property
    def keys(self) -> tuple[Key, ...]:
        """The keys, in the order in which results come."""
        return self.probe.keys

    def ranges(self) -> Iterator[slice]:
        """Return the sample ranges."""
        for start in range(0, len(self.points), self.cut.rows):
            yield slice(start, min(start + self.cut.rows, len(self.points)))

    def components(self) -> Iterator[slice]:
        """Return the ranges of outputs."""
        for start in range(0, self.outputs, self.cut.outputs):
            yield slice(start, min(start + self.cut.outputs, self.outputs))

    def of(self, rows: slice, components: slice) -> tuple[Points, Probe]:
        """Return points and probe of one piece; full derivatives become those of unit vectors at the outputs."""
        points = replace(
            self.points,
            inputs={name: tensor[rows] for name, tensor in self.points.inputs.items()},
            index=self.points.index[rows],
            weight=None,
            known={},
        )
        contractions = {}
        for key, contraction in self.probe.contractions.items():
            if not contraction.full:
                if components.start == 0:
                    contractions[key] = _rows_of(contraction, rows)
            elif components.stop - components.start == self.outputs:
                contractions[key] = contraction
            else:
                like = points.inputs[key[0]]
                unit = torch.eye(self.outputs, dtype=like.dtype, device=like.device)[components]
                contractions[key] = Contraction(unit.expand(len(points), -1, -1), contraction.inputs)
        return points, Probe(contractions)


def _rows_of(contraction: Contraction, rows: slice) -> Contraction:
    output = None if contraction.output is None else contraction.output[rows]
    return Contraction(output, tuple(None if v is None else v[rows] for v in contraction.inputs))


class _Recomputed(torch.autograd.Function):
    """Value and derivatives without graph; differentiable by the parameters alone."""

    @staticmethod
    def forward(ctx: Any, work: _Work, detached: frozenset[Key], *parameters: Tensor) -> tuple[Tensor, ...]:
        """Return the value and the derivatives in the order of the probe's keys."""
        ctx.set_materialize_grads(False)
        ctx.work, ctx.detached = work, detached
        ctx.save_for_backward(*parameters)
        filled: dict[Key, Tensor] = {}  # made once and filled: lists that are joined would take twice the memory
        for rows in work.ranges():
            work.states.append(_random_state(work.points))
            for components in work.components():
                if components.start:
                    _restore(work.states[-1])  # the same dropout masks for all components of a sample
                jet = work.measure(*work.of(rows, components), False)
                if not components.start:
                    _fill(filled, VALUE, jet.value, work, rows, None)
                for key, tensor in jet.derivatives.items():
                    full = work.probe.contractions[key].full
                    _fill(filled, key, tensor, work, rows, components if full else None)
        results = (filled[VALUE], *(filled[key] for key in work.keys))
        ctx.mark_non_differentiable(*(t for t, key in zip(results[1:], work.keys, strict=True) if key in detached))
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of the parameters, summed over the pieces."""
        work: _Work = ctx.work
        with work.precision():
            return None, None, *_gradients(work, ctx.detached, ctx.saved_tensors, cotangents)


def _gradients(
    work: _Work, detached: frozenset[Key], parameters: Sequence[Tensor], cotangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Return the gradients of the parameters, summed over the pieces."""
    total: list[Tensor | None] = [None] * len(parameters)
    wanted = [i for i, p in enumerate(parameters) if p.requires_grad]
    of_value, of_key = cotangents[0], dict(zip(work.keys, cotangents[1:], strict=True))
    here = _random_state(work.points)
    for rows, state in zip(work.ranges(), work.states, strict=True):
        for components in work.components():
            _restore(state)
            points, probe = work.of(rows, components)
            asked = {k: c for k, c in probe.contractions.items() if of_key[k] is not None and k not in detached}
            jet = work.measure(points, Probe(asked), True)
            pairs = [] if of_value is None or components.start else [(jet.value, of_value[rows])]
            for key in asked:
                cotangent = of_key[key]
                assert cotangent is not None
                full = work.probe.contractions[key].full
                pairs.append((jet[key], cotangent[rows, components] if full else cotangent[rows]))
            pairs = [(result, cotangent) for result, cotangent in pairs if result.requires_grad]
            if not pairs:
                continue
            found = torch.autograd.grad(
                [result for result, _ in pairs],
                [parameters[i] for i in wanted],
                [cotangent for _, cotangent in pairs],
                allow_unused=True,
            )
            for i, gradient in zip(wanted, found, strict=True):
                if gradient is not None:
                    before = total[i]
                    total[i] = gradient if before is None else before + gradient
    _restore(here)
    return total


def _fill(
    filled: dict[Key, Tensor], key: Key, part: Tensor, work: _Work, rows: slice, components: slice | None
) -> None:
    """Copy a piece to its place in the whole."""
    whole = filled.get(key)
    if whole is None:
        inner = part.shape[1:] if components is None else (work.outputs, *part.shape[2:])
        whole = filled[key] = part.new_empty(len(work.points), *inner)
    if components is None:
        whole[rows] = part
    else:
        whole[rows, components] = part


def recomputed(
    measure: Measure,
    precision: Precision,
    module: nn.Module,
    points: Points,
    probe: Probe,
    outputs: int,
    cut: Pieces,
    detached: frozenset[Key] = frozenset(),
) -> Jet:
    """Return what ``measure`` returns, with parameter gradients that are computed again, piece by piece.

    Args:
        measure: measures points and probe as a whole.
        precision: the context of the call, in which the backward pass computes again, wherever it is called.
        module: what is measured; its samples must be independent.
        points: where.
        probe: what is asked.
        outputs: m, components of the value.
        cut: the pieces.
        detached: keys without graph.
    """
    work = _Work(measure, precision, points, probe, outputs, cut)
    apply: Callable[..., tuple[Tensor, ...]] = _Recomputed.apply
    value, *derivatives = apply(work, detached, *module.parameters())
    return Jet(value, dict(zip(probe.keys, derivatives, strict=True)))


def graph_bytes(module: nn.Module, compute: Callable[[], object]) -> int:
    """Return the bytes that autograd saves while something is computed, without parameters."""
    known = {p.untyped_storage().data_ptr() for p in (*module.parameters(), *module.buffers())}
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            total += storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = compute()
    del kept
    return total


def _random_state(points: Points) -> Any:
    device = points.index.device if points.index.is_cuda else next(iter(points.inputs.values())).device
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None, device


def _restore(state: Any) -> None:
    cpu, cuda, device = state
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda, device)
