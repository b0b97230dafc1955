"""Held-out errors: squared-L2 of value and first derivatives, whatever was trained, however they are batched."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from families import Tabulated, experiment

import sobolev.evaluate as module
from sobolev import ComponentError
from sobolev.evaluate import check_names, evaluate
from sobolev.sampler import some

TABLE = "target={use: tabulated, rows: 24}"


def test_errors_are_means_over_weighted_known_entries(tmp_path: Path) -> None:
    made = experiment(tmp_path, TABLE, "objective={value: {loss: l1}, derivatives: [{loss: norm}]}")
    target = made.target
    assert isinstance(target, Tabulated) and target.weight is not None
    sums, counts = {"value": 0.0, "d/dx": 0.0}, {"value": 0.0, "d/dx": 0.0}
    for i in range(24, 32):
        x = target.x[i : i + 1].clone().requires_grad_()
        z = made.module["table"](x)[0]
        slopes = torch.stack([torch.autograd.grad(z[j], x, retain_graph=True)[0][0] for j in range(2)])
        for name, mine, theirs in (("value", z, target.value_[i]), ("d/dx", slopes, target.partials[i])):
            there = ~theirs.isnan()
            w = float(target.weight[i])
            sums[name] += w * float((mine.detach() - theirs)[there].square().sum())
            counts[name] += w * float(there.double().mean())
    found = evaluate(made, "test")
    assert found.keys() == {"test/table/value", "test/table/d/dx"}
    for name in sums:
        assert found[f"test/table/{name}"] == pytest.approx(sums[name] / counts[name], rel=1e-12)


def test_batches_make_no_difference(tmp_path: Path) -> None:
    found = [evaluate(experiment(tmp_path, TABLE, f"evaluate.batch_size={n}"), "test") for n in (1, 3, 8, 100)]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-12)


def test_at_most_so_many_points_and_nothing_of_an_empty_split(tmp_path: Path) -> None:
    three = experiment(tmp_path, "evaluate.points=3")
    every = experiment(tmp_path)
    assert evaluate(three, "test") == evaluate(every, "test", limit=3) != evaluate(every, "test")
    assert evaluate(every, "validation") == {}


def test_a_jacobian_over_the_bound_is_estimated_by_the_same_projections_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(experiment(tmp_path), "test")["test/sines/d/dx"]
    made = experiment(tmp_path, "evaluate.memory=1")
    found = evaluate(made, "test")["test/sines/d/dx"]
    assert found == pytest.approx(whole, rel=1e-12), "two rows need no more than projections would"
    monkeypatch.setattr(module, "_PROBES", 1)
    estimate = evaluate(made, "test")["test/sines/d/dx"]
    assert estimate != pytest.approx(whole) and abs(math.log(estimate / whole)) < math.log(3)
    assert evaluate(experiment(tmp_path, "evaluate.memory=1", "train.steps=9"), "test")["test/sines/d/dx"] == estimate


def test_batches_are_cut_so_that_a_derivative_fits_the_bound(tmp_path: Path) -> None:
    made = experiment(tmp_path, "evaluate.memory=100")  # a row of two gradients by three inputs: 48 bytes
    batches: list[int] = []
    measure = made.measurers["sines"].measure
    made.measurers["sines"].measure = lambda points, *rest, **more: (  # type: ignore[method-assign]
        batches.append(len(points)) or measure(points, *rest, **more)
    )
    found = evaluate(made, "test")
    assert batches == [2, 2, 2, 2]
    assert found == pytest.approx(evaluate(experiment(tmp_path), "test"), rel=1e-12)


def test_the_student_is_left_in_the_mode_that_it_was_in(tmp_path: Path) -> None:
    made = experiment(tmp_path, "student={use: dropping}")
    made.module["sines"][0].eval()
    modes = [module.training for module in made.module.modules()]
    assert evaluate(made, "test") == evaluate(made, "test"), "dropout is off meanwhile"
    assert [module.training for module in made.module.modules()] == modes
    with pytest.raises(RuntimeError, match="enough"):
        evaluate(made, "test", poll=lambda: (_ for _ in ()).throw(RuntimeError("enough")))
    assert [module.training for module in made.module.modules()] == modes


def test_names_of_metrics_are_checked_before_the_first_step(tmp_path: Path) -> None:
    check_names(experiment(tmp_path, "evaluate.best=test/sines/d/dx"))
    with pytest.raises(ComponentError, match=r"evaluate\.best: there is no metric 'test/sines/dx'.* did you mean"):
        check_names(experiment(tmp_path, "evaluate.best=test/sines/dx"))
    with pytest.raises(ComponentError, match=r"train\.stop: there is no metric"):
        check_names(experiment(tmp_path, "train.stop={metric: loss}", "evaluate.every=1"))


def test_some_samples_stand_for_all_of_a_split() -> None:
    for size, count in ((10, 3), (1000, 999), (7, 7), (5, 9)):
        ids = some(size, count)
        assert len(ids.unique()) == len(ids) == min(size, count) and 0 <= int(ids[0]) and int(ids[-1]) < size
        assert torch.equal(ids, ids.sort().values) and torch.equal(ids, some(size, count))
    counts = sum(torch.bincount(some(10, 4, seed), minlength=10) for seed in range(2000))
    assert abs(counts / 800 - 1).max() < 0.3  # parts of two and of three
    assert not torch.equal(some(100, 10), some(100, 10, seed=1))


def test_limited_points_stand_for_a_file_that_is_sorted(tmp_path: Path) -> None:
    x = np.linspace(0, 1, 2000)
    np.savez(tmp_path / "d.npz", x=x, u=np.where(x < 0.5, 0.0, 10.0))
    target = f"target={{use: table, file: {tmp_path / 'd.npz'}, inputs: [x], values: [u], split: {{test: 0.5}}}}"
    options = (target, "student={use: mlp, hidden: [4]}", "objective={derivatives: []}")
    whole = evaluate(experiment(tmp_path, *options), "test")["test/table/value"]
    few = evaluate(experiment(tmp_path, *options, "evaluate.points=100"), "test")["test/table/value"]
    assert 30 < whole < 80 and few == pytest.approx(whole, rel=0.05)
