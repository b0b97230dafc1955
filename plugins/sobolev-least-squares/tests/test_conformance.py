"""The component does what its kind must do."""

from __future__ import annotations

from sobolev import testing


class TestEstimator(testing.EstimatorSuite):
    without = {"contraction": "an approximation, whose error falls with the distance of samples; tested next door"}
    components = [
        {"use": "least-squares", "degree": 2},
        {"use": "least-squares", "degree": 2, "of": {"use": "projected", "side": "input"}},
    ]
