"""Scaling inside the student, statistics of the training data, balanced losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from students_support import experiment, samples
from torch import Tensor, nn

from sobolev import Batch, ComponentError, Contraction, Jet, Noise, Points, Probe
from sobolev.arrays import ArrayTarget, Samples
from sobolev.differentiate.autograd import differentiate
from sobolev.differentiate.program import recognise
from sobolev.sampler import some
from sobolev.statistics import SAMPLES

X = ("x",)


def jets(made: Any, site: str = "data") -> tuple[Points, Jet, Jet]:
    """Return points, prediction and reference of all training samples."""
    ids = torch.arange(made.target.size("train"))
    where = made.target.points(Batch("train", ids), training=True)
    probes = {name: Probe.full((X,)) for name in where}
    return where[site], made.measure(where)[site], made.reference(where, probes, None)[site]


def test_statistics_are_those_of_the_training_samples() -> None:
    data = samples(outputs=2)
    made = experiment(ArrayTarget(data), student={"use": "mlp", "scale": "standard"}, objective={"balance": "rms"})
    found = made.sites["data"].statistics
    assert found is not None and found.samples == 12 and data.dydx is not None
    assert torch.allclose(found.inputs["x"].mean, data.x.mean(0), rtol=1e-12)
    assert torch.allclose(found.inputs["x"].deviation, data.x.std(0, correction=0), rtol=1e-9)
    assert torch.allclose(found.value.mean, data.y.mean(0), rtol=1e-12)
    assert torch.allclose(found.value.deviation, data.y.std(0, correction=0), rtol=1e-9)
    assert torch.allclose(found.squares[X], data.dydx.square().mean(0), rtol=1e-9)
    assert found.output is found.value


def test_statistics_count_weights_and_leave_out_what_is_missing() -> None:
    data = samples()
    assert data.dydx is not None
    weight = torch.tensor([2.0, 0, *[1] * 10], dtype=torch.float64)
    holed = data.dydx.clone()
    holed[0, 0, 1] = torch.nan
    rows = torch.tensor([0, 0, *range(2, 12)])
    made = experiment(ArrayTarget(Samples(data.x, data.y, holed, weight)), objective={"balance": "rms"})
    found = made.sites["data"].statistics
    assert found is not None
    assert torch.allclose(found.value.mean, data.y[rows].mean(0), rtol=1e-12)
    assert torch.allclose(found.value.deviation, data.y[rows].std(0, correction=0), rtol=1e-9)
    assert torch.allclose(found.squares[X][0, 0], data.dydx[rows, 0, 0].square().mean(), rtol=1e-9)
    assert torch.allclose(found.squares[X][0, 1], data.dydx[2:, 0, 1].square().mean(), rtol=1e-9)


def test_statistics_are_measured_only_where_somebody_asks() -> None:
    class Counted(ArrayTarget):
        asked = 0

        def answer(self, *arguments: Any) -> Any:
            type(self).asked += 1
            return super().answer(*arguments)

    assert experiment(Counted(samples())).sites["data"].statistics is None
    assert Counted.asked == 0
    experiment(Counted(samples()), student={"use": "mlp", "scale": "inputs"})
    assert Counted.asked == 1


@pytest.mark.parametrize("family", ["mlp", "residual"])
@pytest.mark.parametrize("activation", ["tanh", "softplus", "silu", "gelu", "relu"])
def test_a_scaled_student_is_measured_by_passes_in_the_users_units(family: str, activation: str) -> None:
    made = experiment(
        ArrayTarget(samples(outputs=2)),
        student={"use": family, "activation": activation, "scale": "standard"},
        train={"compile": "never"},
    )
    module = made.module["data"]
    where, prediction, _ = jets(made)
    made.measurers["data"].measure(where, Probe.full((X,)))  # with graph: what training does
    assert next(iter(made.measurers["data"].describe().values())).startswith("passes")
    # The chain rule by torch, through the whole module: what a user would differentiate.
    slow = differentiate(lambda inputs: module(inputs["x"]), where, Probe.full((X,)), create_graph=False)
    assert torch.allclose(prediction.value, slow.value, rtol=1e-12)
    assert torch.allclose(prediction[X], slow[X], rtol=1e-9, atol=1e-12)
    # And by hand: J of the inner network in standardised units, times sigma_y / sigma_x.
    inner, data = nn.Sequential(*list(module)[1:-1]), samples(outputs=2)
    deviation_x, deviation_y = data.x.std(0, correction=0), data.y.std(0, correction=0)
    standard = (data.x - data.x.mean(0)) / deviation_x
    rows = [torch.autograd.functional.jacobian(inner, row[None])[0, :, 0] for row in standard]
    by_hand = torch.stack(rows) * deviation_y[:, None] / deviation_x
    assert torch.allclose(prediction[X], by_hand, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("contraction", ["full", "output", "input"])
def test_parameter_gradients_through_scaling(contraction: str) -> None:
    made = experiment(ArrayTarget(samples(outputs=2)), student={"use": "residual", "width": 5, "scale": "standard"})
    module, (where, _, _) = made.module["data"], jets(made)
    random = torch.Generator().manual_seed(0)
    vectors = torch.randn(12, 3, 2, generator=random, dtype=torch.float64)
    asked = {
        "full": Contraction(None, (None,)),
        "output": Contraction(vectors, (None,)),
        "input": Contraction(None, (vectors,)),
    }[contraction]
    probe = Probe({X: asked})
    parameters = [p for p in module.parameters() if p.requires_grad]
    found = []
    for jet in (
        made.measurers["data"].measure(where, probe),
        differentiate(lambda inputs: module(inputs["x"]), where, probe, create_graph=True),
    ):
        loss = jet.value.square().sum() + jet[X].sin().sum()
        found.append(torch.autograd.grad(loss, parameters))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-10)


def test_scaling_is_saved_with_the_student_and_not_trained() -> None:
    made = experiment(ArrayTarget(samples()), student={"use": "mlp", "scale": "standard"})
    state = made.module.state_dict()
    assert torch.allclose(state["data.0.mean"], samples().x.mean(0))
    assert not [name for name, _ in made.module.named_parameters() if "mean" in name or "deviation" in name]
    assert recognise(made.module["data"]).first == 1


def test_constant_columns_stay_finite() -> None:
    x = torch.tensor([[1.0, 7.0], [2.0, 7.0], [4.0, 7.0]], dtype=torch.float64)
    data = Samples(x, torch.full((3, 1), 5.0, dtype=torch.float64), torch.zeros(3, 1, 2, dtype=torch.float64))
    for balance in ("rms", "joint"):
        made = experiment(
            ArrayTarget(data), student={"use": "mlp", "scale": "standard"}, objective={"balance": balance}
        )
        where, prediction, reference = jets(made)
        terms = made.objective.terms("data", where, Probe.full((X,)), prediction, reference)
        assert all(torch.isfinite(term.sum) for term in terms)


def test_samples_that_do_not_count_leave_no_trace_in_the_statistics() -> None:
    data = samples()
    garbage = Samples(
        torch.cat([torch.full((2, 2), 1e6, dtype=torch.float64), data.x]),
        torch.cat([torch.full((2, 1), 1e12, dtype=torch.float64), data.y]),
        None,
        torch.cat([torch.zeros(2), torch.ones(12)]),
    )
    scaled, values = {"use": "mlp", "scale": "standard"}, {"derivatives": []}
    clean = experiment(ArrayTarget(Samples(data.x, data.y)), student=scaled, objective=values)
    made = experiment(ArrayTarget(garbage), student=scaled, objective=values)
    for name, tensor in clean.module.state_dict().items():
        if tensor.dtype == torch.float64 and ("mean" in name or "deviation" in name):
            assert torch.allclose(made.module.state_dict()[name], tensor, rtol=1e-13)


def test_statistics_of_many_samples_are_spread_over_all_of_them() -> None:
    x = torch.linspace(0, 1, 3 * SAMPLES, dtype=torch.float64)[:, None]
    scaled, values = {"use": "mlp", "scale": "standard"}, {"derivatives": []}
    made = experiment(ArrayTarget(Samples(x, x)), student=scaled, objective=values)
    found = made.sites["data"].statistics
    assert found is not None
    assert torch.allclose(found.value.mean, torch.tensor([0.5], dtype=torch.float64), atol=1e-3)
    assert torch.allclose(found.value.deviation, x.std(0), rtol=1e-3)
    ids = some(3 * SAMPLES, SAMPLES, 0)
    assert len(ids.unique()) == SAMPLES
    assert int(ids[-1]) < 3 * SAMPLES
    assert not torch.equal(ids, some(3 * SAMPLES, SAMPLES, 1))


# -- balance -------------------------------------------------------------------------------------------------------


def total(made: Any, probe: Probe | None = None) -> Tensor:
    where, prediction, reference = jets(made)
    if probe is not None:
        reference = made.target.answer({"data": where}, {"data": probe}, None)["data"]
        prediction = made.measurers["data"].measure(where, probe)
    terms = made.objective.terms("data", where, probe or Probe.full((X,)), prediction, reference)
    return sum((term.weight * term.sum / term.count for term in terms), torch.zeros((), dtype=torch.float64))


def test_rms_is_huge_and_savines_loss() -> None:
    data = samples()
    assert data.dydx is not None
    strength = 0.7
    objective = {"balance": "rms", "derivatives": [{"weight": strength}]}
    made = experiment(ArrayTarget(data), student={"use": "mlp", "scale": "standard"}, objective=objective)
    _, prediction, _ = jets(made)
    # Their notation: standardised values and partials, lambda_j = 1 / RMS of partial j, n inputs.
    deviation_x, deviation_y = data.x.std(0, correction=0), data.y.std(0, correction=0)
    partials = data.dydx[:, 0] * deviation_x / deviation_y
    ours = prediction[X][:, 0] * deviation_x / deviation_y
    lambdas = 1 / partials.square().mean(0).sqrt()
    alpha = 1 / (1 + strength * 2)
    values = ((prediction.value - data.y) / deviation_y).square().mean()
    expected = alpha * values + (1 - alpha) * ((ours - partials) * lambdas).square().mean()
    assert torch.allclose(total(made), expected, rtol=1e-9)


@pytest.mark.parametrize("noise", [0.0, 1e-16, 1e-10])
def test_a_partial_that_is_zero_up_to_rounding_does_not_outweigh_the_others(noise: float) -> None:
    data = samples()
    assert data.dydx is not None
    partials = data.dydx.clone()
    partials[:, 0, 1] = noise * torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    objective = {"balance": "rms"}
    made = experiment(ArrayTarget(Samples(data.x, data.y, partials)), student="mlp", objective=objective)
    where, prediction, reference = jets(made)
    value, slope = made.objective.terms("data", where, Probe.full((X,)), prediction, reference)
    joint = data.y.std(0, correction=0) / data.x.std(0, correction=0)
    rms = partials[:, 0, 0].square().mean().sqrt()
    expected = ((prediction[X][:, 0] - partials[:, 0]) / torch.stack([rms, joint[1]])).square().mean(0).sum()
    assert torch.allclose(slope.sum / slope.count, expected, rtol=1e-6)
    assert torch.isfinite(value.sum)


def test_joint_is_the_plain_loss_in_standardised_units() -> None:
    data = samples(outputs=2)
    assert data.dydx is not None
    made = experiment(ArrayTarget(data), student={"use": "mlp", "scale": "standard"}, objective={"balance": "joint"})
    _, prediction, _ = jets(made)
    deviation_x, deviation_y = data.x.std(0, correction=0), data.y.std(0, correction=0)
    values = ((prediction.value - data.y) / deviation_y).square().sum(1).mean()
    slopes = (prediction[X] - data.dydx) * deviation_x / deviation_y[:, None]
    assert torch.allclose(total(made), values + slopes.square().flatten(1).sum(1).mean(), rtol=1e-9)


@pytest.mark.parametrize("balance", ["rms", "joint"])
def test_balance_does_not_depend_on_the_users_units(balance: str) -> None:
    losses = []
    for unit_x, unit_y in ((1.0, 1.0), (1000.0, 0.01)):
        data = samples()
        assert data.dydx is not None
        scaled = Samples(data.x * unit_x, data.y * unit_y, data.dydx * unit_y / unit_x)
        made = experiment(
            ArrayTarget(scaled), student={"use": "mlp", "scale": "standard"}, objective={"balance": balance}
        )
        losses.append(total(made))
    assert torch.allclose(*losses, rtol=1e-9)


def test_a_contracted_slot_is_scaled_by_its_mean_square() -> None:
    data = samples(outputs=2)
    made = experiment(ArrayTarget(data), objective={"balance": "rms", "value": {"weight": 0}})
    where, *_ = jets(made)
    noise = Noise(0, "train", 0, "data")
    vectors = noise.sphere(where.index, 3, (2,), *X, dtype=torch.float64)
    prediction = made.measure({"data": where})["data"]
    assert data.dydx is not None
    error, squares = prediction[X] - data.dydx, data.dydx.square().mean(0)
    share = 1 / (1 + 2)
    output = torch.einsum("bmx,bkm->bkx", error, vectors).square() / squares.mean(0)
    assert torch.allclose(total(made, Probe({X: Contraction(vectors, (None,))})), share * output.sum(2).mean())
    along = torch.einsum("bmx,bkx->bkm", error, vectors).square() / squares.mean(1)
    assert torch.allclose(total(made, Probe({X: Contraction(None, (vectors,))})), share * along.sum(2).mean())


def test_what_cannot_be_scaled_is_explained() -> None:
    class Waits(ArrayTarget):
        needs = frozenset({"prediction"})

    with pytest.raises(ComponentError, match="nothing is known of its values before training"):
        experiment(Waits(samples()), student={"use": "mlp", "scale": "standard"})

    class Classes(ArrayTarget):
        heads = ("log-softmax",)

    with pytest.raises(ComponentError, match="use the head 'identity', or 'scale: inputs'"):
        experiment(Classes(samples()), student={"use": "mlp", "scale": "standard"}, objective={"head": "log-softmax"})
    experiment(Classes(samples()), student={"use": "mlp", "scale": "inputs"}, objective={"head": "log-softmax"})
