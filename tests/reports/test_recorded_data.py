"""Reports on a target that has answers at its own points alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from reports_support import train

from sobolev import Batch, RunRecord, load
from sobolev.builtin.reports import heldout
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


ENSEMBLE = """
name: members
target: {use: ensemble, of: {use: mccormick, train: 9, test: 12}, members: 3}
student: {use: mlp, hidden: [4], activation: tanh}
train: {steps: 3, batch_size: all, preflight: false}
figures: [{use: surface, grid: 5}, parity, errors, {use: profiles, grid: 5}]
"""


def test_figures_show_the_mean_of_an_ensemble_and_its_spread(tmp_path: Path) -> None:
    (run,) = train(tmp_path, ENSEMBLE)
    student = load(run.directory)

    def records(name: str) -> dict[str, np.ndarray]:
        with np.load(run.directory / f"records/{name}.npz") as stored:
            return {name: stored[name] for name in stored.files}

    surface = records("surface")
    x, y = np.meshgrid(surface["x"], surface["y"])
    jet = student(torch.from_numpy(np.stack([x.ravel(), y.ravel()], axis=1)))
    np.testing.assert_allclose(surface["value"], jet.value[:, 0], rtol=1e-5)
    np.testing.assert_allclose(surface["gradient"], jet.derivatives["x",][:, 0], rtol=1e-5)
    assert len(surface["samples"]) == 9

    test = student.experiment.target.points(Batch("test", torch.arange(12)), training=False)["function-1"]
    jet = student(test.inputs)
    for name in ("parity", "errors"):
        stored = records(name)
        assert stored["labels"].tolist() == ["f", "df/dx", "df/dy"]
        np.testing.assert_allclose(stored["student"][0], jet.value[:, 0], rtol=1e-5)
        np.testing.assert_allclose(stored["student"][1:].T, jet.derivatives["x",][:, 0], rtol=1e-5)
        assert np.abs(stored["student"] - stored["target"]).max() > 0.1

    profiles = records("profiles")
    line = np.stack([profiles["x"][0], np.full(5, 0.5)], axis=1)  # the middle of [-3, 4]
    jet, spread = student(torch.from_numpy(line)), student.spread(torch.from_numpy(line))
    assert spread is not None
    np.testing.assert_allclose(profiles["student_value"][0, 0], jet.value[:, 0], rtol=1e-4)
    np.testing.assert_allclose(profiles["spread_value"][0, 0], spread.value[:, 0], rtol=1e-4)
    np.testing.assert_allclose(profiles["spread_partial"][0, 0], spread.derivatives["x",][:, 0, 0], rtol=1e-4)
    assert profiles["target_value"].shape == (1, 2, 5)

    figure = drawn_profiles(run, tmp_path / "figures")
    assert figure.get_supxlabel() == "lines: mean of the members; bands: one standard deviation of the members"
    (band,) = figure.axes[0].collections
    vertices = band.get_paths()[0].vertices
    np.testing.assert_allclose(
        [vertices[:, 1].min(), vertices[:, 1].max()],
        [(jet.value - spread.value).min(), (jet.value + spread.value).max()], rtol=1e-4,
    )  # fmt: skip


def drawn_profiles(run: RunRecord, directory: Path) -> Figure:
    """Draw the profiles and return the figure instead of its file alone."""
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sobolev.builtin.reports.profiles.save", lambda figure, *_: made.append(figure))
        default_host().registry.build("report", "profiles").draw([run], directory)
    return made[0]


TABLE = """
name: table
target:
  use: table
  file: data.csv
  inputs: [T, v]
  values: [heat flow, p]
  partials: "d{output}/d{input}"
  split: {test: 0.5}
student: {use: mlp, hidden: [4], activation: tanh}
train: {steps: 3, batch_size: all, preflight: false}
figures: [parity, errors, {use: profiles, grid: 5}]
"""


def test_every_output_has_a_figure_of_its_own(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    t, v = random.random((2, 40))
    columns = {
        "T [K]": t, "v [m/s]": v, "heat flow [W]": t * v, "p [bar]": t + v**2,
        "dheat flow/dT [W/K]": v, "dheat flow/dv [W/(m/s)]": t, "dp/dT [bar/K]": 0 * t + 1, "dp/dv [bar/(m/s)]": 2 * v,
    }  # fmt: skip
    rows = np.stack(list(columns.values()), axis=1)
    np.savetxt(tmp_path / "data.csv", rows, delimiter=",", header=",".join(columns), comments="")
    (run,) = train(tmp_path, TABLE)
    with np.load(run.directory / "records/parity.npz") as stored:
        assert stored["outputs"].tolist() == ["heat flow [W]"] * 3 + ["p [bar]"] * 3
        assert stored["labels"][3:].tolist() == ["p [bar]", "dp/dT [bar/K]", "dp/dv [bar/(m/s)]"]
        np.testing.assert_allclose(stored["target"][4], 1, rtol=1e-6)
    registry = default_host().registry
    with np.load(run.directory / "records/profiles.npz") as stored:
        lines, values, slopes = stored["x"], stored["student_value"], stored["student_partial"]
    assert values.shape == slopes.shape == (2, 2, 5)
    for name in ("parity", "errors", "profiles"):
        made = registry.build("report", {"use": name}).draw([run], tmp_path / "figures")
        assert [file.name for file in made] == [f"{name}-heat-flow.png", f"{name}-p.png"]
    at = np.stack([np.full(5, (t.min() + t.max()) / 2), lines[1]], axis=1)
    jet = load(run.directory)(torch.from_numpy(at.astype(np.float32)))
    np.testing.assert_allclose(values[:, 1], jet.value.T, rtol=1e-4)
    np.testing.assert_allclose(slopes[:, 1], jet[("x",)][:, :, 1].T, rtol=1e-4)


def test_one_output_can_be_chosen() -> None:
    assert heldout.outputs_of(6, None) == [0, 1, 2, 3]
    assert heldout.outputs_of(2, 1) == [1]
    assert heldout.outputs_of(2, 2) == []


def test_a_single_student_has_no_spread(tmp_path: Path) -> None:
    (run,) = train(tmp_path, RECIPE)
    with np.load(run.directory / "records/profiles.npz") as stored:
        assert not [name for name in stored.files if name.startswith("spread")]
