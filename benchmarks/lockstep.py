"""What a step of synthetic gradients costs, against the sum of its parts, each measured alone.

    python benchmarks/lockstep.py [--quick] [--json FILE] [--only TEXT]

The parts: forward pass of the main network, its true gradients by every activation, the modules' losses with their
backward pass, the backward passes of the network's parts, both optimizers. Steps and parts take turns on batches of
one size; medians over the rounds are shown, and ratios of neighbouring turns. The modules are measured by the engine
that the step uses and, for comparison, by plain double backward, as one would write it by hand.
Aim: a step costs at most 1.15 times its parts.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from _common import arguments, clock, machine, shown, write

AIM = 1.15
ROUNDS = 100
WARM = 5  # first steps, in which buffers and engines are made
BATCH = 32
RECIPE = """
name: lockstep
plugins: [sobolev-synthetic-gradients]
target:
  use: synthetic-gradients
  data: {data}
  network: {{use: convolutional, channels: {channels}, strides: {strides}}}
  split: [block1, block2, block3]
  optimizer: {{use: sgd, lr: 0.01, momentum: 0.9, weight_decay: 1.0e-4}}
student: {{use: class-predictor, channels: [16]}}
objective: {{head: log-loss, value: {{loss: l1}}, derivatives: [{{order: 1, input: h, loss: l1}}]}}
train: {{steps: {steps}, batch_size: {batch}, compile: never, preflight: false, log_every: {steps}}}
evaluate: {{splits: [test], points: 10}}
"""
CASES: dict[str, dict[str, Any]] = {
    "digits, 8x8": {"data": "{use: digits}", "channels": [8, 16, 16], "strides": [1, 2, 2]},
    "images, 32x32": {
        "data": "{use: generated, train: 640, test: 10}",
        "channels": [16, 16, 32, 32],
        "strides": [1, 1, 2, 1],
    },
}
BY_HAND = "modules, double backward"


def parts(experiment: Any, now: Callable[[], int]) -> Callable[[int], dict[str, float]]:
    """Return a function that does the work of one step, written out, and tells microseconds by part."""
    import torch
    from torch import Tensor, nn

    from sobolev.vocabulary import Points, Probe

    cut, sgd = experiment.target.network, experiment.target.optimizer
    adam = torch.optim.Adam(experiment.module.parameters(), lr=1e-3, fused=True)

    def errors(value: Tensor, derivative: Tensor, losses: Tensor, true: Tensor) -> Tensor:
        return ((value - losses).abs().sum() + (derivative - true).abs().sum()) / BATCH

    def by_hand(starts: list[Tensor], true: list[Tensor], labels: Tensor, losses: Tensor) -> None:
        total = torch.zeros(())
        for module, start, gradient in zip(experiment.module.values(), starts, true, strict=True):
            h = start.clone().requires_grad_()
            value = nn.functional.cross_entropy(module(h), labels, reduction="none")
            (derivative,) = torch.autograd.grad(value.sum(), h, create_graph=True)
            total = total + errors(value, derivative, losses, gradient)
        total.backward()

    def by_engine(starts: list[Tensor], true: list[Tensor], labels: Tensor, losses: Tensor) -> list[Tensor]:
        y = nn.functional.one_hot(labels, 10).float()
        total = torch.zeros(())
        synthetic = []
        for measurer, start, gradient in zip(experiment.measurers.values(), starts, true, strict=True):
            points = Points({"h": start, "y": y}, ("h",), torch.arange(BATCH))
            jet = measurer.measure(points, Probe.full((("h",),)))
            derivative = jet[("h",)][:, 0]
            total = total + errors(jet.value[:, 0], derivative, losses, gradient)
            synthetic.append(derivative.detach())
        total.backward()
        return synthetic

    def step(index: int) -> dict[str, float]:
        x, labels = experiment.target.load("train", torch.arange(BATCH) + BATCH * (index % 20))
        taken: dict[str, float] = {}

        @contextmanager
        def timed(name: str) -> Iterator[None]:
            start = now()
            yield
            taken[name] = (now() - start) / 1e3

        with timed("main forward"):
            made = cut(x, training=True)
            losses = nn.functional.cross_entropy(made.logits, labels, reduction="none")
        with timed("true gradients"):
            top = torch.autograd.grad(losses.sum(), [made.starts[-1], *cut.parts[-1]], retain_graph=True)
            true = [top[0]]
            for end, start in zip(reversed(made.ends[1:]), reversed(made.starts[:-1]), strict=True):
                true.insert(0, torch.autograd.grad(end, start, true[0], retain_graph=True)[0])
        starts, losses = [start.detach() for start in made.starts], losses.detach()
        adam.zero_grad()
        with timed("modules"):
            synthetic = by_engine(starts, true, labels, losses)
        with timed("backward of the parts"):
            sgd.zero_grad()
            for parameter, gradient in zip(cut.parts[-1], top[1:], strict=True):
                parameter.grad = gradient / BATCH
            lower = [p for part in cut.parts[:-1] for p in part]
            torch.autograd.backward(made.ends, [s / BATCH for s in synthetic], inputs=lower)
        with timed("optimizers"):
            adam.step()
            sgd.step()
        adam.zero_grad()
        with timed(BY_HAND):  # last, so that the memory it touches does not speed up the other parts
            by_hand(starts, true, labels, losses)
        return taken

    return step


def measure(case: str, rounds: int, now: Callable[[], int], folder: Path) -> dict[str, Any]:
    """Return medians in microseconds and ratios of one case."""
    from sobolev.host import load_host
    from sobolev.train import Trainer

    whole: list[float] = []
    alone: list[dict[str, float]] = []
    by_parts = parts(_experiment(case, rounds, folder), now)
    last = now()

    def after(taken: int, total: int, latest: Mapping[str, float]) -> None:
        nonlocal last
        if WARM < taken < total:  # the last step evaluates, too
            whole.append((now() - last) / 1e3)
        if taken < total:
            one = by_parts(taken)
            alone.extend([one] if taken > WARM else [])
        last = now()

    Trainer(_experiment(case, rounds, folder), load_host().registry, progress=after).run()

    def ratio(left_out: str) -> float:
        sums = [sum(time for part, time in one.items() if part != left_out) for one in alone]
        return statistics.median(step / parts for step, parts in zip(whole, sums, strict=True))

    return {
        "case": case,
        "step": statistics.median(whole),
        "parts": {part: statistics.median(one[part] for one in alone) for part in alone[0]},
        "ratio": ratio(BY_HAND),
        "ratio with double backward": ratio("modules"),
        "aim": AIM,
        "met": ratio(BY_HAND) <= AIM,
    }


def _experiment(case: str, rounds: int, folder: Path) -> Any:
    import torch

    from sobolev.build import build
    from sobolev.distributed import World
    from sobolev.host import load_host
    from sobolev.recipe.plan import load_plans

    file = folder / "recipe.yaml"
    file.write_text(RECIPE.format(steps=rounds + WARM + 1, batch=BATCH, **CASES[case]))
    registry = load_host().registry
    (plan,) = load_plans(file, registry)
    return build(plan, registry, World(torch.device("cpu")), cache=folder, say=lambda _: None)


def main() -> None:
    """Measure and show."""
    options = arguments(__doc__, ROUNDS)
    import torch

    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for case in [name for name in CASES if options.only in name]:
            one = measure(case, options.rounds, clock(options), Path(folder))
            results.append(one)
            print(f"\n{case}: a step {one['step']:.0f} us")
            for part, taken in one["parts"].items():
                print(f"  {part:<26}{taken:>10.0f} us")
            missed = "" if one["met"] else ", MISSED"
            print(f"  step / parts: {one['ratio']:.2f} (aim {AIM}{missed})")
            print(f"  step / parts with double backward: {one['ratio with double backward']:.2f}")
    found = machine(options)
    print(f"\non {shown(found)}")
    write(options, {"machine": found, "cases": results})


if __name__ == "__main__":
    main()
