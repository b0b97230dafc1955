"""Normalisation layers written out from elementary operations.

PyTorch's own kernels of layer, batch and instance norm treat saved statistics as constants when a derivative by
forward mode, or a Hessian-vector product, is differentiated once more: parameter gradients come out wrong without a
word (pytorch issues 196699 and 196700). Their written-out forms are right in all modes. Weights are shared and the
result is the same, so they replace the kernels only while a derivative is computed that needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends import cuda
from torch.overrides import TorchFunctionMode


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """Return what ``torch.nn.functional.layer_norm`` returns."""
    over = tuple(range(-len(normalized_shape), 0))
    return _affine(_normal(input, over, eps), weight, bias)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return what ``torch.nn.functional.batch_norm`` returns; updates the running statistics in training mode."""
    if not training:
        assert running_mean is not None and running_var is not None
        shape = (1, -1, *(1,) * (input.ndim - 2))
        normal = (input - running_mean.reshape(shape)) * torch.rsqrt(running_var.reshape(shape) + eps)
    else:
        over = tuple(i for i in range(input.ndim) if i != 1)
        normal = _normal(input, over, eps)
        _update(running_mean, running_var, input, over, momentum)
    return _affine(normal, _channels(weight, input), _channels(bias, input))


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return what ``torch.nn.functional.instance_norm`` returns."""
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    over = tuple(range(2, input.ndim))
    normal = _normal(input, over, eps)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            mean, var = input.mean(over).mean(0), input.var(over, correction=1).mean(0)
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(var, momentum)
    return _affine(normal, _channels(weight, input), _channels(bias, input))


def _normal(input: Tensor, over: tuple[int, ...], eps: float) -> Tensor:
    centred = input - input.mean(over, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(over, keepdim=True) + eps)


def _affine(normal: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        normal = normal * weight
    return normal if bias is None else normal + bias


def _channels(tensor: Tensor | None, input: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.reshape(1, -1, *(1,) * (input.ndim - 2))


def _update(
    running_mean: Tensor | None, running_var: Tensor | None, input: Tensor, over: tuple[int, ...], momentum: float
) -> None:
    if running_mean is None or running_var is None:
        return
    with torch.no_grad():
        running_mean.lerp_(input.mean(over), momentum)
        running_var.lerp_(input.var(over, correction=1), momentum)


_WRITTEN_OUT: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: layer_norm,
    F.batch_norm: batch_norm,
    F.instance_norm: instance_norm,
    torch.layer_norm: layer_norm,
}


class _WrittenOut(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        written = _WRITTEN_OUT.get(func)
        return (written or func)(*args, **(kwargs or {}))


_FUSED_ATTENTION: tuple[tuple[Callable[[], bool], Callable[[bool], object]], ...] = (
    (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
    (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
    (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
)
"""Whether a fused kernel of attention may be used, and the function that says so; on CPUs too, whatever the names."""


class _DifferentiableForms:
    """Entered in every step that differentiates twice: lighter than `torch.nn.attention.sdpa_kernel`."""

    def __init__(self, norms: bool) -> None:
        self.mode: Any = _WrittenOut() if norms else None

    def __enter__(self) -> None:
        self.math = cuda.math_sdp_enabled()
        self.fused = [enable for enabled, enable in _FUSED_ATTENTION if enabled()]
        cuda.enable_math_sdp(True)
        for enable in self.fused:
            enable(False)
        if self.mode is not None:
            self.mode.__enter__()

    def __exit__(self, *raised: Any) -> None:
        if self.mode is not None:
            self.mode.__exit__(*raised)
        for enable in self.fused:
            enable(True)
        cuda.enable_math_sdp(self.math)


def differentiable_forms(norms: bool) -> AbstractContextManager[None]:
    """Return a context in which functions have derivatives of every order.

    Attention uses its plain kernel (the fused ones have no second derivative).

    Args:
        norms: whether normalisation layers are written out too; costs some microseconds per operation.
    """
    return _DifferentiableForms(norms)
