"""Ensembles: several students on the same points, their mean and their spread."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from students_support import experiment, samples, trained

from sobolev import ComponentError, Learner, Points, load
from sobolev.arrays import ArrayTarget
from sobolev.builtin.targets.ensemble import ensemble_of
from sobolev.cli import cli
from sobolev.evaluate import evaluate
from sobolev.vocabulary import Batch

LBFGS = {"steps": 2, "optimizer": {"use": "lbfgs", "max_iter": 5}, "batch_size": "all"}


def test_members_see_the_same_points_from_different_weights() -> None:
    made = experiment(ensemble_of(ArrayTarget(samples()), 3))
    points = made.target.points(Batch("train", torch.arange(4)), training=True)
    assert all(torch.equal(points[name].inputs["x"], samples().x[:4]) for name in made.sites)
    assert list(made.sites) == ["data-1", "data-2", "data-3"]
    assert {site.ensemble for site in made.sites.values()} == {"data"}
    first, second = (made.module[name][0].weight for name in ("data-1", "data-2"))
    assert not torch.equal(first, second)


def test_metrics_are_those_of_the_mean() -> None:
    data = samples(outputs=2)
    target = ArrayTarget(data, data)
    made = experiment(ensemble_of(target, 3))
    found = evaluate(made, "validation")
    x = data.x
    values = torch.stack([made.module[name](x) for name in made.sites]).detach()
    expected = (values.mean(0) - data.y).square().sum(1).mean().item()
    assert found["validation/data/value"] == pytest.approx(expected, rel=1e-9)
    assert found["validation/data/spread"] == pytest.approx(values.var(0, correction=0).sum(1).mean().item(), rel=1e-9)
    slopes = torch.stack(
        [torch.autograd.functional.jacobian(lambda p, net=made.module[name]: net(p).sum(0), x) for name in made.sites]
    )
    assert data.dydx is not None
    errors = (slopes.mean(0).movedim(0, 1) - data.dydx).square().flatten(1).sum(1).mean()
    assert found["validation/data/d/dx"] == pytest.approx(errors.item(), rel=1e-9)
    assert not [name for name in found if "data-" in name]


def test_members_are_projected_alike_where_a_derivative_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sobolev.evaluate._PROBES", 1)
    data = samples(outputs=2)
    bound = {"evaluate": {"memory": 1}}
    found = evaluate(experiment(ensemble_of(ArrayTarget(data, data), 3), **bound), "validation")
    alone = evaluate(experiment(ArrayTarget(data, data), **bound), "validation")
    assert found.keys() == {*alone, "validation/data/spread"}


def test_an_answer_is_shared_by_members_with_the_same_probe() -> None:
    class Counted(ArrayTarget):
        asked = 0

        def answer(self, *arguments: object) -> object:  # type: ignore[override]
            type(self).asked += 1
            return super().answer(*arguments)  # type: ignore[arg-type]

    made = experiment(ensemble_of(Counted(samples(), samples()), 3))
    evaluate(made, "validation")
    assert Counted.asked == 1


def test_lbfgs_steps_of_a_member_are_those_that_it_would_take_alone() -> None:
    together = experiment(
        ensemble_of(ArrayTarget(samples()), 2), student={"use": "mlp", "hidden": [5], "activation": "tanh",
        "scale": "standard"}, objective={"balance": "joint"}, train={"phases": [LBFGS], "batch_size": "all"},
    )  # fmt: skip
    first = {name: value.clone() for name, value in together.module["data-2"].state_dict().items()}
    trained(together)
    alone = experiment(
        ArrayTarget(samples()), student={"use": "mlp", "hidden": [5], "activation": "tanh", "scale": "standard"},
        objective={"balance": "joint"}, train={"phases": [LBFGS], "batch_size": "all"},
    )  # fmt: skip
    alone.module["data"].load_state_dict(first)
    trained(alone)
    moved = 0.0
    for name, value in alone.module["data"].state_dict().items():
        assert torch.allclose(together.module["data-2"].state_dict()[name], value, rtol=1e-6, atol=1e-9)
        moved += (value - first[name]).abs().sum().item()
    assert moved > 0.1


def test_a_target_that_learns_is_refused() -> None:
    class Waits(ArrayTarget):
        needs = frozenset({"prediction"})

    with pytest.raises(ComponentError, match="learns from one student's predictions"):
        ensemble_of(Waits(samples()), 2)


RECIPE = """
name: members
target: {use: ensemble, of: {use: mccormick, train: 8, test: 10}, members: 3}
student: {use: residual, width: 4, blocks: 1, scale: standard}
objective: {balance: rms}
train:
  batch_size: all
  phases:
    - {steps: 2, optimizer: adam}
    - {steps: 1, optimizer: {use: lbfgs, max_iter: 2}}
