"""Reports on a target that has answers at its own points alone."""

from pathlib import Path

import numpy as np
from reports_support import train

from sobolev.host import default_host

RECIPE = """
name: recorded
target: {use: finite-set, points: 9, dimension: 3}
student: {use: mlp, hidden: [4], activation: tanh}
train: {steps: 3, batch_size: all, preflight: false}
evaluate: {splits: [train]}
figures: [surface, bars, curves, parity, errors, {use: profiles, grid: 5}]
"""


def test_parity_uses_recorded_numbers(tmp_path: Path) -> None:
    runs = train(tmp_path, RECIPE)
    target = default_host().registry.build("target", {"use": "finite-set", "points": 9, "dimension": 3})
    with np.load(runs[0].directory / "records/parity.npz") as stored:
        assert stored["split"] == "train"
        assert stored["labels"].tolist() == ["f", "df/dx1", "df/dx2", "df/dx3"]
        np.testing.assert_allclose(stored["target"][0], target.value_at[:, 0], rtol=1e-6)
        np.testing.assert_allclose(stored["target"][1:].T, target.gradient_at[:, 0], rtol=1e-6)
    assert not (runs[0].directory / "records/surface.npz").exists()
    with np.load(runs[0].directory / "records/profiles.npz") as stored:  # along the range of the samples
        np.testing.assert_allclose(stored["x"][:, 0], target.x.min(dim=0).values, rtol=1e-6)
        assert "student_partial" in stored.files and "target_value" not in stored.files
    registry = default_host().registry
    for spec in runs[0].config["figures"]:
        files = registry.build("report", spec).draw(runs, tmp_path / "figures")
        assert len(files) == (0 if spec["use"] == "surface" else 1)
