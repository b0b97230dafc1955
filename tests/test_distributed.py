"""Several processes give the gradients of one, whatever their shards hold, and agree on everything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import worlds
from safetensors.torch import load_file

from sobolev.distributed import World, free_port

HERE = Path(__file__).parent


def one_thread(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes computed: a folder with one folder per rank."""
    folder = tmp_path_factory.mktemp("two")
    shared = one_thread(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), WORLD_SIZE="2")
    started = [
        subprocess.Popen([sys.executable, str(HERE / "worlds.py"), str(folder)], env={**shared, "RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(timeout=240) for process in started] == [0, 0]
    return folder


@pytest.mark.parametrize("case", worlds.CASES)
def test_two_processes_give_the_gradients_of_one(two: Path, tmp_path: Path, case: str) -> None:
    expected = worlds.trained(tmp_path, World(torch.device("cpu")), worlds.CASES[case])
    found, other = (load_file(two / str(rank) / f"{case}.safetensors") for rank in range(2))
    # The line search of L-BFGS goes its own way over many evaluations; its first numbers agree like all others.
    tolerance = 1e-9 if case == "closure" else 1e-12
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        scale = max(1.0, float(tensor.abs().max()))
        assert float((found[name] - tensor).abs().max()) <= tolerance * scale, name
    # Weights never drift apart, not by the last bit.
    for name, tensor in other.items():
        assert torch.equal(tensor, found[name]), name
    assert any(name.startswith("gradient") for name in found) == (case != "no student")


def test_a_rank_without_samples_is_really_there() -> None:
    world = World(torch.device("cpu"))
    world.size = 2
    for rank, rows in ((0, [5]), (1, [])):
        world.rank = rank
        assert world.shard(torch.tensor([5])).tolist() == rows


def test_a_number_that_is_none_stops_all_with_the_same_words(two: Path) -> None:
    assert (two / "0/broken").read_text() == (two / "1/broken").read_text()


def test_a_signal_to_one_process_stops_all_after_the_same_step(two: Path) -> None:
    assert (two / "0/stopped").read_text() == (two / "1/stopped").read_text() == "3"


RECIPE = """
name: r
target: {use: mccormick, train: 21, test: 33}
student: {use: mlp, hidden: [8], activation: tanh}
objective: {derivatives: [{order: 1}]}
train: {steps: 12, batch_size: 7, compile: never}
dtype: float64
"""


def test_torchrun_and_devices_train_what_one_process_trains(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    command = ["-m", "sobolev", "run", str(recipe), "--device", "cpu", "--runs"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    students, summaries = [], []
    alone = [sys.executable]
    for name, start, more in (("one", alone, ()), ("torchrun", torchrun, ()), ("two", alone, ("--devices", "2"))):
        done = subprocess.run(
            [*start, *command, str(tmp_path / name), *more],
            env=one_thread(), capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("trained in") == 1, "only the first process speaks"
        run = tmp_path / name / "r/default/seed-0"
        students.append(load_file(run / "student.safetensors"))
        summaries.append(json.loads((run / "status.json").read_text())["summary"])
    for student, summary in zip(students[1:], summaries[1:], strict=True):
        for name, tensor in students[0].items():
            assert float((tensor - student[name]).abs().max()) < 1e-11, name
        assert summary == pytest.approx(summaries[0], rel=1e-9)
