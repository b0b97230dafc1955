"""What a check says: nothing where all is well, a sentence where it is not."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from sobolev.errors import ComponentError, SobolevError

Case = TypeVar("Case")
Checks = Mapping[str, Callable[[Case], None]]


class NotApplicable(Exception):
    """A check that says nothing about this component; the message says why."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: its name.
        about: what it is about, one line.
        verdict: ``ok``, ``wrong`` or ``not applicable``.
        message: sentences for the author of the component; empty where all is well.
    """

    check: str
    about: str
    verdict: str
    message: str = ""


def outcomes(checks: Checks[Case], case: Case) -> Iterator[Finding]:
    """Run checks one after the other; whatever a component raises becomes a sentence."""
    for name, check in checks.items():
        about = (check.__doc__ or "").strip().partition("\n")[0].rstrip(".")
        try:
            check(case)
        except NotApplicable as reason:
            yield Finding(name, about, "not applicable", str(reason))
        except SobolevError as error:
            yield Finding(name, about, "wrong", str(error))
        except Exception as error:
            yield Finding(name, about, "wrong", _raised(error))
        else:
            yield Finding(name, about, "ok")


def _raised(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    said = str(error).strip().partition("\n")[0]
    return f"It raised {type(error).__name__}: {said} ({last.filename}:{last.lineno})."


def difference(got: Tensor, expected: Tensor, relative: float, absolute: float = 0.0) -> str:
    """Return where and by how much two tensors of one shape differ most; empty where they agree.

    A difference is allowed up to ``relative`` times the largest expected number, plus ``absolute``.
    """
    if not got.numel():
        return ""
    got, expected = got.detach().double(), expected.detach().double()
    allowed = relative * float(expected.abs().max()) + absolute
    error = (got - expected).abs()
    error = torch.where(error.isnan(), torch.full_like(error, torch.inf), error)
    if float(error.max()) <= allowed:
        return ""
    place = [int(i) for i in torch.unravel_index(error.argmax(), error.shape)]
    a, b = float(got[tuple(place)]), float(expected[tuple(place)])
    ratio = f", ratio {a / b:.4g}" if b else ""
    return f"at {place} it is {a:.6g}, expected {b:.6g}{ratio}"


def shape_of(value: Any) -> str:
    """Return the shape of a tensor, or what it is instead."""
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def check_plain(value: Any, where: str) -> None:
    """Check that a state, or a part of it, can be saved.

    Raises:
        ComponentError: something other than tensors, numbers, texts, lists and mappings; says where.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str | int):
                raise ComponentError(f"{where} has the key {key!r}; keys are texts or whole numbers.")
            check_plain(inner, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            check_plain(inner, f"{where}[{i}]")
    elif value is not None and not isinstance(value, Tensor | str | int | float | bool):
        raise ComponentError(
            f"{where} is a {type(value).__name__}; a state consists of tensors, numbers, texts, lists and mappings."
        )


def first_difference(a: Any, b: Any, where: str) -> str:
    """Return the place of the first difference between two states, below ``where``; empty where they agree."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.shape == b.shape and not difference(b.float(), a.float(), 1e-6, 1e-9)
        return "" if same else where or "the state itself"
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if set(a) != set(b):
            return where or "its keys"
        return next((found for k in a if (found := first_difference(a[k], b[k], f"{where}[{k!r}]"))), "")
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return next((found for i, (x, y) in enumerate(zip(a, b, strict=True))
                     if (found := first_difference(x, y, f"{where}[{i}]"))), "")  # fmt: skip
    return "" if a == b else where or "the state itself"
