"""Every report on run directories that were really trained: what stands in the figure is what the runs recorded."""

import importlib
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from reports_support import train

from sobolev import load
from sobolev.builtin.reports import heldout, style
from sobolev.builtin.targets.functions import FUNCTIONS
from sobolev.components import Report, RunRecord
from sobolev.host import default_host
from sobolev.labels import cell_name, split_label
from sobolev.sampler import some
from sobolev.tables import partial_label

ALL = ["surface", "bars", "curves", "parity", "errors", "profiles"]
BLUE, ORANGE = style.COLOURS[:2]


def report(name: str, **options: Any) -> Report:
    registry = default_host().registry
    made: Report = registry.build("report", registry.check("report", {"use": name, **options}, ())[0])
    return made


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Figure]]:
    """The figures that reports would save."""
    kept: list[tuple[str, Figure]] = []

    def keep(figure: Figure, directory: Path, name: str) -> Path:
        kept.append((name, figure))
        return directory / f"{name}.png"

    for module in ("bars", "curves", "surface", "parity", "errors", "profiles"):
        # By its name in a string it would be the factory of that name, until it is imported.
        monkeypatch.setattr(importlib.import_module(f"sobolev.builtin.reports.{module}"), "save", keep)
    return kept


def panels(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.axison]


def summary(runs: list[RunRecord], variant: str, metric: str) -> list[float]:
    return [run.summary[metric] for run in runs if run.variant == variant]


@pytest.mark.parametrize("name", ALL)
def test_pictures_are_written_from_run_directories_alone(
    name: str, plain_runs: list[RunRecord], tmp_path: Path
) -> None:
    files = report(name).draw(plain_runs, tmp_path)
    assert [file.name for file in files] == [f"{name}.png"]
    picture = imread(files[0])
    assert picture.shape[0] > 300 and picture.shape[1] > 300
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 20


