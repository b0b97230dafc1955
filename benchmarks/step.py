"""What one training step on value and derivative costs, against plain training, double backward and JAX.

    python benchmarks/step.py [--quick] [--json FILE] [--only TEXT] [--device cuda]

A step is zero_grad, forward, loss, backward and Adam (fused in all torch arms; optax in JAX). Arms share one core and
take turns; medians over the rounds are shown, and ratios of neighbouring turns. Aims on a CPU: ReLU with a scalar
output at most 1.45 times the plain step and 0.75 times JAX; tanh at most JAX; a vector output with one probe at most
2.2 times the plain step; nowhere above 1.05 times double backward.
"""

from __future__ import annotations

import importlib.util
import itertools
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from _common import arguments, clock, interleaved, machine, median_ratio, shown, write

ROUNDS = 30


@dataclass(frozen=True)
class Case:
    """A network, a batch, and what is asked of its derivative."""

    name: str
    batch: int
    activation: str
    outputs: int = 1
    shape: tuple[int, ...] = (2,)
    hidden: tuple[int, ...] = (256, 256)
    head: str = "identity"
    jax: bool = True
    norm: bool = False
    order: int = 1

    @property
    def projected(self) -> bool:
        """Whether one output-side probe is asked instead of the gradient."""
        return self.outputs > 1

    @property
    def aims(self) -> dict[str, float]:
        """Return the largest ratio to each other arm that is aimed at."""
        if self.norm or self.order > 1:
            return {"double backward": 1.05}
        if self.projected:
            return {"plain": 2.2, "double backward": 1.05}
        if self.activation == "relu":
            return {"plain": 1.45, "jax": 0.75, "double backward": 1.05}
        return {"jax": 1.0, "double backward": 1.05}


CASES = [
    *(Case(f"{a}, scalar, batch {b}", b, a) for a in ("relu", "tanh") for b in (32, 256, 4096)),
    Case("relu, 10 outputs, batch 256", 256, "relu", outputs=10, shape=(16,)),
    Case("tanh, 10 outputs, log-softmax, batch 256", 256, "tanh", outputs=10, shape=(16,), head="log-softmax"),
    Case("layer norm, silu, scalar, batch 64", 64, "silu", shape=(16,), norm=True, jax=False),
    Case("tanh, Hessian-vector product, batch 64", 64, "tanh", shape=(16,), order=2, jax=False),
    Case("Atari student, batch 200", 200, "relu", 6, (4, 84, 84), head="log-softmax", jax=False),
]
LARGE = [
    Case("relu, scalar, batch 16384, 3 x 2048", 16384, "relu", shape=(64,), hidden=(2048,) * 3),
    Case("tanh, scalar, batch 16384, 3 x 2048", 16384, "tanh", shape=(64,), hidden=(2048,) * 3),
    Case("relu, 10 outputs, batch 16384, 3 x 2048", 16384, "relu", outputs=10, shape=(64,), hidden=(2048,) * 3),
]
"""What fills an accelerator."""
QUICK = (32, 256)


def network(case: Case) -> Any:
    """Return the student of a case."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    act = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}[case.activation]
    if len(case.shape) == 3:
        return nn.Sequential(
            nn.Conv2d(4, 16, 8, 4), act(), nn.Conv2d(16, 32, 4, 2), act(), nn.Flatten(),
            nn.Linear(2592, 256), act(), nn.Linear(256, case.outputs),
        )  # fmt: skip
    layers: list[nn.Module] = []
    size = case.shape[0]
    for width in case.hidden:
        layers += [nn.Linear(size, width), *([nn.LayerNorm(width)] if case.norm else []), act()]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, case.outputs))


def torch_arms(case: Case, device: str) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Return the steps in torch, and what the engine says of its choices."""
    import torch

    from sobolev.differentiate.measure import Measurer, Policy
    from sobolev.heads import HEADS
    from sobolev.vocabulary import Contraction, Points, Probe, Site

    torch.set_num_threads(1)
    head = HEADS[case.head]
    m = head.outputs(case.outputs)
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator).to(device)

    x, y = draw(case.batch, *case.shape), draw(case.batch, m)
    v = torch.nn.functional.normalize(draw(case.batch, 1, m), dim=-1)
    t = draw(case.batch, 1, *case.shape)
    along = torch.nn.functional.normalize(draw(*x.shape), dim=-1)
    key = ("x",) * case.order
    contraction = Contraction(v if case.projected else None, (along[:, None], None)[-case.order :])
    points = Points({"x": x}, ("x",), torch.arange(case.batch))
    probe = Probe({key: contraction})

    def squared(found: Any, wanted: Any) -> Any:
        return torch.nn.functional.mse_loss(found, wanted, reduction="sum") / case.batch

    def trained(loss: Callable[[Any], Any], make: Callable[[Any], Any] = lambda module: module) -> Callable[[], None]:
        module = network(case).to(device)
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-4, fused=True)
        called = make(module)

        def step() -> None:
            optimizer.zero_grad()
            loss(called).backward()
            optimizer.step()

        return step

    def plain(module: Any) -> Any:
        return squared(head(module(x), points.inputs), y)

    def twice(module: Any) -> Any:
        leaf = x.detach().requires_grad_()
        value = head(module(leaf), points.inputs)
        scalar = (value * v[:, 0]).sum() if case.projected else value.sum()
        (gradient,) = torch.autograd.grad(scalar, leaf, create_graph=True)
        if case.order == 2:
            (gradient,) = torch.autograd.grad((gradient * along).sum(), leaf, create_graph=True)
        return squared(value, y) + squared(gradient[:, None], t)

    measurers: dict[str, Measurer] = {}

    def ours(compile: str) -> Callable[[Any], Any]:
        def make(module: Any) -> Any:
            site = Site({"x": case.shape}, case.outputs, ("x",))
            policy = Policy(steps=10**7, compile=compile)
            measurers[compile] = Measurer(module, head, site, policy)
            return measurers[compile]

        return make

    def by_engine(measurer: Any) -> Any:
        jet = measurer.measure(points, probe)
        return squared(jet.value, y) + squared(jet[key].reshape(t.shape), t)

    arms: dict[str, Callable[[], object]] = {
        "plain": trained(plain),
        "plain, compiled": trained(plain, torch.compile),
        "double backward": trained(twice),
        "ours, eager": trained(by_engine, ours("never")),
        "ours, compiled": trained(by_engine, ours("auto")),
    }
    for arm in arms.values():
        arm()  # engines are chosen in the first step
    return arms, {name: "; ".join(m.describe().values()) for name, m in measurers.items()}


