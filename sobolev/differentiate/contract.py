"""Contraction of derivatives that are already there (recorded, cached, by finite differences) with a probe."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from sobolev.errors import ComponentError
from sobolev.vocabulary import Contraction, Key, Points, Probe, key_name

_SLOTS = "pqrstuvwxyz"


def contract(derivative: Tensor, contraction: Contraction, known: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Contract a stored derivative ``(B, m, *x1, ..., *xK)`` as a probe asks.

    A component of the result is known if every entry that enters it with a vector component other than 0 is known,
    and if no vector that it is contracted with is 0 throughout (then nothing was asked). Missing entries count as 0,
    whatever number stands there.

    Args:
        derivative: the full derivative of one key; NaN is allowed where ``known`` is False.
        contraction: what is asked. Open slots must have the same number of dimensions.
        known: mask of the same shape as ``derivative``, or None where all is known.

    Returns:
        The result in the shape that `Contraction` documents, and its mask or None where all is known.

    Raises:
        ComponentError: shapes that do not fit together.
    """
    shapes = _slot_shapes(derivative, contraction)
    rows, m = derivative.shape[:2]
    sizes = [math.prod(shape) for shape in shapes]
    if known is not None:
        derivative = torch.where(known, derivative, torch.zeros_like(derivative))
    if contraction.full:
        return derivative, known
    k = contraction.probes or 0
    names = _SLOTS[: len(shapes)]
    operands, subscripts = [derivative.reshape(rows, m, *sizes)], ["bm" + names]
    if contraction.output is not None:
        operands.append(contraction.output.to(derivative.dtype))
        subscripts.append("bkm")
    for name, size, vector in zip(names, sizes, contraction.inputs, strict=True):
        if vector is not None:
            operands.append(vector.reshape(rows, k, size).to(derivative.dtype))
            subscripts.append(f"bk{name}")
    open_slots = [i for i, vector in enumerate(contraction.inputs) if vector is None]
    result = "bk" + ("m" if contraction.output is None else "") + "".join(names[i] for i in open_slots)
    shape = (rows, k, *((m,) if contraction.output is None else ()), *(n for i in open_slots for n in shapes[i]))
    equation = f"{','.join(subscripts)}->{result}"
    contracted = torch.einsum(equation, *operands).reshape(shape)
    if known is None:
        return contracted, None
    used = [(vector != 0).to(derivative.dtype) for vector in operands[1:]]
    missing = torch.einsum(equation, (~known).to(derivative.dtype).reshape(operands[0].shape), *used).reshape(shape)
    asked = torch.stack([vector.any(dim=2) for vector in used]).all(dim=0)
    return contracted, (missing == 0) & asked.reshape(rows, k, *(1,) * (len(shape) - 2))


def check(probe: Probe, points: Points, outputs: int) -> None:
    """Compare the vectors of a probe with the points that they are for.

    Args:
        probe: what is asked.
        points: where.
        outputs: m, the size of the value.

    Raises:
        ComponentError: vectors of another shape; shows the shape that fits.
    """
    rows = len(points)
    for key, contraction in probe.contractions.items():
        k = contraction.probes
        if k is None:
            continue
        output = contraction.output
        if output is not None and (len(output) != rows or output.shape[2:] != (outputs,)):
            raise _unfit(key, "output", output, f"({rows}, k, {outputs}) (B, k, m)")
        for name, vector in zip(key, contraction.inputs, strict=True):
            shape = points.inputs[name].shape[1:]
            if vector is not None and (len(vector) != rows or vector.shape[2:] != shape):
                raise _unfit(key, f"input {name!r}", vector, f"({rows}, k, {', '.join(map(str, shape))}) (B, k, *x)")
        if any(v is not None and v.shape[1] != k for v in contraction.inputs):
            counts = [v.shape[1] for v in (output, *contraction.inputs) if v is not None]
            raise ComponentError(
                f"the vectors of a probe for {key_name(key)} must have the same number of probes k, not {counts}"
            )


def _unfit(key: Key, side: str, vector: Tensor, expected: str) -> ComponentError:
    return ComponentError(
        f"a probe for {key_name(key)} holds vectors for the {side} of shape {tuple(vector.shape)}, expected "
        f"{expected}: an estimator must draw vectors of the size of the side that it contracts"
    )


def restrict(probe: Probe, points: Points) -> Probe:
    """Return the probe with input-side directions set to 0 where a recorded derivative is unknown.

    A component of a direction becomes 0 as soon as any entry that it would multiply is unknown: of any output, and
    of any position of the other slots. So both sides measure the derivative along the same, known part of the
    direction. Output-side vectors stay: there `contract` masks the components of the result.
    """
    contractions = {}
    for key, contraction in probe.contractions.items():
        known = points.known.get(key)
        if known is not None and any(vector is not None for vector in contraction.inputs):
            shapes = [tuple(points.inputs[name].shape[1:]) for name in key]
            flat = known.reshape(*known.shape[:2], *(math.prod(shape) for shape in shapes))
            vectors = tuple(
                None if vector is None else vector * _all_but(flat, slot + 2).reshape(len(vector), 1, *shapes[slot])
                for slot, vector in enumerate(contraction.inputs)
            )
            contraction = replace(contraction, inputs=vectors)
        contractions[key] = contraction
    return Probe(contractions)


def _all_but(mask: Tensor, kept: int) -> Tensor:
    """Return whether all is True along every dimension other than the first and ``kept``: ``(B, n)``."""
    return mask.movedim(kept, 1).flatten(2).all(dim=2)


def _slot_shapes(derivative: Tensor, contraction: Contraction) -> list[tuple[int, ...]]:
    given = [None if v is None else tuple(v.shape[2:]) for v in contraction.inputs]
    dims = derivative.ndim - 2 - sum(len(shape) for shape in given if shape is not None)
    n_open = sum(shape is None for shape in given)
    each, rest = divmod(dims, n_open) if n_open else (0, dims)
    shapes, position = [], 2
    for shape in given:
        size = each if shape is None else len(shape)
        shapes.append(tuple(derivative.shape[position : position + size]))
        position += size
    fits = rest == 0 and dims >= 0 and all(a is None or a == b for a, b in zip(given, shapes, strict=True))
    output = contraction.output
    if not fits or (output is not None and output.shape[-1] != derivative.shape[1]):
        asked = [tuple(v.shape) for v in (output, *contraction.inputs) if v is not None]
        raise ComponentError(
            f"a derivative of shape {tuple(derivative.shape)} (B, m, *x ...) cannot be contracted with vectors of "
            f"shapes {asked} (B, k, m) and (B, k, *x): the sizes of output and inputs must be equal"
        )
    return shapes