@pytest.mark.parametrize("name", ALL)
def test_without_runs_there_is_no_picture(name: str, tmp_path: Path) -> None:
    assert report(name).draw([], tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_bars_stand_at_the_median_and_show_every_seed(
    plain_runs: list[RunRecord], tmp_path: Path, drawn: list[tuple[str, Figure]]
) -> None:
    report("bars").draw(plain_runs, tmp_path)
    ((_, figure),) = drawn
    assert [axes.get_title() for axes in panels(figure)] == ["test error of value", "test error of d/dx"]
    for axes, metric in zip(panels(figure), ["test/function/value", "test/function/d/dx"], strict=True):
        assert [text.get_text() for text in axes.get_xticklabels()] == ["regular", "sobolev"]
        assert axes.get_yscale() == "log"
        for bar, line, variant in zip(axes.patches, axes.lines, ["regular", "sobolev"], strict=True):
            values = summary(plain_runs, variant, metric)
            assert len(values) == 3
            assert bar.get_height() == pytest.approx(statistics.median(values))
            assert list(line.get_ydata()) == values
            low, high = axes.get_ylim()
            assert low < min(values) and max(values) < high


def test_bars_count_seeds_that_diverged(tmp_path: Path, drawn: list[tuple[str, Figure]]) -> None:
    seeds = {"lost": [np.nan, np.inf, 1.0], "one": [3.0, np.nan, 1.0], "all": [2.0, 3.0, 1.0]}
    runs = [
        RunRecord(variant, seed, tmp_path, {"name": "r"}, "finished", {"test/f/value": value})
        for variant, values in seeds.items()
        for seed, value in enumerate(values)
    ]
    report("bars").draw(runs, tmp_path)
    (axes,) = panels(drawn[0][1])
    assert [bar.get_height() for bar in axes.patches] == [3.0, 2.0]  # half of the first arm's are lost
    assert [text.get_text() for text in axes.texts] == ["2 of 3 not finite", "1 of 3 not finite"]
    assert [len(line.get_ydata()) for line in axes.lines] == [1, 2, 3]


def test_bars_of_a_matrix_are_grouped(
    matrix_runs: list[RunRecord], tmp_path: Path, drawn: list[tuple[str, Figure]]
) -> None:
    report("bars", metrics=["test/function/value", "nonsense"]).draw(matrix_runs, tmp_path)
    ((_, figure),) = drawn
    assert [axes.get_title() for axes in panels(figure)] == ["booth", "ackley"]
    for axes, function in zip(panels(figure), ["booth", "ackley"], strict=True):
        assert [text.get_text() for text in axes.get_xticklabels()] == ["8", "20"]  # in order of size
        expected = {
            (to_hex(colour).lower(), size): statistics.median(
                summary(matrix_runs, f"{arm},target={function},train={size}", "test/function/value")
            )
            for arm, colour in (("regular", BLUE), ("sobolev", ORANGE))
            for size in (8, 20)
        }
        found = {
            (to_hex(bar.get_facecolor()).lower(), (8, 20)[round(bar.get_x() + bar.get_width() / 2)]): bar.get_height()
            for bar in axes.patches
        }
        assert found == pytest.approx(expected)


def test_bars_say_where_a_metric_is_not_applicable(
    plain_runs: list[RunRecord], tmp_path: Path, drawn: list[tuple[str, Figure]]
) -> None:
    lacking = [
        RunRecord(r.variant, r.seed, r.directory, r.config, r.status, {} if r.variant == "regular" else r.summary)
        for r in plain_runs
    ]
    report("bars", metrics=["test/function/value"]).draw(lacking, tmp_path)
    ((_, figure),) = drawn
    (axes,) = panels(figure)
    assert len(axes.patches) == 1
    assert [text.get_text() for text in axes.texts] == ["not\napplicable"]


def test_curves_are_medians_with_a_band(
    plain_runs: list[RunRecord], tmp_path: Path, drawn: list[tuple[str, Figure]]
) -> None:
    report("curves", metrics=["validation/function/value"]).draw(plain_runs, tmp_path)
    ((_, figure),) = drawn
    (axes,) = panels(figure)
    for line, variant in zip(axes.lines, ["regular", "sobolev"], strict=True):
        histories = []
        for run in plain_runs:
            if run.variant == variant:
                records = map(json.loads, (run.directory / "metrics.jsonl").read_text().splitlines())
                histories.append([r["validation/function/value"] for r in records if "validation/function/value" in r])
        assert list(line.get_xdata()) == [4, 8, 12]
        np.testing.assert_allclose(line.get_ydata(), np.median(histories, axis=0))
        band = axes.collections[["regular", "sobolev"].index(variant)].get_paths()[0].vertices
        for step, at in zip([4, 8, 12], np.transpose(histories), strict=True):
            heights = band[band[:, 0] == step, 1]
            assert heights.min() == pytest.approx(at.min()) and heights.max() == pytest.approx(at.max())


def test_curves_of_a_matrix_have_a_panel_per_cell(
    matrix_runs: list[RunRecord], tmp_path: Path, drawn: list[tuple[str, Figure]]
) -> None:
    files = report("curves").draw(matrix_runs, tmp_path)
    assert files[0].name == "curves-train-loss.png"
    _, figure = drawn[0]
    assert [axes.get_title() for axes in panels(figure)] == [
        "booth, train 20", "ackley, train 20", "booth, train 8", "ackley, train 8",
    ]  # fmt: skip
    assert all(len(axes.lines) == 2 for axes in panels(figure)[1:])


def test_surface_records_the_function_itself(plain_runs: list[RunRecord]) -> None:
    with np.load(plain_runs[0].directory / "records/surface.npz") as stored:
        data = {name: stored[name] for name in stored.files}
    x, y = np.meshgrid(data["x"], data["y"])
    points = torch.tensor(np.stack([x.ravel(), y.ravel()], axis=1)).requires_grad_()
    value = FUNCTIONS["mccormick"].value(points)
    (gradient,) = torch.autograd.grad(value.sum(), points)
    np.testing.assert_allclose(data["target_value"], value.detach(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(data["target_gradient"], gradient, rtol=1e-4, atol=1e-4)
    jet = load(plain_runs[0].directory)(points.detach())
    np.testing.assert_allclose(data["value"], jet.value[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(data["gradient"], jet[("x",)][:, 0], rtol=1e-4, atol=1e-5)


def test_surface_draws_one_figure_per_cell(
    matrix_runs: list[RunRecord], tmp_path: Path, drawn: list[tuple[str, Figure]]
) -> None:
    files = report("surface", seed=1).draw([r for r in matrix_runs if "ackley" in r.variant], tmp_path)
    assert [file.name for file in files] == ["surface-ackley-20.png", "surface-ackley-8.png"]
    for _, figure in drawn:
        assert [a.get_title() for a in figure.axes if a.name == "3d"] == ["target", "regular", "sobolev"]
    assert report("surface", seed=9).draw(matrix_runs, tmp_path) == []


def test_long_titles_are_broken() -> None:
    assert style.wrapped("du/dx [K/m]") == "du/dx [K/m]"
    label = partial_label("heat flux at the wall [W]", "inlet temperature [K]")
    assert label == "d(heat flux at the wall)/d(inlet temperature) [W/K]"
    assert style.wrapped(label).splitlines() == ["d(heat flux at the wall)", "/d(inlet temperature)", "[W/K]"]


def test_surfaces_without_a_target_share_one_scale(
    plain_runs: list[RunRecord], tmp_path: Path, drawn: list[tuple[str, Figure]]
) -> None:
    runs, highest = [], []
    for run in (plain_runs[0], plain_runs[-1]):
        with np.load(run.directory / "records/surface.npz") as stored:
            arrays = {name: stored[name] for name in stored.files if not name.startswith("target")}
        folder = tmp_path / run.variant
        (folder / "records").mkdir(parents=True)
        arrays["value"] = arrays["value"] + 10 * len(runs)
        np.savez(folder / "records/surface.npz", **arrays)
        highest.append(float(arrays["value"].max()))
        runs.append(replace(run, directory=folder, seed=0))
    report("surface").draw(runs, tmp_path)
    solid = [axes for axes in drawn[0][1].axes if axes.name == "3d"]
    assert len(solid) == 2 and {axes.get_zlim()[1] for axes in solid} == {max(highest)}


def test_parity_shows_student_against_target(
    plain_runs: list[RunRecord], tmp_path: Path, drawn: list[tuple[str, Figure]]
) -> None:
    report("parity", samples=30).draw(plain_runs, tmp_path)
    ((_, figure),) = drawn
    assert [axes.get_title() for axes in panels(figure)[:3]] == ["f", "df/dx", "df/dy"]
    student = load(plain_runs[0].directory)
    of_split = student.experiment.target._x["test"]
    x = of_split[some(len(of_split), 30)].double().requires_grad_()
    value = FUNCTIONS["mccormick"].value(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    jet = student(x.detach().float())
    pairs = [(value, jet.value[:, 0]), (gradient[:, 0], jet[("x",)][:, 0, 0]), (gradient[:, 1], jet[("x",)][:, 0, 1])]
    for axes, (expected, answered) in zip(panels(figure)[:3], pairs, strict=True):
        _, inside, beyond = axes.lines
        shown = np.concatenate([inside.get_xdata(), beyond.get_xdata()])
        np.testing.assert_allclose(np.sort(shown), np.sort(expected.detach()), rtol=1e-4, atol=1e-4)
        low, high = axes.get_ylim()
        within = (answered >= low) & (answered <= high)
        np.testing.assert_allclose(inside.get_ydata(), answered[within], rtol=1e-4, atol=1e-4)
        rmse = float((answered - expected.detach()).square().mean().sqrt())
        assert axes.texts[0].get_text() == f"RMSE {rmse:.3g}"


def test_errors_count_every_sample(
    plain_runs: list[RunRecord], tmp_path: Path, drawn: list[tuple[str, Figure]]
) -> None:
    report("errors").draw(plain_runs, tmp_path)
    ((_, figure),) = drawn
    assert [axes.get_title() for axes in panels(figure)] == ["f", "df/dx", "df/dy"]
    for axes in panels(figure):
        steps = axes.patches
        assert [step.get_label() for step in steps] == ["regular", "sobolev"]
        for step in steps:
            assert step.get_data().values.sum() == pytest.approx(1.0)


def test_profiles_follow_the_function_along_each_input(
    plain_runs: list[RunRecord], tmp_path: Path, drawn: list[tuple[str, Figure]]
) -> None:
    report("profiles", grid=9).draw(plain_runs, tmp_path)
    ((_, figure),) = drawn
    middle, low, high = np.array([1.25, 0.5]), (-1.5, -3.0), (4.0, 4.0)
    upper, lower = panels(figure)[:2], panels(figure)[2:]
    assert [axes.get_title(loc="left") for axes in lower] == ["df/dx", "df/dy"]
    for i in range(2):
        points = torch.tensor(np.tile(middle, (9, 1)))
        points[:, i] = torch.linspace(low[i], high[i], 9)
        points.requires_grad_()
        value = FUNCTIONS["mccormick"].value(points)
        (gradient,) = torch.autograd.grad(value.sum(), points)
        for axes, expected in ((upper[i], value.detach()), (lower[i], gradient[:, i])):
            *students, target = axes.lines
            assert [line.get_label() for line in students] == ["regular", "sobolev"]
            np.testing.assert_allclose(target.get_ydata(), expected, rtol=1e-4, atol=1e-4)
            answered = [
                load(r.directory)(points.detach().float()) for r in plain_runs if r.variant == "sobolev"
            ]  # fmt: skip
            shown = [jet.value[:, 0] if axes is upper[i] else jet[("x",)][:, 0, i] for jet in answered]
            median = np.median(np.stack(shown), axis=0)
            np.testing.assert_allclose(students[1].get_ydata(), median, rtol=1e-4, atol=1e-5)


def test_unknown_numbers_are_left_out() -> None:
    target = np.array([1.0, np.nan, 3.0])
    quantity = heldout._quantity("f", target, np.array([1.5, 2.5, 3.5]))
    assert quantity.target.tolist() == [1, 3] and quantity.student.tolist() == [1.5, 3.5]


@pytest.mark.parametrize(("output", "x", "label"), [
    ("f", "x", "df/dx"),
    ("p [bar]", "T [K]", "dp/dT [bar/K]"),
    ("f", "T [K]", "df/dT [1/K]"),
    ("p [bar]", "x", "dp/dx [bar]"),
    ("q [m3/h]", "n [1/s]", "dq/dn [m3/h/(1/s)]"),
])  # fmt: skip
def test_units_of_partials(output: str, x: str, label: str) -> None:
    assert partial_label(output, x) == label


def recorded(folder: Path, name: str, samples: int) -> RunRecord:
    """Return a run that recorded target and student at so many samples."""
    target = np.linspace(-1, 1, samples)
    (folder / "records").mkdir(parents=True)
    student = target + 0.1 * np.cos(np.arange(samples))
    labels = np.array(["p [bar]"])
    np.savez(folder / f"records/{name}.npz", outputs=labels, labels=labels, target=target[None], student=student[None])
    return RunRecord("only", 0, folder, {}, "finished")


def test_few_samples_are_drawn_large_and_counted_in_few_bins(tmp_path: Path, drawn: list[tuple[str, Figure]]) -> None:
    seen = {}
    for samples in (30, 2000):
        for name in ("parity", "errors"):
            report(name).draw([recorded(tmp_path / f"{name}-{samples}", name, samples)], tmp_path)
            seen[name, samples] = drawn[-1][1].axes[0]
    sizes = [seen["parity", samples].lines[1].get_markersize() for samples in (30, 2000)]
    assert sizes[0] > 4 and sizes[1] == 2
    bins = [len(seen["errors", samples].patches[0].get_data().values) for samples in (30, 2000)]
    assert bins == [10, 40]


def heldout_run(
    folder: Path, name: str, quantities: dict[str, list[str]], variant: str = "only", seed: int = 0
) -> RunRecord:
    """Return a run that recorded the quantities of some outputs, each with a target of its own."""
    directory = folder / variant / str(seed)
    (directory / "records").mkdir(parents=True)
    outputs, labels = zip(*((output, label) for output, found in quantities.items() for label in found), strict=True)
    target = np.arange(len(labels))[:, None] + np.linspace(0, 1, 12)
    np.savez(
        directory / f"records/{name}.npz", outputs=np.array(outputs), labels=np.array(labels), target=target,
        student=target + 0.01,
    )  # fmt: skip
    return RunRecord(variant, seed, directory, {}, "finished")


def profiles_run(folder: Path, variant: str, inputs: list[str], outputs: list[str]) -> RunRecord:
    """Return a run that recorded profiles, with a target that says how many inputs and outputs there are."""
    directory = folder / variant
    (directory / "records").mkdir(parents=True)
    x = np.tile(np.linspace(0, 1, 5), (len(inputs), 1))
    numbers = np.full((len(outputs), *x.shape), float(len(inputs)))
    np.savez(
        directory / "records/profiles.npz", inputs=np.array(inputs), outputs=np.array(outputs), x=x,
        student_value=numbers, student_partial=numbers, target_value=numbers, target_partial=numbers,
    )  # fmt: skip
    return RunRecord(variant, 0, directory, {}, "finished")


def test_outputs_of_like_names_have_files_of_their_own(tmp_path: Path) -> None:
    outputs = ["u/v", "u v", "U [m]", "u-v-2", "+", "-"]
    expected = ["-u-v", "-u-v-3", "-U", "-u-v-2", "", "-2"]
    assert style.file_names("errors", outputs) == [f"errors{part}" for part in expected]
    assert style.file_names("errors", ["u", "U [m]"]) == ["errors-u", "errors-U-2"]
    assert style.file_names("errors", ["u/v"]) == ["errors"]
    for name in ("parity", "errors"):
        run = heldout_run(tmp_path / name, name, {"u/v": ["u/v"], "u v": ["u v"]})
        files = report(name).draw([run], tmp_path)
        assert [file.name for file in files] == [f"{name}-u-v.png", f"{name}-u-v-2.png"]
    files = report("profiles").draw([profiles_run(tmp_path / "p", "only", ["x"], ["u/v", "u v"])], tmp_path)
    assert [file.name for file in files] == ["profiles-u-v.png", "profiles-u-v-2.png"]


def test_profiles_without_partials_draw_values_alone(tmp_path: Path, drawn: list[tuple[str, Figure]]) -> None:
    runs = [profiles_run(tmp_path, variant, ["x", "y"], ["f"]) for variant in ("a", "b")]
    for count, run in enumerate(runs):
        file = run.directory / "records/profiles.npz"
        with np.load(file) as stored:
            arrays = {name: stored[name] for name in stored.files if "partial" not in name}
        np.savez(file, **arrays)
        report("profiles").draw(runs, tmp_path)  # of one run, then of none
        assert len(panels(drawn[count][1])) == (4, 2)[count]
    assert [axes.get_xlabel() for axes in panels(drawn[1][1])] == ["x", "y"]


def test_profiles_draw_the_target_of_every_variant(tmp_path: Path, drawn: list[tuple[str, Figure]]) -> None:
    runs = [profiles_run(tmp_path, variant, ["x"], ["f"]) for variant in ("a", "b", "c")]
    report("profiles").draw(runs, tmp_path)
    file = runs[1].directory / "records/profiles.npz"
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez(file, **{**arrays, "target_value": arrays["target_value"] + 1.0})
    report("profiles").draw(runs, tmp_path)
    same, other = ({line.get_label(): line for line in panels(figure)[0].lines} for _, figure in drawn)
    assert list(same) == ["a", "b", "c", "target"]
    assert list(other) == ["a", "b", "c", "target of a", "target of b", "target of c"]
    for variant, height in (("a", 1.0), ("b", 2.0), ("c", 1.0)):
        line = other[f"target of {variant}"]
        assert line.get_color() == other[variant].get_color()
        assert set(line.get_ydata()) == {height}


@pytest.mark.parametrize("reverse", [False, True])
def test_profiles_of_other_inputs_are_drawn_apart(
    reverse: bool, tmp_path: Path, drawn: list[tuple[str, Figure]]
) -> None:
    given = {"a": ["x"], "b": ["x", "y"], "c": ["T", "v"], "d": ["x"]}
    runs = [profiles_run(tmp_path, variant, inputs, ["f"]) for variant, inputs in given.items()]
    report("profiles").draw(runs[::-1] if reverse else runs, tmp_path)
    assert [name for name, _ in drawn] == ["profiles-f", "profiles-f-2", "profiles-f-3"]
    seen = {}
    for _, figure in drawn:
        shown = panels(figure)
        inputs = [axes.get_xlabel() for axes in shown if axes.get_xlabel()]
        for axes in shown:
            *students, target = axes.lines
            assert set(target.get_ydata()) == {len(inputs)}
            seen |= {line.get_label(): inputs for line in students}
    assert seen == given


@pytest.mark.parametrize("name", ["parity", "errors"])
def test_other_quantities_of_an_output_are_drawn_apart(
    name: str, tmp_path: Path, drawn: list[tuple[str, Figure]]
) -> None:
    given = {
        "values": ["f"], "one": ["f", "df/dx"], "two": ["f", "df/dx", "df/dy"], "others": ["f", "df/dT", "df/dv"],
        "again": ["f", "df/dx"],
    }  # fmt: skip
    runs = [heldout_run(tmp_path, name, {"f": labels}, variant) for variant, labels in given.items()]
    report(name).draw(runs, tmp_path)
    assert [file for file, _ in drawn] == [f"{name}-f", f"{name}-f-2"]
    titles = [[axes.get_title() for axes in figure.axes if axes.get_title()] for _, figure in drawn]
    assert titles == [["f", "df/dx", "df/dy"], ["f", "df/dT", "df/dv"]]
    variants = ["values", "one", "two", "again"]
    for (_, figure), expected in zip(drawn, (variants, ["others"]), strict=True):
        if name == "errors":
            assert [step.get_label() for step in panels(figure)[0].patches] == expected
        else:
            rows = [axes.get_ylabel() for axes in panels(figure) if axes.get_ylabel()]
            assert rows == [f"{variant}\nstudent" for variant in expected]


def test_parity_shows_the_first_seed_that_has_a_record(tmp_path: Path, drawn: list[tuple[str, Figure]]) -> None:
    failed = RunRecord("a", 0, tmp_path / "none", {}, "failed")
    runs = [heldout_run(tmp_path, "parity", {"f": ["f"]}, *of) for of in (("a", 2), ("a", 1), ("b", 0))]
    report("parity").draw([failed, *runs], tmp_path)
    ((_, figure),) = drawn
    assert [axes.get_ylabel() for axes in panels(figure)] == ["a\nstudent", "b\nstudent"]
    assert all(len(axes.lines[1].get_xdata()) == 12 for axes in panels(figure))  # of one seed
    report("parity", seed=2).draw([failed, *runs], tmp_path)
    assert [axes.get_ylabel() for axes in panels(drawn[1][1])] == ["a\nstudent"]
    assert report("parity").draw([failed], tmp_path) == []


MANY = """
name: many
target: {use: styblinski-tang, dimension: 10, train: 8, test: 20}
student: {use: mlp, hidden: [4]}
train: {steps: 1, preflight: false}
figures: [parity, errors, {use: profiles, grid: 5}]
"""


def test_figures_say_what_they_leave_out(tmp_path: Path, drawn: list[tuple[str, Figure]]) -> None:
    runs = train(tmp_path, MANY)
    for name in ("parity", "errors", "profiles"):
        report(name).draw(runs, tmp_path)
    assert {name: figure.get_supxlabel() for name, figure in drawn} == {
        "parity": "target (3 further partials are not shown)",
        "errors": "3 further partials are not shown",
        "profiles": "2 further inputs are not shown",
    }
    file = runs[0].directory / "records/parity.npz"
    with np.load(file) as stored:
        arrays = {name: array for name, array in stored.items() if name != "further"}
    np.savez(file, **arrays)  # of an earlier version
    report("parity").draw(runs, tmp_path)
    assert drawn[-1][1].get_supxlabel() == "target"


OUTPUTS = """
name: outputs
target: {use: table, file: six.csv, inputs: [x], values: [a, b, c, d, e, f], split: {test: 0.4}}
student: {use: mlp, hidden: [4]}
objective: {derivatives: []}
train: {steps: 1, preflight: false}
figures: [parity, errors, {use: profiles, grid: 5}]
"""


def test_figures_say_that_outputs_have_none(tmp_path: Path, drawn: list[tuple[str, Figure]]) -> None:
    rows = np.random.RandomState(0).rand(12, 7)
    np.savetxt(tmp_path / "six.csv", rows, delimiter=",", header="x,a,b,c,d,e,f", comments="")
    runs = train(tmp_path, OUTPUTS)
    for name in ("parity", "errors", "profiles"):
        report(name).draw(runs, tmp_path)
    assert len(drawn) == 12
    assert all("2 further outputs have no figure" in figure.get_supxlabel() for _, figure in drawn)
    named = train(
        tmp_path, OUTPUTS.replace("name: outputs", "name: named").replace("parity,", "{use: parity, output: 5},")
    )
    drawn.clear()
    report("parity").draw(named, tmp_path)
    assert [(name, figure.get_supxlabel()) for name, figure in drawn] == [("parity", "target")]


def test_labels() -> None:
    assert split_label("sobolev,target=booth,train=20") == ("sobolev", {"target": "booth", "train": "20"})
    assert split_label("default") == ("default", {})
    assert style.in_order(["100", "20", "100", "3"]) == ["3", "20", "100"]
    assert style.in_order(["b", "a"]) == ["b", "a"]
    assert cell_name({"target": "booth", "train": "20"}) == "booth, train 20"
    assert style.metric_labels(["test/function/d/dx", "return"]) == {
        "test/function/d/dx": "test error of d/dx", "return": "return",
    }  # fmt: skip
    assert style.metric_labels(["train/loss"]) == {"train/loss": "training loss"}
    assert style.metric_labels(["test/function/spread"])["test/function/spread"] == "test: spread of members"
    assert style.metric_labels(["test/a/value", "test/b/value"])["test/b/value"] == "test error of value (b)"


def test_reports_without_their_records_draw_nothing(plain_runs: list[RunRecord], tmp_path: Path) -> None:
    bare = [RunRecord(r.variant, r.seed, tmp_path, r.config, r.status, r.summary) for r in plain_runs]
    for name in ("surface", "parity", "errors", "profiles", "curves"):
        assert report(name).draw(bare, tmp_path) == []
    assert report("bars", metrics=["not there"]).draw(bare, tmp_path) == []
