"""What goes wrong names the layer, the shapes and the way out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from deriv_support import head_of, loss_of, measurer_of, network, points_of
from torch import Tensor, nn

from sobolev.differentiate.exact import Exact
from sobolev.differentiate.preflight import check_gradient
from sobolev.differentiate.projected import Projected
from sobolev.errors import ComponentError, DerivativeError
from sobolev.noise import Noise
from sobolev.vocabulary import Contraction, Points, Probe


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.float64)


X = ("x",)
FULL = Probe.full((X,))


class Detaching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.linear(x).detach().cpu().numpy()).to(x) + 0 * self.linear.bias


class Rounded(nn.Module):
    """Differentiable by its weights, not by its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.round(x.detach()))


class Once(torch.autograd.Function):
    """An operation without double backward."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * x.cos()


class OnceLayer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(x)


@pytest.mark.parametrize("make", [Detaching, Rounded])
def test_a_student_that_is_not_differentiable_is_named(make: type[nn.Module]) -> None:
    module = make().double()
    measurer = measurer_of(module, head_of("identity"), (3,), 1)
    with pytest.raises(DerivativeError, match=rf"d/dx.*does not depend on x.*ends at 0 \({make.__name__}\)"):
        measurer.measure(points_of((3,), 1), FULL)


def test_an_operation_without_double_backward_is_named() -> None:
    module = nn.Sequential(nn.Linear(3, 4), OnceLayer(), nn.Linear(4, 1)).double()
    measurer = measurer_of(module, head_of("identity"), (3,), 1)

    def loss() -> Tensor:
        jet = measurer.measure(points_of((3,), 1), FULL)
        return loss_of(jet.value, jet[X])

    with pytest.raises(DerivativeError, match=r"1 \(OnceLayer\)\. Replace it"):
        check_gradient(loss, module)


@pytest.mark.parametrize("kind", ["tanh", "layer norm"])
@pytest.mark.parametrize(
    ("contraction", "message"),
    [
        (Contraction(ones(3, 1, 2), (None,)), r"output.*\(3, 1, 2\).*expected \(3, k, 3\)"),
        (Contraction(None, (ones(3, 1, 5),)), r"input.*\(3, 1, 5\).*expected \(3, k, 3\)"),
        (Contraction(ones(2, 1, 3), (None,)), r"output.*\(2, 1, 3\).*expected \(3, k, 3\)"),
        (Contraction(ones(3, 2, 3), (ones(3, 1, 3),)), r"same number of probes"),
    ],
)
def test_vectors_that_do_not_fit_are_shown_with_what_would(kind: str, contraction: Contraction, message: str) -> None:
    measurer = measurer_of(network(kind, 3), head_of("identity"), (3,), 3)
    with pytest.raises(ComponentError, match=message):
        measurer.measure(points_of((3,), 3), Probe({X: contraction}))


def test_a_probe_on_the_outputs_of_a_scalar_is_refused() -> None:
    noise = Noise(0, "train", 0, "s")
    with pytest.raises(ComponentError, match=r"one output.*side: input.*exact"):
        Projected(side="output").probe(points_of((3,), 1), 1, (X,), noise)
    assert Projected(side="input").probe(points_of((3,), 1), 1, (X,), noise).keys == (X,)
    assert Projected(directions=[[2.0]]).probe(points_of((3,), 1), 1, (X,), noise).keys == (X,)


@pytest.mark.parametrize("kind", ["relu", "leaky relu", "block", "piecewise linear residual"])
def test_the_second_order_of_a_piecewise_linear_student_is_refused(kind: str) -> None:
    from deriv_support import KINDS

    module, points = network(kind, 2), points_of(KINDS[kind].shape, 2)
    measurer = measurer_of(module, head_of("identity"), KINDS[kind].shape, 2)
    with pytest.raises(DerivativeError, match=r"d2/dxdx.*zero everywhere.*piecewise linear.*tanh"):
        measurer.measure(points, Probe.full((("x", "x"),)))


def test_under_a_curved_head_it_is_not_zero() -> None:
    measurer = measurer_of(network("relu", 3), head_of("log-softmax"), (3,), 3)
    assert measurer.measure(points_of((3,), 3), Probe.full((("x", "x"),)))["x", "x"].any()


def outside(inputs: Mapping[str, Tensor]) -> Tensor:
    return torch.from_numpy(np.sin(inputs["x"].detach().cpu().numpy()).sum(1, keepdims=True)).to(inputs["x"])


def rounded(inputs: Mapping[str, Tensor]) -> Tensor:
    """Differentiable by another input only."""
    return inputs["x"].detach().round().sum(1, keepdim=True) + inputs["y"].sum(1, keepdim=True)


@pytest.mark.parametrize("value", [outside, rounded])
@pytest.mark.parametrize("contraction", [Contraction(None, (None,)), Contraction(None, (ones(2, 1, 3),))])
def test_target_that_leaves_autograd_is_an_error_and_not_zero(value: Any, contraction: Contraction) -> None:
    x = torch.randn(2, 3, dtype=torch.float64)
    points = Points({"x": x, "y": x.clone()}, ("x", "y"), torch.arange(2))
    with pytest.raises(ComponentError, match=r"d/dx of the target .* leaves torch .* 'finite-difference'"):
        Exact().differentiate(value, points, Probe({X: contraction}))


def test_target_that_is_zero_times_its_input_may_be_constant() -> None:
    x = torch.randn(2, 3, dtype=torch.float64)
    jet = Exact().differentiate(lambda i: 1 + 0 * i["x"][:, :1], Points({"x": x}, ("x",), torch.arange(2)), FULL)
    assert torch.equal(jet.value, ones(2, 1))
    assert torch.equal(jet[X], torch.zeros(2, 1, 3, dtype=torch.float64))