def jax_arm(case: Case) -> Callable[[], object]:
    """Return the same step in JAX: double backward of the loss, jitted with the optimizer, buffers donated."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    jax.config.update("jax_default_matmul_precision", "highest")  # float32 on a GPU too, as torch computes
    generator = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(generator.standard_normal(shape), jnp.float32)  # noqa: E731
    x, y = draw(case.batch, *case.shape), draw(case.batch, case.outputs)
    t, v = draw(case.batch, *case.shape), draw(case.batch, case.outputs)
    sizes = (case.shape[0], *case.hidden, case.outputs)
    parameters = [(draw(b, a) / np.sqrt(a), draw(b) * 0.1) for a, b in itertools.pairwise(sizes)]
    act = jax.nn.relu if case.activation == "relu" else jnp.tanh
    optimizer = optax.adam(1e-4)

    def value(parameters: Any, x: Any) -> Any:
        for w, b in parameters[:-1]:
            x = act(x @ w.T + b)
        w, b = parameters[-1]
        z = x @ w.T + b
        return jax.nn.log_softmax(z) if case.head == "log-softmax" else z

    def loss(parameters: Any) -> Any:
        def projected(x: Any) -> Any:
            found = value(parameters, x)
            return ((found * v).sum() if case.projected else found.sum()), found

        gradient, found = jax.grad(projected, has_aux=True)(x)
        return (((found - y) ** 2).sum() + ((gradient - t) ** 2).sum()) / case.batch

    @jax.jit
    def update(parameters: Any, state: Any) -> Any:
        gradients = jax.grad(loss)(parameters)
        changes, state = optimizer.update(gradients, state)
        return optax.apply_updates(parameters, changes), state

    update = jax.jit(update.__wrapped__, donate_argnums=(0, 1))
    current = [parameters, optimizer.init(parameters)]

    def step() -> None:
        current[0], current[1] = update(*current)
        jax.block_until_ready(current[0])

    return step


def main() -> None:
    """Run all cases and print a table each."""
    options = arguments(__doc__, ROUNDS, ("cpu", "cuda"))
    cases = [case for case in CASES + LARGE * (options.device != "cpu") if options.only in case.name]
    if options.quick:
        cases = [case for case in cases if case.batch in QUICK and len(case.shape) == 1]
    has_jax = all(importlib.util.find_spec(name) for name in ("jax", "optax"))
    if not has_jax:
        print("jax and optax are not installed: no comparison with JAX")
    results = []
    for case in cases:
        arms, choices = torch_arms(case, options.device)
        if has_jax and case.jax:
            arms["jax"] = jax_arm(case)
        rounds = options.rounds if len(case.shape) == 1 else max(5, options.rounds // 5)  # a step takes half a second
        taken = interleaved(arms, rounds, clock(options))
        ours = min(("ours, eager", "ours, compiled"), key=lambda name: statistics.median(taken[name]))
        print(f"\n{case.name}")
        for name in arms:
            ratio = median_ratio(taken, name, "plain")
            print(f"  {name:<16} {statistics.median(taken[name]):>10.0f} us   {ratio:>5.2f} x plain")
        met = {}
        for base, aim in case.aims.items():
            if base in taken:
                ratio = median_ratio(taken, ours, base)
                met[base] = {"ratio": ratio, "aim": aim, "met": ratio <= aim}
                print(f"  {ours} / {base}: {ratio:.2f} (aim {aim}{'' if ratio <= aim else ', MISSED'})")
        print(f"  engine: {choices['auto']}")
        medians = {name: statistics.median(values) for name, values in taken.items()}
        results.append({"case": case.name, "rounds": rounds, "microseconds": medians, "aims": met, "engine": choices})
    found = machine(options)
    print(f"\non {shown(found)}")
    write(options, {"machine": found, "cases": results})


if __name__ == "__main__":
    main()
