"""Cutting networks at named layers."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from sobolev_synthetic_gradients.network import CutNetwork
from sobolev_synthetic_gradients.networks import Convolutional, TimmClassifier
from torch import Tensor, nn

from sobolev import ComponentError, Site

IMAGE = Site({"x": (3, 32, 32)}, 10, ())


def conv() -> nn.Module:
    torch.manual_seed(0)
    return Convolutional([4, 4, 8, 8], [1, 1, 2, 1], norm=True).build(IMAGE)


def test_the_papers_network() -> None:
    from sobolev_synthetic_gradients.plugin import CIFAR_CHANNELS, CIFAR_STRIDES

    network = Convolutional(CIFAR_CHANNELS, CIFAR_STRIDES, norm=True).build(IMAGE)
    kinds = [type(m).__name__ for m in network.modules()]
    assert kinds.count("Conv2d") == kinds.count("BatchNorm2d") == kinds.count("ReLU") == 11
    cut = CutNetwork(network, ["block2", "block5", "block8"], (3, 32, 32), 10)
    assert cut.shapes == [(64, 32, 32), (128, 16, 16), (256, 8, 8)]
    assert network.classifier[1].weight.shape == (10, 512 * 4 * 4)


def test_one_pass_gives_the_networks_own_output() -> None:
    network, x = conv(), torch.randn(5, 3, 32, 32)
    expected = network.eval()(x)
    cut = CutNetwork(network, ["block3", "block1"], (3, 32, 32), 10)
    made = cut(x, training=False)
    assert torch.equal(made.logits, expected)
    assert cut.layers == ("block1", "block3")  # in the order of the pass
    assert all(torch.equal(a, b) for a, b in zip(made.ends, made.starts, strict=True))


def test_parts_hold_every_parameter_once_and_gradients_stop_at_cuts() -> None:
    network = conv()
    cut = CutNetwork(network, ["block1", "block3"], (3, 32, 32), 10)
    names = {p: n for n, p in network.named_parameters()}
    parts = [{names[p].split(".")[0] for p in part} for part in cut.parts]
    assert parts == [{"block1"}, {"block2", "block3"}, {"block4", "classifier"}]
    made = cut(torch.randn(5, 3, 32, 32), training=True)
    made.logits.sum().backward()
    assert all(p.grad is None for part in cut.parts[:2] for p in part)
    assert all(p.grad is not None for p in cut.parts[2])
    assert made.starts[1].grad is not None and made.starts[0].grad is None


def test_operations_in_place_do_not_harm_the_activation() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))
    cut = CutNetwork(network, ["1"], (3, 2, 2), 3)
    made = cut(torch.randn(5, 3, 2, 2), training=True)
    assert (made.starts[0] < 0).any()
    made.logits.sum().backward()


class _Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        out: Tensor = self.last(self.second(h) + h)
        return out


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.layer(self.layer(x)))
        return out


class _Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.LSTM(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.layer(x)[0])
        return out


@pytest.mark.parametrize(
    ("network", "layers", "told"),
    [
        (_Around(), ["second"], "passes around 'second'"),
        (_Around(), ["first", "second"], "passes around 'second'"),
        (_Twice(), ["layer"], "runs 2 times"),
        (_Pair(), ["layer"], "returns tuple"),
        (_Around(), ["frist"], "'first'"),
        (_Around(), [], "one or more"),
        (nn.Linear(4, 7), ["0"], "no layer '0'"),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 7)), ["0"], r"\(2, 3\)"),
    ],
)
def test_cuts_that_do_not_cut(network: nn.Module, layers: list[str], told: str) -> None:
    with pytest.raises(ComponentError, match=told):
        CutNetwork(network, layers, (4,), 3)


def test_the_whole_block_may_be_cut_where_its_inside_may_not() -> None:
    CutNetwork(_Around(), ["first"], (4,), 3)


needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")


@needs_timm
def test_layers_of_timms_resnet_and_unknown_models() -> None:
    network = TimmClassifier("resnet10t").build(IMAGE)
    cut = CutNetwork(network, ["layer1", "layer2", "layer3"], (3, 32, 32), 10)
    assert [shape[0] for shape in cut.shapes] == [64, 128, 256]
    assert sum(len(part) for part in cut.parts) == len(list(network.parameters()))
    with pytest.raises(ComponentError, match="'resnet50'"):
        TimmClassifier("resnet-50").build(IMAGE)
    with pytest.raises(ComponentError, match="'layer2'"):
        CutNetwork(network, ["layer_2"], (3, 32, 32), 10)


@needs_timm
def test_a_transformer_can_be_cut() -> None:
    network = TimmClassifier("vit_tiny_patch16_224").build(IMAGE)
    cut = CutNetwork(network, ["blocks.3"], (3, 32, 32), 10)
    assert cut.shapes == [(5, 192)]
