"""Losses and terms against sums that are written out entry by entry."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from families import HOST
from torch import Tensor

from sobolev import ComponentError, Jet, Points, Probe, Site
from sobolev.losses import per_sample
from sobolev.vocabulary import Contraction, full

X = ("x",)


def entries(loss: str, errors: Sequence[float], reduce: str, delta: float, size: int) -> float:
    """The loss of one probe of one sample."""
    if loss == "norm":
        return math.sqrt(sum(e * e for e in errors))
    one = {
        "squared-l2": lambda e: e * e,
        "l1": abs,
        "huber": lambda e: 0.5 * e * e if abs(e) <= delta else delta * (abs(e) - 0.5 * delta),
    }[loss]
    return sum(map(one, errors)) / (size if reduce == "mean" else 1)


@pytest.mark.parametrize("loss", ["squared-l2", "l1", "norm", "huber"])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("probes", [None, 1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_losses_of_samples(loss: str, reduce: str, probes: int | None, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (5, 2, 3) if probes is None else (5, probes, 4)
    a, b = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    known = torch.rand(shape, generator=generator) < 0.6 if masked else None
    if known is not None:
        known[2] = False
    losses, fraction = per_sample(loss, a, b, known, probes, reduce, delta=0.7)
    mask = torch.ones(shape, dtype=torch.bool) if known is None else known
    k = probes or 1
    for i in range(5):
        groups = [(a[i] - b[i]).reshape(k, -1)[j][mask[i].reshape(k, -1)[j]].tolist() for j in range(k)]
        expected = sum(entries(loss, g, reduce, 0.7, a[i].numel() // k) for g in groups) / k
        assert float(losses[i]) == pytest.approx(expected, rel=1e-12, abs=1e-15)
        part = float(mask[i].any()) if loss == "norm" else float(mask[i].double().mean())
        assert float(fraction[i]) == pytest.approx(part)


def test_the_norm_has_the_subgradient_0_at_equality() -> None:
    a = torch.zeros(2, 3, requires_grad=True)
    per_sample("norm", a, torch.zeros(2, 3))[0].sum().backward()
    assert torch.equal(a.grad, torch.zeros(2, 3))


@pytest.mark.parametrize("loss", ["kl-student-teacher", "kl-teacher-student"])
def test_divergences_have_the_direction_of_their_names(loss: str) -> None:
    p, q = (torch.randn(4, 3, dtype=torch.float64).log_softmax(1) for _ in range(2))
    first, second = (p, q) if loss == "kl-student-teacher" else (q, p)
    expected = [sum(math.exp(a) * (a - b) for a, b in zip(x, y)) for x, y in zip(first.tolist(), second.tolist())]
    assert per_sample(loss, p, q)[0].tolist() == pytest.approx(expected)
    assert float(per_sample(loss, p, p)[0].abs().max()) < 1e-15


@pytest.mark.parametrize("loss", ["squared-l2", "l1", "norm", "huber"])
@pytest.mark.parametrize("masked", [False, True])
def test_no_samples_are_a_loss_of_nothing(loss: str, masked: bool) -> None:
    a = torch.zeros(0, 2, 3, requires_grad=True)
    losses, fraction = per_sample(loss, a, torch.zeros(0, 2, 3), torch.ones(0, 2, 3).bool() if masked else None)
    assert losses.shape == fraction.shape == (0,)
    losses.sum().backward()


# -- the objective -----------------------------------------------------------------------------------------------------


def objective(**options: object):
    return HOST.registry.build("objective", {"use": "sobolev", **options})


def jet(value: Tensor, slope: Tensor) -> Jet:
    return Jet(value, {X: slope})


def test_terms_carry_weights_of_samples_into_sum_and_count() -> None:
    made = objective(value={"weight": 0.25}, derivatives=[{"loss": "l1", "weight": 2.0}])
    points = Points({"x": torch.zeros(2, 3)}, ("x",), torch.arange(2), torch.tensor([1.0, 3.0]))
    mine = jet(torch.tensor([[1.0], [2.0]]), torch.ones(2, 1, 3))
    theirs = jet(torch.zeros(2, 1), torch.zeros(2, 1, 3))
    value, slope = made.terms("s", points, Probe({X: full(X)}), mine, theirs)
    assert (float(value.sum), float(value.count), value.weight, value.name) == (1 + 3 * 4, 4, 0.25, "s/value")
    assert (float(slope.sum), float(slope.count), slope.weight, slope.name) == (3 + 9, 4, 2.0, "s/d/dx")


def test_the_probes_of_a_sample_are_averaged() -> None:
    made = objective(value={"weight": 0})
    points = Points({"x": torch.zeros(1, 3)}, ("x",), torch.arange(1))
    probe = Probe({X: Contraction(torch.ones(1, 2, 1), (None,))})
    mine, theirs = (jet(torch.zeros(1, 1), v) for v in (torch.tensor([[[1.0, 0, 0], [0, 2, 0]]]), torch.zeros(1, 2, 3)))
    (term,) = made.terms("s", points, probe, mine, theirs)
    assert float(term.sum) == (1 + 4) / 2 and float(term.count) == 1


SITE = Site({"a": (2,), "b": (3,)}, 1, ("a", "b"))


def test_keys_are_the_derivatives_with_weight() -> None:
    made = objective(
        derivatives=[{"input": "a"}, {"input": "b", "weight": 0}, {"input": ["a", "b"], "order": 2}]
    )  # fmt: skip
    assert made.keys(SITE) == (("a",), ("a", "b"))
    assert objective().keys(Site({"x": (2,)}, 1, ("x",))) == (X,)


@pytest.mark.parametrize(
    ("options", "site", "told"),
    [
        ({}, SITE, r"say by 'input' which of \['a', 'b'\]"),
        ({"derivatives": [{"input": "c"}]}, SITE, r"'c' is not differentiated here"),
        ({"derivatives": [{"input": ["a", "b"]}]}, SITE, r"has order 2, not 1"),
        ({"derivatives": [{"input": "a"}, {"input": "a"}]}, SITE, r"two derivative terms are for the same"),
        ({}, Site({"x": (2,)}, 1, ()), r"no derivatives to match"),
    ],
)
def test_derivatives_that_are_not_there(options: dict[str, object], site: Site, told: str) -> None:
    with pytest.raises(ComponentError, match=told):
        objective(**options).keys(site)


def test_a_divergence_wants_log_probabilities() -> None:
    with pytest.raises(ComponentError, match="set 'head: log-softmax'"):
        objective(value={"loss": "kl-student-teacher"})
    assert objective(value={"loss": "kl-student-teacher"}, head="log-softmax").head.name == "log-softmax"


def test_shapes_that_differ_are_an_error_and_not_broadcast() -> None:
    points = Points({"x": torch.zeros(2, 3)}, ("x",), torch.arange(2))
    mine, theirs = jet(torch.zeros(2, 1), torch.zeros(2, 1, 3)), jet(torch.zeros(2, 4), torch.zeros(2, 1, 3))
    with pytest.raises(ComponentError, match=r"shape \(2, 1\), the target's \(2, 4\)"):
        objective().terms("s", points, Probe({X: full(X)}), mine, theirs)
