"""Residual networks of timm, on small images: derivatives and parameter gradients against plain autograd."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from deriv_support import assert_close, gradients, head_of, loss_of, measurer_of, points_of

from sobolev.vocabulary import Contraction, Probe, full

SHAPE, M = (3, 16, 16), 2
X, XX = ("x",), ("x", "x")


@pytest.fixture(scope="module", params=["resnet10t", "resnet18"])
def network(request: pytest.FixtureRequest) -> Any:
    optional = pytest.importorskip("sobolev_synthetic_gradients.optional")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        timm = optional.import_timm("a test")
        torch.manual_seed(0)
        module = timm.create_model(request.param, num_classes=M).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval()


@pytest.mark.parametrize("name", ["identity", "log-softmax"])
def test_first_order_and_hessian_vector_products(network: Any, name: str) -> None:
    head, points = head_of(name), points_of(SHAPE, M, rows=2)
    x = points.inputs["x"].clone().requires_grad_()
    v, w = torch.randn(2, 1, M, dtype=x.dtype), torch.randn(2, 1, *SHAPE, dtype=x.dtype)
    value = head(network(x), points.inputs)
    rows = [torch.autograd.grad(value[:, j].sum(), x, create_graph=True)[0] for j in range(M)]
    whole = torch.stack(rows, dim=1)
    wanted = {
        "full": (X, full(X), whole),
        "output side": (X, Contraction(v, (None,)), torch.einsum("bkm,bmchw->bkchw", v, whole)),
        "input side": (X, Contraction(None, (w,)), torch.einsum("bkchw,bmchw->bkm", w, whole)),
    }
    if not head.linear:
        products = [torch.autograd.grad((row * w[:, 0]).sum(), x, create_graph=True)[0] for row in rows]
        wanted["product"] = (XX, Contraction(None, (w, None)), torch.stack(products, dim=1)[:, None])
    measurer = measurer_of(network, head, SHAPE, M)
    for what, (key, contraction, expected) in wanted.items():
        jet = measurer.measure(points, Probe({key: contraction}))
        assert_close(jet.value, value, what)
        assert_close(jet[key], expected, what)
        found, reference = (
            gradients(loss_of(value_, d), network) for value_, d in ((jet.value, jet[key]), (value, expected))
        )
        assert_close(found, reference, f"{what}: parameter gradient")
