"""The target ``module``: networks from every kind of file, frozen, with derivatives by autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sobolev import HEADS, Batch, ComponentError, Context, DataError, Site, SobolevError
from sobolev.build import build
from sobolev.builtin.students.mlp import MLP
from sobolev.distributed import World
from sobolev.export import export_modules
from sobolev.host import default_host
from sobolev.optional import provide_torchvision_operators
from sobolev.recipe.plan import load_plans

SPEC: dict[str, Any] = {"use": "module", "shape": [3], "train": 8, "test": 4}


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2))


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MLP([8], "tanh").build(Site({"x": (3,)}, 2, ("x",)))


def target(folder: Path, dtype: torch.dtype = torch.float64, head: str = "identity", **options: Any) -> Any:
    checked, problems = default_host().registry.check("target", {**SPEC, **options}, ("target",))
    assert not problems, problems
    made = default_host().registry.build("target", checked)
    device = torch.device("cpu")
    made.prepare(Context(device, dtype, World(device), 0, HEADS[head], folder, folder / "cache"))
    return made


def jacobian(function: Any, x: Tensor) -> Tensor:
    """The slow, obvious reference ``(B, m, d)``: one row of one sample after the other."""
    return torch.stack([torch.autograd.functional.jacobian(lambda p: function(p[None])[0], row) for row in x])


def reference(folder: Path, lines: str, head: str = "identity") -> tuple[Tensor, Any, Any]:
    """Points of a recipe's target, its jet by the recipe's estimator, and the target."""
    recipe = folder / "r.yaml"
    recipe.write_text(f"name: r\ntarget:\n  use: module\n  train: 8\n  test: 4\n{lines}\nstudent: mlp\ndtype: float64\n"
                      f"objective: {{head: {head}}}\n")  # fmt: skip
    (plan,) = load_plans(recipe, default_host().registry)
    experiment = build(plan, default_host().registry, World(torch.device("cpu")), cache=folder, say=lambda _: None)
    drawn = experiment.draw(Batch("train", torch.arange(8)), 0, training=True)
    assert drawn.reference is not None
    return drawn.points["teacher"].inputs["x"], drawn.reference["teacher"], experiment.target


NETWORK = "  network: {use: mlp, hidden: [8], activation: tanh}\n  shape: [3]\n  outputs: 2\n"


@pytest.mark.parametrize("prefix", ["", "function."])
@pytest.mark.parametrize("head", ["identity", "log-softmax"])
def test_registered_network_with_weights(tmp_path: Path, prefix: str, head: str) -> None:
    teacher = mlp().double()
    save_file({prefix + name: tensor for name, tensor in teacher.state_dict().items()}, tmp_path / "t.safetensors")
    x, jet, made = reference(tmp_path, NETWORK + "  weights: t.safetensors", head)

    def value(p: Tensor) -> Tensor:
        return HEADS[head](teacher(p), {})

    torch.testing.assert_close(jet.value, value(x).detach())
    torch.testing.assert_close(jet["x",], jacobian(value, x))
    assert not jet.value.requires_grad and not jet.value.is_inference()
    assert all(not p.requires_grad for p in made.module.parameters()) and not made.module.training


def test_a_scaled_student_brings_its_scaling(tmp_path: Path) -> None:
    from sobolev.statistics import neutral

    site = Site({"x": (3,)}, 2, ("x",))
    spec = {"use": "mlp", "hidden": [4], "scale": "standard"}
    family = default_host().registry.build("student", spec)
    assert "statistics" in family.needs
    site = Site({"x": (3,)}, 2, ("x",), statistics=neutral({"s": site}, {"s": 2})["s"])
    teacher = family.build(site).double()
    for buffer in teacher.buffers():
        buffer += 0.3
    save_file(teacher.state_dict(), tmp_path / "t.safetensors")
    made = target(tmp_path, network=spec, weights="t.safetensors", outputs=2)
    x = made._x["train"]
    torch.testing.assert_close(made.value("teacher", {"x": x}, None), teacher(x).detach())


def test_exported_program(tmp_path: Path) -> None:
    teacher = network().eval()
    batch = torch.export.Dim("batch")
    exported = torch.export.export(teacher, (torch.zeros(4, 3),), dynamic_shapes=({0: batch},))
    torch.export.save(exported, tmp_path / "t.pt2")
    x, jet, made = reference(tmp_path, "  program: t.pt2\n  shape: [3]")
    teacher = teacher.double()
    torch.testing.assert_close(jet.value, teacher(x).detach())
    torch.testing.assert_close(jet["x",], jacobian(teacher, x))
    assert all(not p.requires_grad for p in made.module.parameters()) and made.outputs == 2


def test_a_program_of_one_batch_size_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(network().eval(), (torch.zeros(3, 3),)), tmp_path / "t.pt2")
    with pytest.raises(ComponentError, match=r"batches of 3 and of 2(.|\n)*dynamic_shapes"):
        target(tmp_path, program="t.pt2")


class Written(nn.Module):
    """Double precision, written into the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (torch.tanh(self.linear(x)) + torch.arange(2, dtype=torch.float64),)


