"""What the library says about devices itself, whatever the caller or torch has set as a default."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import ParamSpec, TypeVar

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


@contextmanager
def single_precision(device: torch.device) -> Iterator[None]:
    """Keep convolutions on CUDA in float32: cuDNN takes TF32 by default, which is wrong in the third digit.

    A first derivative of the paper's Atari student came out wrong by half a percent. Matrix products are in float32
    unless the caller has asked otherwise (`torch.set_float32_matmul_precision`).
    """
    if device.type != "cuda" or not _tf32():
        yield
        return
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = True


def _tf32() -> bool:
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:  # convolutions and recurrent layers were set apart, on purpose
        return False


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which everything is computed in the precision of its tensors: no autocast, no TF32."""
    if device.type == "cuda":
        stack = ExitStack()
        stack.enter_context(torch.autocast("cuda", enabled=False))
        stack.enter_context(single_precision(device))
        return stack
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
