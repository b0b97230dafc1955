"""Small networks of every kind that the engine meets, with weights other than 0 and 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self, d: int, n: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.first = nn.Linear(d, 6)
        self.one = nn.Linear(6, 6)
        self.two = nn.Linear(6, 6)
        self.act, self.act_two = activation(), activation()
        self.last = nn.Linear(6, n)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h + self.two(self.act(self.one(h)))
        return self.last(self.act_two(h))


class Block(nn.Module):
    """A convolution with a short cut that is added in place, as ResNets do."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.short = nn.Conv2d(channels, channels, 1, bias=False)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x))
        out += self.short(x)
        return self.act(out)


class Attention(nn.Module):
    """Self-attention over the components of the input, one token each."""

    def __init__(self, d: int, n: int) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 4)
        self.qkv = nn.Linear(4, 12)
        self.last = nn.Linear(4 * d, n)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(torch.tanh(self.embed(x[..., None]))).chunk(3, dim=-1)
        h = nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])
        return self.last(h[:, 0].flatten(1))


@dataclass(frozen=True)
class Kind:
    """A network: its input's shape, how it is made, whether the passes of the engine measure it (order 1)."""

    shape: tuple[int, ...]
    make: Callable[[int], nn.Module]
    passes: bool = True
    training: bool = False
    curved: bool = True


def mlp(activation: Callable[[], nn.Module], d: int = 3) -> Callable[[int], nn.Module]:
    return lambda n: nn.Sequential(nn.Linear(d, 7), activation(), nn.Linear(7, 6), activation(), nn.Linear(6, n))


def convolutional(n: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 2, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(3, 2, 2), nn.SiLU(), nn.Flatten(),
        nn.Linear(2, n),
    )  # fmt: skip


def pooled(n: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.MaxPool2d(2, stride=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, n),
    )  # fmt: skip


def block(n: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 1), Block(3), nn.Flatten(), nn.Linear(27, n))


KINDS: dict[str, Kind] = {
    "relu": Kind((3,), mlp(nn.ReLU), curved=False),
    "leaky relu": Kind((3,), mlp(lambda: nn.LeakyReLU(0.2)), curved=False),
    "tanh": Kind((3,), mlp(nn.Tanh)),
    "sigmoid": Kind((3,), mlp(nn.Sigmoid)),
    "softplus": Kind((3,), mlp(lambda: nn.Softplus(1.5, 4.0))),
    "silu": Kind((3,), mlp(nn.SiLU)),
    "gelu": Kind((3,), mlp(nn.GELU)),
    "gelu tanh": Kind((3,), mlp(lambda: nn.GELU("tanh"))),
    "elu": Kind((3,), mlp(lambda: nn.ELU(0.7))),
    "relu6": Kind((3,), mlp(nn.ReLU6), curved=False),
    "residual": Kind((3,), lambda n: Residual(3, n, nn.Tanh)),
    "piecewise linear residual": Kind((3,), lambda n: Residual(3, n, nn.ReLU), curved=False),
    "convolution": Kind((2, 3, 3), convolutional),
    "1d convolution": Kind(
        (2, 5), lambda n: nn.Sequential(nn.Conv1d(2, 3, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(6, n))
    ),
    "pooling": Kind((2, 3, 3), pooled, curved=False),
    "block": Kind((2, 3, 3), block, curved=False),
    "dropout": Kind(
        (3,),
        lambda n: nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, 5), nn.SiLU(),
                                nn.Dropout(0.3), nn.Linear(5, n)),
        training=True,
    ),
    "layer norm": Kind(
        (3,), lambda n: nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, n)), passes=False
    ),
    "group norm": Kind(
        (2, 2, 2),
        lambda n: nn.Sequential(nn.Conv2d(2, 4, 2, padding=1), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(),
                                nn.Linear(36, n)),
        passes=False,
    ),
    "instance norm": Kind(
        (2, 2, 2),
        lambda n: nn.Sequential(nn.Conv2d(2, 3, 2, padding=1), nn.InstanceNorm2d(3, affine=True), nn.Softplus(),
                                nn.Flatten(), nn.Linear(27, n)),
        passes=False,
    ),
    "batch norm": Kind(
        (3,), lambda n: nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, n))
    ),
    "batch norm 2d": Kind(
        (2, 3, 3),
        lambda n: nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3, affine=False), nn.SiLU(), nn.Flatten(),
                                nn.Linear(12, n)),
    ),
    "batch norm in training": Kind(
        (3,), lambda n: nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, n)), passes=False,
        training=True,
    ),
    "attention": Kind((3,), lambda n: Attention(3, n), passes=False),
}  # fmt: skip


def network(kind: str, outputs: int) -> nn.Module:
    """Return a network in float64 whose parameters and statistics are all other than 0 and 1."""
    torch.manual_seed(sum(map(ord, kind)) + outputs)
    module = KINDS[kind].make(outputs).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return module.train(KINDS[kind].training)
