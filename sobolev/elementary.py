"""Activations and their slopes from elementary functions, for runtimes that have no kernels for them in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten


def _sigmoid_slope(g: Tensor, h: Tensor) -> Tensor:
    return g * h * (1 - h)


def _tanh_slope(g: Tensor, h: Tensor) -> Tensor:
    return g * (1 - h * h)


def _threshold_slope(g: Tensor, h: Tensor, threshold: float) -> Tensor:
    return torch.where(h > threshold, g, torch.zeros_like(g))


def _hardtanh_slope(g: Tensor, a: Tensor, low: float, high: float) -> Tensor:
    return torch.where((a > low) & (a < high), g, torch.zeros_like(g))


def _leaky(a: Tensor, slope: float = 0.01) -> Tensor:
    return torch.where(a > 0, a, slope * a)


def _leaky_slope(g: Tensor, a: Tensor, slope: float, is_result: bool) -> Tensor:
    return torch.where(a > 0, g, slope * g)


def _below(a: Tensor) -> Tensor:
    return -torch.relu(-a)


def _elu(a: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    return torch.where(a > 0, scale * a, scale * alpha * (torch.exp(input_scale * _below(a)) - 1))


def _elu_slope(g: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool, a: Tensor) -> Tensor:
    return torch.where(a > 0, scale * g, scale * alpha * input_scale * torch.exp(input_scale * _below(a)) * g)


def _silu(a: Tensor) -> Tensor:
    return a * torch.sigmoid(a)


def silu_slope(g: Tensor, a: Tensor) -> Tensor:
    """Return ``g`` times the slope of ``a sigmoid(a)``."""
    s = torch.sigmoid(a)
    return g * s * (1 + a * (1 - s))


def _softplus(a: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    z = beta * a
    return torch.where(z > threshold, a, (torch.relu(z) + torch.log(1 + torch.exp(-torch.abs(z)))) / beta)


def _softplus_slope(g: Tensor, a: Tensor, beta: float, threshold: float) -> Tensor:
    return torch.where(beta * a > threshold, g, g * torch.sigmoid(beta * a))


def _erf(a: Tensor) -> Tensor:
    # onnxruntime has erf in float32 alone; 6e-8 is lost.
    return torch.erf(a.to(torch.float32)).to(a.dtype)


def _gelu(a: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate == "none":
        return 0.5 * a * (1 + _erf(a / math.sqrt(2)))
    return 0.5 * a * (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a * a * a)))


def _gelu_slope(g: Tensor, a: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate == "none":
        return g * (0.5 * (1 + _erf(a / math.sqrt(2))) + a * torch.exp(-0.5 * a * a) / math.sqrt(2 * math.pi))
    c = math.sqrt(2 / math.pi)
    t = torch.tanh(c * (a + 0.044715 * a * a * a))
    return g * (0.5 * (1 + t) + 0.5 * a * (1 - t * t) * c * (1 + 3 * 0.044715 * a * a))


ELEMENTARY: dict[Any, Callable[..., Tensor]] = {
    _aten.sigmoid_backward.default: _sigmoid_slope,
    _aten.tanh_backward.default: _tanh_slope,
    _aten.threshold_backward.default: _threshold_slope,
    _aten.hardtanh_backward.default: _hardtanh_slope,
    _aten.leaky_relu.default: _leaky,
    _aten.leaky_relu_backward.default: _leaky_slope,
    _aten.elu.default: _elu,
    _aten.elu_backward.default: _elu_slope,
    _aten.silu.default: _silu,
    _aten.silu_backward.default: silu_slope,
    _aten.softplus.default: _softplus,
    _aten.softplus_backward.default: _softplus_slope,
    _aten.gelu.default: _gelu,
    _aten.gelu_backward.default: _gelu_slope,
}
