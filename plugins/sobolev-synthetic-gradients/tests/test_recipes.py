"""Whole runs: the recipes' smoke, several processes, interruption, and what is said about mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[3]
ARMS = ("backprop", "noprop", "direct", "vfbn", "critic", "sobolev")
SMALL = """
name: small
target:
  use: synthetic-gradients
  data: {use: digits, train: 100}
  network: {use: convolutional, channels: [4, 4], strides: [2, 2], norm: false}
  split: [block1, block2]
  optimizer: {use: sgd, lr: 0.05, momentum: 0.9, weight_decay: 1.0e-4}
student: {use: class-predictor, channels: [4]}
objective:
  head: log-loss
  value: {loss: l1}
  derivatives: [{order: 1, input: h, loss: l1}]
train: {steps: 6, batch_size: 15, compile: never, optimizer: {use: adam, lr: 1.0e-2}}
evaluate: {points: 40, splits: [test]}
dtype: float64
"""


LABEL = ("--set", "target.label_derivative=true", "--set",
         "objective.derivatives=[{order: 1, input: h, loss: l1}, {order: 1, input: y, loss: l1}]")  # fmt: skip


def sobolev(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300"}
    return subprocess.run([sys.executable, "-m", "sobolev", *arguments], capture_output=True, text=True,
                          env=environment, timeout=300)  # fmt: skip


def run(folder: Path, *arguments: str, text: str = SMALL) -> subprocess.CompletedProcess[str]:
    recipe = folder / "recipe.yaml"
    recipe.write_text(text)
    return sobolev("run", str(recipe), "--device", "cpu", "--runs", str(folder / "runs"), *arguments)


def network(folder: Path, variant: str = "default") -> dict[str, torch.Tensor]:
    return load_file(folder / f"runs/small/{variant}/seed-0/network.safetensors")


def summary(directory: Path) -> dict[str, float]:
    return json.loads((directory / "status.json").read_text())["summary"]


def test_digits_recipe_runs_every_arm(tmp_path: Path) -> None:
    recipe = ROOT / "recipes/synthetic-gradients/digits.yaml"
    done = sobolev("run", str(recipe), "--smoke", "--device", "cpu", "-j", "1", "--runs", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (home,) = tmp_path.glob("*.smoke")
    for arm in ARMS:
        found = summary(home / arm / "seed-0")
        assert 0 <= found["test/top-1"] <= found["test/top-5"] <= 1
        assert {f"test/block{i}/cosine" for i in (1, 2, 3)} <= set(found)
        assert (home / arm / "seed-0/network.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["synthetic-gradients/cifar-shaped", "paper/table1-cifar10", "paper/table1-imagenet-1", "paper/table1-imagenet-3"],
)
def test_paper_recipes_take_their_smoke(tmp_path: Path, name: str) -> None:
    done = sobolev(
        "run", str(ROOT / f"recipes/{name}.yaml"), "--smoke", "--device", "cpu", "-j", "1", "--runs", str(tmp_path)
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "change", [(), ("--set", "objective.derivatives=[]"), ("--set", "target.module=after-update"),
               ("--set", "target.supervision=bootstrapped"), LABEL],
)  # fmt: skip
def test_two_processes_are_one_on_the_joint_batch(tmp_path: Path, change: tuple[str, ...]) -> None:
    for count in ("1", "2"):
        folder = tmp_path / count
        folder.mkdir()
        done = run(folder, "--devices", count, *change)
        assert done.returncode == 0, done.stdout + done.stderr
    for kind in ("network", "student"):
        one, two = (load_file(tmp_path / f"{c}/runs/small/default/seed-0/{kind}.safetensors") for c in "12")
        for name, tensor in one.items():
            assert (tensor - two[name]).norm() <= 1e-10 * tensor.norm(), name


def test_hogwild_of_one_process_is_sequential_and_two_processes_run(tmp_path: Path) -> None:
    made = []
    for update in ("sync", "hogwild"):
        folder = tmp_path / update
        folder.mkdir()
        assert run(folder, "--set", f"train.update={update}").returncode == 0
        made.append(network(folder))
    assert all(torch.equal(tensor, made[1][name]) for name, tensor in made[0].items())
    folder = tmp_path / "two"
    folder.mkdir()
    done = run(folder, "--set", "train.update=hogwild", "--devices", "2")
    assert done.returncode == 0, done.stdout + done.stderr


def test_noprop_leaves_the_lower_parts_alone(tmp_path: Path) -> None:
    changes = ("target.gradient=none", "student=no-module", "objective.value.weight=0", "objective.derivatives=[]")
    frozen = [part for change in changes for part in ("--set", change)]
    few, many = (tmp_path / "few", tmp_path / "many")
    for folder, steps in ((few, "1"), (many, "6")):
        folder.mkdir()
        assert run(folder, *frozen, "--set", f"train.steps={steps}").returncode == 0
    changed = {
        name.split(".")[0] for name, tensor in network(few).items() if not torch.equal(tensor, network(many)[name])
    }
    assert changed == {"classifier"}


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    text = SMALL.replace("norm: false", "norm: true").replace("steps: 6", "steps: 12, checkpoint: {every: 4}")
    for folder in (whole, broken):
        folder.mkdir()
    assert run(whole, text=text).returncode == 0
    recipe = broken / "recipe.yaml"
    recipe.write_text(text)
    fault = {**os.environ, "OMP_NUM_THREADS": "1", "SOBOLEV_CHECKPOINT_FAULT": "renamed@2"}
    command = [sys.executable, "-m", "sobolev", "run", str(recipe), "--device", "cpu", "--runs", str(broken / "runs")]
    killed = subprocess.run([*command, "-j", "1"], env=fault, capture_output=True, timeout=120)
    assert killed.returncode != 0 and not (broken / "runs/small/default/seed-0/network.safetensors").exists()
    assert run(broken, text=text).returncode == 0
    for name, tensor in network(whole).items():
        assert torch.equal(tensor, network(broken)[name]), name


def test_any_registered_network_can_be_cut(tmp_path: Path) -> None:
    done = run(tmp_path, "--set", "target.network={use: mlp, hidden: [32, 16]}", "--set", "target.split=['2', '4']")
    assert done.returncode == 0, done.stdout + done.stderr
    assert network(tmp_path)["3.weight"].shape == (16, 32)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("target.split=[block1, blok2]", "no layer 'blok2'; the nearest names are 'block2'"),
        ("target.data={use: cifar10, directory: nowhere}", "cifar-10-python.tar.gz is not there"),
        ("student={use: direct-gradient}", "reference: gradient"),
        ("target.network={use: timm-classifier, model: resnet-50}", "'resnet50'"),
        ("objective.head=identity", "log-loss"),
        ("student={use: mlp}", "takes one input"),
    ],
)
def test_mistakes_are_told_in_one_message(tmp_path: Path, change: str, told: str) -> None:
    done = run(tmp_path, "--set", change)
    assert done.returncode == 2
    assert told in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_mistakes_in_the_recipe_have_a_place(tmp_path: Path) -> None:
    done = run(tmp_path, text=SMALL.replace("data: {use: digits", "data: {use: digit").replace("split:", "splits:"))
    assert done.returncode == 2
    assert "recipe.yaml:5" in done.stderr and "digits" in done.stderr
    assert "recipe.yaml:7" in done.stderr and "did you mean 'split'" in done.stderr
