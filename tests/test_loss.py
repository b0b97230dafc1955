"""SobolevLoss in a loop of one's own: against sums written out by torch's own autograd, in float64."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sobolev import ComponentError, RecipeError, SobolevLoss


def net(outputs: int = 1, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), activation(), nn.Linear(8, outputs)).double()


def samples(outputs: int = 1, rows: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return tuple(  # type: ignore[return-value]
        torch.randn(shape, generator=random, dtype=torch.float64)
        for shape in ((rows, 3), (rows, outputs), (rows, outputs, 3))
    )


def written_out(module: nn.Module, x: torch.Tensor, y: torch.Tensor, dydx: torch.Tensor) -> torch.Tensor:
    """Squared errors of values and of the Jacobian, one sample and one output at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(x)):
        point = x[i : i + 1].clone().requires_grad_()
        z = module(point)
        total = total + (z[0] - y[i]).square().sum()
        for j in range(z.shape[1]):
            (slope,) = torch.autograd.grad(z[0, j], point, create_graph=True)
            total = total + (slope[0] - dydx[i, j]).square().sum()
    return total / len(x)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.SiLU])
def test_value_and_gradient_are_those_of_the_sum_written_out(outputs: int, activation: type[nn.Module]) -> None:
    module, (x, y, dydx) = net(outputs, activation), samples(outputs)
    loss = SobolevLoss()(module, x, y, dydx)
    expected = written_out(module, x, y, dydx)
    assert torch.allclose(loss, expected, rtol=1e-12)
    ours = torch.autograd.grad(loss, list(module.parameters()))
    theirs = torch.autograd.grad(expected, list(module.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_one_value_may_come_without_its_dimension() -> None:
    module, (x, y, dydx) = net(), samples()
    whole = SobolevLoss()(module, x, y, dydx)
    assert torch.equal(SobolevLoss()(module, x, y[:, 0], dydx[:, 0]), whole)


def test_missing_partials_do_not_count() -> None:
    module, (x, y, dydx) = net(), samples()
    holed = dydx.clone()
    holed[0, 0, 1] = torch.nan
    point = x.clone().requires_grad_()
    slopes = torch.autograd.grad(module(point).sum(), point)[0]
    errors = (slopes - holed[:, 0]).square().nan_to_num(0.0)
    # The sum over known components over the count in which a sample weighs as much as is known of it.
    expected = (module(x) - y).square().mean() + errors.sum() / (len(x) - 1 / 3)
    assert torch.allclose(SobolevLoss()(module, x, y, holed), expected, rtol=1e-12)


def test_sample_weights_are_those_of_a_mean() -> None:
    module, (x, y, dydx) = net(), samples()
    twice = torch.tensor([2.0, 1, 1, 1, 0, 1], dtype=torch.float64)
    rows = torch.tensor([0, 0, 1, 2, 3, 5])
    weighted = SobolevLoss()(module, x, y, dydx, weight=twice)
    repeated = SobolevLoss()(module, x[rows], y[rows], dydx[rows])
    assert torch.allclose(weighted, repeated, rtol=1e-12)


def test_a_teacher_is_differentiated() -> None:
    module, (x, _, _) = net(2), samples(2)
    teacher = net(2)
    with torch.no_grad():
        teacher[0].weight.add_(0.3)
    point = x.clone().requires_grad_()
    values = teacher(point)
    jacobian = torch.stack([torch.autograd.grad(values[:, j].sum(), point, retain_graph=True)[0] for j in (0, 1)], 1)
    expected = SobolevLoss()(module, x, values.detach(), jacobian)
    assert torch.allclose(SobolevLoss()(module, x, teacher), expected, rtol=1e-12)


def test_of_policies_by_their_log_probabilities() -> None:
    module, teacher = net(3), net(3)
    with torch.no_grad():
        teacher[0].weight.add_(0.3)
    x = samples()[0]
    loss = SobolevLoss("kl-student-teacher", ["norm"], head="log-softmax", estimator={"use": "projected"})
    assert loss(module, x, teacher).item() > 0
    assert abs(loss(teacher, x, teacher).item()) < 1e-12


def test_random_projections_estimate_the_exact_term() -> None:
    module, (x, y, dydx) = net(2), samples(2)
    exact = SobolevLoss({"weight": 0}, ["squared-l2"])(module, x, y, dydx)
    projected = SobolevLoss({"weight": 0}, [{"weight": 2.0}], estimator={"use": "projected", "probes": 4})
    values = torch.stack([projected(module, x, y, dydx).detach() for _ in range(200)])
    assert values.std() > 0  # every call draws anew
    assert abs(values.mean().item() / exact.item() - 1) < 0.1  # E|J'v|^2 = |J|^2 / m


def test_training_goes_down() -> None:
    module, (x, y, dydx) = net(), samples()
    loss, optimizer = SobolevLoss(), torch.optim.Adam(module.parameters(), lr=1e-2)
    first = loss(module, x, y, dydx).item()
    for _ in range(50):
        optimizer.zero_grad()
        loss(module, x, y, dydx).backward()
        optimizer.step()
    assert loss(module, x, y, dydx).item() < 0.7 * first


class Lightning(nn.Module):
    """As a Lightning module looks: the loss is a submodule and belongs to no network."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.loss = net(), SobolevLoss()

    def training_step(self, batch: tuple[torch.Tensor, ...], _: int) -> torch.Tensor:
        return self.loss(self.net, *batch)


def test_in_a_module_it_adds_no_parameters_and_can_be_copied() -> None:
    module = Lightning()
    first = module.training_step(samples(), 0)
    assert set(module.state_dict()) == {f"net.{name}" for name in module.net.state_dict()}
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied.training_step(samples(), 0), first)


def test_a_loop_that_goes_on_draws_the_directions_that_come_next() -> None:
    module, batch = net(), samples()
    loss = SobolevLoss(estimator={"use": "projected", "side": "input"})
    first, second = loss(module, *batch), loss(module, *batch)
    whole = nn.ModuleDict({"net": module, "loss": loss})
    other = SobolevLoss(estimator={"use": "projected", "side": "input"})
    again = nn.ModuleDict({"net": net(), "loss": other})
    again.load_state_dict({**whole.state_dict(), "loss.calls": torch.tensor(1)})
    assert first != second == other(module, *batch)
    again.load_state_dict(whole.state_dict())
    assert other.calls == 2 and again.state_dict().keys() == whole.state_dict().keys()


def test_processes_draw_directions_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    module, batch = net(), samples()
    found = []
    for rank in (0, 1):
        monkeypatch.setattr("sobolev.loss._rank", lambda rank=rank: rank)
        found.append(SobolevLoss(estimator={"use": "projected", "side": "input"})(module, *batch))
        assert SobolevLoss()(module, *batch) == SobolevLoss()(module, *batch)
    assert found[0] != found[1]


def test_values_may_be_missing() -> None:
    module, (x, y, dydx) = net(2), samples(2)
    gone = y.clone()
    gone[1] = torch.nan
    gone[2, 0] = torch.nan
    values = (module(x) - y).square()
    values[1] = 0
    values[2, 0] = 0
    share = (len(x) - 2) + (y.shape[1] - 1) / y.shape[1]
    of_values = values.sum() / share
    partials = SobolevLoss(value={"loss": "squared-l2", "weight": 0.0})(module, x, y, dydx)
    assert torch.allclose(SobolevLoss(derivatives=[])(module, x, gone), of_values, rtol=1e-12)
    found = SobolevLoss()(module, x, gone, dydx)
    assert torch.allclose(found, of_values + partials, rtol=1e-12)
    slopes = zip(
        *(torch.autograd.grad(f, list(module.parameters())) for f in (found, of_values + partials)), strict=True
    )
    assert all(torch.allclose(mine, theirs, rtol=1e-10, atol=1e-14) for mine, theirs in slopes)


CHANGES: dict[str, Callable[[nn.Sequential], object]] = {
    "nothing": lambda net: None,
    "another layer": lambda net: net.__setitem__(2, nn.Linear(8, 2).double()),
    "another activation": lambda net: net.__setitem__(1, nn.SiLU()),
    "an activation's option": lambda net: setattr(net[1], "negative_slope", 0.5),
    "one layer more": lambda net: net.append(nn.Tanh()),
    "a layer between": lambda net: net.insert(1, nn.Linear(8, 8).double()),
    "a layer less": lambda net: net.pop(3),
    "in a block": lambda net: net[0].append(nn.Tanh()),
    "another order": lambda net: (layer := net[1], delattr(net, "1"), net.add_module("1", layer)),
    "a hook": lambda net: net[2].register_forward_hook(lambda _, inputs, output: 2 * output),
    "a hook before": lambda net: net[2].register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],)),
    "a forward on the instance": lambda net: setattr(net[1], "forward", torch.sin),
    "another class": lambda net: setattr(net[1], "__class__", nn.Sigmoid),
    "another weight": lambda net: setattr(net[2], "weight", nn.Parameter(torch.ones(2, 8).double())),
    "no bias": lambda net: setattr(net[2], "bias", None),
    "a bias": lambda net: setattr(net[0][0], "bias", nn.Parameter(torch.ones(8).double())),
    "a shared weight": lambda net: setattr(net[0][2], "weight", net[0][1].weight),
    "weight_norm": lambda net: nn.utils.weight_norm(net[2]),
    "parametrised weight_norm": lambda net: nn.utils.parametrizations.weight_norm(net[2]),
    "prune": lambda net: prune.random_unstructured(net[2], "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("change", CHANGES)
def test_a_module_may_be_changed_between_calls(change: str) -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(3, 8, bias=False), nn.Linear(8, 8), nn.Linear(8, 8))
    module = nn.Sequential(block, nn.LeakyReLU(0.1), nn.Linear(8, 2), nn.Tanh()).double()
    x, y, dydx = samples(2)
    loss = SobolevLoss()
    for _ in range(2):
        assert torch.allclose(loss(module, x, y, dydx), written_out(module, x, y, dydx), rtol=1e-12)
    before = loss(module, x, y, dydx)
    CHANGES[change](module)
    found, expected = loss(module, x, y, dydx), written_out(module, x, y, dydx)
    assert torch.allclose(found, expected, rtol=1e-12)
    assert torch.allclose(found, before, rtol=1e-12) == (change == "nothing" or "weight_norm" in change)
    ours, theirs = (torch.autograd.grad(value, list(module.parameters())) for value in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_call_that_failed_is_forgotten() -> None:
    module, (x, y, dydx) = net(2), samples(2)
    loss = SobolevLoss()
    with pytest.raises(ComponentError):
        loss(module, x, y[:, 0], dydx[:, 0])
    expected = SobolevLoss()(module, x, y, dydx)
    assert torch.equal(loss(module, x, y, dydx), expected)
    with pytest.raises(ComponentError):
        loss(module, x, lambda x: x[:, :1])
    teacher = net(2, nn.Sigmoid)
    assert torch.equal(loss(module, x, teacher), SobolevLoss()(module, x, teacher))


@pytest.mark.parametrize("estimator", ["exact", "projected"])
def test_student_and_teacher_may_get_more_outputs(estimator: str) -> None:
    x, student, teacher = samples()[0], net(2), net(2, nn.Sigmoid)
    loss = SobolevLoss(estimator=estimator)
    loss(student, x, teacher)
    student[2], teacher[2] = nn.Linear(8, 3).double(), nn.Linear(8, 3).double()
    fresh = SobolevLoss(estimator=estimator)
    fresh.calls = 1
    assert torch.equal(loss(student, x, teacher), fresh(student, x, teacher))


def test_sample_weights_are_checked() -> None:
    module, (x, y, dydx) = net(), samples()
    weight = torch.tensor([2.0, 1, 1, 1, 0, 1], dtype=torch.float64)
    loss = SobolevLoss()
    expected = loss(module, x, y, dydx, weight)
    assert torch.equal(loss(module, x, y, dydx, weight[:, None]), expected)
    for shape in ((1, 6), (6, 6), (5,), ()):
        with pytest.raises(ComponentError, match=r"weight has the shape .*, expected \(6,\) \(B,\): one number per"):
            loss(module, x, y, dydx, torch.ones(shape))
    for bad, said in ((-1.5, "-1.5"), (torch.nan, "nan"), (torch.inf, "inf")):
        weight[2] = bad
        with pytest.raises(ComponentError, match=f"a sample's weight is {said}, expected a number of at least 0"):
            loss(module, x, y, dydx, weight)


def test_mistakes_are_explained() -> None:
    module, (x, y, dydx) = net(), samples()
    with pytest.raises(ComponentError, match=r"dydx has the shape \(6, 2\), expected \(6, 1, 3\)"):
        SobolevLoss()(module, x, y, dydx[:, 0, :2])
    with pytest.raises(ComponentError, match="no dydx"):
        SobolevLoss()(module, x, y)
    with pytest.raises(ComponentError, match="y has the shape"):
        SobolevLoss()(module, x, y[:3], dydx)
    with pytest.raises(ComponentError, match="give no dydx"):
        SobolevLoss()(module, x, module, dydx)
    with pytest.raises(ComponentError, match="log-loss"):
        SobolevLoss(head="log-loss")
    assert SobolevLoss(derivatives=[])(module, x, y).requires_grad


def test_the_documentation_runs() -> None:
    pytest.importorskip("sklearn")
    text = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    # The regressor of the page with fewer steps.
    blocks[0] = blocks[0].replace("random_state=0", "random_state=0, adam_steps=20, polish_iterations=20")
    for block in blocks:
        exec(compile(block, "docs/api.md", "exec"), names)
    assert names["partials"].shape == (30, 2)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"value": "l3"}, r"SobolevLoss: value: expected 'squared-l2', 'l1', .* not 'l3'"),
        ({"derivatives": [{"wieght": 1}]}, "derivatives.0.wieght: unknown key 'wieght'; did you mean 'weight'"),
        ({"estimator": "exakt"}, "SobolevLoss: estimator.use: there is no estimator 'exakt'; did you mean 'exact'"),
        ({"estimator": {"use": "projected", "probes": 0}}, "SobolevLoss: estimator.probes: expected a number greater"),
    ],
)
def test_what_is_wrong_with_an_option_is_said_as_of_a_recipe(options: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        SobolevLoss(**options)  # type: ignore[arg-type]


def test_what_is_no_tensor_is_named() -> None:
    module, (x, y, dydx) = net(), samples()
    for given, told in (
        ((x, y.numpy(), dydx), "y is of type ndarray, expected a tensor, or a function of x"),
        ((x, y, dydx.tolist()), "dydx is of type list, expected a tensor"),
        ((x, y, dydx, [1.0] * 6), "weight is of type list, expected a tensor"),
        ((x, lambda x: x[:, 0]), r"the teacher returns (1,) for one sample, expected (1, n)"),
    ):
        with pytest.raises(ComponentError, match=re.escape(told)):
            SobolevLoss()(module, *given)  # type: ignore[arg-type]
