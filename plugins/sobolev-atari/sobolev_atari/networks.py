"""The networks of supplement 3, as plain stacks of layers that end in the logits of a policy.

The input x is `(B, 4, 84, 84)`, in [0, 1] (frames divided by 255), or a vector for environments without frames. The
softmax of the paper is the head, not part of the network.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from sobolev import SobolevError
from sobolev_atari.settings import Architecture

# (channels, kernel, stride) of each convolution and the width of the fully connected layer.
_CONVOLUTIONS: dict[str, tuple[tuple[tuple[int, int, int], ...], int]] = {
    "paper": (((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512),  # the agents
    "small": (((16, 8, 4), (32, 4, 2)), 256),  # the distilled network
}


def trunk(architecture: Architecture, shape: tuple[int, ...]) -> tuple[nn.Sequential, int]:
    """All layers but the last, for observations of `shape`, and the number of features that they end in.

    `mlp` is two layers of 64 tanh units. Raises `SobolevError` where the architecture does not fit the observations.
    """
    if architecture == "mlp":
        layers = [nn.Flatten(), nn.Linear(math.prod(shape), 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()]
        return nn.Sequential(*layers), 64
    if len(shape) != 3:
        raise SobolevError(
            f"architecture {architecture!r} reads images, the observations have shape {shape}: use `mlp`"
        )
    convolutions, width = _CONVOLUTIONS[architecture]
    modules: list[nn.Module] = []
    channels, height, breadth = shape
    for out, kernel, stride in convolutions:
        modules += [nn.Conv2d(channels, out, kernel, stride), nn.ReLU()]
        channels, height, breadth = out, (height - kernel) // stride + 1, (breadth - kernel) // stride + 1
    if height < 1 or breadth < 1:
        raise SobolevError(f"observations of shape {shape} are too small for architecture {architecture!r}")
    modules += [nn.Flatten(), nn.Linear(channels * height * breadth, width), nn.ReLU()]
    return nn.Sequential(*modules), width


class Policy(nn.Sequential):
    """A stack of layers that receives its input by the name x."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `(B, m)` at x `(B, *shape)`."""
        for layer in self:
            x = layer(x)
        return x


def policy_network(architecture: Architecture, shape: tuple[int, ...], actions: int) -> Policy:
    """A policy: x `(B, *shape)` to logits `(B, actions)`."""
    body, width = trunk(architecture, shape)
    return Policy(*body, nn.Linear(width, actions))
