"""Several inputs: held fixed, or differentiated too, on both engines; precision of what is measured."""

from __future__ import annotations

import pytest
import torch
from deriv_support import assert_close, gradients, head_of, loss_of, measurer_of, network, points_of
from torch import Tensor, nn

from sobolev.differentiate.measure import GENERAL, PASSES, Measurer, Policy
from sobolev.errors import ComponentError
from sobolev.heads import HEADS
from sobolev.vocabulary import Contraction, Points, Probe, Site, full

X, Y = ("x",), ("y",)


def probes() -> dict[str, Probe]:
    v = torch.randn(3, 2, 3, dtype=torch.float64)
    w = torch.randn(3, 2, 1, dtype=torch.float64)
    return {
        "full": Probe({X: full(X), Y: full(Y)}),
        "held first": Probe({Y: full(Y), X: full(X)}),
        "input side": Probe({X: Contraction(None, (v,)), Y: Contraction(None, (v,))}),
        "output side": Probe({X: Contraction(w, (None,)), Y: Contraction(w, (None,))}),
    }


@pytest.mark.parametrize("what", ["full", "held first", "input side", "output side"])
@pytest.mark.parametrize("kind", ["relu", "tanh", "layer norm"])
def test_label_differentiated_through_the_head_alone(kind: str, what: str) -> None:
    module, points, probe = network(kind, 3), points_of((3,), 3), probes()[what]
    measurer = measurer_of(module, head_of("log-loss"), (3,), 3)
    jet = measurer.measure(points, probe)
    (chosen,) = measurer.describe().values()
    assert chosen.startswith(GENERAL if kind == "layer norm" else PASSES)
    x, y = (points.inputs[name].clone().requires_grad_() for name in "xy")
    value = -(torch.log_softmax(module(x), -1) * y).sum(-1, keepdim=True)
    by_x, by_y = torch.autograd.grad(value.sum(), (x, y), create_graph=True)
    whole = {X: by_x[:, None], Y: by_y[:, None]}
    loss = expected = 0.0
    for key, contraction in probe.contractions.items():
        wanted = whole[key]
        if contraction.output is not None:
            wanted = torch.einsum("bkm,bmd->bkd", contraction.output, wanted)
        elif contraction.inputs[0] is not None:
            wanted = torch.einsum("bkd,bmd->bkm", contraction.inputs[0], wanted)
        assert_close(jet[key], wanted, f"{kind}, {what}, {key}")
        loss, expected = loss + loss_of(jet.value, jet[key]), expected + loss_of(value, wanted)
    assert_close(gradients(loss, module), gradients(expected, module), "parameter gradient")
    alone = measurer.measure(points, probe, create_graph=False)
    assert_close(alone[Y], jet[Y], "without graph")
    assert not alone[Y].requires_grad


def test_a_label_that_no_head_reads_has_derivative_zero() -> None:
    module, points = network("tanh", 3), points_of((3,), 3)
    jet = measurer_of(module, head_of("identity"), (3,), 3).measure(points, probes()["full"])
    assert jet[Y].shape == (3, 3, 3) and not jet[Y].any()
    assert_close(jet.value, module(points.inputs["x"]), "value")


class Two(nn.Module):
    """Reads two inputs by their names, in an order of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 2)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(torch.cat([x, t], dim=-1))) * t[:, :1]


@pytest.mark.parametrize("keys", [(X,), (("t",),), (X, ("t",)), (("x", "t"),)])
def test_any_subset_of_inputs(keys: tuple[tuple[str, ...], ...]) -> None:
    torch.manual_seed(0)
    module = Two().double()
    inputs = {"x": torch.randn(3, 3, dtype=torch.float64), "t": torch.randn(3, 2, dtype=torch.float64)}
    site = Site({"x": (3,), "t": (2,)}, 2, ("x", "t"))
    measurer = Measurer(module, HEADS["identity"], site, Policy(1, "never"))
    jet = measurer.measure(Points(inputs, ("x", "t"), torch.arange(3)), Probe.full(keys))

    def function(x: Tensor, t: Tensor) -> Tensor:
        return module(t[None], x[None])[0]

    for key in keys:
        for i in range(3):
            where = (inputs["x"][i], inputs["t"][i])
            places = ["xt".index(name) for name in key]
            expected = torch.func.jacrev(function, argnums=places[0])(*where)
            if len(key) == 2:
                expected = torch.func.jacrev(torch.func.jacrev(function, argnums=places[0]), argnums=places[1])(*where)
            assert_close(jet[key][i], expected, str(key))


def test_derivatives_leave_autocast_unless_it_is_asked() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1))
    points = Points({"x": torch.randn(8, 3)}, ("x",), torch.arange(8))
    site = Site({"x": (3,)}, 1, ("x",))
    probe = Probe.full((X,))

    def of(**policy: object) -> tuple[Tensor, Tensor, Tensor]:
        measurer = Measurer(module, HEADS["identity"], site, Policy(**{"steps": 1, "compile": "never", **policy}))
        with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
            jet = measurer.measure(points, probe)
            (jet.value.square().sum() + jet[X].square().sum()).backward()
        gradient = torch.cat([p.grad.flatten() for p in module.parameters()])
        module.zero_grad()
        return jet.value.detach(), jet[X].detach(), gradient

    exact = measurer_of(module, HEADS["identity"], (3,), 1).measure(points, probe)
    value, derivative, gradient = of()
    assert torch.equal(value, exact.value) and torch.equal(derivative, exact[X])
    rough = of(precision="autocast")
    assert 1e-4 < float((rough[1] - derivative).abs().max()) < 0.1
    (exact.value.square().sum() + exact[X].square().sum()).backward()
    assert_close(gradient, torch.cat([p.grad.flatten() for p in module.parameters()]), "parameter gradient", 1e-6)


def test_a_value_alone_may_be_measured_in_lower_precision() -> None:
    module = nn.Linear(3, 2)
    points = Points({"x": torch.randn(8, 3)}, ("x",), torch.arange(8))
    site = Site({"x": (3,)}, 2, ("x",))
    measurer = Measurer(module, HEADS["log-softmax"], site, Policy(1, "never", autocast=torch.bfloat16))
    low = measurer.measure(points, Probe()).value
    high = measurer.measure(points, Probe.full((X,))).value
    assert low.dtype == high.dtype == torch.float32
    assert 0 < float((low - high).detach().abs().max()) < 0.1


@pytest.mark.parametrize("passes", [True, False])
def test_a_student_of_another_output_size_is_named(passes: bool) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh() if passes else nn.LayerNorm(4))
    points = Points({"x": torch.randn(8, 3)}, ("x",), torch.arange(8))
    measurer = Measurer(module, HEADS["identity"], Site({"x": (3,)}, 2, ("x",)), Policy(1, "never"))
    with pytest.raises(ComponentError, match=r"Sequential returns the shape \(8, 4\), expected \(8, 2\)"):
        measurer.measure(points, Probe.full((X,)))
