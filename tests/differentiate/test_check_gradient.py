"""The check of the parameter gradient against finite differences of the scalar loss."""

from __future__ import annotations

import pytest
import torch
from deriv_support import (
    KINDS,
    B,
    contractions,
    head_of,
    loss_of,
    measurer_of,
    network,
    points_of,
)
from torch import Tensor, nn

from sobolev.differentiate.preflight import check_gradient
from sobolev.errors import DerivativeError
from sobolev.vocabulary import Probe


@pytest.mark.parametrize("kind", KINDS)
def test_parameter_gradients_agree_with_finite_differences(kind: str) -> None:
    module = network(kind, 3)
    points = points_of(KINDS[kind].shape, 3)
    measurer = measurer_of(module, head_of("log-softmax"), KINDS[kind].shape, 3)
    cases = [(1, "output side"), (1, "one input probe"), (2, "product")]
    for order, what in cases:
        key = ("x",) * order
        probe = Probe({key: contractions(KINDS[kind].shape, 3, order, B)[what]})

        def loss(probe: Probe = probe, key: tuple[str, ...] = key) -> Tensor:
            torch.manual_seed(3)
            jet = measurer.measure(points, probe)
            return loss_of(jet.value, jet[key])

        agreement = check_gradient(loss, module, tolerance=1e-6)
        assert sorted(agreement.errors)[1] < 1e-6


class Wrong(torch.autograd.Function):
    """sin, whose gradient is right, and whose second derivative by parameters is not."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sin(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * torch.cos(x).detach()


class Sine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.3, 0.7]))

    def forward(self, x: Tensor) -> Tensor:
        return Wrong.apply(x * self.scale)


def test_a_wrong_layer_is_named() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 2), Sine(), nn.Linear(2, 1)).double()
    measurer = measurer_of(module, head_of("identity"), (3,), 1)
    points = points_of((3,), 1)

    def loss() -> Tensor:
        jet = measurer.measure(points, Probe.full((("x",),)))
        return loss_of(jet.value, jet["x",])

    with pytest.raises(DerivativeError, match=r"is wrong.*1 \(Sine\)"):
        check_gradient(loss, module)


def test_a_loss_that_changes_between_two_calls_is_refused() -> None:
    module = nn.Linear(2, 1).double()
    with pytest.raises(DerivativeError, match="two calls gave"):
        check_gradient(lambda: (module.weight * torch.randn(2, dtype=torch.float64)).sum(), module)


def test_a_loss_without_graph_is_refused() -> None:
    module = nn.Linear(2, 1).double()
    with pytest.raises(DerivativeError, match="does not depend on any parameter"):
        check_gradient(lambda: module.weight.detach().sum(), module)


def test_single_precision_is_refused() -> None:
    module = nn.Linear(2, 1)
    with pytest.raises(DerivativeError, match="float64"):
        check_gradient(lambda: module.weight.sum(), module)
