"""Exported graphs: against the student, and against central differences of themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from sobolev import ComponentError, Moments, Site, Statistics
from sobolev.builtin.students.mlp import MLP
from sobolev.builtin.students.residual import Residual
from sobolev.cli import cli
from sobolev.elementary import ELEMENTARY
from sobolev.export import WrittenOut, _compare, _scales, export_modules
from sobolev.heads import HEADS

pytest.importorskip("onnxruntime")
ACTIVATIONS = ["relu", "leaky-relu", "elu", "tanh", "sigmoid", "softplus", "silu", "gelu"]
# What others say about their own ways while they export.
NOISE = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
pytestmark = NOISE


def site(outputs: int = 2) -> Site:
    def moments(size: int) -> Moments:
        return Moments(torch.arange(size, dtype=torch.float64) + 3, torch.arange(size, dtype=torch.float64) * 2 + 1)

    statistics = Statistics(5, {"x": moments(3)}, moments(outputs), moments(outputs))
    return Site({"x": (3,)}, outputs, ("x",), statistics=statistics)


def points(rows: int = 5) -> torch.Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4


def jacobian(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """One sample and one output at a time."""
    rows = []
    for i in range(len(x)):
        point = x[i : i + 1].clone().requires_grad_()
        z = module(point)[0]
        rows.append(torch.stack([torch.autograd.grad(one, point, retain_graph=True)[0][0] for one in z]))
    return torch.stack(rows)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("family", ["mlp", "residual"])
def test_the_jacobian_is_written_out(activation: str, family: str) -> None:
    torch.manual_seed(0)
    student = MLP([6, 5], activation, "standard") if family == "mlp" else Residual(6, 2, activation, "standard")
    module = student.build(site()).double()
    x = points()
    value, partials = WrittenOut(module, HEADS["identity"])(x)
    assert torch.allclose(value, module(x), rtol=1e-12)
    assert torch.allclose(partials, jacobian(module, x), rtol=1e-9, atol=1e-12)


def test_of_log_probabilities() -> None:
    torch.manual_seed(0)
    module = MLP([6], "tanh").build(Site({"x": (3,)}, 4, ("x",))).double()
    headed = nn.Sequential(module, nn.LogSoftmax(dim=1))
    value, partials = WrittenOut(module, HEADS["log-softmax"])(points())
    assert torch.allclose(value, headed(points()), rtol=1e-12)
    assert torch.allclose(partials, jacobian(headed, points()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [str(op) for op in ELEMENTARY])
def test_elementary_forms_are_those_of_torch(name: str) -> None:
    op = next(op for op in ELEMENTARY if str(op) == name)
    a = torch.linspace(-30, 30, 41, dtype=torch.float64) + 0.01
    g = torch.linspace(1, 2, 41, dtype=torch.float64)
    extra = {
        "threshold_backward": (0.0,), "hardtanh_backward": (-1.0, 6.0), "leaky_relu": (0.1,),
        "leaky_relu_backward": (0.1, False), "elu": (1.5, 1.0, 1.0), "softplus": (2.0, 20.0),
        "softplus_backward": (2.0, 20.0),
    }.get(op._schema.name.removeprefix("aten::"), ())  # fmt: skip
    if name == "aten.elu_backward.default":
        arguments: tuple[object, ...] = (g, 1.5, 1.0, 1.0, False, a)
    elif "backward" in name:
        arguments = (g, torch.tanh(a) if "tanh_b" in name and "hard" not in name else a, *extra)
    else:
        arguments = (a, *extra)
    options = [{"approximate": "none"}, {"approximate": "tanh"}] if "gelu" in name else [{}]
    for option in options:
        # erf goes through float32.
        assert torch.allclose(ELEMENTARY[op](*arguments, **option), op(*arguments, **option), rtol=1e-9, atol=1e-5)


def test_files_of_an_ensemble_run_without_the_student(tmp_path: Path) -> None:
    import onnxruntime

    torch.manual_seed(0)
    modules = [MLP([6], activation, "standard").build(site()).double() for activation in ("silu", "softplus")]
    files = export_modules(modules, HEADS["identity"], site(), points(), tmp_path, inputs=["a", "b", "c"])
    assert [file.name for file in files] == ["student.pt2", "student.onnx", "student.json"]
    described = json.loads(files[2].read_text())
    assert described["outputs"] == ["value", "partials", "spread"]
    assert described["components"]["x"] == ["a", "b", "c"]
    assert all(error < 1e-9 for errors in described["relative_error"].values() for error in errors.values())
    session = onnxruntime.InferenceSession(str(files[1]), providers=["CPUExecutionProvider"])
    graph = torch.export.load(files[0]).module()
    for rows in (1, 7):  # neither is the number of rows that was traced
        x = points(rows)
        values = torch.stack([module(x) for module in modules])
        expected = (
            values.mean(0),
            jacobian(modules[0], x) / 2 + jacobian(modules[1], x) / 2,
            values.std(0, correction=0),
        )
        for found in (session.run(None, {"x": x.numpy()}), [t.detach().numpy() for t in graph(x)]):
            for ours, theirs in zip(found, expected, strict=True):
                assert np.allclose(ours, theirs.detach().numpy(), rtol=1e-8, atol=1e-10)


def test_what_cannot_be_exported_is_explained(tmp_path: Path) -> None:
    convolution = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(2, 1))
    wanted = Site({"x": (1, 3)}, 1, ("x",))
    with pytest.raises(ComponentError, match=r"Convolution is not among.*--values-only"):
        export_modules([convolution], HEADS["identity"], wanted, torch.randn(4, 1, 3), tmp_path)
    with pytest.raises(ComponentError, match="'log-loss' cannot be exported"):
        export_modules([convolution], HEADS["log-loss"], wanted, torch.randn(4, 1, 3), tmp_path)
    files = export_modules(
        [convolution], HEADS["identity"], wanted, torch.randn(4, 1, 3), tmp_path, ["torch"], partials=False
    )
    assert json.loads(files[-1].read_text())["outputs"] == ["value"]


class Wrong(nn.Module):
    """Its graph is another function than itself: exporting sees the branch that a trace takes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1] * (2.0 if torch.compiler.is_exporting() else 1.0)


