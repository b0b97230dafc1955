"""The words that every part of a training step is written in.

Letters, here and everywhere: ``B`` batch, ``d`` input size, ``m`` size of the value, ``K`` order, ``k`` probes.
``*x`` is the shape of one sample of the input that is differentiated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

Key = tuple[str, ...]
"""Names of the inputs that are differentiated: ``()`` the value, ``("x",)`` order 1, ``("x", "x")`` the Hessian."""

VALUE: Key = ()


def key_name(key: Key) -> str:
    """Return the name of a key in metrics and messages: ``value``, ``d/dx``, ``d2/dxdx``."""
    if not key:
        return "value"
    order = "" if len(key) == 1 else str(len(key))
    return f"d{order}/" + "".join(f"d{name}" for name in key)


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of each component of a quantity.

    Attributes:
        mean, deviation: of the shape of one sample.
    """

    mean: Tensor
    deviation: Tensor


@dataclass(frozen=True)
class Statistics:
    """What the first training samples of a site look like, in the user's units; float64, on the CPU.

    Missing entries are left out and sample weights count.

    Attributes:
        samples: how many were looked at.
        inputs: moments ``(*x)`` by input.
        value: moments ``(m,)`` of the target's value.
        output: moments ``(n,)`` of what the student itself should return; None where a head stands between.
        squares: mean squares ``(m, *x1, ..., *xK)`` of the derivatives that the objective asks for.
    """

    samples: int
    inputs: Mapping[str, Moments]
    value: Moments
    output: Moments | None
    squares: Mapping[Key, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """One place where a student is trained: what it receives and what it returns.

    Attributes:
        inputs: shape of one sample of every input, by name.
        outputs: size of the student's output ``z``, before the head.
        differentiate: the inputs by which target and student are differentiated; empty where there are values only.
        ranges: where it is known, the interval ``(low, high)`` of an input, scalars or one per component.
        ensemble: name that the sites of an ensemble share: they see the same points, and what is loaded answers under
            that name with their mean and spread.
        statistics: of the training data, where student or objective asks for them (``needs``); filled in by the core.
        weights: by key, factors of the errors of single components: ``()`` of shape ``(m,)``, ``("x",)`` of shape
            ``(m, *x)``. A key that is absent has ones.
    """

    inputs: Mapping[str, tuple[int, ...]]
    outputs: int
    differentiate: tuple[str, ...]
    ranges: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    ensemble: str | None = None
    statistics: Statistics | None = None
    weights: Mapping[Key, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Samples that one step uses: global ids within a split, and what ``Target.load`` made of them.

    Attributes:
        split: ``train``, ``validation`` or ``test``.
        ids: ``(B,)`` int64, on the CPU.
        data: the result of ``Target.load(split, ids)``.
    """

    split: str
    ids: Tensor
    data: Any = None


@dataclass(frozen=True)
class Points:
    """Where one site is measured.

    Attributes:
        inputs: tensors ``(B, *shape)`` by name; a student or head receives those that its ``forward`` names.
        differentiate: names of the inputs that are differentiated; the others are held fixed.
        index: ``(B,)`` int64 global sample ids; probes and caches hang on them.
        weight: ``(B,)`` sample weights, or None for ones.
        known: masks of recorded numbers by key, True where known: ``()`` of shape ``(B, m)``, ``("x",)`` of
            shape ``(B, m, *x)``. A key that is absent is known throughout.
        context: the target's own; nobody else reads it.
    """

    inputs: Mapping[str, Tensor]
    differentiate: tuple[str, ...]
    index: Tensor
    weight: Tensor | None = None
    known: Mapping[Key, Tensor] = field(default_factory=dict)
    context: Any = None

    def __len__(self) -> int:
        return int(self.index.shape[0])


@dataclass(frozen=True)
class Contraction:
    """What is asked of the derivative tensor ``D`` of shape ``(B, m, *x1, ..., *xK)`` of one key.

    Slots with a vector are contracted with it, the others stay open. The result has the shape
    ``(B, [k], [m], *open slots)``: ``k`` where any vector is given, ``m`` where ``output`` is None.

    ====================  ======================  =========================
    name                  vectors                 result
    ====================  ======================  =========================
    full                  none                    ``(B, m, *x1, ..., *xK)``
    output side           ``output``              ``(B, k, *x)``
    input side            ``inputs[0]``           ``(B, k, m)``
    Hessian-vector        ``inputs[0]`` of two    ``(B, k, m, *x)``
    contraction           all of ``inputs``       ``(B, k, m)``
    ====================  ======================  =========================

    Attributes:
        output: ``(B, k, m)`` or None.
        inputs: per slot ``(B, k, *x)`` or None.
    """

    output: Tensor | None
    inputs: tuple[Tensor | None, ...]

    @property
    def full(self) -> bool:
        """Whether nothing is contracted."""
        return self.output is None and all(v is None for v in self.inputs)

    @property
    def probes(self) -> int | None:
        """``k``, or None for the full derivative."""
        for vector in (self.output, *self.inputs):
            if vector is not None:
                return int(vector.shape[1])
        return None


def full(key: Key) -> Contraction:
    """Return the contraction that asks for the whole derivative of a key."""
    return Contraction(None, (None,) * len(key))


@dataclass(frozen=True)
class Probe:
    """Which derivatives of one site are measured, on both sides: a contraction by key."""

    contractions: Mapping[Key, Contraction] = field(default_factory=dict)

    @property
    def keys(self) -> tuple[Key, ...]:
        """The keys that are measured, without the value, which always is."""
        return tuple(self.contractions)

    @staticmethod
    def full(keys: tuple[Key, ...]) -> Probe:
        """Return the probe that asks for the whole derivative of every key."""
        return Probe({key: full(key) for key in keys})


@dataclass(frozen=True)
class Jet:
    """A value and its derivatives, contracted as a probe asked.

    Attributes:
        value: ``(B, m)``.
        derivatives: by key, of the shape that the key's `Contraction` gives.
        known: masks of the same shapes, True where the number is known; an absent key is known throughout.
            A missing entry is held as 0.
    """

    value: Tensor
    derivatives: Mapping[Key, Tensor] = field(default_factory=dict)
    known: Mapping[Key, Tensor] = field(default_factory=dict)

    def __getitem__(self, key: Key) -> Tensor:
        return self.value if key == VALUE else self.derivatives[key]

    def __contains__(self, key: Key) -> bool:
        return key == VALUE or key in self.derivatives

    def detach(self) -> Jet:
        """Return the same jet without its graph."""
        return replace(
            self, value=self.value.detach(), derivatives={k: v.detach() for k, v in self.derivatives.items()}
        )


@dataclass(frozen=True)
class Term:
    """One term of the loss: a sum over samples with its graph, and the count that it will be divided by.

    Attributes:
        site: name of the site.
        key: which derivative; ``()`` is the value.
        sum: scalar, ``sum_i w_i * loss_i``.
        count: scalar, ``sum_i w_i * (fraction of the components that is known)``.
        weight: factor in the total.
    """

    site: str
    key: Key
    sum: Tensor
    count: Tensor
    weight: float

    @property
    def name(self) -> str:
        """Name in the records: ``site/key``."""
        return f"{self.site}/{key_name(self.key)}"


@dataclass(frozen=True)
class Mean:
    """A metric as a sum and a count, so that uneven shards average right."""

    sum: Tensor
    count: Tensor

    def __add__(self, other: Mean) -> Mean:
        """Return the mean over the samples of both."""
        return Mean(self.sum + other.sum, self.count + other.count)

    @staticmethod
    def of(per_sample: Tensor) -> Mean:
        """Return the mean over the first dimension of ``per_sample`` ``(B,)``."""
        per_sample = per_sample.detach()
        return Mean(per_sample.sum(), torch.tensor(float(per_sample.shape[0]), device=per_sample.device))
