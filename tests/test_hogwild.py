"""Parameters in shared memory, changed by several processes that do not wait for each other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

RECIPE = """
name: shared
target: {use: mccormick, train: 64, test: 200}
student: {use: mlp, hidden: [16], activation: tanh}
objective: {value: {loss: squared-l2}, derivatives: [{order: 1}]}
train: {steps: 40, batch_size: 16, update: hogwild, compile: never, optimizer: {use: adam, lr: 1.0e-2}}
dtype: float64
"""


def run(folder: Path, *arguments: str, text: str = RECIPE, devices: int = 1) -> subprocess.CompletedProcess[str]:
    recipe = folder / "recipe.yaml"
    recipe.write_text(text)
    command = [sys.executable, "-m", "sobolev", "run", str(recipe), "--device", "cpu", "-j", "1", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "--devices", str(devices)], capture_output=True, text=True, env=environment, timeout=120
    )


def student(root: Path) -> dict[str, torch.Tensor]:
    return load_file(root / "shared/default/seed-0/student.safetensors")


def test_one_process_is_sequential(tmp_path: Path) -> None:
    assert run(tmp_path, "--runs", str(tmp_path / "a")).returncode == 0
    assert run(tmp_path, "--runs", str(tmp_path / "b"), "--set", "train.update=sync").returncode == 0
    for name, tensor in student(tmp_path / "a").items():
        assert torch.equal(tensor, student(tmp_path / "b")[name])


def test_two_processes_share_what_they_learn(tmp_path: Path) -> None:
    done = run(tmp_path, "--runs", str(tmp_path / "a"), "--set", "train.steps=80", devices=2)
    assert done.returncode == 0, done.stderr
    few = run(tmp_path, "--runs", str(tmp_path / "b"), "--set", "train.steps=1", devices=2)
    assert few.returncode == 0, few.stderr
    errors = []
    for root in (tmp_path / "a", tmp_path / "b"):
        status = (root / "shared/default/seed-0/status.json").read_text()
        errors.append(json.loads(status)["summary"]["test/function/value"])
    assert errors[0] < 0.5 * errors[1]
    assert not list(Path("/dev/shm").glob("sobolev-*"))


def test_parameters_are_one_memory(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import torch
from sobolev.distributed import connect
world = connect("cpu")
torch.manual_seed(world.rank)
module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2)).double()
world.broadcast(module)
before = [p.detach().clone() for p in module.parameters()]
world.share(module)
assert all(torch.equal(a, b) for a, b in zip(before, module.parameters()))
world.barrier()
if world.rank == 1:
    with torch.no_grad():
        for p in module.parameters():
            p += 1
world.barrier()
assert all(torch.equal(a + 1, b) for a, b in zip(before, module.parameters()))
world.close()
"""
    )
    run_in_processes(script)


def run_in_processes(script: Path, count: int = 2) -> None:
    from sobolev.distributed import free_port

    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    processes = [subprocess.Popen([sys.executable, str(script)], env={**shared, "RANK": str(i)}) for i in range(count)]
    assert [process.wait(timeout=60) for process in processes] == [0] * count


def test_several_machines_are_refused(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import os, socket
import torch
from sobolev.distributed import connect
from sobolev.errors import SobolevError
socket.gethostname = lambda: "node" + os.environ["RANK"]
world = connect("cpu")
try:
    world.share(torch.nn.Linear(2, 2))
except SobolevError as error:
    assert "node0" in str(error) and "node1" in str(error) and "update: sync" in str(error)
else:
    raise AssertionError
world.close()
"""
    )
    run_in_processes(script)


@pytest.mark.parametrize(("change", "told"), [
    ("train.optimizer={use: lbfgs}", "lbfgs"),
    ("train.ema=0.9", "train.ema"),
])  # fmt: skip
def test_combinations_that_make_no_sense(tmp_path: Path, change: str, told: str) -> None:
    done = run(tmp_path, "--runs", str(tmp_path / "a"), "--set", change)
    assert done.returncode == 2 and told in done.stdout + done.stderr and "hogwild" in done.stdout + done.stderr


def test_a_worker_that_dies_is_named_and_the_run_resumes(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("steps: 40", "steps: 500, checkpoint: {every: 20}"))
    command = [sys.executable, "-m", "sobolev", "run", str(recipe), "--device", "cpu", "--devices", "2",
               "--runs", str(tmp_path / "a")]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    checkpoints = tmp_path / "a/shared/default/seed-0/checkpoints"
    deadline = time.monotonic() + 60
    while not list(checkpoints.glob("step-*/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {Path(f"/proc/{pid}/environ").read_bytes().split(b"\0RANK=")[1][:1]: int(pid) for pid in children}
    os.kill(ranks[b"1"], signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "process 1 of 2 was killed by signal 9" in err, (out, err)
    again = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert again.returncode == 0, again.stderr
    records = (tmp_path / "a/shared/default/seed-0/status.json").read_text()
    assert '"finished"' in records
