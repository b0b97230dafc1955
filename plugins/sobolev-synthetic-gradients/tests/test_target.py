"""One step: what students are compared with, and what the network learns from them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from sg_support import CLASSES, Modules, Small, batch, probes, rest, target, true_gradients, uncut
from sobolev_synthetic_gradients.metrics import agreement
from torch import nn

from sobolev import ComponentError, Jet
from sobolev.distributed import World

H = ("h",)


def exact_modules(made) -> Modules:
    return Modules({name: rest(made.network.network, name) for name in made.names})


def test_gradients_per_sample_are_those_of_autograd(tmp_path: Path) -> None:
    made = target(tmp_path)
    given = batch(made)
    points = made.points(given, training=True)
    jets = made.answer(points, probes(points, H), None)
    for name in made.names:
        h = points[name].inputs["h"]
        for i in (0, 7):
            one = h[i : i + 1].clone().requires_grad_()
            logits = rest(made.network.network, name)(one)
            value = nn.functional.cross_entropy(logits, given.data[1][i : i + 1])
            (gradient,) = torch.autograd.grad(value, one)
            assert torch.allclose(jets[name].value[i], value, rtol=1e-12)
            assert torch.allclose(jets[name].derivatives[H][i], gradient, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("module", ["before-update", "after-update"])
@pytest.mark.parametrize("value_only", [False, True])
def test_exact_modules_give_back_propagation(tmp_path: Path, module: str, value_only: bool) -> None:
    made = target(tmp_path, module=module)
    given = batch(made)
    expected = true_gradients(made, given)
    points = made.points(given, training=True)
    learner = exact_modules(made)
    reference = made.answer(points, probes(points, *([] if value_only else [H])), None)
    made.optimizer.param_groups[0]["lr"] = made._rate = 0.0
    made.advance(points, reference, learner.measure(points), learner)
    for parameter, gradient in zip(made.network.network.parameters(), expected, strict=True):
        assert (parameter.grad - gradient).norm() <= 1e-10 * gradient.norm()


def test_decoupled_training_with_exact_modules_is_back_propagation_over_steps(tmp_path: Path) -> None:
    decoupled, ordinary = target(tmp_path), target(tmp_path, gradient="backprop")
    for step in range(5):
        for made in (decoupled, ordinary):
            points = made.points(batch(made, start=16 * step), training=True)
            learner = exact_modules(made)
            made.advance(points, made.answer(points, probes(points, H), None), learner.measure(points), learner)
    for a, b in zip(decoupled.network.network.parameters(), ordinary.network.network.parameters(), strict=True):
        assert (a - b).norm() <= 1e-10 * b.norm()


@pytest.mark.parametrize("keys", [[], [H]])
def test_reference_arm_is_back_propagation(tmp_path: Path, keys: list) -> None:
    made = target(tmp_path, gradient="backprop")
    given = batch(made)
    expected = true_gradients(made, given)
    points = made.points(given, training=True)
    made.advance(points, made.answer(points, probes(points, *keys), None), {}, Modules({}))
    for parameter, gradient in zip(made.network.network.parameters(), expected, strict=True):
        assert (parameter.grad - gradient).norm() <= 1e-10 * gradient.norm()


def test_lower_parts_hear_of_nothing_but_their_module(tmp_path: Path) -> None:
    made = target(tmp_path)
    points = made.points(batch(made), training=True)
    reference = made.answer(points, probes(points, H), None)
    first, second = made.names
    silent = {name: Jet(reference[name].value, {H: torch.zeros_like(reference[name].derivatives[H])})
              for name in made.names}  # fmt: skip
    spoken = silent | {second: reference[second]}
    made.advance(points, reference, spoken, Modules({}))
    zero = [all((p.grad == 0).all() for p in part) for part in made.network.parts]
    assert zero == [True, False, False]
    assert first != second


def test_scale_of_the_gradient_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    """The same 8 samples twice: the mean gradient of 8 and of 16 must be one."""
    norms = []
    for ids in (torch.arange(8), torch.arange(8).repeat(2)):
        made = target(tmp_path)
        given = batch(made)
        given = type(given)("train", ids, made.load("train", ids))
        points = made.points(given, training=True)
        learner = exact_modules(made)
        made.advance(points, made.answer(points, probes(points, H), None), learner.measure(points), learner)
        norms.append([p.grad.norm() for p in made.network.network.parameters()])
    assert torch.allclose(torch.stack(norms[0]), torch.stack(norms[1]), rtol=1e-12)


class _Half(World):
    """Pretends to be one of two processes with the same samples."""

    size = 2

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor * 2

    def sum_gradients(self, parameters) -> None:
        for parameter in parameters:
            parameter.grad = parameter.grad * 2


def test_advance_divides_by_the_global_batch(tmp_path: Path) -> None:
    gradients = []
    for world in (None, _Half(torch.device("cpu"))):
        made = target(tmp_path, world=world)
        points = made.points(batch(made), training=True)
        learner = exact_modules(made)
        made.advance(points, made.answer(points, probes(points, H), None), learner.measure(points), learner)
        gradients.append(torch.cat([p.grad.flatten() for p in made.network.network.parameters()]))
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-12, atol=0)


def test_nothing_reaches_the_lower_parts_of_noprop(tmp_path: Path) -> None:
    made = target(tmp_path, Small(norm=True), gradient="none", split=("2", "5"))
    before = copy.deepcopy(made.network.network.state_dict())
    for step in range(3):
        points = made.points(batch(made, start=16 * step), training=True)
        made.advance(points, made.answer(points, probes(points), None), {}, Modules({}))
    after = made.network.network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"6.weight", "6.bias", "4.running_mean", "4.running_var", "4.num_batches_tracked"}


def test_batch_statistics_move_once_per_step(tmp_path: Path) -> None:
    made = target(tmp_path, Small(norm=True), split=("2", "5"))
    norm = made.network.network[4]
    made.points(batch(made), training=True)  # looked at, never learned from
    for step in range(3):
        points = made.points(batch(made, start=16 * step), training=True)
        jets = made.answer(points, probes(points, H), None)
        made.advance(points, jets, jets, Modules({}))
        made.points(batch(made, split="test"), training=False)
    assert int(norm.num_batches_tracked) == 3


@pytest.mark.parametrize("module", ["before-update", "after-update"])
def test_the_network_runs_once_per_step(tmp_path: Path, module: str) -> None:
    made = target(tmp_path, module=module)
    runs = []
    made.network.network.register_forward_hook(lambda *_: runs.append(1))
    for step in range(3):
        points = made.points(batch(made, start=16 * step), training=True)
        learner = exact_modules(made)
        made.advance(points, made.answer(points, probes(points, H), None), learner.measure(points), learner)
    assert len(runs) == 3


def test_label_derivative_is_minus_the_log_probability(tmp_path: Path) -> None:
    made = target(tmp_path, label_derivative=True)
    points = made.points(batch(made), training=True)
    assert points["2"].differentiate == ("h", "y")
    reference = made.answer(points, probes(points, H, ("y",)), None)
    logits = points["2"].context.made.logits
    closed = -torch.log_softmax(logits, dim=1)[:, None]
    for name in made.names:
        assert torch.allclose(reference[name].derivatives[("y",)], closed, rtol=1e-12, atol=0)
    # Supplement 4.1: both squared losses in closed form, for a module other than the network.
    torch.manual_seed(1)
    module = nn.Linear(8, CLASSES).double()
    jet = Modules({"2": module, "4": nn.Linear(6, CLASSES).double()}).measure(points)["2"]
    log_p, log_p_h = torch.log_softmax(module(points["2"].inputs["h"]), 1), torch.log_softmax(logits, 1)
    by_label = (jet.derivatives[("y",)] - reference["2"].derivatives[("y",)]).square().sum((1, 2))
    assert torch.allclose(by_label, (log_p - log_p_h).square().sum(1), rtol=1e-10)
    label = points["2"].inputs["y"].argmax(1, keepdim=True)
    by_value = (jet.value - reference["2"].value).square()
    assert torch.allclose(by_value, (log_p.gather(1, label) - log_p_h.gather(1, label)).square(), rtol=1e-10)


def test_bootstrapped_supervision_comes_from_the_next_module(tmp_path: Path) -> None:
    made = target(tmp_path, supervision="bootstrapped")
    assert made.needs == {"prediction", "gradient"}
    points = made.points(batch(made), training=True)
    torch.manual_seed(2)
    learner = Modules({"2": nn.Linear(8, CLASSES).double(), "4": nn.Linear(6, CLASSES).double()})
    prediction = learner.measure(points)
    jets = made.answer(points, probes(points, H), prediction)
    assert torch.equal(jets["2"].value, prediction["4"].value)
    h = points["2"].inputs["h"].clone().requires_grad_()
    above = uncut(made.network.network[3:5])(h)
    (expected,) = torch.autograd.grad(above, h, prediction["4"].derivatives[H][:, 0])
    assert torch.allclose(jets["2"].derivatives[H][:, 0], expected, rtol=1e-12)
    # The last module hears the truth, and so does every module in evaluation.
    true = target(tmp_path)
    same = true.points(batch(true), training=True)
    assert torch.allclose(jets["4"].value, true.answer(same, probes(same, H), None)["4"].value)
    held = made.points(batch(made, split="test"), training=False)
    assert torch.equal(made.answer(held, probes(held, H), learner.measure(held))["2"].value,
                       made.answer(held, probes(held, H), learner.measure(held))["4"].value)  # fmt: skip


def test_direct_form_answers_the_gradient_as_a_value(tmp_path: Path) -> None:
    made, derivative = target(tmp_path, reference="gradient", gradient="output"), target(tmp_path)
    assert made.sites()["2"].outputs == 8 and made.sites()["2"].differentiate == ()
    points = made.points(batch(made), training=True)
    jets = made.answer(points, probes(points), None)
    other = derivative.points(batch(derivative), training=True)
    expected = derivative.answer(other, probes(other, H), None)
    for name in made.names:
        assert torch.allclose(jets[name].value, expected[name].derivatives[H][:, 0], rtol=1e-12)
    given = batch(made)
    by_loss = true_gradients(made, given)
    made.advance(points, jets, jets, Modules({}))  # modules that are right give back-propagation
    for parameter, gradient in zip(made.network.network.parameters(), by_loss, strict=True):
        assert (parameter.grad - gradient).norm() <= 1e-10 * gradient.norm()


def test_metrics_of_perfect_and_of_absent_gradients(tmp_path: Path) -> None:
    made = target(tmp_path)
    points = made.points(batch(made), training=False)
    reference = made.answer(points, probes(points, H), None)
    found = {name: float(m.sum / m.count) for name, m in made.metrics(points, reference, reference).items()}
    assert found["2/cosine"] == pytest.approx(1.0) and found["2/gradient-error"] == 0 and found["2/loss-error"] == 0
    step = points["2"].context
    logits = step.made.logits.detach()
    assert found["top-1"] == float((logits.argmax(1) == step.labels).double().mean())
    assert found["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, step.labels)))
    none = {n: Jet(j.value, {H: torch.zeros_like(j.derivatives[H])}) for n, j in reference.items()}
    absent = {name: float(m.sum / m.count) for name, m in made.metrics(points, reference, none).items()}
    assert absent["2/cosine"] == 0 and absent["2/gradient-error"] == pytest.approx(1.0)


def test_cosine_of_tiny_gradients() -> None:
    true, synthetic = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[3e-25, 4e-25], [0.0, 2e-40]])
    found = agreement(synthetic, true)["cosine"]
    assert float(found.sum) == pytest.approx(5.0) and float(found.count) == pytest.approx(6.0)


def test_learning_rate_drops(tmp_path: Path) -> None:
    made = target(tmp_path, drops=[2, 3])
    rates = []
    for _ in range(4):
        points = made.points(batch(made), training=True)
        jets = made.answer(points, probes(points, H), None)
        rates.append(float(made.advance(points, jets, jets, Modules({}))["main-lr"].sum))
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_state_survives(tmp_path: Path) -> None:
    from sobolev import checkpoint

    def go(made, steps: range) -> None:
        for step in steps:
            points = made.points(batch(made, start=16 * step), training=True)
            jets = made.answer(points, probes(points, H), None)
            made.advance(points, jets, jets, Modules({}))

    whole = target(tmp_path, Small(norm=True), split=("2", "5"), drops=[3])
    go(whole, range(5))
    first = target(tmp_path, Small(norm=True), split=("2", "5"), drops=[3])
    go(first, range(2))
    checkpoint.save(tmp_path / "checkpoints", 2, {}, {"target": first.state_dict()})
    loaded = checkpoint.load_newest(tmp_path / "checkpoints", print)
    second = target(tmp_path, Small(norm=True), split=("2", "5"), drops=[3])
    second.load_state_dict(loaded.state["target"])
    go(second, range(2, 5))
    for name, tensor in whole.network.network.state_dict().items():
        assert torch.equal(tensor, second.network.network.state_dict()[name]), name


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"split": ("2", "tanh")}, "no layer 'tanh'"),
        ({"split": ("2", "2")}, "different layers"),
        ({"gradient": "output"}, "gradient: derivative"),
        ({"reference": "gradient"}, "gradient: output"),
        ({"reference": "gradient", "gradient": "output", "label_derivative": True}, "reference: loss"),
        ({"optimizer": lambda p: torch.optim.LBFGS(p)}, "lbfgs"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, options: dict, told: str) -> None:
    with pytest.raises(ComponentError, match=told):
        target(tmp_path, **options)


def test_bootstrapping_from_a_projection_is_refused(tmp_path: Path) -> None:
    made = target(tmp_path, supervision="bootstrapped")
    points = made.points(batch(made), training=True)
    jets = {name: Jet(torch.zeros(16, 1), {H: torch.zeros(16, 1, 1)}) for name in made.names}
    with pytest.raises(ComponentError, match="estimator: exact"):
        made.answer(points, probes(points, H), jets)
