"""The student for frames."""

import torch
from sobolev_atari.students import Convolutional
from torch import nn

from sobolev import Site


def test_weights_keep_the_variance_of_relu_layers_and_black_frames_are_off_the_kinks() -> None:
    torch.manual_seed(0)
    network = Convolutional("small").build(Site({"x": (4, 84, 84)}, 3, ("x",)))
    for layer in (m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)):
        inputs = layer.weight[0].numel()
        assert abs(float(layer.weight.detach().std()) * (inputs / 2) ** 0.5 - 1) < 0.1
    first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    before_relu = first(torch.zeros(1, 4, 84, 84)).detach()
    assert float(before_relu.abs().min()) > 1e-4
