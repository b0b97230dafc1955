"""The shapes of the paper's modules."""

from __future__ import annotations

import pytest
import torch
from sobolev_synthetic_gradients.modules import ClassPredictor, DirectGradient, NoModule
from torch import nn

from sobolev import HEADS, ComponentError, Points, Probe, Site
from sobolev.differentiate.autograd import differentiate
from sobolev.differentiate.measure import Measurer, Policy

LOSS = Site({"h": (64, 8, 8), "y": (10,)}, 10, ("h",))
GRADIENT = Site({"h": (64, 8, 8), "y": (10,)}, 64 * 64, ())


def test_class_predictor_of_supplement_4_2() -> None:
    module = ClassPredictor([128], [], "none").build(LOSS)
    shapes = [tuple(p.shape) for p in module.parameters()]
    assert shapes == [(128, 64, 3, 3), (128,), (10, 128 * 64), (10,)]
    assert module(torch.randn(2, 64, 8, 8)).shape == (2, 10)


def test_class_predictor_of_supplement_4_3() -> None:
    site = Site({"h": (512, 9, 9), "y": (1000,)}, 1000, ("h",))
    module = ClassPredictor([64, 64], [1, 2], "average").build(site)
    strides = [m.stride for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert strides == [(1, 1), (2, 2)]
    assert module(torch.randn(2, 512, 9, 9)).shape == (2, 1000)
    # 1x1 kernels on the global average are one linear layer.
    assert next(reversed(list(module.parameters()))).shape == (1000,)


def test_odd_sizes_with_strides() -> None:
    site = Site({"h": (3, 7, 5), "y": (10,)}, 10, ("h",))
    assert ClassPredictor([4, 4], [2, 2], "none").build(site)(torch.randn(2, 3, 7, 5)).shape == (2, 10)


def test_direct_module_keeps_the_size_and_reads_the_label() -> None:
    module = DirectGradient(128, 3, zero=False).build(GRADIENT)
    shapes = [tuple(p.shape) for p in module.parameters() if p.dim() > 1]
    assert shapes == [(128, 74, 3, 3), (128, 128, 3, 3), (64, 128, 3, 3)]
    h, y = torch.randn(2, 64, 8, 8), torch.eye(10)[:2]
    assert module(h, y).shape == (2, 64 * 64)
    assert not torch.equal(module(h, y), module(h, y.flip(0)))
    # The order of the flattened output is that of h.
    grid = module(h, y).reshape(h.shape)
    assert torch.equal(grid, module.layers(torch.cat([h, y[:, :, None, None].expand(2, 10, 8, 8)], 1)))


def test_direct_module_starts_with_zeros() -> None:
    module = DirectGradient(16, 3, zero=True).build(GRADIENT)
    assert not module(torch.randn(2, 64, 8, 8), torch.eye(10)[:2]).any()


def test_vectors_are_activations_too() -> None:
    h, y = torch.randn(2, 20), torch.eye(10)[:2]
    assert ClassPredictor([7], [], "none").build(Site({"h": (20,), "y": (10,)}, 10, ("h",)))(h).shape == (2, 10)
    assert DirectGradient(7, 2, True).build(Site({"h": (20,), "y": (10,)}, 20, ()))(h, y).shape == (2, 20)
    assert not NoModule().build(LOSS)(h).any()


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ComponentError, match="reference: gradient"):
        DirectGradient(16, 3, True).build(LOSS)
    with pytest.raises(ComponentError, match="activation 'h'"):
        ClassPredictor([16], [], "none").build(Site({"x": (3,)}, 1, ("x",)))
    with pytest.raises(ComponentError, match="strides"):
        ClassPredictor([16], [1, 2], "none")


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (ClassPredictor([6], [], "none"), (4, 8, 8)),
        (ClassPredictor([6, 5], [1, 2], "average"), (4, 7, 5)),
        (ClassPredictor([6], [], "none"), (12,)),
    ],
)
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_the_fast_engine_measures_what_double_backward_does(
    module: ClassPredictor, shape: tuple[int, ...], weights: tuple[float, float]
) -> None:
    """Value, derivative by h, and the gradients of an L1 loss of both by every parameter."""
    site = Site({"h": shape, "y": (10,)}, 10, ("h",))
    torch.manual_seed(0)
    network = module.build(site).double()
    inputs = {"h": torch.randn(9, *shape).double(), "y": torch.eye(10).double()[:9]}
    points, probe = Points(inputs, ("h",), torch.arange(9)), Probe.full((("h",),))
    measurer = Measurer(network, HEADS["log-loss"], site, Policy(steps=1))
    value = torch.randn(9, 1).double()
    derivative = torch.randn(9, 1, *shape).double()
    found = []
    for engine in ("passes", "double backward"):
        if engine == "passes":
            jet = measurer.measure(points, probe)
            assert measurer.engine(points, probe) == engine, measurer.describe()
        else:
            jet = differentiate(measurer.value, points, probe, create_graph=True)
        loss = weights[0] * (jet.value - value).abs().sum()
        loss = loss + weights[1] * (jet[("h",)] - derivative).abs().sum()
        gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        parts = [jet.value.detach(), jet[("h",)].detach()]
        parts += [torch.zeros_like(p) if g is None else g for p, g in zip(network.parameters(), gradients, strict=True)]
        found.append(parts)
    for fast, slow in zip(*found, strict=True):
        assert (fast - slow).norm() <= 1e-12 * (1 + slow.norm())
