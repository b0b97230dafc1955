"""torch's optimizers and schedules by name, with typed options."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

if TYPE_CHECKING:
    import torch

Rate = Annotated[float, Field(gt=0, description="learning rate")]
Decay = Annotated[float, Field(ge=0, description="weight decay")]

# A factory returns a function of the parameters (an optimizer) or of optimizer and number of steps (a schedule).
Optimizer = Callable[[Any], "torch.optim.Optimizer"]
Schedule = Callable[["torch.optim.Optimizer", int], "torch.optim.lr_scheduler.LRScheduler"]


def adam(
    *,
    lr: Rate = 1e-3,
    betas: Annotated[tuple[float, float], Field(description="decay of the two moments")] = (0.9, 0.999),
    eps: Annotated[float, Field(gt=0, description="added to the denominator")] = 1e-8,
    weight_decay: Decay = 0.0,
    fused: Annotated[bool, Field(description="one kernel for all parameters")] = True,
) -> Optimizer:
    """Adam (Kingma & Ba, 2015)."""
    import torch

    return lambda p: torch.optim.Adam(p, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)


def adamw(
    *,
    lr: Rate = 1e-3,
    betas: Annotated[tuple[float, float], Field(description="decay of the two moments")] = (0.9, 0.999),
    eps: Annotated[float, Field(gt=0, description="added to the denominator")] = 1e-8,
    weight_decay: Decay = 0.01,
    fused: Annotated[bool, Field(description="one kernel for all parameters")] = True,
) -> Optimizer:
    """Adam with decoupled weight decay."""
    import torch

    return lambda p: torch.optim.AdamW(p, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)


def sgd(
    *,
    lr: Rate = 1e-2,
    momentum: Annotated[float, Field(ge=0, lt=1, description="momentum")] = 0.0,
    nesterov: Annotated[bool, Field(description="Nesterov's form")] = False,
    weight_decay: Decay = 0.0,
) -> Optimizer:
    """Stochastic gradient descent."""
    import torch

    return lambda p: torch.optim.SGD(p, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)


def rmsprop(
    *,
    lr: Rate = 1e-2,
    alpha: Annotated[float, Field(gt=0, lt=1, description="decay of the mean square")] = 0.99,
    eps: Annotated[float, Field(gt=0, description="added to the denominator")] = 1e-8,
    momentum: Annotated[float, Field(ge=0, lt=1, description="momentum")] = 0.0,
) -> Optimizer:
    """RMSprop."""
    import torch

    return lambda p: torch.optim.RMSprop(p, lr=lr, alpha=alpha, eps=eps, momentum=momentum)


def lbfgs(
    *,
    lr: Rate = 1.0,
    max_iter: Annotated[int, Field(gt=0, description="iterations per step")] = 20,
    history_size: Annotated[int, Field(gt=0, description="remembered updates")] = 100,
    tolerance_grad: Annotated[float, Field(ge=0, description="stops a step below it")] = 1e-12,
    tolerance_change: Annotated[float, Field(ge=0, description="stops a step below it")] = 1e-14,
    line_search: Annotated[Literal["strong-wolfe", "none"], Field(description="line search")] = "strong-wolfe",
) -> Optimizer:
    """L-BFGS; wants the whole training set in one batch."""
    import torch

    search = "strong_wolfe" if line_search == "strong-wolfe" else None
    return lambda p: torch.optim.LBFGS(
        p,
        lr=lr,
        max_iter=max_iter,
        history_size=history_size,
        tolerance_grad=tolerance_grad,
        tolerance_change=tolerance_change,
        line_search_fn=search,
    )


def cosine(
    *,
    final: Annotated[float, Field(ge=0, description="learning rate at the end, as a fraction")] = 0.0,
    warmup: Annotated[int, Field(ge=0, description="steps of linear warm-up")] = 0,
) -> Schedule:
    """Half a cosine from the learning rate to a fraction of it."""
    import math

    import torch

    def factor(step: int, steps: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))

    return lambda optimizer, steps: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step, steps))


def linear(
    *,
    final: Annotated[float, Field(ge=0, description="learning rate at the end, as a fraction")] = 0.0,
) -> Schedule:
    """A straight line from the learning rate to a fraction of it."""
    import torch

    return lambda optimizer, steps: torch.optim.lr_scheduler.LinearLR(
        optimizer, start_factor=1.0, end_factor=max(final, 1e-12), total_iters=steps
    )


def drops(
    *,
    at: Annotated[list[int], Field(description="steps after which the rate drops")],
    factor: Annotated[float, Field(gt=0, lt=1, description="multiplies the rate at every drop")] = 0.1,
) -> Schedule:
    """The learning rate drops by a factor at given steps."""
    import torch

    return lambda optimizer, steps: torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=at, gamma=factor)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": adam, "adamw": adamw, "sgd": sgd, "rmsprop": rmsprop, "lbfgs": lbfgs,
}  # fmt: skip
SCHEDULES: dict[str, Callable[..., Schedule]] = {"cosine": cosine, "linear": linear, "drops": drops}
