"""What the library says about devices itself, whatever the caller or torch has set as a default."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def without_default(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that makes its tensors on the CPU, also under ``torch.set_default_device`` of something else.

    What goes to an accelerator is moved there by name: random numbers are drawn on the CPU, the same on every device.
    """

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.get_default_device().type == "cpu":
            return function(*args, **kwargs)
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return called


_Context = AbstractContextManager[object]
_NOTHING: _Context = nullcontext()


def single_precision(device: torch.device, inner: _Context = _NOTHING) -> _Context:
    """Return a context in which convolutions on CUDA stay in float32: cuDNN takes TF32 by default, with 10 bits.

    A first derivative of the paper's Atari student came out wrong by half a percent. Matrix products are in float32
    unless the caller has asked otherwise (`torch.set_float32_matmul_precision`).

    Args:
        device: where is computed.
        inner: another context, which it goes around.
    """
    return _WithoutTF32(inner) if device.type == "cuda" and _tf32() else inner


def full_precision(device: torch.device) -> _Context:
    """Return a context in which everything is computed in the precision of its tensors: no autocast, no TF32."""
    autocast = torch.is_autocast_enabled(device.type)
    return single_precision(device, torch.autocast(device.type, enabled=False) if autocast else _NOTHING)


class _WithoutTF32:
    """A context without TF32 in convolutions, around another one; entered in every step, so it is a light one."""

    def __init__(self, inner: _Context) -> None:
        self.inner = inner

    def __enter__(self) -> None:
        torch.backends.cudnn.allow_tf32 = False
        self.inner.__enter__()

    def __exit__(self, *raised: Any) -> None:
        self.inner.__exit__(*raised)
        torch.backends.cudnn.allow_tf32 = True


def _tf32() -> bool:
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:  # convolutions and recurrent layers were set apart, on purpose
        return False
