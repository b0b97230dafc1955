"""Full derivatives under a memory bound: the same numbers, no graph, peak memory below the bound."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from deriv_support import KINDS, assert_close, gradients, head_of, loss_of, measurer_of, network, points_of

from sobolev.differentiate.exact import Exact
from sobolev.differentiate.recompute import pieces
from sobolev.errors import ComponentError, DerivativeError
from sobolev.noise import Noise
from sobolev.vocabulary import Contraction, Points, Probe, full

ROWS = 7


@pytest.mark.parametrize("bound", [3000, 9000, 30000])
@pytest.mark.parametrize(
    ("kind", "name", "key"),
    [
        ("relu", "identity", ("x",)),
        ("tanh", "log-softmax", ("x",)),
        ("layer norm", "log-softmax", ("x",)),
        ("dropout", "identity", ("x",)),
        ("block", "log-softmax", ("x",)),
        ("tanh", "identity", ("x", "x")),
    ],
)
def test_pieces_give_the_same_numbers(kind: str, name: str, key: tuple[str, ...], bound: int) -> None:
    module, points = network(kind, 3), points_of(KINDS[kind].shape, 3, rows=ROWS)
    if kind == "dropout":
        module.eval()  # masks are drawn per piece in training mode: tested below
    results = []
    for memory in (None, bound):
        measurer = measurer_of(module, head_of(name), KINDS[kind].shape, 3, memory=memory)
        jet = measurer.measure(points, Probe({key: full(key)}))
        results.append((jet.value, jet[key], gradients(loss_of(jet.value, jet[key]), module)))
        again = any("computed again" in text for text in measurer.describe().values())
        assert again or memory is None or bound > 3000
    for pieced, whole in zip(results[1], results[0]):
        assert_close(pieced, whole, f"{kind}, {bound} bytes", 1e-12)


@pytest.mark.parametrize("bound", [3000, 9000])
def test_masks_of_dropout_are_drawn_again(bound: int) -> None:
    """The gradient is that of the loss with the masks of the forward pass: finite differences with one seed agree."""
    from sobolev.differentiate.preflight import check_gradient

    module, points = network("dropout", 3), points_of((3,), 3, rows=ROWS)
    measurer = measurer_of(module, head_of("log-softmax"), (3,), 3, memory=bound)

    def loss() -> torch.Tensor:
        torch.manual_seed(1)
        jet = measurer.measure(points, Probe.full((("x",),)))
        return loss_of(jet.value, jet["x",])

    check_gradient(loss, module, tolerance=1e-6)
    torch.manual_seed(1)
    before = measurer.measure(points, Probe.full((("x",),)))
    after = torch.rand(1)
    torch.manual_seed(1)
    jet = measurer.measure(points, Probe.full((("x",),)))
    jet["x",].sum().backward()
    assert torch.equal(torch.rand(1), after)  # the stream goes on as if there had been no backward pass
    assert torch.equal(before["x",], jet["x",])


@pytest.mark.parametrize("kind", ["tanh", "layer norm"])
def test_a_backward_pass_under_autocast_computes_again_as_before(kind: str) -> None:
    module, points = network(kind, 3).float(), points_of((3,), 3, rows=ROWS)
    points = replace(points, inputs={name: tensor.float() for name, tensor in points.inputs.items()})
    measurer = measurer_of(module, head_of("log-softmax"), (3,), 3, memory=3000)
    found = []
    for low in (False, True):
        jet = measurer.measure(points, Probe.full((("x",),)))
        with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16, enabled=low):
            found.append(gradients(loss_of(jet.value, jet["x",]), module))
    assert any("computed again" in text for text in measurer.describe().values())
    assert_close(found[1], found[0], kind, 1e-5)


def test_contracted_and_detached_keys_next_to_a_bounded_one() -> None:
    module, points = network("tanh", 3), points_of((3,), 3, rows=ROWS)
    v = torch.randn(ROWS, 1, 3, dtype=torch.float64)
    probe = Probe({("x",): full(("x",)), ("x", "x"): Contraction(None, (v, None))})
    results = []
    for memory in (None, 4000):
        measurer = measurer_of(module, head_of("identity"), (3,), 3, memory=memory)
        jet = measurer.measure(points, probe, detached=frozenset({("x",)}))
        assert not jet["x",].requires_grad
        results.append((jet["x",], jet["x", "x"], gradients(loss_of(jet.value, jet["x", "x"]), module)))
    for pieced, whole in zip(*results):
        assert_close(pieced, whole, "detached", 1e-12)


def test_samples_that_influence_each_other_are_refused() -> None:
    module, points = network("batch norm in training", 3), points_of((3,), 3, rows=ROWS)
    measurer = measurer_of(module, head_of("identity"), (3,), 3, memory=3000)
    with pytest.raises(DerivativeError, match="independent samples"):
        measurer.measure(points, Probe.full((("x",),)))


def test_a_bound_below_the_derivative_is_refused() -> None:
    points = Points({"x": torch.zeros(10, 4)}, ("x",), torch.arange(10))
    with pytest.raises(ComponentError, match=r"takes 480 bytes, the bound 'memory' is 479"):
        Exact(memory=479).probe(points, 3, (("x",),), Noise(0, "train", 0, "s"))
    assert Exact(memory=480).probe(points, 3, (("x",),), Noise(0, "train", 0, "s")).keys == (("x",),)


@pytest.mark.parametrize(
    ("bound", "rows", "outputs"), [(10**9, None, None), (1000, 4, 10), (300, 1, 4), (200, 1, 1), (10, 1, 1)]
)
def test_how_a_measurement_is_cut(bound: int, rows: int | None, outputs: int | None) -> None:
    cut = pieces(bound, kept=100, sample=20, component=18, batch=50, outputs=10)
    assert (cut.rows, cut.outputs) == (rows, outputs) if cut else rows is None


_SCRIPT = """
import torch
from torch import nn
from sobolev.differentiate.measure import Measurer, Policy
from sobolev.heads import HEADS
from sobolev.vocabulary import Points, Probe, Site
torch.set_num_threads(1)
net = nn.Sequential(nn.Linear(64, 256), nn.{layer}, nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 64))
site = Site({{"x": (64,)}}, 64, ("x",))
measurer = Measurer(net, HEADS["identity"], site, Policy(steps=1, compile="never", memory={memory}))
def step(rows):
    points = Points({{"x": torch.randn(rows, 64)}}, ("x",), torch.arange(rows))
    jet = measurer.measure(points, Probe.full((("x",),)))
    torch.autograd.backward([jet.value, jet["x",]], [jet.value.detach(), jet["x",].detach()])
def status(name):  # of this process alone; getrusage begins with the peak of the process that started it
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name + ":"))
step(2)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
step(256)
print((status("VmHWM") - before) / 1024)
"""


def peak(layer: str, memory: str) -> float:
    """Mebibytes by which the process grew; the Jacobian takes 4."""
    code = _SCRIPT.format(layer=layer, memory=memory)
    # Every tensor in pages of its own, which go back at once: what malloc keeps for later varies from run to run.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
@pytest.mark.parametrize("layer", ["Identity()", "LayerNorm(256)"])
def test_peak_memory_stays_below_the_bound(layer: str) -> None:
    bound = 24
    assert peak(layer, "None") > 2 * bound
    assert peak(layer, f"{bound} * 2**20") < bound
