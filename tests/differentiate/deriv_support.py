"""What the tests of derivatives share."""

from __future__ import annotations

import torch
from deriv_networks import KINDS, network
from torch import Tensor, nn

from sobolev.differentiate.measure import Measurer, Policy
from sobolev.heads import HEADS, Head
from sobolev.vocabulary import Contraction, Points, Site

B, K = 3, 2


def head_of(name: str) -> Head:
    return HEADS[name]


def points_of(shape: tuple[int, ...], n: int, rows: int = B, seed: int = 0) -> Points:
    """Inputs x, and labels y that do not sum to 1."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, *shape, generator=generator, dtype=torch.float64, device="cpu")
    y = torch.rand(rows, n, generator=generator, dtype=torch.float64, device="cpu")
    device = torch.get_default_device()
    return Points({"x": x.to(device), "y": y.to(device)}, ("x", "y"), torch.arange(rows))


def measurer_of(module: nn.Module, head: Head, shape: tuple[int, ...], n: int, **policy: object) -> Measurer:
    site = Site({"x": shape, "y": (n,)}, n, ("x", "y"))
    return Measurer(_Named(module), head, site, Policy(**{"steps": 1, "compile": "never", **policy}))


class _Named(nn.Sequential):
    """A network whose only input is called x."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def vectors(*shape: int, seed: int) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")
    return drawn.to(torch.get_default_device())


def contractions(shape: tuple[int, ...], m: int, order: int, rows: int = B, k: int = K) -> dict[str, Contraction]:
    """Every contraction of a key of an order."""
    out = vectors(rows, k, m, seed=1)
    along = [vectors(rows, k, *shape, seed=2 + i) for i in range(order)]
    none = (None,) * order
    if order == 1:
        return {
            "full": Contraction(None, none),
            "output side": Contraction(out, none),
            "one output probe": Contraction(out[:, :1], none),
            "input side": Contraction(None, (along[0],)),
            "one input probe": Contraction(None, (along[0][:, :1],)),
            "output and input side": Contraction(out, (along[0],)),
        }
    return {
        "full": Contraction(None, none),
        "output side": Contraction(out, none),
        "product": Contraction(None, (*along[:-1], None)),
        "product, first slot open": Contraction(None, (None, *along[1:])),
        "contraction": Contraction(None, tuple(along)),
        "one product": Contraction(None, (*(vector[:, :1] for vector in along[:-1]), None)),
        "one contraction": Contraction(None, tuple(vector[:, :1] for vector in along)),
        "output and input side": Contraction(out, (*along[:-1], None)),
    }


def loss_of(value: Tensor, derivative: Tensor) -> Tensor:
    """A loss that is neither linear nor symmetric in either, with weights other than 1."""
    weights = torch.linspace(0.4, 1.7, value.numel(), dtype=value.dtype).reshape(value.shape)
    others = torch.linspace(-1.1, 1.3, derivative.numel(), dtype=value.dtype).reshape(derivative.shape)
    return (weights * torch.tanh(value)).sum() + (0.3 * derivative.square() + others * derivative).sum()


def gradients(loss: Tensor, module: nn.Module) -> Tensor:
    parameters = list(module.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return torch.cat(
        [torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1) for p, g in zip(parameters, found)]
    )


def assert_close(found: Tensor, expected: Tensor, what: str, tolerance: float = 1e-9) -> None:
    assert found.shape == expected.shape, (what, found.shape, expected.shape)
    found, expected = found.detach(), expected.detach()
    scale = max(float(expected.abs().max()), 1e-6)
    error = float((found - expected).abs().max()) / scale
    assert error <= tolerance, f"{what}: relative error {error:.1e}"


__all__ = ["KINDS", "network"]
