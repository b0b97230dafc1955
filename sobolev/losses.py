"""Losses between two tensors of one term, per sample, with masks.

Names: ``squared-l2``, ``l1``, ``huber`` sum over components that are known; ``norm`` is the Euclidean norm, not
squared, over all components (subgradient 0 at equality); the KLs compare log-probabilities.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sobolev.errors import ComponentError

COMPONENTWISE = ("squared-l2", "l1", "huber")
KL = ("kl-student-teacher", "kl-teacher-student")


def per_sample(
    loss: str,
    prediction: Tensor,
    reference: Tensor,
    known: Tensor | None = None,
    probes: int | None = None,
    reduce: str = "sum",
    delta: float = 1.0,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the loss of each sample ``(B,)`` and the fraction of its components that is known ``(B,)``.

    Args:
        loss: one of the names above.
        prediction: ``(B, ...)``; ``(B, k, ...)`` where ``probes`` is k.
        reference: of the same shape.
        known: mask of the same shape; missing entries are held as 0 in the reference.
        probes: k; the losses of a sample's probes are averaged.
        reduce: ``sum`` or ``mean`` over components (of the component-wise losses).
        delta: where ``huber`` turns from quadratic to linear.
        weights: factors of the components' errors, of a shape that broadcasts to ``prediction``; the KLs take none.
            With them the fraction that is known is a fraction of the weights.

    Raises:
        ComponentError: weights of single values for a KL.
    """
    if loss in KL:
        if weights is not None:
            raise ComponentError(f"the loss {loss!r} takes no weights of single values")
        # D(p || q) = sum p (log p - log q); "student-teacher" is the paper's D_KL(pi || pi*), pi the student.
        p, q = (prediction, reference) if loss == "kl-student-teacher" else (reference, prediction)
        return (p.exp() * (p - q)).flatten(1).sum(1), torch.ones_like(prediction[:, 0]).detach()
    rows = prediction.shape[0]
    if loss == "squared-l2" and known is None and weights is None and (probes or 1) == 1:
        # The usual case in as few operations as there are: at small batches they are what a step costs.
        losses = F.mse_loss(prediction, reference, reduction="none").flatten(1).sum(dim=1)
        if reduce == "mean":
            losses = losses / max(1, prediction.shape[1:].numel())
        return losses, torch.ones(rows, dtype=losses.dtype, device=losses.device)
    k = probes or 1  # the size is written out, because rows may be 0 in one of several processes
    difference = (prediction - reference).reshape(rows, k, prediction.shape[1:].numel() // k)
    mask = None if known is None else known.reshape(difference.shape)
    if mask is not None:
        difference = difference * mask
    factors = None if weights is None else weights.expand(prediction.shape).reshape(difference.shape)
    if loss == "norm":
        weighted = difference if factors is None else difference * factors.sqrt()
        losses = torch.linalg.vector_norm(weighted, dim=-1).mean(dim=1)
        present = torch.ones_like(losses) if mask is None else mask.flatten(1).any(dim=1).to(losses.dtype)
        return losses, present.detach()
    if loss == "squared-l2":
        errors = difference.square()
    elif loss == "l1":
        errors = difference.abs()
    elif loss == "huber":
        size = difference.abs()
        errors = torch.where(size <= delta, 0.5 * size.square(), delta * (size - 0.5 * delta))
    else:
        raise ValueError(f"unknown loss {loss!r}")
    if factors is not None:
        errors = errors * factors
    losses = errors.sum(dim=-1).mean(dim=1)
    if reduce == "mean":
        losses = losses / difference.shape[-1]
    if mask is None:
        return losses, torch.ones_like(losses).detach()
    if factors is None:
        return losses, mask.flatten(1).to(losses.dtype).mean(dim=1)
    every = factors.flatten(1).sum(dim=1).clamp_min(1e-300 if losses.dtype == torch.float64 else 1e-30)
    return losses, (factors * mask).flatten(1).sum(dim=1) / every
