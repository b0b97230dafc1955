"""The loop, by what it must be equal to: sums written out by hand, one large batch, torch's own optimizers."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import HOST, Online, Records, Tabulated, at_step, experiment
from torch import Tensor

from sobolev import ComponentError, NonFiniteError
from sobolev.build import Experiment
from sobolev.preflight import preflight
from sobolev.recording import Recorder
from sobolev.rundir import RunDirectory
from sobolev.sampler import Sampler
from sobolev.train import Outcome, Trainer
from sobolev.vocabulary import Batch

TABLE = ("target={use: tabulated}", "target.rows=24")
WEIGHTED = "objective={value: {loss: squared-l2, weight: 0.7}, derivatives: [{order: 1, weight: 0.3}]}"


def train(folder: Path, *changes: str, **options: Any) -> tuple[Trainer, Records, Outcome]:
    """A finished run, what it recorded and how it ended."""
    records = Records()
    made = options.pop("made", None) or experiment(folder, *changes)
    trainer = Trainer(made, HOST.registry, recorder=Recorder([("records", records)], lambda _: None), **options)
    return trainer, records, trainer.run()


def weights(made: Experiment) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in made.module.state_dict().items()}


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor], tolerance: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert float((tensor - other[name]).abs().max()) <= tolerance, name


# -- one step ----------------------------------------------------------------------------------------------------------


def by_hand(made: Experiment, ids: Tensor) -> dict[str, float]:
    """Terms of the table at some samples, entry by entry."""
    target = made.target
    assert isinstance(target, Tabulated) and target.weight is not None
    sums = {"value": 0.0, "d/dx": 0.0}
    counts = dict(sums)
    for i in ids.tolist():
        x = target.x[i : i + 1].clone().requires_grad_()
        z = made.module["table"](x)[0]
        jacobian = torch.stack([torch.autograd.grad(z[j], x, retain_graph=True)[0][0] for j in range(2)])
        for name, mine, theirs in (("value", z, target.value_[i]), ("d/dx", jacobian, target.partials[i])):
            pairs = [(a, b) for a, b in zip(mine.flatten().tolist(), theirs.flatten().tolist()) if not math.isnan(b)]
            sums[name] += float(target.weight[i]) * sum((a - b) ** 2 for a, b in pairs)
            counts[name] += float(target.weight[i]) * len(pairs) / theirs.numel()
    return {name: sums[name] / counts[name] for name in sums}


def test_terms_are_weighted_sums_over_known_entries_by_weighted_counts(tmp_path: Path) -> None:
    made = experiment(tmp_path, *TABLE, WEIGHTED, "train.steps=1", "train.batch_size=all")
    expected = by_hand(made, torch.arange(24))
    _, records, _ = train(tmp_path, made=made)
    recorded = records.rows[0][1]
    assert recorded["train/table/value"] == pytest.approx(expected["value"], rel=1e-12)
    assert recorded["train/table/d/dx"] == pytest.approx(expected["d/dx"], rel=1e-12)
    assert recorded["train/loss"] == pytest.approx(0.7 * expected["value"] + 0.3 * expected["d/dx"], rel=1e-12)


def test_a_term_of_weight_0_is_not_computed(tmp_path: Path) -> None:
    made = experiment(tmp_path, *TABLE, "objective.derivatives.0.weight=0", "train.steps=1")
    assert made.keys == {"table": ()}
    _, records, _ = train(tmp_path, made=made)
    assert [name for name in records.rows[0][1] if name.startswith("train/table")] == ["train/table/value"]


def test_evaluation_measures_the_derivative_whatever_was_trained(tmp_path: Path) -> None:
    _, _, outcome = train(tmp_path, *TABLE, "objective.derivatives.0.weight=0", "train.steps=2")
    assert outcome.summary["test/table/value"] > 0 and outcome.summary["test/table/d/dx"] > 0


@pytest.mark.parametrize("target", ["{use: tabulated}", "{use: sines, rows: 24}"])
def test_accumulated_micro_batches_are_one_large_batch(tmp_path: Path, target: str) -> None:
    found = []
    for change in (("train.batch_size=24",), ("train.batch_size=6", "train.accumulate=4")):
        trainer, records, _ = train(tmp_path, f"target={target}", WEIGHTED, "train.steps=3", *change)
        found.append((weights(trainer.experiment), records.rows))
    assert_same(found[0][0], found[1][0], 1e-12)
    for (step, one), (same, other) in zip(found[0][1], found[1][1], strict=True):
        assert step == same and one.keys() == other.keys()
        assert all(one[name] == pytest.approx(other[name], rel=1e-9) for name in one)


def test_the_last_batch_of_an_epoch_is_smaller_and_used() -> None:
    sampler = Sampler(10, 4, seed=1)
    epochs = [[sampler.ids(step) for step in range(3 * e, 3 * e + 3)] for e in range(2)]
    for epoch in epochs:
        assert [len(ids) for ids in epoch] == [4, 4, 2]
        assert sorted(torch.cat(epoch).tolist()) == list(range(10))
    assert torch.cat(epochs[0]).tolist() != torch.cat(epochs[1]).tolist()
    assert torch.equal(Sampler(10, 4, seed=1).ids(4), epochs[1][1])  # no matter which was asked before
    assert Sampler(3, 4, seed=0).per_epoch == 1 and len(Sampler(10, "all", seed=0).ids(7)) == 10


# -- optimizers --------------------------------------------------------------------------------------------------------


def plain_loss(made: Experiment, ids: Tensor) -> Tensor:
    """The Sobolev loss of the function, by double backward."""
    x = made.target.x[ids].clone().requires_grad_()  # type: ignore[attr-defined]
    z = made.module["sines"](x)
    f = made.target.value("sines", {"x": x}, made.target.points(Batch("train", ids), True)["sines"])
    total = (z - f.detach()).square().sum()
    for j in range(2):
        mine = torch.autograd.grad(z[:, j].sum(), x, create_graph=True)[0]
        theirs = torch.autograd.grad(f[:, j].sum(), x, retain_graph=True)[0]
        total = total + (mine - theirs.detach()).square().sum()
    return total / len(ids)


@pytest.mark.parametrize(
    ("optimizer", "make"),
    [
        ("{use: sgd, lr: 0.02, momentum: 0.9}", lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9)),
        ("{use: adam, lr: 0.01}", lambda p: torch.optim.Adam(p, lr=0.01, fused=True)),
        ("{use: lbfgs, max_iter: 4}", lambda p: torch.optim.LBFGS(
            p, max_iter=4, history_size=100, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )),
    ],
)  # fmt: skip
def test_steps_are_those_of_torch(tmp_path: Path, optimizer: str, make: Any) -> None:
    made = experiment(tmp_path, f"train.optimizer={optimizer}", "train.steps=4")
    other = copy.deepcopy(made)
    train(tmp_path, made=made)
    steps = make(list(other.module.parameters()))
    for step in range(4):
        ids = Sampler(40, 8, 0).ids(step)

        def closure(ids: Tensor = ids) -> Tensor:
            steps.zero_grad()
            loss = plain_loss(other, ids)
            loss.backward()
            return loss

        steps.step(closure)
    assert_same(weights(made), weights(other), 1e-9)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("{use: linear, final: 0.5}", [1 - 0.5 * i / 4 for i in range(1, 5)]),
        ("{use: cosine}", [0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(1, 5)]),
        ("{use: drops, at: [2], factor: 0.1}", [1.0, 0.1, 0.1, 0.1]),
    ],
)
def test_schedules(tmp_path: Path, schedule: str, rates: list[float]) -> None:
    changes = ("train.optimizer={use: sgd, lr: 0.01}", f"train.schedule={schedule}", "train.steps=4")
    _, records, _ = train(tmp_path, *changes)
    assert [row["lr"] for _, row in records.rows if "lr" in row] == pytest.approx([0.01 * rate for rate in rates])


def test_phases_follow_each_other(tmp_path: Path) -> None:
    phases = "[{steps: 3, optimizer: {use: adam}}, {steps: 2, optimizer: {use: lbfgs, lr: 0.5}, batch_size: all}]"
    trainer, records, outcome = train(tmp_path, f"train.phases={phases}")
    assert outcome.step == 5 and isinstance(trainer.optimizer, torch.optim.LBFGS)
    assert [row["lr"] for _, row in records.rows if "lr" in row] == [1e-3] * 3 + [0.5] * 2


def test_the_gradient_norm_is_clipped_over_the_whole_student(tmp_path: Path) -> None:
    made = experiment(
        tmp_path, "target={use: online}", "train.clip=0.01", "train.optimizer={use: sgd, lr: 1}", "train.steps=1"
    )
    before = weights(made)
    train(tmp_path, made=made)
    moved = [made.module.state_dict()[name] - tensor for name, tensor in before.items()]
    assert math.sqrt(sum(float(m.square().sum()) for m in moved)) == pytest.approx(0.01, rel=1e-4)


def test_averaged_weights_are_evaluated_and_kept(tmp_path: Path) -> None:
    made = experiment(tmp_path, "train.ema=0.9", "train.steps=4")
    seen: list[dict[str, Tensor]] = []
    train(tmp_path, made=made, progress=lambda *_: seen.append(weights(made)))
    average = seen[0]  # torch's average begins with the first student that it sees
    for later in seen[1:]:
        average = {name: 0.9 * tensor + 0.1 * later[name] for name, tensor in average.items()}
    assert_same(weights(made), average, 1e-12)


# -- evaluation, best student, early stopping --------------------------------------------------------------------------


def test_evaluations_come_when_they_are_due_and_once_at_the_end(tmp_path: Path) -> None:
    _, records, _ = train(tmp_path, "evaluate.every=2", "train.steps=6")
    assert [step for step, row in records.rows if "test/sines/value" in row] == [2, 4, 6]


def test_the_best_student_is_kept(tmp_path: Path) -> None:
    made = experiment(
        tmp_path, "train.optimizer={use: sgd, lr: 0.5}", "train.steps=8", "evaluate.every=1",
        "evaluate.best=test/sines/value",
    )  # fmt: skip
    seen: list[dict[str, Tensor]] = []
    _, records, outcome = train(tmp_path, made=made, progress=lambda *_: seen.append(weights(made)))
    values = [row["test/sines/value"] for _, row in records.rows if "test/sines/value" in row]
    best = values.index(min(values))
    assert best != len(values) - 1, "this rate should overshoot"
    assert outcome.summary["best/step"] == best + 1
    assert outcome.summary["test/sines/value"] == pytest.approx(values[best])
    assert outcome.summary["last/test/sines/value"] == values[-1]
    assert_same(weights(made), seen[best])


def test_stops_when_the_named_metric_no_longer_improves(tmp_path: Path) -> None:
    changes = (
        "train.stop={metric: test/sines/value, patience: 2, min_improvement: 0.9}", "evaluate.every=3", "train.steps=60"
    )  # fmt: skip
    _, records, outcome = train(tmp_path, *changes)
    assert outcome.step == 9, "the first evaluation counts, the second and third do not improve by 90 %"
    assert records.rows[-1][0] == 9


def test_a_phase_that_stops_hands_its_best_student_to_the_next(tmp_path: Path) -> None:
    changes = (
        "train.stop={metric: test/sines/value, patience: 3}", "evaluate.every=1", "evaluate.best=test/sines/value",
        "train.phases=[{steps: 30, optimizer: {use: sgd, lr: 2.0}}, {steps: 4, optimizer: {use: sgd, lr: 1.0e-9}}]",
    )  # fmt: skip
    made = experiment(tmp_path, *changes)
    seen: list[dict[str, Tensor]] = []
    totals: list[int] = []

    def watch(step: int, steps: int, _: Mapping[str, float]) -> None:
        seen.append(weights(made))
        totals.append(steps)

    _, records, outcome = train(tmp_path, made=made, progress=watch)
    ended = totals.count(34)  # steps of the first phase
    values = [row["test/sines/value"] for _, row in records.rows if "test/sines/value" in row][:ended]
    best = values.index(min(values))
    assert ended == best + 1 + 3 < 30 and outcome.step > ended and set(totals[ended:]) == {ended + 4}
    for name, weight in seen[ended].items():
        assert torch.allclose(weight, seen[best][name], atol=1e-6)
        assert not torch.allclose(weight, seen[ended - 1][name], atol=1e-3)


def test_a_metric_that_is_nan_is_no_improvement(tmp_path: Path) -> None:
    made = experiment(tmp_path, "train.stop={metric: m, patience: 3}", "evaluate.every=1", "evaluate.best=m")
    trainer = Trainer(made, HOST.registry)
    for value, stale in ((math.nan, 1), (2.0, 0), (math.nan, 1), (2.0, 2), (1.0, 0)):
        trainer._judge({"m": value})
        assert trainer.best.stale == stale
    assert trainer.best.value == trainer.best.stop_value == 1.0


def test_combinations_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    for change, told in (
        ("train.accumulate=2", "train.accumulate above 1"),
        ("train.optimizer={use: lbfgs}", "the optimizer lbfgs"),
    ):
        with pytest.raises(ComponentError, match=told):
            Trainer(experiment(tmp_path, "target={use: online}", change), HOST.registry)
    with pytest.raises(ComponentError, match=r"evaluate\.every"):
        Trainer(experiment(tmp_path, "train.stop={metric: test/sines/value}"), HOST.registry)
    with pytest.raises(ComponentError, match=r"train\.clip and the optimizer lbfgs"):
        Trainer(experiment(tmp_path, "train.clip=1", "train.optimizer={use: lbfgs}"), HOST.registry)


# -- a target that learns ----------------------------------------------------------------------------------------------


def test_a_target_learns_from_the_student_that_imitates_it(tmp_path: Path) -> None:
    made = experiment(
        tmp_path, "target={use: online, rate: 0.03}", "train.steps=150", "train.batch_size=all",
        "train.optimizer={use: adam, lr: 0.02}",
    )  # fmt: skip
    target = made.target
    assert isinstance(target, Online)
    _, records, outcome = train(tmp_path, made=made)
    first, last = records.rows[0][1], records.rows[149][1]
    assert target.updates == 150 and outcome.summary["score"] == outcome.summary["score"]
    assert last["train/main"] < 0.8 * first["train/main"], "the target has learnt"
    assert last["train/second/d/dh"] < 0.5 * first["train/second/d/dh"], "and the student has"


def test_the_target_sees_what_was_measured_before_the_update(tmp_path: Path) -> None:
    # Value terms alone: derivatives are measured all the same, because the target needs them.
    made = experiment(tmp_path, "target={use: online}", "objective.derivatives.0.weight=0", "train.steps=1")
    target = made.target
    assert isinstance(target, Online)
    ids = Sampler(24, 8, 0).ids(0)
    points = target.points(Batch("train", ids), True)
    layers = [layer.clone() for layer in target.layers]
    slopes = {site: jet.derivatives[("h",)][:, 0] for site, jet in made.measure(points).items()}
    below = {"first": target.x[ids], "second": points["first"].inputs["h"]}
    train(tmp_path, made=made)
    for site, before, after in zip(("first", "second"), layers, target.layers, strict=True):
        h = points[site].inputs["h"]
        expected = before - 0.01 * below[site].T @ (slopes[site] * (1 - h.square())) / 8
        assert float((after - expected).abs().max()) < 1e-12


@pytest.mark.parametrize("target", ["tabulated", "online", "sines"])
def test_an_arm_without_a_student_trains_none(tmp_path: Path, target: str) -> None:
    trainer, records, outcome = train(tmp_path, f"target={{use: {target}}}", "student={use: 'null'}")
    assert trainer.optimizer is None and outcome.status == "finished" and outcome.step == 6
    assert records.rows[0][1]["train/loss"] > 0
    if target == "online":
        assert trainer.experiment.target.updates == 6  # type: ignore[attr-defined]


# -- numbers that are none ---------------------------------------------------------------------------------------------

BAD_STEP = 4
BAD = Sampler(40, 8, 0).ids(BAD_STEP)[3].item()


def broken(case: str, folder: Path, *changes: str) -> tuple[Experiment, Any]:
    """A run in which something is not finite in one step; and what breaks it meanwhile."""
    if case == "estimator":
        made = experiment(folder, f"estimator={{use: faulty, step: {BAD_STEP}}}", *changes)
    else:
        bad = case if case in ("value", "derivative") else "''"
        made = experiment(folder, f"target={{use: sines, bad: {bad}, sample: {BAD}}}", *changes)

    def poison() -> None:
        if case == "weight":
            with torch.no_grad():
                made.module["sines"][2].weight[1, 2] = math.inf

    return made, at_step(BAD_STEP, poison)


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("value", f"target's value of site sines (samples {BAD})"),
        ("derivative", f"target's d/dx of site sines (samples {BAD})"),
        ("weight", "weight sines.2.weight of the student"),
        (
            "estimator",
            f"estimator's probe for d/dx of site sines (samples {Sampler(40, 8, 0).ids(BAD_STEP)[1].item()})",
        ),
    ],
)
def test_a_number_that_is_none_stops_the_run_and_is_named(tmp_path: Path, case: str, told: str) -> None:
    made, progress = broken(case, tmp_path)
    directory = RunDirectory(tmp_path)
    trainer = Trainer(made, HOST.registry, directory, progress=progress)
    with pytest.raises(NonFiniteError) as raised:
        trainer.run()
    text = str(raised.value)
    assert text.startswith(f"step {BAD_STEP}: not finite:") and told in text and "train.on_nonfinite" in text
    assert trainer._step == BAD_STEP
    dump = tmp_path / f"nonfinite-step-{BAD_STEP}.npz"
    assert str(dump) in text
    with np.load(dump) as kept:
        assert kept["index of site sines"].tolist() == Sampler(40, 8, 0).ids(BAD_STEP).tolist()
        assert kept["input x of site sines"].shape == (8, 3)


@pytest.mark.parametrize("case", ["value", "derivative", "estimator"])
def test_the_step_is_skipped_if_the_recipe_says_so(tmp_path: Path, case: str) -> None:
    made, _ = broken(case, tmp_path, "train.on_nonfinite=skip", "train.steps=5")
    said: list[str] = []
    seen: list[dict[str, Tensor]] = []
    records = Records()
    trainer = Trainer(
        made, HOST.registry, recorder=Recorder([("r", records)], said.append),
        progress=lambda *_: seen.append(weights(made)),
    )  # fmt: skip
    trainer.run()
    assert_same(seen[BAD_STEP - 1], seen[BAD_STEP])
    assert len(said) == 1 and f"step {BAD_STEP}: the loss is not finite" in said[0]
    assert records.rows[BAD_STEP][1]["train/skipped"] == 1.0
    assert all(bool(p.isfinite().all()) for p in made.module.parameters())


def test_a_broken_student_is_not_skipped_for_ever(tmp_path: Path) -> None:
    made, progress = broken("weight", tmp_path, "train.on_nonfinite=skip")
    with pytest.raises(NonFiniteError, match=r"weight sines\.2\.weight of the student"):
        Trainer(made, HOST.registry, progress=progress).run()


MEMBERS = ("target={use: ensemble, members: 2, of: sines}", "train.batch_size=all", "train.log_every=1")


def test_members_that_polish_skip_a_step_together(tmp_path: Path) -> None:
    made = experiment(
        tmp_path, *MEMBERS, "train.on_nonfinite=skip", "train.steps=4", "train.optimizer={use: lbfgs, max_iter: 3}"
    )
    seen: list[dict[str, Tensor]] = []
    measurer = made.measurers["sines-2"]
    measure, step = measurer.measure, 0

    def sometimes(points: Any, probe: Any, **options: Any) -> Any:
        jet = measure(points, probe, **options)
        return replace(jet, value=jet.value * math.nan) if step == 2 else jet

    def watch(done: int, *_: object) -> None:
        nonlocal step
        step = done
        seen.append(weights(made))

    measurer.measure = sometimes  # type: ignore[method-assign]
    said: list[str] = []
    Trainer(made, HOST.registry, recorder=Recorder([], said.append), progress=watch).run()
    assert len(said) == 1 and "step 2: the loss is not finite" in said[0]
    assert_same(seen[2], seen[1])
    for one, other in ((0, 1), (2, 3)):
        assert all(not torch.equal(seen[one][name], seen[other][name]) for name in seen[0])


def test_the_rate_of_members_that_polish_follows_its_schedule(tmp_path: Path) -> None:
    _, records, _ = train(
        tmp_path, *MEMBERS, "train.steps=3",
        "train.optimizer={use: lbfgs, max_iter: 2, lr: 1.0}", "train.schedule={use: drops, at: [1, 2], factor: 0.5}",
    )  # fmt: skip
    assert [row["lr"] for _, row in records.rows if "lr" in row] == [0.5, 0.25, 0.25]


def test_a_last_update_that_breaks_the_student_is_an_error(tmp_path: Path) -> None:
    changes = ("train.steps=1", "train.optimizer={use: lbfgs, line_search: none, lr: 1.0e200}")
    with pytest.raises(NonFiniteError, match=r"step 1: not finite after the update: sines\.0\.weight"):
        train(tmp_path, *changes)


def test_a_target_that_computes_nan_is_found_before_the_first_step(tmp_path: Path) -> None:
    first = Sampler(40, 8, 0).ids(0)[0].item()
    with pytest.raises(NonFiniteError, match=rf"target's value of site sines \(samples {first}\)"):
        preflight(experiment(tmp_path, f"target={{use: sines, bad: value, sample: {first}}}"))
    assert preflight(experiment(tmp_path)) is not None


def test_an_evaluation_that_is_not_finite_is_said(tmp_path: Path) -> None:
    made, _ = broken("value", tmp_path, "train.steps=1", "evaluate.splits=[train]")
    said: list[str] = []
    outcome = Trainer(made, HOST.registry, recorder=Recorder([], said.append)).run()
    assert math.isnan(outcome.summary["train/sines/value"])
    assert said == ["warning: step 1: not finite in evaluation: train/sines/value"]
