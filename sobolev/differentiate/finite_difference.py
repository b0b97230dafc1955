"""Derivatives of targets without autograd, by finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from sobolev.components import Context, Estimator, Target
from sobolev.differentiate.contract import contract
from sobolev.errors import DerivativeError
from sobolev.noise import Noise
from sobolev.vocabulary import Contraction, Jet, Key, Points, Probe, key_name

Scheme = Literal["central", "forward", "complex-step"]
ValueFunction = Callable[[Mapping[str, Tensor]], Tensor]

_COMPLEX_STEP = 1e-20  # its square vanishes even in float64: the result has no truncation error
_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


class FiniteDifference(Estimator):
    """Probes as another estimator does, and differentiates the target by differences of its values.

    An open slot is differenced along its axes, a contracted one along its vectors; higher orders nest the scheme. An
    output-side probe needs the whole Jacobian: prefer ``side: input`` there, whose price does not grow with d.

    The relative step is eps^(1/(K + 1)) (forward) or eps^(1/(K + 2)) (central) of the inputs' dtype, the balance of
    truncation and rounding; it is multiplied by half the width of the input's range where the site declares one, and
    by max(1, ``|x_j|``) elsewhere, so that no component moves further than that fraction of its scale. With
    ``complex-step`` the first slot is differenced along the imaginary axis, to machine precision, the other slots
    centrally; values of the first batch are compared with central differences, since a function that drops the
    imaginary part would be silently wrong.

    Args:
        of: the estimator that says what is asked.
        scheme: which differences.
        step: relative step instead of the one above.
        rows: largest number of rows per call of the target; always a multiple of the batch, at least the batch.

    Attributes:
        evaluations: rows of the target that were evaluated.
    """

    def __init__(self, of: Estimator, scheme: Scheme = "central", step: float | None = None, rows: int = 4096) -> None:
        self.of = of
        self.scheme: Scheme = scheme
        self.step = step
        self.rows = rows
        self.evaluations = 0
        self._scales: dict[str, Tensor] = {}
        self._checked = False

    def prepare(self, target: Target, context: Context) -> None:
        """Take the scale of inputs from the ranges that the target's sites declare."""
        self.of.prepare(target, context)
        for site in target.sites().values():
            for name, (low, high) in site.ranges.items():
                width = torch.as_tensor(high, dtype=torch.float64) - torch.as_tensor(low, dtype=torch.float64)
                scale = (0.5 * width).expand(site.inputs[name])
                known = self._scales.get(name)
                if known is None or known.shape != scale.shape:
                    self._scales[name] = scale
                else:
                    self._scales[name] = torch.minimum(known, scale)

    def probe(self, points: Points, outputs: int, keys: tuple[Key, ...], noise: Noise) -> Probe:
        """Return what ``of`` asks."""
        return self.of.probe(points, outputs, keys, noise)

    def metrics(self) -> Mapping[str, float]:
        """Return the number of target evaluations so far."""
        return {**self.of.metrics(), "evaluations": float(self.evaluations)}

    def state_dict(self) -> dict[str, Any]:
        """Return the counter, and the state of the estimator that is asked what to differentiate."""
        return {"evaluations": self.evaluations, "of": self.of.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.evaluations = state["evaluations"]
        self.of.load_state_dict(state["of"])

    def differentiate(self, value: ValueFunction, points: Points, probe: Probe) -> Jet:
        """Return the jet by differences of ``value``, detached.

        Raises:
            DerivativeError: ``complex-step`` of a function that does not carry complex numbers through.
        """
        with torch.no_grad():
            centre = self._evaluate(value, points.inputs)
            derivatives = {
                key: self._derivative(value, points, key, contraction, centre)
                for key, contraction in probe.contractions.items()
            }
        return Jet(centre, derivatives)

    def _derivative(
        self, value: ValueFunction, points: Points, key: Key, contraction: Contraction, centre: Tensor
    ) -> Tensor:
        open_output = Contraction(None, contraction.inputs)
        if self.scheme == "complex-step" and not self._checked:
            self._check(value, points, key)
        if contraction.output is None:
            return self._differences(value, points, key, open_output, centre)
        k = int(contraction.output.shape[1])
        if all(vector is None for vector in contraction.inputs):
            jacobian = self._differences(value, points, key, open_output, centre)
            return contract(jacobian, contraction)[0]
        products = self._differences(value, points, key, open_output, centre)  # (B, k, m, *open)
        weights = contraction.output.reshape(*contraction.output.shape, *(1,) * (products.ndim - 3))
        return (products * weights).sum(dim=2).reshape(len(points), k, *products.shape[3:])

    def _differences(
        self,
        value: ValueFunction,
        points: Points,
        key: Key,
        contraction: Contraction,
        centre: Tensor,
        scheme: Scheme | None = None,
    ) -> Tensor:
        """Return the derivative with open outputs: ``(B, m, *open)`` or ``(B, k, m, *open)``."""
        scheme = scheme or self.scheme
        k = contraction.probes
        per_probe = []
        for j in range(k or 1):
            chosen = [None if v is None else v[:, j] for v in contraction.inputs]
            rows = _Stencil(self, value, points, key, chosen, scheme, centre).run()
            per_probe.append(rows)
        return per_probe[0] if k is None else torch.stack(per_probe, dim=1)

    def _evaluate(self, value: ValueFunction, inputs: Mapping[str, Tensor]) -> Tensor:
        result = value(inputs)
        self.evaluations += len(result)
        return result

    def steps(self, x: Tensor, direction: Tensor, name: str, order: int, scheme: Scheme) -> Tensor:
        """Return the step ``(B,)`` along ``direction`` ``(B, *x)`` of the input ``name``."""
        if self.step is not None:
            relative = self.step
        else:
            relative = torch.finfo(x.dtype).eps ** (1.0 / (order + (1 if scheme == "forward" else 2)))
        declared = self._scales.get(name)
        if declared is not None and declared.shape == x.shape[1:]:
            scale = declared.to(device=x.device, dtype=x.dtype).expand_as(x)
        else:
            scale = x.abs().clamp_min(1.0)
        furthest = (direction.abs() / scale).flatten(1).amax(dim=1)
        # A direction of zeros (nothing known there) has derivative 0 whatever the step.
        return relative / torch.where(furthest > 0, furthest, torch.ones_like(furthest))

    def _check(self, value: ValueFunction, points: Points, key: Key) -> None:
        """Compare one directional derivative by complex steps with central differences."""
        name = key[0]
        x = points.inputs[name]
        direction = torch.ones_like(x)[:, None] / math.sqrt(max(1, x.shape[1:].numel()))
        along = Contraction(None, (direction,))
        counted = self.evaluations
        centre = value(points.inputs)
        central = self._differences(value, points, (name,), along, centre, "central")
        complex_ = self._differences(value, points, (name,), along, centre, "complex-step")
        self.evaluations = counted
        scale = central.abs().amax() + central.new_tensor(1e-12)
        agree = ((central - complex_).abs() <= 2e-2 * scale).flatten(1).all(dim=1)
        # Kinks between the points of a stencil may spoil single samples of the central difference.
        if agree.to(torch.float64).mean() < 0.5:
            raise DerivativeError(
                f"finite-difference: complex steps of {key_name(key)} disagree with central differences: the target "
                "drops or changes the imaginary part (abs, max, comparisons, real). Use 'scheme: central'."
            )
        self._checked = True


class _Stencil:
    """All evaluations of one nested difference, in calls of a bounded number of rows."""

    def __init__(
        self,
        estimator: FiniteDifference,
        value: ValueFunction,
        points: Points,
        key: Key,
        vectors: list[Tensor | None],
        scheme: Scheme,
        centre: Tensor,
    ) -> None:
        self.estimator, self.value, self.points, self.key = estimator, value, points, key
        self.vectors, self.scheme, self.centre = vectors, scheme, centre
        self.slots = [self._directions(slot) for slot in range(len(key))]

    def _directions(self, slot: int) -> int:
        """How many directions a slot has: one, or one per axis where it is open."""
        return 1 if self.vectors[slot] is not None else self.points.inputs[self.key[slot]].shape[1:].numel()

    def _direction(self, slot: int, axis: int) -> Tensor:
        vector = self.vectors[slot]
        if vector is not None:
            return vector
        x = self.points.inputs[self.key[slot]]
        unit = torch.zeros_like(x).flatten(1)
        unit[:, axis] = 1.0
        return unit.reshape(x.shape)

    def _offsets(self, slot: int, axis: int) -> list[tuple[Tensor, Tensor]]:
        """Return displacement ``(B, *x)`` and weight ``(B,)`` of every evaluation along one slot."""
        name = self.key[slot]
        x = self.points.inputs[name]
        direction = self._direction(slot, axis)
        imaginary = self.scheme == "complex-step" and slot == 0
        if imaginary:
            return [(direction * (1j * _COMPLEX_STEP), x.new_full((len(x),), 1.0 / _COMPLEX_STEP))]
        scheme: Scheme = "central" if self.scheme == "complex-step" else self.scheme
        h = self.estimator.steps(x, direction, name, len(self.key), scheme)
        ahead = direction * h.reshape(-1, *(1,) * (x.ndim - 1))
        if scheme == "central":
            return [(ahead, 0.5 / h), (-ahead, -0.5 / h)]
        return [(ahead, 1.0 / h), (torch.zeros_like(ahead), -1.0 / h)]

    def run(self) -> Tensor:
        """Return ``(B, m, *open slots)``."""
        combinations: list[tuple[int, ...]] = [()]
        for size in self.slots:
            combinations = [(*c, i) for c in combinations for i in range(size)]
        rows = torch.stack([row for row in self._rows(combinations)], dim=-1)
        shape = [n for s, name in enumerate(self.key) if self.vectors[s] is None for n in self._shape(name)]
        return rows.reshape(*self.centre.shape, *shape)

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.points.inputs[name].shape[1:])

    def _rows(self, combinations: list[tuple[int, ...]]) -> list[Tensor]:
        """Evaluate many combinations of axes together; one result ``(B, m)`` each."""
        batch = len(self.points)
        at_once = max(1, self.estimator.rows // max(1, batch))
        totals = [torch.zeros_like(self.centre) for _ in combinations]
        pending: list[tuple[int, dict[str, Tensor], Tensor]] = []

        def flush() -> None:
            if not pending:
                return
            names = self.points.inputs
            inputs = {
                name: torch.cat([shifts[name] + x if name in shifts else x for _, shifts, _ in pending])
                for name, x in names.items()
            }
            values = self._real(self.estimator._evaluate(self.value, inputs))
            for (number, _, weight), part in zip(pending, values.split(batch), strict=True):
                totals[number] += part * weight[:, None]
            pending.clear()

        for number, axes in enumerate(combinations):
            terms: list[tuple[dict[str, Tensor], Tensor]] = [({}, torch.ones_like(self.centre[:, 0]))]
            for slot, axis in enumerate(axes):
                terms = [
                    (_add(shifts, self.key[slot], offset), weight * factor)
                    for shifts, weight in terms
                    for offset, factor in self._offsets(slot, axis)
                ]
            for shifts, weight in terms:
                if all(not offset.any() for offset in shifts.values()):  # forward: the point itself, known already
                    totals[number] += self.centre * weight[:, None]
                    continue
                pending.append((number, shifts, weight))
                if len(pending) >= at_once:
                    flush()
        flush()
        return totals

    def _real(self, values: Tensor) -> Tensor:
        if self.scheme != "complex-step":
            return values
        if not values.is_complex():
            raise DerivativeError(
                "finite-difference: the target returns real numbers for complex inputs, so 'scheme: complex-step' "
                "cannot differentiate it. Use 'scheme: central'."
            )
        return values.imag


def _add(shifts: dict[str, Tensor], name: str, offset: Tensor) -> dict[str, Tensor]:
    return {**shifts, name: shifts[name] + offset if name in shifts else offset}
