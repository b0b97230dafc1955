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
    assert processes.run("run", folder / "recipe.yaml", "--runs", folder, "-j", 1, log=folder / "log") == 0
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


def newest(run: Path) -> int:
    return max((int(file.parent.name.removeprefix("step-")) for file in whole(run)), default=0)


def test_ten_kills_lose_nothing(processes: Server, recipe: Path, tmp_path: Path, undisturbed: Path) -> None:
    chance = random.Random(1)
    run, command, log = tmp_path / RUN, ("run", recipe, "--runs", tmp_path, "-j", 1), tmp_path / "log"
    had = 0

    def killed(code: int) -> None:
        nonlocal had
        assert code == -signal.SIGKILL, log.read_text()
        assert newest(run) >= had, "a checkpoint was lost"
        had = newest(run)

    # Inside of writing a checkpoint, and while older ones are removed.
    for fault in ("written@2", "flushed@1", "renamed@2", "pruning@1"):
        killed(processes.run(*command, log=log, environment={"SOBOLEV_CHECKPOINT_FAULT": fault}))
    # Anywhere: while it begins, and some time after up to two more checkpoints.
    for more in (0, 1, 2, 0, 1, 2):
        began, later = time.monotonic(), chance.uniform(0, 0.2)

        def due(wanted: int = had + 10 * more, began: float = began, later: float = later) -> bool:
            return newest(run) >= wanted and time.monotonic() > began + later

        killed(processes.run(*command, log=log, kill_after=due))
    assert 0 < had < 300
    assert processes.run(*command, log=log) == 0
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
