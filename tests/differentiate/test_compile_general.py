"""Double backward in one compiled graph: agreement with the eager form, what is refused, the rule."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from deriv_support import assert_close, contractions, gradients, head_of, loss_of, measurer_of, network, points_of
from test_compile import nothing_to_compile_with
from torch import Tensor, nn

from sobolev.differentiate import compile_general
from sobolev.differentiate.compile_general import GeneralCompiler
from sobolev.differentiate.measure import COMPILED_GENERAL, GENERAL
from sobolev.vocabulary import Contraction, Probe

X, XX = ("x",), ("x", "x")
FULL = Probe({X: Contraction(None, (None,))})
MANY = 10**7
NOTHING: frozenset[Any] = frozenset()


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but Inductor: what is traced and differentiated is run operation by operation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own old parts
        from torch._functorch.aot_autograd import make_boxed_func
        from torch._inductor import compile_fx

    monkeypatch.setattr(compile_fx, "compile_fx_inner", lambda graph, examples, **_: make_boxed_func(graph.forward))


def same(what: str, found: Tensor, expected: Tensor) -> None:
    assert_close(found, expected, what)


def compiler_of(module: nn.Module, head: str = "identity", n: int = 1, shape: tuple[int, ...] = (3,)) -> Any:
    measurer = measurer_of(module, head_of(head), shape, n)
    return GeneralCompiler(measurer.module, measurer._value_with), measurer


def twice(module: nn.Module, probe: Probe = FULL, head: str = "identity", n: int = 1) -> str:
    """Measure twice, compare with the eager form, and return why it fell back."""
    points = points_of((3,), n)
    compiled, measurer = compiler_of(module, head, n)
    for _ in range(2):
        jets = compiled(points, probe, NOTHING), measurer.measure(points, probe)
        losses = [sum(loss_of(j.value, j[key]) for key in probe.keys) for j in jets]
        same("parameters", *(gradients(loss, measurer.module) for loss in losses))
        for key in ((), *probe.keys):
            same(str(key), jets[0][key], jets[1][key])
    return str(compiled.failure)


PAIRS = [
    ("relu", "identity"),
    ("relu", "log-loss"),
    ("gelu", "identity"),
    ("layer norm", "log-loss"),
    ("attention", "identity"),
]


@pytest.mark.parametrize(("kind", "head"), PAIRS)
def test_agrees_with_the_eager_form(uncompiled: None, kind: str, head: str) -> None:
    n = 1 if head == "identity" else 3
    m = head_of(head).outputs(n)
    if kind == "attention" and torch.get_default_device().type == "cuda":
        pytest.skip("its softmax is traced to an operation without derivative there, and stays eager")
    for label in ("full", "output side", "one input probe"):
        first = contractions((3,), m, 1)[label]
        assert twice(network(kind, n), Probe({X: first}), head, n) == "", label
    for label in ("product", "contraction") if kind != "relu" else ():
        second = contractions((3,), m, 2)[label]
        assert twice(network(kind, n), Probe({X: FULL.contractions[X], XX: second}), head, n) == "", label


def test_parameters_and_points_may_change(uncompiled: None) -> None:
    module = network("layer norm", 1)
    compiled, measurer = compiler_of(module)
    for seed in range(3):
        points = points_of((3,), 1, seed=seed)
        with torch.no_grad():
            for p in module.parameters():
                p.add_(0.1)
        same("d/dx", compiled(points, FULL, NOTHING)[X], measurer.measure(points, FULL)[X])
    assert compiled.failure == "" and len(compiled._made) == 1


def test_what_is_detached_comes_without_graph(uncompiled: None) -> None:
    compiled, measurer = compiler_of(network("tanh", 1))
    probe = Probe({X: FULL.contractions[X], XX: Contraction(None, (None, None))})
    jet = compiled(points_of((3,), 1), probe, frozenset({XX}))
    assert jet[X].requires_grad and not jet[XX].requires_grad
    same("d2/dx2", jet[XX], measurer.measure(points_of((3,), 1), probe)[XX])
    assert compiled.failure == ""


def test_only_so_many_shapes_are_compiled(uncompiled: None) -> None:
    compiled, measurer = compiler_of(network("tanh", 1))
    for rows in range(2, 8):
        points = points_of((3,), 1, rows=rows)
        same("d/dx", compiled(points, FULL, NOTHING)[X], measurer.measure(points, FULL)[X])
    assert compiled.failure == "" and len(compiled._made) == compile_general._SHAPES


def test_layers_may_be_frozen_and_freed(uncompiled: None) -> None:
    module = network("tanh", 1)
    compiled, measurer = compiler_of(module)
    points, first = points_of((3,), 1), next(module.parameters())
    for trained in (False, True):
        first.requires_grad_(trained)
        jets = compiled(points, FULL, NOTHING), measurer.measure(points, FULL)
        parameters = [p for p in module.parameters() if p.requires_grad]
        for found, expected in zip(
            *(
                torch.autograd.grad(loss_of(j.value, j[X]), parameters, allow_unused=True, materialize_grads=True)
                for j in jets
            ),
            strict=True,
        ):
            same("parameters", found, expected)
    assert compiled.failure == ""


def test_it_cannot_be_differentiated_twice(uncompiled: None) -> None:
    module = network("tanh", 1)
    jet = compiler_of(module)[0](points_of((3,), 1), FULL, NOTHING)
    weight = next(module.parameters())
    with pytest.raises(RuntimeError, match=r"double backward|does not require grad"):
        (first,) = torch.autograd.grad(jet[X].square().sum(), weight, create_graph=True)
        first.sum().backward()


class Straight(torch.autograd.Function):
    """Rounds, with the derivative of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Odd(nn.Module):
    """A network that does one odd thing to its hidden layer."""

    def __init__(self, odd: Callable[[Odd, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 8).double(), nn.Linear(8, 1).double()
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
        self.scale, self.odd = 1.0, odd

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.odd(self, torch.tanh(self.first(x))))


def counting(module: Odd, h: Tensor) -> Tensor:
    with torch.no_grad():
        module.seen += 1
    return h


ODD = {
    "random numbers": (lambda _, h: h * torch.rand_like(h), "draws random numbers"),
    "a buffer that counts": (counting, "writes to its own tensors"),
    "an estimator of its own": (lambda _, h: h + Straight.apply(h), "parameter gradients differ"),
    "a part that is held": (lambda _, h: h * h.detach(), "differ"),
    "a part without graph": (lambda _, h: h * _ungraphed(h), "differ"),
    "control flow": (lambda _, h: h if float(h.sum()) > 0 else 2 * h, "not compiled"),
    "numbers from elsewhere": (lambda _, h: h * float(h.detach().cpu().numpy().mean()), "not compiled"),
}


def _ungraphed(h: Tensor) -> Tensor:
    with torch.no_grad():
        return h * 2


@pytest.mark.parametrize("name", ODD)
def test_what_a_trace_cannot_represent_falls_back(uncompiled: None, name: str) -> None:
    odd, reason = ODD[name]
    module = Odd(odd)
    compiled, _ = compiler_of(module)
    points = points_of((3,), 1)
    for _ in range(2):
        torch.manual_seed(1)
        jet = compiled(points, FULL, NOTHING)
    torch.manual_seed(1)
    expected = compiler_of(module)[1].measure(points, FULL)
    same("d/dx", jet[X], expected[X])
    same("parameters", *(gradients(loss_of(j.value, j[X]), module) for j in (jet, expected)))
    assert reason in compiled.failure


def test_an_attribute_that_changes_is_seen(uncompiled: None) -> None:
    module = Odd(lambda self, h: self.scale * h)
    compiled, measurer = compiler_of(module)
    points = points_of((3,), 1)
    for scale in (1.0, 1.0, 2.5):
        module.scale = scale
        jets = compiled(points, FULL, NOTHING), measurer.measure(points, FULL)
        same("d/dx", jets[0][X], jets[1][X])
        assert ("attributes or hooks of the module changed" in compiled.failure) == (scale == 2.5)


def test_another_layer_of_the_same_shapes_is_seen(uncompiled: None) -> None:
    module = Odd(lambda self, h: self.bent(h))
    module.bent = nn.Tanh()
    compiled, measurer = compiler_of(module)
    points = points_of((3,), 1)
    before = compiled(points, FULL, NOTHING)
    module.eval()
    compiled(points, FULL, NOTHING)
    assert not compiled.failure
    module.bent = nn.Sigmoid().eval()
    after = compiled(points, FULL, NOTHING)
    same("d/dx", after[X], measurer.measure(points, FULL)[X])
    assert not torch.equal(before[X], after[X]) and "layers" in compiled.failure


def test_a_hook_that_comes_later_is_seen(uncompiled: None) -> None:
    module = Odd(lambda _, h: h)
    compiled, _ = compiler_of(module)
    points = points_of((3,), 1)
    before = compiled(points, FULL, NOTHING)
    module.first.register_forward_hook(lambda *arguments: 3 * arguments[-1])
    after = compiled(points, FULL, NOTHING)
    assert not torch.equal(before[X], after[X]) and "hooks" in compiled.failure


def test_the_comparison_is_made_again(uncompiled: None) -> None:
    """What a module reads from elsewhere is constant in the trace; the tenth call notices."""
    outer = [1.0]
    compiled, measurer = compiler_of(Odd(lambda _, h: outer[0] * h))
    points = points_of((3,), 1)
    for call in range(1, 11):
        outer[0] = 1.0 if call < 5 else 2.0
        jet = compiled(points, FULL, NOTHING)
        assert ("derivatives differ" in compiled.failure or "values differ" in compiled.failure) == (call == 10)
    same("d/dx", jet[X], measurer.measure(points, FULL)[X])


def engine(kind: str, probe: Probe = FULL, recorded: dict[str, str] | None = None, **policy: object) -> str:
    n = 1
    measurer = measurer_of(network(kind, n), head_of("identity"), (3,), n, **{"compile": "auto", **policy})
    measurer._recorded = recorded or {}
    measurer.engine(points_of((3,), n), probe)
    return measurer.describe()["d/dx (full)"]


def test_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    missing_compiler = compile_general.missing_compiler
    monkeypatch.setattr(compile_general, "missing_compiler", lambda _: "")
    assert engine("layer norm", steps=MANY).startswith(f"{COMPILED_GENERAL}: ")
    assert "10,000 steps are too few" in engine("layer norm", steps=10_000)
    assert "20,000 steps would save about" in engine("layer norm", steps=20_000)
    assert "as the recipe or a smoke run asks" in engine("layer norm", steps=MANY, compile="never")
    assert "under a bound of memory" in engine("layer norm", steps=MANY, memory=2**30)
    assert "under autocast" in engine("layer norm", steps=MANY, autocast=torch.bfloat16)
    assert "samples influence each other" in engine("batch norm in training", steps=MANY)
    recorded = {"d/dx (full)": f"{COMPILED_GENERAL}: so it was"}
    assert engine("layer norm", steps=1, recorded=recorded).startswith(f"{COMPILED_GENERAL}: ")
    assert engine("layer norm", steps=MANY, recorded={"d/dx (full)": GENERAL}).startswith(f"{GENERAL}: ")
    monkeypatch.setattr(compile_general, "missing_compiler", missing_compiler)
    nothing_to_compile_with(monkeypatch)
    missing = "no C++ compiler" if torch.get_default_device().type == "cpu" else "no Triton"
    assert missing in engine("layer norm", steps=MANY)


def test_without_gradient_nothing_is_compiled() -> None:
    measurer = measurer_of(network("layer norm", 1), head_of("identity"), (3,), 1, compile="auto", steps=MANY)
    jet = measurer.measure(points_of((3,), 1), FULL, create_graph=False)
    assert not jet[X].requires_grad and measurer._compiler is None


@pytest.mark.slow
def test_compiled_by_inductor() -> None:
    module = network("layer norm", 1)
    measurer = measurer_of(module, head_of("identity"), (3,), 1, compile="auto", steps=MANY)
    eager = measurer_of(module, head_of("identity"), (3,), 1)
    points = points_of((3,), 1)
    for _ in range(3):
        jets = measurer.measure(points, FULL), eager.measure(points, FULL)
        same("d/dx", jets[0][X], jets[1][X])
        # A cotangent with strides of 0, as sums make it.
        same("parameters", *(gradients(j.value.sum() + j[X].sum() + j[X].square().sum(), module) for j in jets))
    assert measurer.describe()["d/dx (full)"].startswith(f"{COMPILED_GENERAL}: ")
