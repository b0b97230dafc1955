"""Small parts that the tests share: images of noise, a network without batch statistics, one step by hand."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from sobolev_synthetic_gradients.settings import Digits
from sobolev_synthetic_gradients.target import SyntheticGradients
from torch import Tensor, nn

from sobolev import HEADS, Batch, Context, Jet, Learner, Points, Probe, Site, Student
from sobolev.differentiate.autograd import differentiate
from sobolev.distributed import World

CLASSES = 10


class Small(Student):
    """Three tanh layers (smooth: nothing hangs on which side of a kink a number lies)."""

    def __init__(self, norm: bool = False) -> None:
        self.norm = norm

    def build(self, site: Site) -> nn.Module:
        norm = [nn.BatchNorm1d(6)] if self.norm else []
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 6), *norm, nn.Tanh(), nn.Linear(6, site.outputs)
        )


def uncut(module: nn.Module) -> nn.Module:
    """A copy without the hooks that cut."""
    copied = copy.deepcopy(module)
    for part in copied.modules():
        part._forward_hooks.clear()
    return copied


def rest(network: nn.Module, after: str) -> nn.Module:
    """The exact module: a copy of what the network computes after a cut."""
    assert isinstance(network, nn.Sequential)
    return uncut(network[int(after) + 1 :])


def context(tmp_path: Path, head: str = "log-loss", world: World | None = None) -> Context:
    world = world or World(torch.device("cpu"))
    return Context(world.device, torch.float64, world, 0, HEADS[head], tmp_path, tmp_path, say=lambda _: None)


def target(tmp_path: Path, network: Student | None = None, split: tuple[str, ...] = ("2", "4"), **options: Any
           ) -> SyntheticGradients:  # fmt: skip
    settings: dict[str, Any] = {
        "reference": "loss",
        "gradient": "derivative",
        "supervision": "backprop",
        "module": "before-update",
        "label_derivative": False,
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4),
        "drops": [],
        "drop_factor": 0.1,
    } | options
    world = settings.pop("world", None)
    made = SyntheticGradients(Digits(use="digits"), network or Small(), split, **settings)
    made.prepare(context(tmp_path, made.heads[0], world))
    return made


class Modules(Learner):
    """Students measured by autograd."""

    def __init__(self, modules: Mapping[str, nn.Module], head: str = "log-loss") -> None:
        self.module = nn.ModuleDict(modules)
        self.head = HEADS[head]

    def measure(self, points: Mapping[str, Points]) -> dict[str, Jet]:
        jets = {}
        for name, where in points.items():
            probe = Probe.full(tuple((x,) for x in where.differentiate))
            module = self.module[name]
            jets[name] = differentiate(
                lambda inputs, module=module: self.head(module(inputs["h"]), inputs), where, probe, False
            ).detach()
        return jets


def batch(made: SyntheticGradients, count: int = 16, split: str = "train", start: int = 0) -> Batch:
    ids = torch.arange(start, start + count)
    return Batch(split, ids, made.load(split, ids))


def probes(points: Mapping[str, Points], *keys: tuple[str, ...]) -> dict[str, Probe]:
    return {name: Probe.full(keys) for name in points}


def true_gradients(made: SyntheticGradients, given: Batch) -> tuple[Tensor, ...]:
    """The parameters' gradients of the mean loss, by back-propagation through a copy that is not cut."""
    network = uncut(made.network.network).train()
    images, labels = given.data
    mean = nn.functional.cross_entropy(network(images.double()), labels)
    return torch.autograd.grad(mean, list(network.parameters()))


@dataclass(frozen=True)
class Done:
    """Exit code and all that was written by a command."""

    code: int
    text: str


def sobolev(*arguments: str) -> Done:
    """Run a command in this process, as the command line would."""
    from sobolev.cli import main

    said = io.StringIO()
    code: Any = 0
    with (
        mock.patch.object(sys, "argv", ["sobolev", *arguments]),
        mock.patch.dict(os.environ, {"COLUMNS": "300"}),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code
    return Done(int(code or 0), said.getvalue())