def exported(file: Path, teacher: nn.Module, x: Tensor) -> None:
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(teacher.eval(), (x,), dynamic_shapes=({0: batch},)), file)


@pytest.mark.parametrize("of_run", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [network, Written])
def test_a_program_in_double_precision(tmp_path: Path, make: Any, of_run: torch.dtype) -> None:
    torch.manual_seed(0)
    teacher = make().double()
    exported(tmp_path / "t.pt2", teacher, torch.zeros(4, 3, dtype=torch.float64))
    made = target(tmp_path, of_run, program="t.pt2")
    x = made._x["train"]
    value = made.value("teacher", {"x": x.requires_grad_()}, None)
    (slope,) = torch.autograd.grad(value[:, 1].sum(), x)
    expected = teacher(x.double())
    expected = expected[0] if isinstance(expected, tuple) else expected
    (expected_slope,) = torch.autograd.grad(expected[:, 1].sum(), x)
    assert value.dtype == slope.dtype == of_run and made.outputs == 2
    torch.testing.assert_close(value, expected.to(of_run))
    torch.testing.assert_close(slope, expected_slope)
    assert all(not p.requires_grad for p in made.module.parameters())


def test_programs_of_another_kind_are_refused_in_plain_words(tmp_path: Path) -> None:
    class Several(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, 2 * x

    exported(tmp_path / "several.pt2", Several(), torch.zeros(4, 3))
    with pytest.raises(ComponentError, match=r"a tuple of 2 for 2 inputs(.|\n)*--values-only"):
        target(tmp_path, program="several.pt2")
    exported(tmp_path / "whole.pt2", Several(), torch.zeros(4, 3, dtype=torch.int64))
    with pytest.raises(ComponentError, match=r"inputs of torch\.int64, expected real numbers"):
        target(tmp_path, program="whole.pt2")
    torch.export.save(torch.export.export(nn.Bilinear(3, 3, 2), (torch.zeros(4, 3),) * 2), tmp_path / "two.pt2")
    with pytest.raises(ComponentError, match=r"takes 2 inputs, expected one tensor"):
        target(tmp_path, program="two.pt2")


def test_an_exported_student_may_teach(tmp_path: Path) -> None:
    student = mlp().double()
    site = Site({"x": (3,)}, 2, ("x",))
    samples = torch.randn(5, 3, dtype=torch.float64)
    for name, partials in (("values", False), ("partials", True)):
        export_modules([student], HEADS["identity"], site, samples, tmp_path / name, ["torch"], partials=partials)
    made = target(tmp_path, program="values/student.pt2")
    x = made._x["train"]
    torch.testing.assert_close(made.value("teacher", {"x": x}, None), student(x).detach())
    with pytest.raises(ComponentError, match="--values-only"):
        target(tmp_path, program="partials/student.pt2")


def test_timm_by_name_with_weights_from_a_file(tmp_path: Path) -> None:
    provide_torchvision_operators()
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    options = {"num_classes": 3, "in_chans": 3}
    try:
        teacher = timm.create_model("test_vit", **options)
    except RuntimeError:
        pytest.skip("this timm has no test_vit")
    save_file(teacher.state_dict(), tmp_path / "t.safetensors")
    size = teacher.default_cfg["input_size"]
    made = target(
        tmp_path, torch.float32, timm="test_vit", weights="t.safetensors", shape=list(size), outputs=3, train=2
    )
    x = made._x["train"].requires_grad_()
    value = made.value("teacher", {"x": x}, None)
    torch.testing.assert_close(value, teacher.eval()(x))
    (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)  # attention that has a second derivative
    assert second.abs().max() > 0 and made.axes("teacher") is None
    with pytest.raises(ComponentError, match="timm has no network 'test_vitt'; near: test_vit"):
        target(tmp_path, timm="test_vitt", weights="t.safetensors")


def test_points_of_a_file(tmp_path: Path) -> None:
    save_file(mlp().state_dict(), tmp_path / "t.safetensors")
    x = np.random.default_rng(0).standard_normal((20, 3))
    np.savez(tmp_path / "x.npz", x=x)
    options = {"network": {"use": "mlp", "hidden": [8], "activation": "tanh"}, "weights": "t.safetensors", "outputs": 2}
    made = target(tmp_path, **options, file="x.npz", inputs="x", split={"test": 0.25})
    assert made.size("train") == 15 and made.size("test") == 5 and made.sites()["teacher"].ranges == {}
    rows = torch.cat([made._x[split] for split in ("train", "test")])
    assert sorted(rows.tolist()) == sorted(x.tolist())
    with pytest.raises(DataError, match="3 numbers per sample, 4 in shape"):
        target(tmp_path, **options, file="x.npz", inputs="x", shape=[4])
    with pytest.raises(DataError, match="no column or array 'y'"):
        target(tmp_path, **options, file="x.npz", inputs="y")
    x[4, 1] = np.nan
    np.savez(tmp_path / "x.npz", x=x)
    with pytest.raises(DataError, match="row 5: an input is missing"):
        target(tmp_path, **options, file="x.npz", inputs="x")


def test_box_per_component(tmp_path: Path) -> None:
    save_file(mlp().state_dict(), tmp_path / "t.safetensors")
    options = {"network": {"use": "mlp", "hidden": [8]}, "weights": "t.safetensors", "outputs": 2, "train": 64}
    made = target(tmp_path, **options, low=[0, 10, -1], high=[1, 20, 0], sampling="sobol")
    x = made._x["train"]
    assert (x >= torch.tensor([0.0, 10, -1])).all() and (x <= torch.tensor([1.0, 20, 0])).all()
    assert made.axes("teacher").low == [0.0, 10.0, -1.0]
    with pytest.raises(ComponentError, match="one edge, or 3"):
        target(tmp_path, **options, low=[0, 10])
    with pytest.raises(ComponentError, match="'low' must be below 'high'"):
        target(tmp_path, **options, low=2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of network, program and timm, not none"),
        ({"program": "a.pt2", "timm": "b"}, "not program and timm"),
        ({"program": "a.pt2", "weights": "b.safetensors"}, "a program holds its weights"),
        ({"timm": "resnet18"}, "timm needs 'weights', a .safetensors file; nothing is downloaded"),
        ({"network": {"use": "mlp"}, "weights": "w.safetensors"}, "say by 'outputs'"),
        ({"program": "a.pt2", "file": "x.npz"}, "need both 'file' and 'inputs'"),
        ({"program": "a.pt2"}, "a.pt2: there is no such file"),
        ({"network": {"use": "mlp"}, "weights": "none.safetensors", "outputs": 2}, "there is no such file"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SobolevError, match=message):
        target(tmp_path, **options)


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    (tmp_path / "t.pt2").write_bytes(b"no program")
    (tmp_path / "t.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(DataError, match=r"t\.pt2: not a torch.export program"):
        target(tmp_path, program="t.pt2")
    with pytest.raises(DataError, match=r"t\.safetensors: not a safetensors file"):
        target(tmp_path, network={"use": "mlp"}, weights="t.safetensors", outputs=2)
    save_file(mlp().state_dict(), tmp_path / "t.safetensors")
    with pytest.raises(ComponentError, match=r"another network than Sequential; of another shape: 0.bias \(8,\), not"):
        target(tmp_path, network={"use": "mlp", "hidden": [16]}, weights="t.safetensors", outputs=2)
    with pytest.raises(ComponentError, match=r"missing: 4.bias, 4.weight"):
        target(tmp_path, network={"use": "mlp", "hidden": [8, 8]}, weights="t.safetensors", outputs=2)


def test_a_run_leaves_a_student_that_needs_no_teacher(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from sobolev.cli import cli

    save_file(mlp().state_dict(), tmp_path / "t.safetensors")
    (tmp_path / "r.yaml").write_text(
        "name: r\ntarget:\n  use: module\n  train: 8\n  test: 4\n  weights: t.safetensors\n" + NETWORK +
        "student: {use: mlp, hidden: [4], activation: tanh}\ntrain: {steps: 3, batch_size: 4, compile: never}\n"
    )  # fmt: skip
    runs = str(tmp_path / "runs")
    runner = CliRunner()
    done = runner.invoke(cli, ["run", str(tmp_path / "r.yaml"), "--runs", runs, "--jobs", "1", "--device", "cpu"])
    assert done.exit_code == 0, done.output + repr(done.exception)
    (tmp_path / "t.safetensors").unlink()
    (tmp_path / "q.csv").write_text("x1,x2,x3\n0.5,1,0\n")
    done = runner.invoke(cli, ["predict", str(tmp_path / "runs/r/default/seed-0"), str(tmp_path / "q.csv")])
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert done.output.startswith("x1,x2,x3,z1,z2,dz1/dx1,")
