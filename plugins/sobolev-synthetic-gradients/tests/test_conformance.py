"""Targets, students and the report do what their kinds must do."""

from __future__ import annotations

from sobolev import Site
from sobolev.testing import ReportSuite, StudentSuite, TargetSuite

SMALL = {
    "data": {"use": "digits", "train": 24},
    "network": {"use": "convolutional", "channels": [2, 3, 3], "strides": [2, 2, 1]},
    "split": ["block1", "block2"],
}


class TestTargets(TargetSuite):
    components = [
        {"use": "synthetic-gradients", **SMALL},
        {"use": "synthetic-gradients", **SMALL, "label_derivative": True},
        {"use": "synthetic-gradients", **SMALL, "supervision": "bootstrapped"},
        {"use": "synthetic-gradients", **SMALL, "reference": "gradient", "gradient": "output"},
        {"use": "synthetic-gradients", **SMALL, "module": "after-update"},
    ]


class TestStudents(StudentSuite):
    components = [
        {"use": "class-predictor", "channels": [3]},
        {"use": "direct-gradient", "channels": 3, "zero": False},
        "no-module",
        {"use": "convolutional", "channels": [3, 4], "strides": [1, 2]},
    ]


class TestLargeStudents(StudentSuite):
    components = [{"use": "timm-classifier", "model": "test_resnet"}]
    sites = [Site({"x": (3, 32, 32)}, 4, ("x",))]


class TestReports(ReportSuite):
    components = ["synthetic-gradients"]
