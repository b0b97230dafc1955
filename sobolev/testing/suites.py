"""The checks as classes for pytest: one line per component.

from sobolev.testing import TargetSuite

class TestTargets(TargetSuite):
    components = ["mine", {"use": "mine", "dimension": 3}]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from sobolev.testing import estimator, objective, report, student, target, tracker
from sobolev.testing.findings import NotApplicable
from sobolev.testing.subject import Component


class Suite:
    """One test per component and check.

    Attributes:
        components: names as in a recipe, mappings with options, or classes that no plugin registers.
        without: checks that are left out, with the reason.
    """

    components: ClassVar[Sequence[Component]] = ()
    without: ClassVar[Mapping[str, str]] = {}
    checks: ClassVar[Mapping[str, Any]] = {}
    case: ClassVar[type]

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Make a test of every component and check."""
        pairs = [(i, name) for i in range(len(self.components)) for name in self.checks]
        names = [f"{_label(self.components[i])}-{name}" for i, name in pairs]
        metafunc.parametrize(("number", "check"), pairs, ids=names)

    def make(self, component: Component) -> Any:
        """Return what the checks look at."""
        return self.case(component)

    def test_conforms(self, number: int, check: str) -> None:
        """The component does what its kind must do."""
        import pytest

        if check in self.without:
            pytest.skip(self.without[check])
        cases = type(self).__dict__.get("_cases")
        if cases is None:
            cases = {}
            type(self)._cases = cases  # type: ignore[attr-defined]
        if number not in cases:
            cases[number] = self.make(self.components[number])
        try:
            self.checks[check](cases[number])
        except NotApplicable as reason:
            pytest.skip(str(reason))

    @classmethod
    def teardown_class(cls) -> None:
        """Release what the cases hold."""
        for case in cls.__dict__.get("_cases", {}).values():
            case.close()


def _label(component: Component) -> str:
    if isinstance(component, str):
        return component
    if isinstance(component, Mapping):
        return str(component.get("use", "component"))
    return getattr(component, "__name__", "component")


class TargetSuite(Suite):
    """Checks of targets."""

    checks = target.CHECKS
    case = target.TargetCase


class EstimatorSuite(Suite):
    """Checks of estimators."""

    checks = estimator.CHECKS
    case = estimator.EstimatorCase


class StudentSuite(Suite):
    """Checks of students.

    Attributes:
        sites: what they are built for; by default the first of several sites that is not refused.
    """

    checks = student.CHECKS
    case = student.StudentCase
    sites: ClassVar[Sequence[Any]] = ()

    def make(self, component: Component) -> Any:
        """Return what the checks look at."""
        return student.StudentCase(component, sites=self.sites)


class ObjectiveSuite(Suite):
    """Checks of objectives."""

    checks = objective.CHECKS
    case = objective.ObjectiveCase


class TrackerSuite(Suite):
    """Checks of trackers."""

    checks = tracker.CHECKS
    case = tracker.TrackerCase


class ReportSuite(Suite):
    """Checks of reports."""

    checks = report.CHECKS
    case = report.ReportCase
