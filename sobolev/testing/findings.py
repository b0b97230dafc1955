"""What a check says: nothing where all is well, a sentence where it is not."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from sobolev.errors import SobolevError

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
