"""Element-wise activations with their first and second derivatives, written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """A scalar function applied to every element.

    Attributes:
        value: ``a -> h``.
        slope: ``(r, a, h) -> sigma'(a) * r``.
        bend: ``(a, h) -> sigma''(a)``, or None where the function is piecewise linear.
        keeps_input: whether ``slope`` or ``bend`` reads ``a``.
    """

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor, Any, Tensor], Tensor]
    bend: Callable[[Any, Tensor], Tensor] | None
    keeps_input: bool = True


def _relu(_: nn.Module | None) -> Activation:
    return Activation(torch.relu, lambda r, a, h: _aten.threshold_backward(r, h, 0), None, keeps_input=False)


def _hardtanh(low: float, high: float) -> Activation:
    return Activation(
        lambda a: F.hardtanh(a, low, high), lambda r, a, h: _aten.hardtanh_backward(r, a, low, high), None
    )


def _leaky(slope: float) -> Activation:
    return Activation(
        lambda a: F.leaky_relu(a, slope), lambda r, a, h: _aten.leaky_relu_backward(r, a, slope, False), None
    )


def _tanh(_: nn.Module | None) -> Activation:
    return Activation(
        torch.tanh,
        lambda r, a, h: _aten.tanh_backward(r, h),
        lambda a, h: -2.0 * h * (1.0 - h * h),
        keeps_input=False,
    )


def _sigmoid(_: nn.Module | None) -> Activation:
    return Activation(
        torch.sigmoid,
        lambda r, a, h: _aten.sigmoid_backward(r, h),
        lambda a, h: h * (1.0 - h) * (1.0 - 2.0 * h),
        keeps_input=False,
    )


def _softplus(beta: float, threshold: float) -> Activation:
    def bend(a: Tensor, h: Tensor) -> Tensor:
        s = torch.sigmoid(beta * a)
        # Beyond the threshold torch's softplus is the identity.
        return torch.where(a * beta > threshold, torch.zeros_like(a), beta * s * (1.0 - s))

    return Activation(
        lambda a: F.softplus(a, beta, threshold),
        lambda r, a, h: _aten.softplus_backward(r, a, beta, threshold),
        bend,
    )


def _silu(_: nn.Module | None) -> Activation:
    def bend(a: Tensor, h: Tensor) -> Tensor:
        s = torch.sigmoid(a)
        return s * (1.0 - s) * (2.0 + a * (1.0 - 2.0 * s))

    return Activation(F.silu, lambda r, a, h: _aten.silu_backward(r, a), bend)


def _gelu(approximate: str) -> Activation:
    def bend(a: Tensor, h: Tensor) -> Tensor:
        if approximate == "none":
            return torch.exp(-0.5 * a * a) * (2.0 - a * a) * (1.0 / math.sqrt(2.0 * math.pi))
        # 0.5 a (1 + tanh u) with u = c (a + 0.044715 a^3)
        c = math.sqrt(2.0 / math.pi)
        t = torch.tanh(c * (a + 0.044715 * a**3))
        first = c * (1.0 + 3.0 * 0.044715 * a * a)
        second = c * 6.0 * 0.044715 * a
        d1 = (1.0 - t * t) * first
        d2 = (1.0 - t * t) * second - 2.0 * t * d1 * first
        return d1 + 0.5 * a * d2

    return Activation(
        lambda a: F.gelu(a, approximate=approximate),
        lambda r, a, h: _aten.gelu_backward(r, a, approximate=approximate),
        bend,
    )


def _elu(alpha: float) -> Activation:
    return Activation(
        lambda a: F.elu(a, alpha),
        lambda r, a, h: _aten.elu_backward(r, alpha, 1.0, 1.0, False, a),
        lambda a, h: torch.where(a > 0, torch.zeros_like(a), h + alpha),
    )


_MODULES: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.ReLU: _relu,
    nn.ReLU6: lambda _: _hardtanh(0.0, 6.0),
    nn.Hardtanh: lambda m: _hardtanh(m.min_val, m.max_val),
    nn.LeakyReLU: lambda m: _leaky(m.negative_slope),
    nn.Tanh: _tanh,
    nn.Sigmoid: _sigmoid,
    nn.Softplus: lambda m: _softplus(m.beta, m.threshold),
    nn.SiLU: _silu,
    nn.GELU: lambda m: _gelu(m.approximate),
    nn.ELU: lambda m: _elu(m.alpha),
}

_FUNCTIONS: dict[Any, Activation] = {
    torch.relu: _relu(None),
    F.relu: _relu(None),
    torch.tanh: _tanh(None),
    F.tanh: _tanh(None),
    torch.sigmoid: _sigmoid(None),
    F.sigmoid: _sigmoid(None),
    F.silu: _silu(None),
}


def activation_of(module: nn.Module) -> Activation | None:
    """Return the activation that a module applies, or None."""
    make = _MODULES.get(type(module))
    return make(module) if make else None


def activation_of_function(function: Any) -> Activation | None:
    """Return the activation that a function without options applies, or None."""
    try:
        return _FUNCTIONS.get(function)
    except TypeError:
        return None
