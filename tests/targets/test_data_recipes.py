"""The example data of recipes/data are what their headers say."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import torch

from sobolev.builtin.examples import cantilever

DATA = Path(__file__).parents[2] / "recipes/data"


def test_options_are_black_scholes_prices_with_their_derivatives() -> None:
    with (DATA / "options.csv").open() as stream:
        head, *rows = csv.reader(stream)
    assert head[:7] == ["spot [EUR]", "volatility", "maturity [a]", "price [EUR]", "dprice/dspot", "dprice/dvolatility",
                        "dprice/dmaturity"]  # fmt: skip
    numbers = torch.tensor([[float(c) if c else math.nan for c in row[:7]] for row in rows], dtype=torch.float64)
    x = numbers[:, :3].clone().requires_grad_()
    spot, volatility, maturity = x.unbind(1)
    spread = volatility * maturity.sqrt()
    d1 = ((spot / 100).log() + (0.03 + volatility**2 / 2) * maturity) / spread
    price = spot * torch.special.ndtr(d1) - 100 * (-0.03 * maturity).exp() * torch.special.ndtr(d1 - spread)
    (gradient,) = torch.autograd.grad(price.sum(), x)
    torch.testing.assert_close(numbers[:, 3], price.detach(), rtol=1e-6, atol=1e-6)
    known = ~numbers[:, 4:].isnan()
    torch.testing.assert_close(numbers[:, 4:][known], gradient[known], rtol=1e-6, atol=1e-6)
    assert known[:, [0, 2]].all() and 5 < (~known[:, 1]).sum() < 40 and len(rows) == 300


def test_beam_is_the_cantilever() -> None:
    with np.load(DATA / "beam.npz") as arrays:
        x, y, dydx = (arrays[name] for name in ("x", "y", "dydx"))
    for point, value, partials in zip(x, y, dydx, strict=True):
        expected = cantilever(point)
        np.testing.assert_allclose(value, expected[0], rtol=1e-12)
        np.testing.assert_allclose(partials, expected[1], rtol=1e-12)
    assert x.shape == (128, 4)