def test_a_graph_that_disagrees_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match=r"value of the graph is .* from the student's"):
        export_modules([Wrong()], HEADS["identity"], site(1), points().float(), tmp_path, ["torch"], partials=False)
    assert not (tmp_path / "student.pt2").exists()


@pytest.mark.parametrize("what", ["value", "partials"])
def test_a_small_component_that_disagrees_beside_a_large_one(what: str, tmp_path: Path) -> None:
    x = points()
    expected = [torch.stack([1e6 * x[:, 0], x[:, 1]], 1), torch.zeros(len(x), 2, 3).double()]
    expected[1][:, 0, 0], expected[1][:, 1, 1] = 1e6, 1.0
    found = [part.clone() for part in expected]
    scales = _scales(["value", "partials"], x, expected)
    (tmp_path / "graph").touch()
    assert _compare(tmp_path / "graph", ["value", "partials"], found, expected, scales) == {"value": 0, "partials": 0}
    if what == "value":
        found[0][3, 1] *= 1.01
    else:
        found[1][3, 1, 1] = 1.01
    with pytest.raises(ComponentError, match=f"{what} of the graph is 0.0"):
        _compare(tmp_path / "graph", ["value", "partials"], found, expected, scales)


def test_formats_are_checked(tmp_path: Path) -> None:
    for formats in ("onnx", ["tf"]):
        with pytest.raises(ComponentError, match="expected a list of 'torch' and 'onnx'"):
            export_modules([nn.Linear(3, 2)], HEADS["identity"], site(), points().float(), tmp_path, formats)


RECIPE = """
name: small
target: {use: ensemble, of: {use: booth, train: 8, test: 10}, members: 2}
student: {use: mlp, hidden: [4], activation: tanh, scale: standard}
objective: {balance: joint}
train: {steps: 2, batch_size: all}
"""


def test_command(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    recipe, runs = tmp_path / "small.yaml", tmp_path / "runs"
    recipe.write_text(RECIPE)
    from sobolev import load

    run = runs / "small" / "default" / "seed-0"
    runner = CliRunner()
    assert runner.invoke(cli, ["run", str(recipe), "--runs", str(runs), "--jobs", "1"]).exit_code == 0
    recwarn.clear()
    done = runner.invoke(cli, ["export", str(run)])
    assert done.exit_code == 0, done.output
    assert not recwarn.list, [str(warning.message) for warning in recwarn.list]
    assert "student.pt2" in done.output
    x = torch.tensor([[1.0, 2.0], [3.0, -4.0], [0.0, 0.5]])
    value, partials, spread = torch.export.load(run / "export" / "student.pt2").module()(x)
    student = load(run)
    jet, around = student(x), student.spread(x)
    assert around is not None
    assert torch.allclose(value, jet.value, rtol=1e-5)
    assert torch.allclose(partials, jet.derivatives[("x",)], rtol=1e-5, atol=1e-5)
    assert torch.allclose(spread, around.value, rtol=1e-4, atol=1e-5)
    missing = runner.invoke(cli, ["export", str(run), "--site", "functoin"])
    assert "did you mean 'function'" in str(missing.exception)


TABLE = """
name: recorded
target: {use: table, file: t.csv, inputs: [a, b], values: [f, g], partials: "d{output}/d{input}"}
student: {use: mlp, hidden: [4], activation: tanh, scale: standard}
train: {steps: 2}
"""
BLACKBOX = """
name: beam
target:
  use: blackbox
  function: cantilever
  partials: returned
  inputs: {load: [200, 2000], length: [0.5, 2.0], width: [20, 60], height: [40, 100]}
  outputs: [deflection, stress]
  train: 4
  workers: 1
student: {use: mlp, hidden: [4], activation: tanh, scale: standard}
train: {steps: 2}
"""


@pytest.mark.parametrize(("recipe", "sizes"), [(TABLE, (2, 2)), (BLACKBOX, (4, 2))], ids=["table", "blackbox"])
def test_of_recorded_data_and_of_a_black_box_that_are_not_there_any_more(
    tmp_path: Path, recipe: str, sizes: tuple[int, int]
) -> None:
    (tmp_path / "r.yaml").write_text(recipe)
    lines = [f"{i},{i % 3},{i * i},{i},{2 * i},0,1,0" for i in range(10)]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,f,g,df/da,df/db,dg/da,dg/db", *lines]) + "\n")
    runner = CliRunner()
    trained = runner.invoke(cli, ["run", str(tmp_path / "r.yaml"), "--runs", str(tmp_path / "runs"), "--jobs", "1"])
    assert trained.exit_code == 0, trained.output
    (run,) = tmp_path.glob("runs/*/default/seed-0")
    alone = tmp_path / "alone"
    shutil.copytree(run, alone)
    (tmp_path / "t.csv").unlink()
    shutil.rmtree(tmp_path / "runs")
    done = runner.invoke(cli, ["export", str(alone), "--format", "torch"])
    assert done.exit_code == 0, done.output
    described = json.loads((alone / "export" / "student.json").read_text())
    assert [len(described["components"][side]) for side in ("x", "value")] == list(sizes)
    partials = torch.export.load(alone / "export" / "student.pt2").module()(torch.ones(3, sizes[0]))[1]
    assert partials.shape == (3, sizes[1], sizes[0])
