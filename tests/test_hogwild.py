"""Parameters in shared memory, changed by several processes that do not wait for each other."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

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


def arguments(folder: Path, *more: str, text: str = RECIPE) -> list[str]:
    recipe = folder / "recipe.yaml"
    recipe.write_text(text)
    return ["run", str(recipe), "--device", "cpu", *more]


def run_here(folder: Path, *more: str) -> tuple[int, str]:
    """Run in this process; return exit code and what was said."""
    from sobolev.cli import main

    said = io.StringIO()
    command = ["sobolev", *arguments(folder, "-j", "1", *more)]
    with (
        mock.patch.object(sys, "argv", command),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
    raise AssertionError("the command line always exits")


def run_in_two(folder: Path, *more: str, text: str = RECIPE) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sobolev", *arguments(folder, *more, text=text), "--devices", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def home(root: Path) -> Path:
    return root / "shared/default/seed-0"


def test_one_process_is_sequential(tmp_path: Path) -> None:
    students = []
    for update in ("hogwild", "sync"):
        code, said = run_here(tmp_path, "--runs", str(tmp_path / update), "--set", f"train.update={update}")
        assert code == 0, said
        students.append(load_file(home(tmp_path / update) / "student.safetensors"))
    for name, tensor in students[0].items():
        assert torch.equal(tensor, students[1][name])


def test_processes_share_what_they_learn_and_a_worker_that_dies_is_named(tmp_path: Path) -> None:
    code, _ = run_here(tmp_path, "--runs", str(tmp_path / "few"), "--set", "train.steps=1")
    assert code == 0
    runs = ("--runs", str(tmp_path / "many"))
    text = RECIPE.replace("steps: 40", "steps: 500, checkpoint: {every: 20}")
    process = run_in_two(tmp_path, *runs, text=text)
    checkpoints = home(tmp_path / "many") / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step-*/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {Path(f"/proc/{pid}/environ").read_bytes().split(b"\0RANK=")[1][:1]: int(pid) for pid in children}
    os.kill(ranks[b"1"], signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "process 1 of 2 was killed by signal 9" in err, (out, err)

    saved = max(int(path.parent.name.partition("-")[2]) for path in checkpoints.glob("step-*/manifest.json"))
    before = records(tmp_path / "many", saved)
    again = run_in_two(tmp_path, *runs, text=text)
    out, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    # Two processes in a race never make the same numbers twice: these were kept, so the run went on from there.
    assert before and records(tmp_path / "many", saved) == before
    errors = []
    for root in (tmp_path / "few", tmp_path / "many"):
        status = json.loads((home(root) / "status.json").read_text())
        assert status["status"] == "finished"
        errors.append(status["summary"]["test/function/value"])
    assert errors[1] < 0.5 * errors[0]
    assert not list(Path("/dev/shm").glob("sobolev-*"))


def records(root: Path, until: int) -> list[dict]:
    lines = (home(root) / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["step"] <= until]


def test_parameters_are_one_memory_on_one_machine_and_refused_on_several(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import os, socket
import torch
from sobolev.distributed import connect
from sobolev.errors import SobolevError
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

socket.gethostname = lambda: "node" + os.environ["RANK"]
try:
    world.share(torch.nn.Linear(2, 2))
except SobolevError as error:
    assert "node0" in str(error) and "node1" in str(error) and "update: sync" in str(error)
else:
    raise AssertionError
world.close()
"""
    )
    from sobolev.distributed import free_port

    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [subprocess.Popen([sys.executable, str(script)], env={**shared, "RANK": str(i)}) for i in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]


@pytest.mark.parametrize(("change", "told"), [
    ("train.optimizer={use: lbfgs}", "lbfgs"),
    ("train.ema=0.9", "train.ema"),
])  # fmt: skip
def test_combinations_that_make_no_sense(tmp_path: Path, change: str, told: str) -> None:
    code, said = run_here(tmp_path, "--runs", str(tmp_path / "a"), "--set", change)
    assert code == 2 and told in said and "hogwild" in said
