"""Value, derivatives and parameter gradients of every kind of network against the slow reference, in float64."""

from __future__ import annotations

import deriv_reference as reference
import pytest
import torch
from deriv_support import (
    KINDS,
    assert_close,
    contractions,
    gradients,
    head_of,
    loss_of,
    measurer_of,
    network,
    points_of,
)
from torch import Tensor

from sobolev.differentiate.composite import differentiable_forms
from sobolev.differentiate.measure import GENERAL, PASSES
from sobolev.errors import DerivativeError
from sobolev.vocabulary import Contraction, Points, Probe

HEADS = {"identity": 3, "scalar": 1, "log-softmax": 3, "log-loss": 3}


def case(kind: str, name: str):
    n = HEADS[name]
    head = head_of("identity" if name == "scalar" else name)
    module = network(kind, n)
    return module, head, points_of(KINDS[kind].shape, n), n, head.outputs(n)


def slow(kind: str, module, head, points: Points, order: int) -> tuple[Tensor, Tensor]:
    """Value and whole derivative of the reference, with graph."""
    if KINDS[kind].training:  # one mask, one set of statistics for the whole batch
        torch.manual_seed(7)
        value = head(module(points.inputs["x"]), points.inputs)
        torch.manual_seed(7)
        found = reference.coupled_derivative(lambda x: head(module(x), points.inputs), points.inputs["x"], order)
        return value, found
    value = head(module(points.inputs["x"]), points.inputs)
    rows = []
    for i in range(len(points)):
        inputs = {name: tensor[i : i + 1] for name, tensor in points.inputs.items()}
        rows.append(reference.full_derivative(lambda x, inputs=inputs: head(module(x), inputs), inputs["x"], order))
    return value, torch.cat(rows)


def compare(kind: str, name: str, order: int) -> None:
    module, head, points, n, m = case(kind, name)
    key = ("x",) * order
    coupled = kind == "batch norm in training"
    with reference.written_out(module):
        value, whole = slow(kind, module, head, points, order)
    assert coupled or float((whole.detach() != 0).double().mean()) > 0.5  # the case is not degenerate
    measurer = measurer_of(module, head, KINDS[kind].shape, n)
    for what, contraction in contractions(KINDS[kind].shape, m, order).items():
        torch.manual_seed(7)
        if coupled and any(vector is None for vector in contraction.inputs[:-1]):
            with pytest.raises(DerivativeError, match="statistics of the batch"):
                measurer.measure(points, Probe({key: contraction}))
            continue
        jet = measurer.measure(points, Probe({key: contraction}))
        if coupled:
            with reference.written_out(module):
                expected = reference.coupled_contracted(
                    lambda x: head(module(x), points.inputs), points.inputs["x"], contraction
                )
        else:
            expected = reference.contracted(whole, contraction)
        assert_close(jet.value, value, f"{kind}, {name}, {what}: value")
        assert_close(jet[key], expected, f"{kind}, {name}, {what}: derivative")
        assert_close(
            gradients(loss_of(jet.value, jet[key]), module),
            gradients(loss_of(value, expected), module),
            f"{kind}, {name}, {what}: parameter gradient",
        )
    chosen = {text.partition(":")[0] for text in measurer.describe().values()}
    assert chosen == {PASSES if order == 1 and KINDS[kind].passes else GENERAL}, measurer.describe()


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_first_order(kind: str, name: str) -> None:
    compare(kind, name, 1)


@pytest.mark.parametrize("name", ["identity", "log-softmax", "log-loss"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if len(KINDS[kind].shape) == 1])
def test_second_order(kind: str, name: str) -> None:
    if not KINDS[kind].curved and name == "identity":
        pytest.skip("zero everywhere; that it is refused is tested elsewhere")
    compare(kind, name, 2)


@pytest.mark.parametrize("kind", ["tanh", "softplus", "silu", "gelu"])
def test_third_order(kind: str) -> None:
    module, head, points, n, m = case(kind, "scalar")
    key = ("x", "x", "x")
    value, whole = slow(kind, module, head, points, 3)
    measurer = measurer_of(module, head, (3,), n)
    for what, contraction in contractions((3,), m, 3).items():
        jet = measurer.measure(points, Probe({key: contraction}))
        expected = reference.contracted(whole, contraction)
        assert_close(jet[key], expected, what)
        found = gradients(loss_of(jet.value, jet[key]), module)
        assert_close(found, gradients(loss_of(value, expected), module), f"{what}: parameter gradient")


@pytest.mark.parametrize(("activation", "order"), [("Tanh", 2), ("SiLU", 2), ("GELU", 2), ("Softplus", 2), ("Tanh", 3)])
def test_whole_derivatives_of_32_inputs(activation: str, order: int) -> None:
    torch.manual_seed(3)
    layers = [torch.nn.Linear(32, 5), getattr(torch.nn, activation)(), torch.nn.Linear(5, 1)]
    module = torch.nn.Sequential(*layers).double()
    points, key = points_of((32,), 1, rows=1), ("x",) * order
    value = module(points.inputs["x"])
    whole = reference.full_derivative(module, points.inputs["x"], order)
    jet = measurer_of(module, head_of("identity"), (32,), 1).measure(points, Probe.full((key,)))
    assert_close(jet[key], whole, "derivative")
    expected = gradients(loss_of(value, whole), module)
    assert_close(gradients(loss_of(jet.value, jet[key]), module), expected, "parameter gradient")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if len(KINDS[kind].shape) > 1])
def test_hessian_vector_products_of_images(kind: str) -> None:
    module, head, points, n, m = case(kind, "log-softmax")
    x = points.inputs["x"].clone().requires_grad_()
    vector = torch.randn(len(points), 1, *x.shape[1:], dtype=x.dtype)
    with reference.written_out(module):
        value = head(module(x), points.inputs)
        rows = []
        for j in range(m):
            (gradient,) = torch.autograd.grad(value[:, j].sum(), x, create_graph=True)
            (row,) = torch.autograd.grad((gradient * vector[:, 0]).sum(), x, create_graph=True)
            rows.append(row)
    expected = torch.stack(rows, dim=1)[:, None]
    probe = Probe({("x", "x"): Contraction(None, (vector, None))})
    jet = measurer_of(module, head, KINDS[kind].shape, n).measure(points, probe)
    assert_close(jet["x", "x"], expected, "product")
    found = gradients(loss_of(jet.value, jet["x", "x"]), module)
    assert_close(found, gradients(loss_of(value, expected), module), "parameter gradient")


def test_the_switches_of_attention_are_what_they_were() -> None:
    cuda = torch.backends.cuda
    enabled = cuda.flash_sdp_enabled, cuda.mem_efficient_sdp_enabled, cuda.cudnn_sdp_enabled, cuda.math_sdp_enabled
    assert all(of() for of in enabled)
    cuda.enable_mem_efficient_sdp(False)
    cuda.enable_math_sdp(False)
    try:
        with pytest.raises(KeyError), differentiable_forms(norms=True):
            assert [of() for of in enabled] == [False, False, False, True]
            with differentiable_forms(norms=False):
                assert [of() for of in enabled] == [False, False, False, True]
            assert [of() for of in enabled] == [False, False, False, True]
            raise KeyError
        assert [of() for of in enabled] == [True, False, True, False]
    finally:
        cuda.enable_mem_efficient_sdp(True)
        cuda.enable_math_sdp(True)
