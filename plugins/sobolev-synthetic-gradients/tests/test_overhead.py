"""A step of the core against the same work written by hand: forward, true gradients, modules, parts, optimizers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from sobolev.build import Experiment, build
from sobolev.distributed import World
from sobolev.host import load_host
from sobolev.recipe.plan import load_plans
from sobolev.train import Trainer
from sobolev.vocabulary import Batch

RECIPE = """
name: overhead
target:
  use: synthetic-gradients
  data: {use: generated, train: 640, test: 10}
  network: {use: convolutional, channels: [16, 16, 32, 32], strides: [1, 1, 2, 1]}
  split: [block1, block2, block3]
student: {use: class-predictor, channels: [16]}
objective: {head: log-loss, value: {loss: l1}, derivatives: [{order: 1, input: h, loss: l1}]}
train: {steps: 100, batch_size: 32, compile: never, preflight: false}
"""
REPEATS = 25


@pytest.mark.slow
def test_a_step_costs_what_its_parts_cost(tmp_path: Path) -> None:
    step, parts = _step(_experiment(tmp_path)), _by_hand(_experiment(tmp_path))
    ours, theirs = [], []
    for i in range(REPEATS):
        ours.append(_seconds(step, i))
        theirs.append(_seconds(parts, i))
    whole, parts_alone = 1e3 * statistics.median(ours[5:]), 1e3 * statistics.median(theirs[5:])
    print(f"step {whole:.1f} ms, its parts {parts_alone:.1f} ms: {whole / parts_alone:.3f}x")
    assert whole < 1.15 * parts_alone


def _seconds(function: Callable[[int], None], i: int) -> float:
    started = time.process_time()  # of this process alone: other work on the machine does not count
    function(i)
    return time.process_time() - started


def _experiment(tmp_path: Path) -> Experiment:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    host = load_host()
    (plan,) = load_plans(tmp_path / "recipe.yaml", host.registry)
    return build(plan, host.registry, World(torch.device("cpu")), cache=tmp_path / "cache", say=lambda _: None)


def _batch(experiment: Experiment, i: int) -> Batch:
    ids = torch.arange(32) + 32 * (i % 20)
    return Batch("train", ids, experiment.target.load("train", ids))


def _step(experiment: Experiment) -> Callable[[int], None]:
    trainer = Trainer(experiment, load_host().registry)
    trainer._begin(trainer.phases[0], 0)

    def step(i: int) -> None:
        trainer._update([_batch(experiment, i)], i)

    return step


def _by_hand(experiment: Experiment) -> Callable[[int], None]:
    target, modules = experiment.target, experiment.module
    cut = target.network
    adam = torch.optim.Adam(modules.parameters(), lr=1e-3, fused=True)

    def step(i: int) -> None:
        x, labels = _batch(experiment, i).data
        made = cut(x, training=True)
        losses = nn.functional.cross_entropy(made.logits, labels, reduction="none")
        top = torch.autograd.grad(losses.sum(), [made.starts[-1], *cut.parts[-1]])
        true = [top[0]]
        for end, start in zip(reversed(made.ends[1:]), reversed(made.starts[:-1]), strict=True):
            true.insert(0, torch.autograd.grad(end, start, true[0], retain_graph=True)[0])
        adam.zero_grad()
        synthetic = []
        total = torch.zeros(())
        for module, start, gradient in zip(modules.values(), made.starts, true, strict=True):
            h = start.detach().requires_grad_()
            value = nn.functional.cross_entropy(module(h), labels, reduction="none")
            (derivative,) = torch.autograd.grad(value.sum(), h, create_graph=True)
            total = total + ((value - losses.detach()).abs().sum() + (derivative - gradient).abs().sum()) / 32
            synthetic.append(derivative.detach() / 32)
        total.backward()
        adam.step()
        target.optimizer.zero_grad()
        for parameter, gradient in zip(cut.parts[-1], top[1:], strict=True):
            parameter.grad = gradient / 32
        torch.autograd.backward(made.ends, synthetic, inputs=[p for part in cut.parts[:-1] for p in part])
        target.optimizer.step()

    return step
