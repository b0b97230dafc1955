"""Synthetic-gradient modules: students of the main network's loss, or of its gradient."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from sobolev import ComponentError, Site, Student


def _activation(site: Site, who: str) -> tuple[int, ...]:
    shape = site.inputs.get("h", ())
    if len(shape) not in (1, 3):
        raise ComponentError(
            f"{who} reads an activation 'h' of shape (channels, height, width) or (features,); it is given "
            f"{dict(site.inputs)}"
        )
    return shape


class _OfActivation(nn.Module):
    """Layers that read h."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, h: Tensor) -> Tensor:
        logits: Tensor = self.layers(h)
        return logits


class ClassPredictor(Student):
    """The p of m(h, y) = L(p(h), y): a small classifier of activations (supplement 4.2, 4.3).

    Args:
        channels: of each 3x3 convolution; units of each layer where h is a vector.
        strides: of each convolution; 1 by default.
        pool: ``none``: a linear layer reads everything; ``average``: it reads means over all places, which is what
            global averaging followed by 1x1 kernels computes.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], pool: Literal["none", "average"]) -> None:
        if strides and len(strides) != len(channels):
            raise ComponentError(
                f"class-predictor: {len(channels)} channels but {len(strides)} strides; one of each per layer"
            )
        self.channels = tuple(channels)
        self.strides = tuple(strides) or (1,) * len(channels)
        self.pool = pool

    def build(self, site: Site) -> nn.Module:
        """Return a module from h ``(B, *h)`` to logits ``(B, classes)``."""
        before, *places = _activation(site, "class-predictor")
        layers: list[nn.Module] = []
        for channels, stride in zip(self.channels, self.strides, strict=True):
            layers += [_layer(before, channels, stride, bool(places)), nn.ReLU()]
            before, places = channels, [-(-n // stride) for n in places]
        if places and self.pool == "average":
            layers.append(nn.AdaptiveAvgPool2d(1))
            places = []
        return _OfActivation([*layers, nn.Flatten(), nn.Linear(before * math.prod(places), site.outputs)])


def _layer(inputs: int, outputs: int, stride: int, image: bool) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1) if image else nn.Linear(inputs, outputs)


class DirectGradient(Student):
    """The module of the synthetic-gradients paper: from h and the label to a gradient of h's shape.

    Args:
        channels: of each layer but the last, which has h's channels: 3x3 convolutions that keep the size.
        layers: how many.
        zero: start with zeros in the last layer, so that the first synthetic gradients are 0.
    """

    def __init__(self, channels: int, layers: int, zero: bool) -> None:
        self.channels = channels
        self.layers = layers
        self.zero = zero

    def build(self, site: Site) -> nn.Module:
        """Return a module from h ``(B, *h)`` and y ``(B, classes)`` to ``(B, prod(h))``."""
        shape = _activation(site, "direct-gradient")
        if "y" not in site.inputs or site.outputs != math.prod(shape):
            raise ComponentError(
                f"direct-gradient returns as many numbers as h has, {math.prod(shape)}; {site.outputs} are expected "
                "here: set 'target.reference: gradient'"
            )
        image = len(shape) == 3
        widths = [shape[0] + site.inputs["y"][0], *[self.channels] * (self.layers - 1), shape[0]]
        made: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            made += [_layer(before, after, 1, image), nn.ReLU()]
        last = made[-2]
        if self.zero:
            assert isinstance(last, nn.Conv2d | nn.Linear) and last.bias is not None
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        return _OfActivationAndLabel(made[:-1])


class _OfActivationAndLabel(nn.Module):
    """Layers that read h with the one-hot label appended, as planes where h is an image."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        planes = y.reshape(*y.shape, *[1] * (h.dim() - 2)).expand(*y.shape, *h.shape[2:])
        gradient: Tensor = self.layers(torch.cat([h, planes], dim=1))
        return gradient.flatten(1)


class NoModule(Student):
    """Without parameters, always 0: for arms that need no synthetic gradient."""

    def build(self, site: Site) -> nn.Module:
        """Return a module that answers zeros ``(B, site.outputs)``."""
        return _Zeros(site.outputs)


class _Zeros(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, h: Tensor) -> Tensor:
        return h.new_zeros(len(h), self.outputs)
