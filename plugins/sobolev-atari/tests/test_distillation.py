"""The target: its jets against plain references, its estimators against the full loss."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sobolev_atari.distillation import SITE, Distillation
from sobolev_atari.networks import policy_network
from sobolev_atari.teachers import Teacher, frozen

from sobolev.components import Context
from sobolev.heads import HEADS
from sobolev.noise import Noise
from sobolev.vocabulary import Batch, Contraction, Jet, Probe

KEY = ("x",)
M, D = 3, 5


class States:
    """Vectors as states, seen by a small network."""

    scale, bounded, shape = 1.0, False, (D,)

    def __init__(self, recorded: bool = True) -> None:
        torch.manual_seed(0)
        self.teacher: Teacher = frozen(policy_network("mlp", (D,), M), M, (D,))
        self.teacher.network.double()
        self.all = np.random.default_rng(0).normal(size=(30, D)).astype(np.float32)
        self.rows = {"train": np.arange(20), "validation": np.arange(0), "test": np.arange(20, 30)}
        self.recorded = recorded

    def prepare(self, context: Context) -> None:
        pass

    def states(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        return self.all[rows]

    def logits(self, rows: NDArray[np.int64]) -> NDArray[Any] | None:
        with torch.no_grad():
            return self.teacher.network(torch.from_numpy(self.all[rows]).double()).numpy() if self.recorded else None

    def labels(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        return rows % M

    def finish(self, student: Any, context: Context) -> dict[str, float]:
        return {"score": float(student(torch.zeros(1, D)).exp().sum())}

    def close(self) -> None:
        pass


def context(tmp_path: Path, said: list[str] | None = None, head: str = "log-softmax") -> Context:
    say = (said if said is not None else []).append
    return Context(
        device=torch.device("cpu"),
        dtype=torch.float64,
        world=None,  # type: ignore[arg-type]
        seed=0,
        head=HEADS[head],
        directory=tmp_path,
        cache=tmp_path,
        say=say,
    )


def made(
    tmp_path: Path, memory: int = 2**30, temperature: float = 1.0, said: list[str] | None = None, **options: Any
) -> Distillation:
    target = Distillation(States(**options), temperature=temperature, memory=memory)
    target.prepare(context(tmp_path, said))
    return target


def batch(target: Distillation, split: str = "train", n: int = 8) -> Any:
    ids = torch.arange(n)
    return target.points(Batch(split, ids, target.load(split, ids)), training=True)


def plain(target: Distillation, x: torch.Tensor, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    def value(one: torch.Tensor) -> torch.Tensor:
        return (target.network(one[None])[0] / temperature).log_softmax(0)

    return torch.func.vmap(value)(x), torch.func.vmap(torch.func.jacrev(value))(x)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("memory", [0, 2**30])
@pytest.mark.parametrize("recorded", [True, False])
def test_jets_against_a_plain_reference(tmp_path: Path, memory: int, temperature: float, recorded: bool) -> None:
    target = made(tmp_path, memory, temperature, recorded=recorded)
    points = batch(target)
    x = points[SITE].inputs["x"]
    value, jacobian = plain(target, x, temperature)
    v = Noise(0, "train", 0, SITE).sphere(points[SITE].index, 2, (M,), "x", dtype=torch.float64)
    w = torch.randn(8, 2, D, dtype=torch.float64)
    wanted = {
        "full": (Contraction(None, (None,)), jacobian),
        "output": (Contraction(v, (None,)), torch.einsum("bkm,bmd->bkd", v, jacobian)),
        "input": (Contraction(None, (w,)), torch.einsum("bkd,bmd->bkm", w, jacobian)),
        "one direction": (Contraction(None, (w[:, :1],)), torch.einsum("bkd,bmd->bkm", w[:, :1], jacobian)),
    }
    for contraction, expected in wanted.values():
        jet = target.answer(points, {SITE: Probe({KEY: contraction})}, None)[SITE]
        torch.testing.assert_close(jet.value, value)
        torch.testing.assert_close(jet.derivatives[KEY], expected)
        assert not jet.value.requires_grad and not jet.derivatives[KEY].requires_grad
    torch.testing.assert_close(target.answer(points, {SITE: Probe()}, None)[SITE].value, value)


def test_second_derivatives_come_from_fresh_passes(tmp_path: Path) -> None:
    target = made(tmp_path)
    points = batch(target, n=2)
    jet = target.answer(points, {SITE: Probe.full((("x", "x"),))}, None)[SITE]
    hessian = torch.func.vmap(torch.func.jacrev(torch.func.jacrev(lambda x: target.network(x[None])[0].log_softmax(0))))
    torch.testing.assert_close(jet.derivatives[("x", "x")], hessian(points[SITE].inputs["x"]))


def test_the_memory_bound_decides_and_is_told(tmp_path: Path) -> None:
    per_state = M * D * 8
    cases = {
        0: "no split (0 of 0 MiB)",
        20 * per_state: "train (",
        30 * per_state: "train, test (",
        19 * per_state: "test (",
    }
    for memory, expected in cases.items():
        said: list[str] = []
        made(tmp_path, memory, said=said)
        assert any(f"kept for {expected}" in line for line in said), (memory, said)


def test_the_projected_squared_loss_times_m_is_the_full_one(tmp_path: Path) -> None:
    """E |J'v|^2 = |J|_F^2 / m, by an average over many fresh v."""
    target = made(tmp_path)
    student = policy_network("mlp", (D,), M).double()
    points = batch(target)[SITE]
    x = points.inputs["x"]
    reference = plain(target, x)[1]
    mine = torch.func.vmap(torch.func.jacrev(lambda one: student(one[None])[0].log_softmax(0)))(x).detach()
    total, count = 0.0, 2500
    for step in range(count):
        v = Noise(0, "train", step, SITE).sphere(points.index, 1, (M,), "x", dtype=torch.float64)
        there = target.answer({SITE: points}, {SITE: Probe({KEY: Contraction(v, (None,))})}, None)[SITE]
        here = torch.einsum("bkm,bmd->bkd", v, mine)
        total += float((here - there.derivatives[KEY]).square().sum())
    assert total / count * M == pytest.approx(float((mine - reference).square().sum()), rel=0.04)


