"""Conformance: what a component of each kind must do, as classes for pytest and as functions.

``sobolev check NAME`` runs the same checks and says in sentences what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sobolev.errors import ComponentError
from sobolev.registry import Registry, did_you_mean
from sobolev.testing import estimator, objective, report, student, target, tracker
from sobolev.testing.findings import Finding, NotApplicable, outcomes
from sobolev.testing.subject import Component, Subject
from sobolev.testing.suites import (
    EstimatorSuite,
    ObjectiveSuite,
    ReportSuite,
    StudentSuite,
    Suite,
    TargetSuite,
    TrackerSuite,
)

_KINDS: dict[str, tuple[Any, Any]] = {
    "target": (target.TargetCase, target.CHECKS),
    "estimator": (estimator.EstimatorCase, estimator.CHECKS),
    "student": (student.StudentCase, student.CHECKS),
    "objective": (objective.ObjectiveCase, objective.CHECKS),
    "tracker": (tracker.TrackerCase, tracker.CHECKS),
    "report": (report.ReportCase, report.CHECKS),
}
KINDS = tuple(_KINDS)
"""The kinds that have checks."""


def check(kind: str, component: Component, registry: Registry | None = None) -> Iterator[Finding]:
    """Run all checks of a kind on a component, one after the other.

    Args:
        kind: one of `KINDS`.
        component: a name as in a recipe, ``{"use": name, ...options}``, or a class.
        registry: where names are looked up; that of the installed plugins by default.

    Raises:
        ComponentError: there are no such checks, or the component cannot be made.
    """
    if kind not in _KINDS:
        raise ComponentError(f"there are no checks of the kind {kind!r}; {did_you_mean(kind, KINDS)}")
    make, checks = _KINDS[kind]
    case = make(component, registry)
    try:
        yield from outcomes(checks, case)
    finally:
        case.close()


__all__ = [
    "KINDS",
    "Component",
    "EstimatorSuite",
    "Finding",
    "NotApplicable",
    "ObjectiveSuite",
    "ReportSuite",
    "StudentSuite",
    "Subject",
    "Suite",
    "TargetSuite",
    "TrackerSuite",
    "check",
]
