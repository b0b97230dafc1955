"""Which modules become programs, and why others do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from deriv_support import assert_close, head_of, measurer_of, network, points_of
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations

from sobolev.differentiate.measure import GENERAL, PASSES
from sobolev.differentiate.program import Unrecognised, recognise
from sobolev.differentiate.structure import Structure
from sobolev.vocabulary import Contraction, Probe

FULL = Probe({("x",): Contraction(None, (None,))})


def twice() -> nn.Module:
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer)


def shared() -> nn.Module:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second)


def hooked() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    module[0].register_forward_hook(lambda *_: None)
    return module


def replaced() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    module[1].forward = torch.sin
    return module


def in_place_on_input() -> nn.Module:
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3))


def parametrised() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)), nn.Tanh())


class Custom(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(3))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Own(nn.Linear):
    """A layer of another type with the same parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a module called twice": (twice, "twice|shared"),
    "shared weights": (shared, "shared with"),
    "hooks": (hooked, "has hooks"),
    "a forward replaced on the instance": (replaced, "replaced on the instance"),
    "in place on the input": (in_place_on_input, "in place"),
    "parametrisation": (parametrised, "parametri|not one of the known|reads the attribute|cannot be traced"),
    "an unknown layer": (lambda: nn.Sequential(nn.Linear(3, 3), nn.PReLU()), "(PReLU) is not one of the known layers"),
    "a subclass": (lambda: nn.Sequential(Own(3, 3)), "known layers|reads the attribute"),
    "a parameter read directly": (lambda: Custom(lambda m, x: m.linear(x) * m.scale), "attribute|mul"),
    "another function": (lambda: Custom(lambda m, x: torch.sin(m.linear(x))), "sin"),
    "control flow": (lambda: Custom(lambda m, x: m.linear(x) if x.sum() > 0 else x), "traced"),
    "adding a number": (lambda: Custom(lambda m, x: m.linear(x) + 1.0), "combines"),
    "two results": (lambda: Custom(lambda m, x: (m.linear(x), x)), "one tensor"),
    "an unused branch": (lambda: Custom(lambda m, x: (torch.tanh(x), m.linear(x))[1]), "does not use"),
    "no parameters": (lambda: nn.Sequential(nn.Tanh()), "no parameters"),
    "circular padding": (lambda: nn.Sequential(nn.Conv1d(1, 1, 3, padding_mode="circular")), "padding"),
    "batch statistics": (lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "couples"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(case: str) -> None:
    make, reason = REFUSED[case]
    with pytest.raises(Unrecognised) as found:
        recognise(make())
    assert any(part in str(found.value) for part in reason.split("|")) or pytest.fail(str(found.value))


@pytest.mark.parametrize(
    "case", [case for case in REFUSED if case not in ("two results", "circular padding", "control flow")]
)
def test_what_is_refused_is_measured_by_double_backward(case: str) -> None:
    torch.manual_seed(0)
    module = REFUSED[case][0]().double()
    measurer = measurer_of(module, head_of("identity"), (3,), 3)
    points = points_of((3,), 3)
    inputs = points.inputs["x"].clone()
    jet = measurer.measure(points, FULL)
    assert torch.equal(points.inputs["x"], inputs)
    if case == "batch statistics":
        return
    for i in range(len(points)):
        row = torch.autograd.functional.jacobian(lambda x: module(x[None].clone())[0], points.inputs["x"][i].clone())
        assert_close(jet["x",][i], row, case)
    assert all(text.startswith(GENERAL) for text in measurer.describe().values())


@pytest.mark.parametrize("first", [True, False])
def test_hooks_on_all_modules_are_seen(first: bool) -> None:
    module, points = network("tanh", 2), points_of((3,), 2)
    measurer = measurer_of(module, head_of("identity"), (3,), 2)
    if not first:
        measurer.measure(points, FULL)
    with register_module_forward_hook(lambda layer, _, y: 2 * y if isinstance(layer, nn.Linear) else y):
        jet = measurer.measure(points, FULL)
        assert_close(jet.value, module(points.inputs["x"]), "value")
        for i in range(len(points)):
            row = torch.autograd.functional.jacobian(lambda x: module(x[None])[0], points.inputs["x"][i].clone())
            assert_close(jet["x",][i], row, "d/dx")
    after = measurer.measure(points, FULL)
    assert_close(after.value, module(points.inputs["x"]), "value without hooks")


def test_in_place_activation_after_a_fresh_tensor_is_recognised() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    assert not recognise(module).curved


def test_the_mode_of_the_module_is_followed() -> None:
    module = network("batch norm", 2)
    measurer = measurer_of(module, head_of("identity"), (3,), 2)
    points = points_of((3,), 2)
    frozen = measurer.measure(points, FULL)
    module.train()
    statistics = measurer.measure(points, FULL)
    module.eval()
    again = measurer.measure(points, FULL)
    assert not torch.allclose(frozen.value, statistics.value)
    with torch.no_grad():
        assert_close(again.value, module(points.inputs["x"]), "value after switching back")
    assert set(measurer.describe().values()) == {f"{PASSES}: recognised layer by layer"} or measurer.describe()


def test_dropout_follows_the_mode_of_its_layer() -> None:
    module = network("dropout", 2)
    measurer = measurer_of(module, head_of("identity"), (3,), 2)
    points = points_of((3,), 2)
    torch.manual_seed(0)
    first = measurer.measure(points, FULL)
    second = measurer.measure(points, FULL)
    assert not torch.allclose(first.value, second.value)
    for layer in module:
        layer.eval()  # the outer module stays in training mode
    still = [measurer.measure(points, FULL) for _ in range(2)]
    assert torch.equal(still[0].value, still[1].value)
    with torch.no_grad():
        assert_close(still[0].value, module(points.inputs["x"]), "value without dropout")


def test_weights_that_are_loaded_or_replaced_are_used() -> None:
    module = network("tanh", 2)
    measurer = measurer_of(module, head_of("identity"), (3,), 2)
    points = points_of((3,), 2)
    measurer.measure(points, FULL)
    module[0].weight = nn.Parameter(torch.randn_like(module[0].weight))
    jet = measurer.measure(points, FULL)
    with torch.no_grad():
        assert_close(jet.value, module(points.inputs["x"]), "value of replaced weights")
    jet.value.sum().backward()
    assert module[0].weight.grad is not None


@pytest.mark.parametrize("name", ["identity", "log-softmax"])
@pytest.mark.parametrize("side", ["output", "input"])
def test_parameters_overwritten_before_the_backward_pass_are_an_error(name: str, side: str) -> None:
    module = network("tanh", 3)
    measurer = measurer_of(module, head_of(name), (3,), 3)
    points = points_of((3,), 3)
    vector = torch.randn(3, 1, 3, dtype=torch.float64)
    contraction = Contraction(vector, (None,)) if side == "output" else Contraction(None, (vector,))
    jet = measurer.measure(points, Probe({("x",): contraction}))
    with torch.no_grad():
        module[0].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (jet.value.sum() + jet["x",].square().sum()).backward()


def test_derivatives_of_the_passes_cannot_be_differentiated_again_silently() -> None:
    module = network("tanh", 1)
    jet = measurer_of(module, head_of("identity"), (3,), 1).measure(points_of((3,), 1), FULL)
    (found,) = torch.autograd.grad(jet["x",].square().sum(), module[0].weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        found.sum().backward()


def test_frozen_parameters_get_no_gradient() -> None:
    module = network("tanh", 2)
    module[0].weight.requires_grad_(False)
    jet = measurer_of(module, head_of("identity"), (3,), 2).measure(points_of((3,), 2), FULL)
    (jet.value.sum() + jet["x",].square().sum()).backward()
    assert module[0].weight.grad is None and module[2].weight.grad is not None


@pytest.mark.parametrize("kind", ["relu", "tanh"])
@pytest.mark.parametrize("name", ["identity", "log-softmax"])
def test_blocks_of_rows_change_nothing(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sobolev.differentiate import functions

    module = network(kind, 3)
    points = points_of((3,), 3, rows=70)
    found = []
    for size in (2**19, 1):
        monkeypatch.setattr(functions, "_BLOCK_BYTES", size)
        jet = measurer_of(module, head_of(name), (3,), 3).measure(points, FULL)
        module.zero_grad()
        (jet.value.square().sum() + jet["x",].square().sum()).backward()
        found.append([jet.value, jet["x",], *(p.grad for p in module.parameters())])
    for whole, pieces in zip(*found):
        assert_close(pieces, whole, "blocks", 1e-12)


def test_without_graph_nothing_is_kept() -> None:
    jet = measurer_of(network("tanh", 2), head_of("identity"), (3,), 2).measure(points_of((3,), 2), FULL, False)
    assert not jet.value.requires_grad and not jet["x",].requires_grad


def test_a_network_that_changes_is_recognised_anew() -> None:
    module = network("tanh", 2)
    measurer = measurer_of(module, head_of("identity"), (3,), 2)
    points = points_of((3,), 2)
    for layer in (module[1], nn.Sigmoid(), nn.SiLU(), nn.PReLU().double()):
        module[1] = layer
        jet = measurer.measure(points, FULL)
        for i, x in enumerate(points.inputs["x"]):
            row = torch.autograd.functional.jacobian(lambda x: module(x[None])[0], x)
            assert_close(jet["x",][i], row, type(layer).__name__)
        assert measurer.engine(points, FULL) == (GENERAL if isinstance(layer, nn.PReLU) else PASSES)
        assert len(measurer._known) == 1  # nothing of the former network is kept


def test_what_a_structure_sees() -> None:
    class Block(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(3, 3), nn.Identity())
            self.functions, self.constant = [torch.tanh], torch.ones(2)

    def structure_after(change: Callable[[Block], object]) -> Structure:
        block = Block()
        structure = Structure(block)
        assert structure.current()
        change(block)
        return structure

    seen: list[Callable[[Block], object]] = [
        lambda block: block.functions.append(torch.relu),
        lambda block: setattr(block, "constant", torch.ones(2)),
        lambda block: block.register_parameter("scale", nn.Parameter(torch.ones(3))),
        lambda block: block[0].register_buffer("mask", torch.ones(3)),
        lambda block: setattr(block[0], "bias", None),
        lambda block: block[0].__delattr__("bias"),
    ]
    assert not any(structure_after(change).current() for change in seen)
    assert structure_after(lambda block: setattr(block[0], "weight", nn.Parameter(torch.ones(3, 3)))).current()
    switched = structure_after(lambda block: block[1].eval())
    assert switched.current(modes=False) and not switched.current()
