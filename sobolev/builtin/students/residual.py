"""Students with skip connections."""

from __future__ import annotations

from torch import Tensor, nn

from sobolev.builtin.students.mlp import ACTIVATIONS, Feedforward


class Block(nn.Module):
    """``h + W2 sigma(W1 h + b1) + b2``."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), ACTIVATIONS[activation](), nn.Linear(width, width))

    def forward(self, h: Tensor) -> Tensor:
        """Return ``(B, width)``."""
        out: Tensor = h + self.inner(h)
        return out


class Residual(Feedforward):
    """A linear layer into the width, blocks that add to it, an activation, a linear layer out of it."""

    name = "residual"

    def __init__(self, width: int, blocks: int, activation: str, scale: str = "none") -> None:
        super().__init__(activation, scale)
        self.width = width
        self.blocks = blocks

    def layers(self, size: int, outputs: int) -> list[nn.Module]:
        """Return the blocks between two linear layers."""
        blocks = [Block(self.width, self.activation) for _ in range(self.blocks)]
        last = [ACTIVATIONS[self.activation](), nn.Linear(self.width, outputs)]
        return [nn.Linear(size, self.width), *blocks, *last]
