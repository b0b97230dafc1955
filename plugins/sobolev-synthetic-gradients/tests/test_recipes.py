"""Whole runs: the recipes' smoke, several processes, interruption, and what is said about mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sg_support import Done, sobolev

from sobolev.distributed import free_port

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


LABEL = "objective.derivatives=[{order: 1, input: h, loss: l1}, {order: 1, input: y, loss: l1}]"
CHOICES = {
    "plain": (),
    "value": ("objective.derivatives=[]",),
    "after": ("target.module=after-update",),
    "bootstrapped": ("target.supervision=bootstrapped",),
    "label": ("target.label_derivative=true", LABEL),
}


def settings(changes: tuple[str, ...]) -> list[str]:
    return [part for change in changes for part in ("--set", change)]


def run(folder: Path, *changes: str, text: str = SMALL) -> Done:
    folder.mkdir(exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(text)
    return sobolev("run", str(recipe), "--device", "cpu", "-j", "1", "--runs", str(folder / "runs"), *settings(changes))


def run_in_two_processes(folder: Path, calls: dict[str, tuple[str, ...]]) -> None:
    """Run the small recipe once per call, all in the same two processes: starting them is what takes time."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(SMALL)
    common = ["run", str(folder / "recipe.yaml"), "--device", "cpu", "-j", "1"]
    lines = [[*common, "--runs", str(folder / name / "runs"), *settings(changes)] for name, changes in calls.items()]
    script = folder / "script.py"
    script.write_text(
        "import json, os, sys\n"
        "from sobolev.cli import main\n"
        "for arguments, port in json.loads(sys.argv[1]):\n"
        "    os.environ['MASTER_PORT'] = str(port)\n"
        "    sys.argv[1:] = arguments\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, arguments\n"
    )
    argument = json.dumps([(arguments, free_port()) for arguments in lines])
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen([sys.executable, str(script), argument], env={**shared, "RANK": str(i)}, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for i in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said


def network(folder: Path, variant: str = "default") -> dict[str, torch.Tensor]:
    return load_file(folder / f"runs/small/{variant}/seed-0/network.safetensors")


def student(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "runs/small/default/seed-0/student.safetensors")


def smoke(name: str, root: Path, *arguments: str) -> Path:
    """Run a recipe's smoke; return the folder of its runs."""
    recipe = ROOT / f"recipes/{name}.yaml"
    done = sobolev("run", str(recipe), "--smoke", "--device", "cpu", "-j", "1", "--runs", str(root), *arguments)
    assert done.code == 0, done.text
    (home,) = root.glob("*.smoke")
    return home


def status(directory: Path) -> dict:
    return json.loads((directory / "status.json").read_text())


def test_digits_recipe_runs_every_arm(tmp_path: Path) -> None:
    home = smoke("synthetic-gradients/digits", tmp_path)
    for arm in ARMS:
        found = status(home / arm / "seed-0")["summary"]
        assert 0 <= found["test/top-1"] <= found["test/top-5"] <= 1
        assert {f"test/block{i}/cosine" for i in (1, 2, 3)} <= set(found)
        assert (home / arm / "seed-0/network.safetensors").is_file()
    # The modules of the derivative arms are measured by the fast engine.
    for arm in ("vfbn", "sobolev"):
        engines = status(home / arm / "seed-0")["engines"]
        assert {e.partition(":")[0] for site in engines.values() for e in site.values()} == {"passes"}, engines
    table = sobolev("compare", str(home), "--metric", "test/top-1", "--metric", "test/top-5", "--transpose")
    assert table.code == 0 and all(arm in table.text for arm in ARMS), table.text


@pytest.mark.parametrize("name", ["digits-deep", "choices", "fit", "cifar-shaped"])
def test_other_recipes_are_valid(name: str) -> None:
    done = sobolev("validate", str(ROOT / f"recipes/synthetic-gradients/{name}.yaml"))
    assert done.code == 0, done.text


def test_cifar_recipe_takes_its_smoke_in_cifars_format(tmp_path: Path) -> None:
    """The supplement's network and modules; the other arms differ from these two in nothing that is large."""
    home = smoke("paper/table1-cifar10", tmp_path, "--only", "sobolev", "--only", "direct")
    for arm in ("sobolev", "direct"):
        assert {f"test/block{i}/cosine" for i in (2, 5, 8)} <= set(status(home / arm / "seed-0")["summary"])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
def test_imagenet_recipe_takes_its_smoke_with_the_real_network(tmp_path: Path) -> None:
    home = smoke("paper/table1-imagenet-3", tmp_path, "--only", "sobolev")
    found = status(home / "sobolev/seed-0")["summary"]
    assert {f"test/layer{i}/cosine" for i in (1, 2, 3)} <= set(found)
    one = sobolev("validate", str(ROOT / "recipes/paper/table1-imagenet-1.yaml"))
    assert one.code == 0, one.text


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small recipe with every choice, and with Hogwild, in two processes."""
    folder = tmp_path_factory.mktemp("processes") / "two"
    run_in_two_processes(folder, {**CHOICES, "hogwild": ("train.update=hogwild",)})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
def test_two_processes_are_one_on_the_joint_batch(two: Path, tmp_path: Path, choice: str) -> None:
    done = run(tmp_path / "one", *CHOICES[choice])
    assert done.code == 0, done.text
    for kind in (network, student):
        other = kind(two / choice)
        for name, tensor in kind(tmp_path / "one").items():
            assert (tensor - other[name]).norm() <= 1e-10 * tensor.norm(), name


@pytest.mark.slow
def test_hogwild_of_one_process_is_sequential_and_two_processes_run(two: Path, tmp_path: Path) -> None:
    for update in ("sync", "hogwild"):
        assert run(tmp_path / update, f"train.update={update}").code == 0
    for kind in (network, student):
        other = kind(tmp_path / "hogwild")
        assert all(torch.equal(tensor, other[name]) for name, tensor in kind(tmp_path / "sync").items())
    shared = student(two / "hogwild")
    assert any(not torch.equal(tensor, shared[name]) for name, tensor in student(tmp_path / "sync").items())
    assert all(tensor.isfinite().all() for tensor in shared.values())


def test_noprop_leaves_the_lower_parts_alone(tmp_path: Path) -> None:
    frozen = ("target.gradient=none", "student=no-module", "objective.value.weight=0", "objective.derivatives=[]")
    few, many = (tmp_path / "few", tmp_path / "many")
    for folder, steps in ((few, "1"), (many, "6")):
        assert run(folder, *frozen, f"train.steps={steps}").code == 0
    changed = {
        name.split(".")[0] for name, tensor in network(few).items() if not torch.equal(tensor, network(many)[name])
    }
    assert changed == {"classifier"}


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    text = SMALL.replace("norm: false", "norm: true").replace("steps: 6", "steps: 12, checkpoint: {every: 4}")
    assert run(whole, text=text).code == 0
    broken.mkdir()
    recipe = broken / "recipe.yaml"
    recipe.write_text(text)
    fault = {**os.environ, "OMP_NUM_THREADS": "1", "SOBOLEV_CHECKPOINT_FAULT": "renamed@2"}
    command = [sys.executable, "-m", "sobolev", "run", str(recipe), "--device", "cpu", "--runs", str(broken / "runs")]
    killed = subprocess.run([*command, "-j", "1"], env=fault, capture_output=True, timeout=300)
    assert killed.returncode != 0 and not (broken / "runs/small/default/seed-0/network.safetensors").exists()
    assert run(broken, text=text).code == 0
    for name, tensor in network(whole).items():
        assert torch.equal(tensor, network(broken)[name]), name


def test_any_registered_network_can_be_cut(tmp_path: Path) -> None:
    done = run(tmp_path, "target.network={use: mlp, hidden: [32, 16]}", "target.split=['2', '4']")
    assert done.code == 0, done.text
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
    if "timm" in change and find_spec("timm") is None:
        pytest.skip("timm is not installed")
    done = run(tmp_path, change)
    assert done.code == 2
    assert told in done.text
    assert "Traceback" not in done.text


def test_mistakes_in_the_recipe_have_a_place(tmp_path: Path) -> None:
    done = run(tmp_path, text=SMALL.replace("data: {use: digits", "data: {use: digit").replace("split:", "splits:"))
    assert done.code == 2
    assert "recipe.yaml:5" in done.text and "digits" in done.text
    assert "recipe.yaml:7" in done.text and "did you mean 'split'" in done.text
