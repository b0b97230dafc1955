"""The estimator of projected derivatives (paper, Eq. 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sobolev.components import Estimator
from sobolev.errors import ComponentError
from sobolev.noise import Noise
from sobolev.vocabulary import Contraction, Key, Points, Probe, key_name


class Projected(Estimator):
    """Derivatives contracted with vectors v^1, v^2, ... that are independent and uniform on the unit sphere.

    Drawn anew per sample and step; the k probes of a sample are independent unless ``orthogonal``. What is asked of a
    derivative ``D`` of order K (m outputs, input ``*x``):

    =============  ==============  =============================  ================
    side           last            contracted                     result
    =============  ==============  =============================  ================
    output, K = 1  either          outputs with v^1               ``(B, k, *x)``
    output, K > 1  open            outputs, first K - 1 slots     ``(B, k, *x)``
    output, K > 1  contracted      outputs, all slots             ``(B, k)``
    input, K = 1   either          the slot                       ``(B, k, m)``
    input, K > 1   open            first K - 1 slots              ``(B, k, m, *x)``
    input, K > 1   contracted      all slots                      ``(B, k, m)``
    =============  ==============  =============================  ================

    The squared norm of a result is an unbiased estimate of the squared Frobenius norm of D divided by the size of
    every contracted slot (m, d): nothing rescales it, a recipe's weight does. For losses that are not squared no factor
    makes the projected loss the exact one.

    Args:
        probes: k.
        side: which slots are contracted, see above.
        last: whether the last input slot stays open where K > 1.
        orthogonal: whether the k vectors of a slot are orthonormal (each still uniform on the sphere).
        directions: fixed vectors, one list of numbers per probe, the same in every slot of every sample; used as
            they are, not normalised.

    Raises:
        ComponentError: options that contradict each other.
    """

    def __init__(
        self,
        probes: int = 1,
        side: Literal["output", "input"] = "output",
        last: Literal["open", "contracted"] = "open",
        orthogonal: bool = False,
        directions: Sequence[Sequence[float]] | None = None,
    ) -> None:
        if directions is not None:
            if orthogonal:
                raise ComponentError("estimator 'projected': 'orthogonal' does not go with fixed 'directions'")
            if not directions or len({len(d) for d in directions}) > 1:
                raise ComponentError("estimator 'projected': 'directions' must be lists of numbers of equal length")
            probes = len(directions)
        self.probes = probes
        self.side = side
        self.last = last
        self.orthogonal = orthogonal
        self.directions = directions

    def probe(self, points: Points, outputs: int, keys: tuple[Key, ...], noise: Noise) -> Probe:
        """Draw the vectors of every key.

        Raises:
            ComponentError: more orthogonal probes than dimensions, fixed directions of another size, or an output-side
                projection of a scalar.
        """
        return Probe({key: self._contraction(points, outputs, key, noise) for key in keys})

    def _contraction(self, points: Points, outputs: int, key: Key, noise: Noise) -> Contraction:
        like = points.inputs[key[0]]
        output = None
        if self.side == "output" and outputs == 1 and self.directions is None and not self.orthogonal:
            raise ComponentError(
                f"estimator 'projected': {key_name(key)} has one output here, so there is nothing to project on the "
                "output side: a random vector of one component is a sign. Use 'side: input', or the estimator "
                "'exact', which costs the same"
            )
        if self.side == "output":
            output = self._vectors(points, (outputs,), key, -1, noise, like)
        contracted = 0 if self.side == "output" and len(key) == 1 else len(key)
        if self.last == "open" and len(key) > 1:
            contracted -= 1
        inputs = tuple(
            self._vectors(points, tuple(points.inputs[name].shape[1:]), key, slot, noise, like)
            if slot < contracted
            else None
            for slot, name in enumerate(key)
        )
        return Contraction(output, inputs)

    def _vectors(
        self, points: Points, shape: tuple[int, ...], key: Key, slot: int, noise: Noise, like: Tensor
    ) -> Tensor:
        size = math.prod(shape)
        what = f"the {self.side} side of {key_name(key)}"
        if self.directions is not None:
            if len(self.directions[0]) != size:
                raise ComponentError(
                    f"estimator 'projected': 'directions' hold {len(self.directions[0])} numbers each, "
                    f"{what} needs {size}"
                )
            fixed = torch.tensor(self.directions, dtype=like.dtype, device=like.device)
            return fixed.reshape(1, self.probes, *shape).expand(len(points), -1, *shape)
        index = points.index.to(like.device)
        if not self.orthogonal:
            return noise.sphere(index, self.probes, shape, "probe", *key, slot, dtype=like.dtype)
        if self.probes > size:
            raise ComponentError(
                f"estimator 'projected': {self.probes} orthogonal probes on {what}, which has {size} dimensions; "
                f"set 'probes' to at most {size}"
            )
        normal = noise.normal(index, self.probes * size, "probe", *key, slot, dtype=like.dtype)
        q, r = torch.linalg.qr(normal.reshape(len(points), self.probes, size).transpose(1, 2))
        # Signs of the diagonal make the frame uniform, whatever signs the factorisation chose.
        frame: Tensor = q * r.diagonal(dim1=1, dim2=2).sign()[:, None, :]
        return frame.transpose(1, 2).reshape(len(points), self.probes, *shape)
