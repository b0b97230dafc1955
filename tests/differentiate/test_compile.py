"""Compiled passes: the rule, agreement with the eager ones, and falling back."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from deriv_support import assert_close, gradients, head_of, measurer_of, network, points_of
from torch import nn

from sobolev.differentiate import compile as compilation
from sobolev.differentiate.measure import COMPILED, GENERAL, PASSES
from sobolev.differentiate.program import recognise
from sobolev.vocabulary import Contraction, Probe

FULL = Probe({("x",): Contraction(None, (None,))})
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MANY = 10**8


@pytest.fixture
def compile_fx() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own old parts
        from torch._inductor import compile_fx
    return compile_fx


def against(module: nn.Module, rows: int = 32, steps: int = MANY, device: torch.device = CPU) -> str:
    return compilation.reason_against(recognise(module), 100, rows, steps, device)


def nothing_to_compile_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """No C++ compiler is found, and every CUDA device is too old for Triton."""
    from torch._inductor import cpp_builder

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1))


def test_the_rule_looks_at_structure_shapes_steps_and_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    missing_compiler = compilation.missing_compiler
    monkeypatch.setattr(compilation, "missing_compiler", lambda _: "")
    assert against(network("tanh", 1)) == ""
    assert "Convolution" in against(network("convolution", 1))
    assert "MaxPool" in against(nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 1)))
    assert "Dropout" in against(network("dropout", 1))
    assert "1000 steps would save about" in against(network("tanh", 1), steps=1000)
    assert against(network("tanh", 1), steps=1000, rows=10**6) == ""
    assert against(network("tanh", 1), device=CUDA) == ""
    assert "1000 steps would save about" in against(network("tanh", 1), steps=1000, rows=10**6, device=CUDA)
    assert "not measured there" in against(network("tanh", 1), device=torch.device("mps"))
    monkeypatch.setattr(compilation, "missing_compiler", missing_compiler)
    nothing_to_compile_with(monkeypatch)
    assert "no C++ compiler" in against(network("tanh", 1))
    assert "no Triton" in against(network("tanh", 1), device=CUDA)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [("relu", "identity"), ("tanh", "log-loss")])
def test_compiled_passes_agree_with_eager_ones(kind: str, name: str) -> None:
    points = points_of((3,), 1 if name == "identity" else 3)
    n = points.inputs["y"].shape[1]
    module = network(kind, n)
    results = []
    for policy in ({"compile": "auto", "steps": MANY}, {"compile": "never"}):
        measurer = measurer_of(module, head_of(name), (3,), n, **policy)
        for _ in range(2):  # the first call compiles
            jet = measurer.measure(points, FULL)
            loss = jet.value.square().sum() + 0.3 * jet["x",].square().sum() + jet["x",].sum()
            found = gradients(loss, module)
        results.append((jet.value, jet["x",], found))
        engine = measurer.describe()["d/dx (full)"]
        assert engine.startswith(COMPILED if policy["compile"] == "auto" else PASSES), engine
    for compiled, eager in zip(*results):
        assert_close(compiled, eager, kind, 1e-12)


def test_what_cannot_be_compiled_runs_eagerly_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(compilation, "_Compiled", broken)
    monkeypatch.setattr(compilation, "missing_compiler", lambda _: "")
    module = network("tanh", 1)
    points = points_of((3,), 1)
    expected = measurer_of(module, head_of("identity"), (3,), 1).measure(points, FULL)
    measurer = measurer_of(module, head_of("identity"), (3,), 1, compile="auto", steps=MANY)
    for _ in range(2):
        jet = measurer.measure(points, FULL)
        assert_close(jet["x",], expected["x",], "derivative", 1e-14)
        jet["x",].sum().backward()
    text = measurer.describe()["d/dx (full)"]
    assert text.startswith(f"{PASSES}:") and "no such instruction" in text


def test_a_compiled_pass_that_disagrees_is_not_used(compile_fx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch's own executor in place of the compiler, which adds 1 to every result
    monkeypatch.setattr(
        compile_fx, "compile_fx_inner", lambda graph, _: lambda inputs: [out + 1 for out in graph(*inputs)]
    )
    monkeypatch.setattr(compilation, "missing_compiler", lambda _: "")
    measurer = measurer_of(network("tanh", 1), head_of("identity"), (3,), 1, compile="auto", steps=MANY)
    measurer.measure(points_of((3,), 1), FULL)
    assert "Disagreement" in measurer.describe()["d/dx (full)"]


@pytest.mark.parametrize("kind", ["relu", "silu", "gelu", "softplus", "residual", "elu"])
@pytest.mark.parametrize("name", ["identity", "scalar", "log-softmax"])
def test_traced_passes_agree_without_a_compiler(
    kind: str, name: str, compile_fx: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is handed to the compiler is right, for every stage: the traced graph is run as it is."""
    monkeypatch.setattr(compile_fx, "compile_fx_inner", lambda graph, _: lambda inputs: graph(*inputs))
    monkeypatch.setattr(compilation, "missing_compiler", lambda _: "")
    n = 1 if name == "scalar" else 3
    module, points = network(kind, n), points_of((3,), n)
    vector = torch.randn(len(points), 2, 3, dtype=torch.float64)
    asked = {"full": FULL, "input": Probe({("x",): Contraction(None, (vector,))})}
    if n == 3:
        asked["output"] = Probe({("x",): Contraction(vector, (None,))})
    head = head_of("log-softmax" if name == "log-softmax" else "identity")
    for what, probe in asked.items():
        results = []
        for policy in ({"compile": "auto", "steps": MANY}, {"compile": "never"}):
            measurer = measurer_of(module, head, (3,), n, **policy)
            jet = measurer.measure(points, probe)
            loss = jet.value.square().sum() + 0.3 * jet["x",].square().sum() + jet["x",].sum()
            results.append((jet.value, jet["x",], gradients(loss, module)))
            (text,) = measurer.describe().values()
            assert text.startswith(COMPILED if policy["compile"] == "auto" else PASSES), text
        for compiled, eager in zip(*results):
            assert_close(compiled, eager, f"{kind}, {name}, {what}", 1e-12)


def test_a_resumed_run_measures_as_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "missing_compiler", lambda _: "")
    points = points_of((3,), 1)
    for recorded, steps, expected in (
        ("passes: recognised layer by layer; not compiled", MANY, PASSES),
        ("compiled passes: recognised layer by layer", 1, COMPILED),
        ("double backward: a layer of another version", MANY, GENERAL),
    ):
        measurer = measurer_of(network("tanh", 1), head_of("identity"), (3,), 1, compile="auto", steps=steps)
        measurer._recorded = {"d/dx (full)": recorded}
        assert measurer.engine(points, FULL) == expected
        assert measurer.describe()["d/dx (full)"].startswith(expected)
