"""How well the main network classifies, and how well its gradients are predicted."""

from __future__ import annotations

import torch
from torch import Tensor

from sobolev import Mean


def classification(logits: Tensor, labels: Tensor, losses: Tensor) -> dict[str, Mean]:
    """Return the main network's mean log loss (nats) and its top-1 and, of more than 5 classes, top-5 accuracy."""
    found = {"loss": Mean.of(losses.flatten())}
    for k in (1, 5):
        if k == 1 or logits.shape[1] > k:
            right = (logits.detach().topk(k, dim=1).indices == labels[:, None]).any(dim=1)
            found[f"top-{k}"] = Mean.of(right.to(losses.dtype))
    return found


def agreement(synthetic: Tensor, true: Tensor) -> dict[str, Mean]:
    """Compare gradients ``(B, ...)``; samples count by the size of their true gradient.

    ``cosine`` is the mean over samples of the cosine between the two, weighted by the norm of the true gradient, so
    that samples that have none to speak of do not drown the others. ``gradient-error`` is the mean norm of the
    difference over the mean norm of the true gradient; 1 is what a gradient of 0 would get.
    """
    synthetic, true = synthetic.detach().flatten(1), true.flatten(1)
    size = torch.linalg.vector_norm(true, dim=1)
    # Scaled first: the square of a gradient of 1e-25 would be 0 in float32.
    scaled = synthetic / synthetic.abs().amax(1, keepdim=True).clamp_min(torch.finfo(synthetic.dtype).tiny)
    along = (scaled * true).sum(1) / torch.linalg.vector_norm(scaled, dim=1).clamp_min(1.0)
    difference = torch.linalg.vector_norm(synthetic - true, dim=1)
    return {"cosine": Mean(along.sum(), size.sum()), "gradient-error": Mean(difference.sum(), size.sum())}