def test_the_norm_loss_is_the_mean_over_the_sphere() -> None:
    """The paper's derivative loss for m = 2, where the sphere is a circle, against quadrature."""
    torch.manual_seed(0)
    difference = torch.randn(6, 2, D, dtype=torch.float64)
    angles = torch.arange(20_000, dtype=torch.float64) * (2 * math.pi / 20_000)
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    expected = torch.einsum("am,bmd->bad", circle, difference).norm(dim=2).mean(1)
    v = Noise(1, "train", 0, SITE).sphere(torch.arange(6), 40_000, (2,), "x", dtype=torch.float64)
    found = torch.einsum("bkm,bmd->bkd", v, difference).norm(dim=2).mean(1)
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)
    # and no factor turns it into the norm of the whole Jacobian: the ratio differs between samples
    ratio = expected / difference.flatten(1).norm(dim=1)
    assert float(ratio.max() / ratio.min()) > 1.005


def test_the_teacher_is_never_modified_nor_in_inference_mode(tmp_path: Path) -> None:
    target = made(tmp_path, memory=0)
    before = copy.deepcopy(target.network.state_dict())
    points = batch(target)
    with torch.inference_mode():
        jet = target.answer(points, {SITE: Probe.full((KEY,))}, None)[SITE]
    assert not jet.value.is_inference() and not jet.derivatives[KEY].is_inference()
    student = policy_network("mlp", (D,), M).double()
    loss = student(points[SITE].inputs["x"]) - target.answer(points, {SITE: Probe.full((KEY,))}, None)[SITE].value
    loss.square().sum().backward()
    assert all(p.grad is None and not p.requires_grad and not p.is_inference() for p in target.network.parameters())
    for name, tensor in target.network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_metrics_by_hand(tmp_path: Path) -> None:
    target = made(tmp_path)
    points = batch(target, n=2)
    teacher = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], dtype=torch.float64).log()
    student = torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.1, 0.7]], dtype=torch.float64).log()
    found = {
        k: float(v.sum / v.count) for k, v in target.metrics(points, {SITE: Jet(teacher)}, {SITE: Jet(student)}).items()
    }
    forward = (0.25 * math.log(0.5) + 0.5 * math.log(2) + 0.2 * math.log(2) + 0.7 * math.log(7 / 8)) / 2
    assert found["action-error"] == 0.5
    assert found["kl-student-teacher"] == pytest.approx(forward)
    assert found["kl-teacher-student"] == pytest.approx(
        (0.5 * math.log(2) + 0.25 * math.log(0.5) + 0.1 * math.log(0.5) + 0.8 * math.log(8 / 7)) / 2
    )
    assert found["class-error"] == 1.0  # labels 0 and 1, predictions 1 and 0
    assert found["teacher-class-error"] == 0.5


def test_the_final_score_plays_the_student_at_the_teachers_temperature(tmp_path: Path) -> None:
    target = made(tmp_path, temperature=2.0)

    class Uneven:
        def value(self, site: str, inputs: Any) -> torch.Tensor:
            return torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()

    # The source is given log p^2 (it normalises when it samples): 0.25 + 0.0625 + 0.0625.
    found = target.finish(Uneven())  # type: ignore[arg-type]
    assert found["score"] == pytest.approx(0.375)
    assert {k: v for k, v in found.items() if "/" in k} == {"jacobian-kept/train": 1, "jacobian-kept/test": 1}
