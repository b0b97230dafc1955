"""Every built-in component does what its kind must do: one line each."""

from __future__ import annotations

from pathlib import Path

from sobolev.host import default_host
from sobolev.testing import (
    KINDS,
    EstimatorSuite,
    ObjectiveSuite,
    ReportSuite,
    StudentSuite,
    Suite,
    TargetSuite,
    TrackerSuite,
)

TABLE = str(Path(__file__).parent / "data" / "partials.csv")
WEIGHTS = str(Path(__file__).parent / "data" / "teacher.safetensors")
BEAM = {
    "function": "cantilever",
    "inputs": {"load": [200, 2000], "length": [0.5, 2.0], "width": [20, 60], "height": [40, 100]},
    "outputs": ["deflection", "stress"],
}
PENDULUM = {
    "function": "pendulum",
    "inputs": {"angle": [0.2, 2.5], "length": [0.5, 2.0], "damping": [0.05, 0.5]},
    "outputs": ["angle3"],
}
NETWORK = {"use": "mlp", "hidden": [4], "activation": "tanh"}
OTHERS = [
    "residual",
    "polynomial",
    "gaussian-density",
    {"use": "piecewise-linear", "knots": [-1.0, 0.5, 1.0]},
    {"use": "constructive", "of": {"use": "finite-set", "points": 4, "dimension": 3}},
]


class TestTargets(TargetSuite):
    components = [
        {"use": "ackley", "train": 8, "test": 4, "validation": 4, "dimension": 3},
        {"use": "beale", "train": 8, "test": 4},
        {"use": "booth", "train": 8, "test": 4, "sampling": "sobol"},
        {"use": "bukin", "train": 8, "test": 4},
        {"use": "mccormick", "train": 8, "test": 4, "sampling": "latin-hypercube"},
        {"use": "rosenbrock", "train": 8, "test": 4},
        {"use": "styblinski-tang", "train": 8, "test": 4},
        {"use": "table", "file": TABLE, "inputs": ["a", "b"], "values": "f", "partials": "d{output}{input}"},
        {"use": "module", "network": NETWORK, "weights": WEIGHTS, "shape": [2], "outputs": 2, "train": 8, "test": 4},
        {"use": "blackbox", **BEAM, "partials": "returned", "train": 8, "test": 4, "workers": 1},
        {"use": "blackbox", **PENDULUM, "train": 8, "test": 4, "workers": 1},
        {"use": "ensemble", "of": {"use": "booth", "train": 8, "test": 4}, "members": 2},
        {"use": "finite-set", "points": 6, "function": "booth", "test": 4},
        {"use": "member", "of": {"use": "mlp", "hidden": [4]}, "train": 4, "test": 4},
    ]


class TestEstimators(EstimatorSuite):
    components = [
        "exact",
        {"use": "projected", "probes": 2},
        {"use": "projected", "side": "input"},
        {"use": "projected", "side": "input", "last": "contracted", "probes": 2},
        {"use": "projected", "side": "output", "orthogonal": True, "probes": 2},
        {"use": "finite-difference", "of": "exact"},
        {"use": "finite-difference", "of": {"use": "projected", "side": "input"}, "scheme": "complex-step"},
    ]


class TestStudents(StudentSuite):
    components = ["mlp", {"use": "mlp", "hidden": [8], "activation": "tanh"}, "null", *OTHERS]


class TestObjectives(ObjectiveSuite):
    components = [
        "sobolev",
        {"use": "sobolev", "value": {"loss": "l1", "weight": 3}, "derivatives": [{"loss": "huber", "weight": 0.5}]},
        {"use": "sobolev", "value": {"loss": "norm", "weight": 0}, "derivatives": [{"order": 2, "reduce": "mean"}]},
        {"use": "sobolev", "head": "log-softmax", "value": "kl-student-teacher", "derivatives": ["norm"]},
        {"use": "sobolev", "head": "log-softmax", "value": "kl-teacher-student", "derivatives": []},
        {"use": "sobolev", "head": "log-loss", "value": "l1", "derivatives": [{"input": "x"}, {"order": 2}]},
    ]


class TestTrackers(TrackerSuite):
    components = ["console"]


class TestReports(ReportSuite):
    components = ["surface", "bars", "curves", "errors", "parity", "profiles"]


SUITES: dict[str, type[Suite]] = {
    "target": TestTargets,
    "estimator": TestEstimators,
    "student": TestStudents,
    "objective": TestObjectives,
    "tracker": TestTrackers,
    "report": TestReports,
}


def test_no_built_in_component_is_left_out() -> None:
    for kind in KINDS:
        named = {c if isinstance(c, str) else c["use"] for c in SUITES[kind].components}  # type: ignore[index]
        entries = default_host().registry.entries[kind].values()
        built_in = {entry.name for entry in entries if entry.plugin.startswith("sobolev ")}
        assert named == built_in, kind
