"""The component does what its kind must do; `sobolev check example` says the same in sentences."""

from __future__ import annotations

from sobolev import testing


class TestTarget(testing.TargetSuite):
    components = [{"use": "example", "train": 8, "test": 4}, {"use": "example", "frequency": 5.0}]


class TestEstimator(testing.EstimatorSuite):
    components = ["example", {"use": "example", "probes": 3}]


class TestStudent(testing.StudentSuite):
    components = ["example", {"use": "example", "features": 5, "scale": 0.5}]


class TestObjective(testing.ObjectiveSuite):
    components = ["example", {"use": "example", "value": 2.0, "derivative": 0.5}]


class TestTracker(testing.TrackerSuite):
    components = ["example"]


class TestReport(testing.ReportSuite):
    components = ["example", {"use": "example", "prefix": "train/"}]
