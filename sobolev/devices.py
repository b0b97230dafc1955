"""The library says where its tensors live; a default device that the caller has set is not for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
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
