"""Before training: is the parameter gradient of this very loss right? Autograd against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sobolev.differentiate.autograd import lacks_derivative
from sobolev.differentiate.blame import without_double_backward
from sobolev.errors import DerivativeError


@dataclass(frozen=True)
class Agreement:
    """What a check of the gradient found.

    Attributes:
        errors: relative error per direction.
        tolerance: what was allowed.
    """

    errors: tuple[float, ...]
    tolerance: float


def check_gradient(
    loss: Callable[[], Tensor],
    module: nn.Module,
    *,
    step: float = 1e-6,
    tolerance: float = 1e-4,
    directions: int = 3,
    agree: int = 2,
    seed: int = 0,
) -> Agreement:
    """Compare the parameter gradient of a loss with central finite differences along random directions.

    Args:
        loss: computes the scalar loss with the module's present parameters; the same number every time it is called.
            A batch of about 8 samples: with many more, kinks of piecewise linear networks raise false alarms.
        module: in float64; its parameters are moved and put back.
        step: length of the move along a direction of unit norm; a tenth of it is tried where that disagrees.
        tolerance: relative error that is allowed.
        directions: how many are tried.
        agree: how many have to agree.
        seed: of the directions.

    Returns:
        The relative errors.

    Raises:
        DerivativeError: the gradient is wrong (names the layers), or the loss changes between two calls, or the
            module is not in float64, or the loss has no graph.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if any(p.dtype != torch.float64 for p in parameters):
        raise DerivativeError("the check of the gradient needs a module in float64: pass a copy made by .double()")
    if not parameters:
        return Agreement((), tolerance)
    try:
        value, gradients = _gradient(loss, parameters)
    except (RuntimeError, NotImplementedError) as error:
        raise _once_only(loss, module, error) from error
    again = float(loss().detach())
    if not math.isclose(again, value, rel_tol=1e-12):  # sums on a GPU may change by a last bit
        raise DerivativeError(
            f"the loss is not a function of the parameters: two calls gave {value!r} and {again!r}. "
            "Random layers must draw the same numbers in both (fix the seed inside the function)."
        )
    generator = torch.Generator().manual_seed(seed)
    tried = [_direction(parameters, generator) for _ in range(directions)]
    for length in (step, step / 10):  # a kink that happens to be near is out of reach of the shorter step
        errors = [_error(loss, parameters, gradients, direction, length) for direction in tried]
        if sum(error <= tolerance for error in errors) >= agree:
            return Agreement(tuple(errors), tolerance)
    blamed = _blame(loss, module, dict(zip(parameters, gradients, strict=True)), step, tolerance, generator)
    raise DerivativeError(_message(errors, blamed, tolerance))


def _once_only(loss: Callable[[], Tensor], module: nn.Module, error: Exception) -> Exception:
    """Return an error that names the layers without double backward; the error itself where it is another."""
    if not lacks_derivative(error):
        return error
    named = without_double_backward(module, loss)
    first = str(error).strip().partition("\n")[0]
    return DerivativeError(
        f"the loss cannot be differentiated by the parameters: {first}. Without a second derivative: "
        f"{', '.join(named) or 'no single layer'}. Replace it by a layer of elementary operations (fused attention: "
        "torch.nn.attention.sdpa_kernel(SDPBackend.MATH)), or train on values only (weight 0 for the derivative)"
    )


def _gradient(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
    value = loss()
    if not value.requires_grad:
        raise DerivativeError(
            "the loss does not depend on any parameter through autograd: the student detaches its output, runs under "
            "no_grad, or returns numbers of another library"
        )
    kept = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        # As in training: grad() would not meet an operation that refuses to be differentiated twice.
        value.backward()
        found = [p.grad for p in parameters]
    finally:
        for p, before in zip(parameters, kept, strict=True):
            p.grad = before
    return float(value.detach()), [
        torch.zeros_like(p) if g is None else g.detach() for p, g in zip(parameters, found, strict=True)
    ]


def _direction(parameters: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    drawn = [torch.randn(p.shape, generator=generator, dtype=p.dtype, device="cpu").to(p.device) for p in parameters]
    norm = math.sqrt(sum(float(d.square().sum()) for d in drawn))
    return [d / norm for d in drawn]


def _error(
    loss: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    direction: Sequence[Tensor],
    step: float,
) -> float:
    """Return the difference between both slopes, relative to the gradient's size along random directions."""
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
    values = []
    kept = [p.detach().clone() for p in parameters]
    try:
        for sign in (1.0, -1.0):
            with torch.no_grad():
                for p, start, d in zip(parameters, kept, direction, strict=True):
                    p.copy_(start + sign * step * d)
            values.append(float(loss().detach()))
    finally:
        with torch.no_grad():
            for p, start in zip(parameters, kept, strict=True):
                p.copy_(start)
    difference = (values[0] - values[1]) / (2 * step)
    size = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    count = math.sqrt(sum(g.numel() for g in gradients))
    # Rounding of the loss itself limits what a difference can resolve.
    floor = abs(values[0]) * torch.finfo(torch.float64).eps / step * 1e2
    scale = max(abs(slope), abs(difference), size / max(count, 1.0), 1e-12)
    return max(0.0, abs(slope - difference) - floor) / scale


def _blame(
    loss: Callable[[], Tensor],
    module: nn.Module,
    gradients: dict[Tensor, Tensor],
    step: float,
    tolerance: float,
    generator: torch.Generator,
) -> list[str]:
    """Return the layers whose own parameters have a wrong gradient, moving one layer at a time."""
    blamed = []
    for name, layer in module.named_modules():
        own = [p for p in layer.parameters(recurse=False) if p in gradients]
        if not own:
            continue
        found = [gradients[p] for p in own]
        errors = [_error(loss, own, found, _direction(own, generator), step) for _ in range(3)]
        if sum(error <= tolerance for error in errors) < 2:
            blamed.append(f"{name or '(the module itself)'} ({type(layer).__name__})")
    return blamed


def _message(errors: Sequence[float], blamed: Sequence[str], tolerance: float) -> str:
    where = ", ".join(blamed) if blamed else "no single layer"
    return (
        f"the parameter gradient of this loss is wrong: relative errors {', '.join(f'{e:.1e}' for e in errors)} "
        f"against finite differences in float64, allowed {tolerance:.0e}. Wrong at: {where}. A layer there, or one "
        "that its output passes through, has a second derivative that this version of PyTorch gets wrong: write it "
        "out from elementary operations, or train on values only (weight 0 for the derivative)."
    )
