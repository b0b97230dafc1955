"""Local polynomials through scattered samples, and their derivatives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sobolev import (
    Batch,
    ComponentError,
    Context,
    DataError,
    DerivativeError,
    Estimator,
    Jet,
    Key,
    Noise,
    Points,
    Probe,
    Target,
    key_name,
)
from sobolev.differentiate.contract import contract

ValueFunction = Callable[[Mapping[str, Tensor]], Tensor]

_ROWS = 4096  # samples of the training set that are evaluated at once
_RANK = 1e-7  # relative size of a singular value that counts as 0


class LeastSquares(Estimator):
    """Fits a polynomial around every point to the nearest training samples; see the plugin's page for the method.

    Args:
        of: says what is asked; None asks for whole derivatives.
        degree: of the polynomial, 1 or 2.
        neighbours: samples per fit, at least the number of coefficients; None for twice that number.
    """

    def __init__(self, of: Estimator | None = None, degree: int = 1, neighbours: int | None = None) -> None:
        self.of = of
        self.degree = degree
        self.neighbours = neighbours
        self._name = ""
        self._x = torch.empty(0)
        self._y = torch.empty(0)

    def prepare(self, target: Target, context: Context) -> None:
        """Read the training set: inputs ``(N, d)`` and values ``(N, m)``.

        Raises:
            ComponentError: several sites or several differentiated inputs.
            DataError: fewer samples than a fit needs.
        """
        if self.of is not None:
            self.of.prepare(target, context)
        if type(target).value is Target.value:
            return  # the target answers for its derivatives itself
        sites = target.sites()
        names = next(iter(sites.values())).differentiate
        if len(sites) != 1 or len(names) != 1:
            raise ComponentError(
                f"estimator 'least-squares' fits one function of one input; the target has the sites {list(sites)}, "
                f"differentiated by {list(names)}"
            )
        ((site, form),) = sites.items()
        self._name = names[0]
        size = math.prod(form.inputs[self._name])
        wanted = self._count(size)
        if target.size("train") < wanted:
            raise DataError(
                f"estimator 'least-squares': a fit of degree {self.degree} in {size} variables takes {wanted} "
                f"neighbours, the training set has {target.size('train')} samples"
            )
        xs, ys = [], []
        for ids in torch.arange(target.size("train")).split(_ROWS):
            points = target.points(Batch("train", ids, target.load("train", ids)), False)[site]
            with torch.no_grad():
                ys.append(target.value(site, points.inputs, points).detach())
            xs.append(points.inputs[self._name].detach().flatten(1))
        self._x, self._y = torch.cat(xs), torch.cat(ys)

    def probe(self, points: Points, outputs: int, keys: tuple[Key, ...], noise: Noise) -> Probe:
        """Return what ``of`` asks, or the whole derivatives.

        Raises:
            ComponentError: an order above the degree.
        """
        for key in keys:
            if len(key) > self.degree:
                raise ComponentError(
                    f"estimator 'least-squares': {key_name(key)} needs a polynomial of degree {len(key)}, not "
                    f"{self.degree}" + ("; set 'degree: 2'" if len(key) == 2 else "; orders above 2 are not fitted")
                )
        return Probe.full(keys) if self.of is None else self.of.probe(points, outputs, keys, noise)

    def differentiate(self, value: ValueFunction, points: Points, probe: Probe) -> Jet:
        """Return the value at the points, and the derivatives of the polynomials there, detached.

        Raises:
            DerivativeError: a derivative by another input than the one whose samples were read.
            DataError: neighbours that do not determine a polynomial.
        """
        with torch.no_grad():
            values = value(points.inputs)
            if not len(self._x):  # used without a run: the points themselves are the samples
                self._name = probe.keys[0][0] if probe.keys else ""
                samples, answers = points.inputs[self._name].detach().flatten(1), values
            else:
                samples, answers = self._x, self._y
            for key in probe.keys:
                if set(key) != {self._name}:
                    raise DerivativeError(
                        f"estimator 'least-squares': {key_name(key)} is not fitted, only derivatives by {self._name}"
                    )
            x = points.inputs[self._name]
            fitted = self._fit(x.flatten(1), samples.to(x), answers.to(values)) if probe.keys else {}
            derivatives = {}
            for key, contraction in probe.contractions.items():
                whole = fitted[len(key)].reshape(*values.shape, *tuple(x.shape[1:]) * len(key))
                derivatives[key] = contract(whole, contraction)[0]
        return Jet(values, derivatives)

    def _count(self, size: int) -> int:
        terms = 1 + size + (size * (size + 1) // 2 if self.degree == 2 else 0)
        if self.neighbours is not None and self.neighbours < terms:
            raise ComponentError(
                f"estimator 'least-squares': a polynomial of degree {self.degree} in {size} variables has {terms} "
                f"coefficients; set 'neighbours' to at least {terms}, not {self.neighbours}"
            )
        return self.neighbours or 2 * terms

    def _fit(self, x: Tensor, samples: Tensor, answers: Tensor) -> dict[int, Tensor]:
        """Return gradients ``(B, m, d)`` and, of degree 2, Hessians ``(B, m, d, d)`` by order."""
        size = x.shape[1]
        count = min(self._count(size), len(samples))
        distance, nearest = torch.cdist(x, samples).topk(count, dim=1, largest=False)
        radius = distance[:, -1:].clamp_min(torch.finfo(x.dtype).tiny)
        moved = (samples[nearest] - x[:, None]) / radius[..., None]  # (B, n, d), at most 1 long
        weight = (1 - (distance / (1.001 * radius)) ** 3).clamp_min(0) ** 1.5  # root of the tricube weight
        pairs = list(itertools.combinations_with_replacement(range(size), 2)) if self.degree == 2 else []
        columns = [torch.ones_like(moved[..., :1]), moved]
        if pairs:
            first, second = (torch.tensor(side, device=x.device) for side in zip(*pairs, strict=True))
            columns.append(moved[..., first] * moved[..., second])
        design = torch.cat(columns, dim=-1) * weight[..., None]
        u, s, v = torch.linalg.svd(design, full_matrices=False)
        short = design.shape[1] < design.shape[2] or bool((s[:, -1] < _RANK * s[:, 0]).any())
        if short:
            raise DataError(
                f"estimator 'least-squares': {count} neighbours do not determine a polynomial of degree {self.degree} "
                f"in {size} variables: they are too few, equal, or lie on a surface; set 'neighbours' higher"
            )
        right = u.mT @ (answers[nearest] * weight[..., None])
        found = (v.mT @ (right / s[..., None])).mT  # (B, m, terms)
        result = {1: found[..., 1 : 1 + size] / radius[..., None]}
        if pairs:
            hessian = found.new_zeros(*found.shape[:2], size, size)
            quadratic = found[..., 1 + size :] / radius[..., None] ** 2
            hessian[..., first, second] += quadratic
            hessian[..., second, first] += quadratic  # the diagonal twice: it is half the second derivative
            result[2] = hessian
        return result