"""


def test_the_spread_reaches_load_and_predict(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "at.csv").write_text("x,y\n0.5,1\n2,-1\n")
    run = tmp_path / "runs" / "members" / "default" / "seed-0"
    runner = CliRunner()
    done = runner.invoke(cli, ["run", str(tmp_path / "r.yaml"), "--runs", str(tmp_path / "runs"), "--jobs", "1"])
    assert done.exit_code == 0, done.output
    student = load(run)
    x = torch.tensor([[0.5, 1.0], [2.0, -1.0]])
    members = [student(x, f"function-{i}") for i in (1, 2, 3)]
    values = torch.stack([jet.value for jet in members])
    slopes = torch.stack([jet.derivatives[("x",)] for jet in members])
    spread = student.spread(x)
    assert spread is not None
    assert torch.allclose(student(x).value, values.mean(0))
    assert torch.allclose(student(x).derivatives[("x",)], slopes.mean(0))
    assert torch.allclose(spread.value, values.std(0, correction=0))
    assert torch.allclose(spread.derivatives[("x",)], slopes.std(0, correction=0))
    assert student.spread(x, "function-1") is None
    done = runner.invoke(cli, ["predict", str(run), str(tmp_path / "at.csv"), "-o", str(tmp_path / "out.csv")])
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert float(rows[1]["spread f"]) == pytest.approx(spread.value[1, 0].item(), rel=1e-5)
    assert float(rows[1]["f"]) == pytest.approx(values.mean(0)[1, 0].item(), rel=1e-5)


def test_loading_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    CliRunner().invoke(cli, ["run", str(tmp_path / "r.yaml"), "--runs", str(tmp_path / "runs"), "--jobs", "1"])

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("statistics were measured")

    monkeypatch.setattr("sobolev.build.measure_statistics", refused)
    student = load(tmp_path / "runs" / "members" / "default" / "seed-0")
    assert student.module["function-1"][0].deviation[0] > 1.1  # the file's, not the neutral 1


def test_a_target_finishes_with_the_mean_of_the_members() -> None:
    class Scored(ArrayTarget):
        def finish(self, learner: Learner) -> dict[str, float]:
            x = samples().x
            points = {"data": Points({"x": x}, ("x",), torch.arange(len(x)))}
            jet = learner.measure(points)["data"]
            assert torch.equal(jet.value, learner.value("data", {"x": x}))
            torch.testing.assert_close(learner.module["data"](x), jet.value)
            return {"value": float(jet.value.sum()), "slope": float(jet.derivatives["x",].sum())}

    made = experiment(ensemble_of(Scored(samples()), 3))
    found = made.target.finish(made)
    x = samples().x.clone().requires_grad_()
    value = torch.stack([made.module[name](x) for name in made.sites]).mean(0).sum()
    assert found["value"] == pytest.approx(value.item(), rel=1e-9)
    assert found["slope"] == pytest.approx(torch.autograd.grad(value, x)[0].sum().item(), rel=1e-9)


OF_A_TABLE = """
name: table
target: {use: ensemble, of: {use: table, file: t.csv, inputs: [a, b], values: f}, members: 2}
student: {use: mlp, hidden: [4], activation: tanh}
objective: {derivatives: []}
train: {steps: 2}
"""


def test_an_ensemble_of_a_table_is_loaded_where_the_table_is_not(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(OF_A_TABLE)
    (tmp_path / "t.csv").write_text("a,b,f\n" + "".join(f"{i},{i % 3},{i * i}\n" for i in range(10)))
    arguments = ["run", str(tmp_path / "r.yaml"), "--runs", str(tmp_path / "runs"), "--jobs", "1"]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    (tmp_path / "t.csv").unlink()
    student = load(tmp_path / "runs" / "table" / "default" / "seed-0")
    assert student.names == ["table", "table-1", "table-2"]
    assert student(torch.zeros(1, 2)).value.shape == (1, 1)
