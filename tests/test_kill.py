"""Runs that are killed and told to stop, in real processes: nothing is lost, and the same command continues."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import Server, server

RECIPE = """
name: r
target: {use: mccormick, train: 40, test: 800}
student: {use: mlp, hidden: [8], activation: tanh}
objective: {derivatives: [{order: 1}]}
train:
  {steps: 300, batch_size: 8, log_every: 10, checkpoint: {every: 10, keep: 2}, compile: never, preflight: false}
evaluate: {every: 100, batch_size: 100}
"""
RUN = Path("r/default/seed-0")


@pytest.fixture(scope="module")
def processes() -> Iterator[Server]:
    with server() as made:
        yield made


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    return file


@pytest.fixture(scope="module")
def undisturbed(processes: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "recipe.yaml").write_text(RECIPE)
    began = time.monotonic()
    assert processes.run("run", folder / "recipe.yaml", "--runs", folder, "-j", 1, log=folder / "log") == 0
    (folder / "seconds").write_text(str(time.monotonic() - began))
    return folder


def records(run: Path) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def assert_same_run(root: Path, other: Path) -> None:
    one, two = root / RUN, other / RUN
    assert (one / "student.safetensors").read_bytes() == (two / "student.safetensors").read_bytes()
    assert records(one) == records(two)
    assert not list((one / "checkpoints").glob("*.tmp-*")) and not (one / "lock.json").exists()


def whole(run: Path) -> list[Path]:
    return list((run / "checkpoints").glob("step-????????/manifest.json"))


def test_ten_kills_lose_nothing(processes: Server, recipe: Path, tmp_path: Path, undisturbed: Path) -> None:
    seconds = float((undisturbed / "seconds").read_text())
    chance = random.Random(1)
    kills = 0
    faults = [f"{point}@{time}" for point, time in (("written", 2), ("flushed", 1), ("renamed", 2), ("pruning", 1))]
    had = 0
    for attempt in range(100):
        fault = faults.pop(0) if faults and attempt % 2 else ""
        moment = time.monotonic() + chance.uniform(0, 0.7 * seconds)
        code = processes.run(
            "run", recipe, "--runs", tmp_path, "-j", 1, log=tmp_path / "log",
            environment={"SOBOLEV_CHECKPOINT_FAULT": fault},
            kill_after=(lambda moment=moment: time.monotonic() > moment) if not fault and kills < 10 else None,
        )  # fmt: skip
        steps = [int(file.parent.name.removeprefix("step-")) for file in whole(tmp_path / RUN)]
        assert max(steps, default=0) >= had, "a checkpoint was lost"
        had = max(steps, default=0)
        if code == 0:
            break
        assert code == -signal.SIGKILL, (tmp_path / "log").read_text()
        kills += 1
    assert kills >= 5 and not faults, "the machine was too quick: nothing was killed"
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)], ids=lambda v: str(v)
)
def test_signals_stop_a_run_after_a_checkpoint(
    processes: Server, recipe: Path, tmp_path: Path, undisturbed: Path, signum: int, code: int
) -> None:
    metrics = tmp_path / RUN / "metrics.jsonl"
    # The last one comes while the student is evaluated after step 100, or soon after.
    conditions: dict[int, Callable[[], bool]] = {
        signal.SIGTERM: lambda: bool(whole(tmp_path / RUN)),
        signal.SIGINT: lambda: metrics.exists() and '"step": 50,' in metrics.read_text(),
        signal.SIGUSR1: lambda: metrics.exists() and '"step": 100,' in metrics.read_text(),
    }
    command = ("run", recipe, "--runs", tmp_path, "-j", 1)
    log = tmp_path / "log"
    assert processes.run(*command, log=log, kill_after=conditions[signum], signum=signum) == code
    assert "the same command continues from the last checkpoints" in log.read_text().replace("\n", " ")
    status = json.loads((tmp_path / RUN / "status.json").read_text())
    assert status["status"] == "interrupted" and 0 < status["step"] < 300
    assert max(whole(tmp_path / RUN)).parent.name == f"step-{status['step']:08d}", "not a fresh checkpoint"
    assert not (tmp_path / RUN / "lock.json").exists()
    assert processes.run(*command, log=log) == 0
    assert_same_run(tmp_path, undisturbed)


def test_a_second_process_is_kept_out_and_a_killed_one_keeps_nobody_out(
    processes: Server, recipe: Path, tmp_path: Path
) -> None:
    command = ("run", recipe, "--runs", tmp_path, "-j", 1)
    answers: list[int] = []

    def meanwhile() -> bool:
        if not whole(tmp_path / RUN):
            return False
        answers.append(processes.run(*command, log=tmp_path / "second"))
        answers.append(processes.run(*command, "--force", log=tmp_path / "third"))
        return True

    slow = ("--set", "train.steps=100000")
    command = (*command, *slow)
    assert processes.run(*command, log=tmp_path / "log", kill_after=meanwhile) == -signal.SIGKILL
    assert answers == [2, 2]
    for log in ("second", "third"):
        text = (tmp_path / log).read_text().replace("\n", "")
        assert "is in use by process" in text and "Traceback" not in text
    assert whole(tmp_path / RUN), "--force has deleted what another process writes"
    assert (tmp_path / RUN / "lock.json").exists()  # of a process that is no more
    stop = processes.run(*command, log=tmp_path / "log", kill_after=lambda: True, signum=signal.SIGTERM)
    assert stop in (143, -signal.SIGTERM)
