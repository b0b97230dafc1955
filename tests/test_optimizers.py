"""Optimizers and schedules are torch's own, with the options that a recipe gives."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from families import HOST
from students_support import ArrayTarget, experiment, samples

from sobolev.builtin.optimizers import OPTIMIZERS, SCHEDULES
from sobolev.builtin.targets.ensemble import ensemble_of

GIVEN: dict[str, tuple[type, dict[str, Any]]] = {
    "adam": (torch.optim.Adam, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.2, "fused": False}),
    "adamw": (torch.optim.AdamW, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.2, "fused": False}),
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.5, "nesterov": True, "weight_decay": 0.2}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.1, "alpha": 0.5, "eps": 1e-3, "momentum": 0.4}),
    "lbfgs": (torch.optim.LBFGS, {"lr": 0.5, "max_iter": 3, "history_size": 4, "tolerance_grad": 1e-3,
                                  "tolerance_change": 1e-4}),
}  # fmt: skip


def test_every_one_is_here() -> None:
    assert set(GIVEN) == set(OPTIMIZERS) and set(SCHEDULES) == {"cosine", "linear", "drops"}


@pytest.mark.parametrize("name", GIVEN)
def test_options_arrive(name: str) -> None:
    kind, options = GIVEN[name]
    made = HOST.registry.build("optimizer", {"use": name, **options})([torch.nn.Parameter(torch.ones(2))])
    assert type(made) is kind
    assert {option: made.param_groups[0][option] for option in options} == options


def test_the_line_search_by_its_name() -> None:
    for name, theirs in (("strong-wolfe", "strong_wolfe"), ("none", None)):
        made = HOST.registry.build("optimizer", {"use": "lbfgs", "line_search": name})(
            [torch.nn.Parameter(torch.ones(1))]
        )
        assert made.param_groups[0]["line_search_fn"] == theirs


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"use": "adam", "lr": 0}, "greater than 0"),
        ({"use": "sgd", "momentum": 1.0}, "less than 1"),
        ({"use": "adam", "learning_rate": 1}, "learning_rate"),
        ({"use": "adm"}, "did you mean 'adam'"),
    ],
)
def test_options_that_make_no_sense(spec: dict[str, Any], told: str) -> None:
    _, problems = HOST.registry.check("optimizer", spec, ("train", "optimizer"))
    assert len(problems) == 1 and told in problems[0].message


def test_warm_up_begins_low_and_a_final_rate_is_kept() -> None:
    schedule = HOST.registry.build("schedule", {"use": "cosine", "warmup": 3, "final": 0.1})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    made = schedule(optimizer, 10)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert all(a > b for a, b in itertools.pairwise(rates[3:])) and optimizer.param_groups[0]["lr"] == pytest.approx(
        0.1
    )


def test_what_compiling_may_save_counts_line_searches_and_students_built_alike() -> None:
    phases = [
        {"steps": 7, "optimizer": {"use": "adam"}},
        {"steps": 3, "optimizer": {"use": "lbfgs", "max_iter": 10}},
    ]
    members = experiment(ensemble_of(ArrayTarget(samples()), 4), train={"phases": phases})
    assert {measurer.policy.steps for measurer in members.measurers.values()} == {(7 + 3 * 10) * 4}
    plain = experiment(ArrayTarget(samples()), train={"steps": 5, "optimizer": {"use": "lbfgs"}})
    assert [measurer.policy.steps for measurer in plain.measurers.values()] == [5 * 20]
    none = experiment(ArrayTarget(samples()), train={"steps": 0})
    assert [measurer.policy.steps for measurer in none.measurers.values()] == [0]
