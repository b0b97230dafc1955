"""On a CUDA device: other tests run there too, by ``SOBOLEV_TEST_DEVICE=cuda``; here is what only such a device has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import HOST, experiment
from torch import Tensor, nn

from sobolev import devices
from sobolev.differentiate.measure import Measurer, Policy
from sobolev.distributed import World, free_port
from sobolev.heads import HEADS
from sobolev.rundir import read_metrics
from sobolev.train import Trainer
from sobolev.vocabulary import Contraction, Points, Probe, Site

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

RECIPE = """
name: r
target: {use: mccormick, train: 200, test: 50}
student: {use: mlp, hidden: [32, 32], activation: tanh}
objective: {derivatives: [{order: 1}]}
train: {steps: 40, batch_size: 20, log_every: 1, checkpoint: {every: 5}}
"""


def sobolev(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = [sys.executable, "-m", "sobolev", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**kept, "COLUMNS": "200", **environment}, capture_output=True, text=True, timeout=300
    )


def losses(folder: Path) -> list[float]:
    (metrics,) = folder.rglob("metrics.jsonl")
    return [float(row["train/loss"]) for row in read_metrics(metrics) if "train/loss" in row]


def trained(folder: Path, *arguments: str, **environment: str) -> list[float]:
    """Train by the command; returns the losses."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE)
    done = sobolev(folder, "run", "recipe.yaml", *arguments, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return losses(folder)


def test_the_command_trains_there_as_on_the_cpu(tmp_path: Path) -> None:
    double = ("--set", "dtype=float64")
    expected = trained(tmp_path / "cpu", "--device", "cpu", *double)
    assert trained(tmp_path / "cuda", *double) == pytest.approx(expected, rel=1e-9)  # auto takes it


def test_a_process_group_of_nccl(tmp_path: Path) -> None:
    alone = trained(tmp_path / "alone", "--device", "cuda")
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    found = trained(tmp_path / "group", "--device", "cuda", **group, MASTER_PORT=str(free_port()))
    assert found == alone


def test_more_processes_than_devices_are_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = sobolev(
        tmp_path, "run", "recipe.yaml", "--device", "cuda", "--devices", str(torch.cuda.device_count() + 1)
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode and "every process needs one of its own" in said and "Traceback" not in said, said


def test_a_student_from_there_is_used_without_it(tmp_path: Path) -> None:
    trained(tmp_path / "cuda")
    nowhere = {"CUDA_VISIBLE_DEVICES": ""}
    (directory,) = {file.parent for file in (tmp_path / "cuda").rglob("metrics.jsonl")}
    script = "import sys, torch; from sobolev import load; print(load(sys.argv[1])(torch.zeros(1, 2)).value.shape)"
    loaded = subprocess.run(
        [sys.executable, "-c", script, str(directory)], env={**os.environ, **nowhere}, capture_output=True, text=True
    )
    assert loaded.returncode == 0, loaded.stderr


class Atari(nn.Sequential):
    """The paper's student."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(4, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.Flatten(),
            nn.Linear(2592, 256), nn.ReLU(), nn.Linear(256, 6),
        )  # fmt: skip


def measured(module: nn.Module, x: Tensor, v: Tensor, engine: str) -> dict[str, Tensor]:
    """Value, derivative, and the parameter gradient of their squares, in float64."""
    site = Site({"x": tuple(x.shape[1:])}, 6, ("x",))
    policy = Policy(steps=1, compile="never")
    measurer = Measurer(module, HEADS["log-softmax"], site, policy, {"d/dx (output side)": f"{engine}: as before"})
    jet = measurer.measure(Points({"x": x}, ("x",), torch.arange(len(x))), Probe({("x",): Contraction(v, (None,))}))
    assert measurer.describe()["d/dx (output side)"].startswith(f"{engine}:")
    derivative = jet["x",]
    loss = jet.value.square().mean() + 1e4 * derivative.square().mean()
    found = {"value": jet.value, "derivative": derivative}
    if engine == "passes":  # the backward pass of double backward is the caller's own
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        found["parameter gradient"] = torch.cat([g.reshape(-1) for g in gradients])
    return {name: tensor.detach().double() for name, tensor in found.items()}


def errors(engine: str) -> dict[str, float]:
    """Relative errors of single precision."""
    torch.manual_seed(0)
    module = Atari().cuda()
    x, v = torch.rand(16, 4, 84, 84, device="cuda"), torch.randn(16, 1, 6, device="cuda")
    found = measured(module, x, v, engine)
    expected = measured(module.double(), x.double(), v.double(), engine)
    return {name: float((found[name] - t).norm() / t.norm()) for name, t in expected.items()}


@pytest.mark.parametrize("engine", ["passes", "double backward"])
def test_single_precision_is_single_precision(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in TF32, which torch takes by default, would be wrong in the third digit."""
    assert torch.backends.cudnn.allow_tf32
    assert max(errors(engine).values()) < 2e-5
    assert torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(devices, "_tf32", lambda: False)
    assert errors(engine)["derivative"] > 1e-3


def test_training_is_in_single_precision(tmp_path: Path) -> None:
    """The backward pass of a run is computed without TF32 too."""
    seen = []
    made = experiment(tmp_path, "train.steps=2", world=World(torch.device("cuda")))
    next(made.module.parameters()).register_hook(lambda _: seen.append(torch.backends.cudnn.allow_tf32))
    Trainer(made, HOST.registry).run()
    assert seen and not any(seen) and torch.backends.cudnn.allow_tf32
