"""Real offline runs, read back by W&B's own reader; and everything that can go wrong around them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sobolev_wandb.tracker as module
from sobolev_wandb.plugin import wandb as factory
from sobolev_wandb.tracker import NOTE, WandbTracker, within

from sobolev import RunInfo
from sobolev.recording import Recorder

CONFIG = {"name": "r", "target": {"use": "mccormick"}, "train": {"steps": 3}}


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A user without a login; run directories are relative to the working folder, as people give them."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.chdir(tmp_path)
    yield


def info(directory: Path = Path("runs/r/v/seed-0")) -> RunInfo:
    directory.mkdir(parents=True, exist_ok=True)
    return RunInfo("r", "v", 0, directory, CONFIG, 3, ("mine",))


def records(folder: Path) -> list[dict[str, Any]]:
    """All records of all W&B runs below a folder, as W&B's own command prints them."""
    found: list[dict[str, Any]] = []
    for file in sorted(folder.rglob("*.wandb")):
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        found += [json.loads(line) for line in done.stdout.splitlines()]
    return found


def of(kind: str, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record[kind] for record in found if record["type"] == kind]


def picture(file: Path) -> Path:
    from matplotlib.figure import Figure

    Figure(figsize=(1, 1)).savefig(file)
    return file


def test_a_run_and_its_continuation_as_they_are_recorded() -> None:
    said: list[str] = []
    student = Path("runs/r/v/seed-0/student.safetensors")

    first = Recorder([("wandb", factory(tags=["more"]))], said.append)
    first.start(info(), None)
    identity = json.loads((info().directory / NOTE).read_text())["id"]
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0)):
        first.log(step, {"train/loss": loss})
    first.finish("interrupted", {}, [], None)

    student.write_bytes(b"weights")
    second = Recorder([("wandb", factory())], said.append)
    second.start(info(), 2)
    second.log(3, {"train/loss": 1.5})
    second.finish("finished", {"train/loss": 1.5, "test/score": 7.0}, [picture(Path("figure.png"))], student)
    assert said == []

    found = records(info().directory)
    runs = of("run", found)
    assert [run["run_id"] for run in runs] == [identity, identity]
    for run in runs:
        assert (run["project"], run["run_group"], run["job_type"], run["display_name"]) == ("sobolev", "r", "v", "v/0")
    assert {"mine", "more"} <= set(runs[0]["tags"])
    assert runs[0]["config"]["update"]["target"] == {"use": "mccormick"}

    metrics = of("metric", found)
    assert any(metric.get("name") == "global_step" for metric in metrics)
    assert all(metric["step_metric"] == "global_step" for metric in metrics if metric.get("glob_name") == "*")
    history = [row["item"] for row in of("history", found)]
    steps = [(row["global_step"], row["train/loss"]) for row in history if "train/loss" in row]
    assert steps == [(1, 3.0), (2, 1.0), (3, 2.0), (3, 1.5)]  # nothing is dropped where a resumed run overlaps
    last = [row for row in history if "test/score" in row]
    assert last[0]["test/score"] == 7.0 and last[0]["figures/figure._type"] == "image-file"
    summaries = [row["update"]["train/loss"] for row in of("summary", found) if "train/loss" in row.get("update", {})]
    assert summaries[2] == {"last": 2.0, "min": 1.0}
    artifact = of("artifact", found)[-1]
    assert artifact["type"] == "student" and identity in artifact["name"]
    files = {entry["path"]: Path(entry["local_path"]) for entry in artifact["manifest"]["contents"]}
    assert files == {"student.safetensors": student.resolve()}


def test_a_comparison_holds_the_table_and_says_how_to_upload() -> None:
    said: list[str] = []
    recorder = Recorder([("wandb", factory())], said.append)
    table = "| variant | seeds | loss |\n| --- | --- | --- |\n| a | 2 | 1 ± 0 |"
    Path("runs/r").mkdir(parents=True)
    recorder.compare("r", table, [picture(Path("surface.png"))], Path("runs/r"))
    (line,) = said
    assert "offline (not logged in)" in line and "wandb login" in line and "runs/r" in line
    found = records(Path("runs/r"))
    assert of("run", found)[0]["job_type"] == "compare"
    row = of("history", found)[0]["item"]
    assert row["comparison._type"] == "table-file" and row["figures/surface._type"] == "image-file"


def test_the_id_is_on_disk_before_wandb_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    seen: list[str] = []

    def init(**options: Any) -> Any:
        seen.append(json.loads((info().directory / NOTE).read_text())["id"])
        assert options["id"] == seen[-1]
        raise RuntimeError("not today")

    monkeypatch.setattr(wandb, "init", init)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not today"):
            factory().start(info(), None)
    assert len(seen) == 2 and seen[0] == seen[1]


def _raises(**_: Any) -> Any:
    raise RuntimeError("the service is down")


def _hangs(**_: Any) -> Any:
    time.sleep(30)


@pytest.mark.parametrize(("init", "told"), [(_raises, "the service is down"), (_hangs, "did not answer within")])
def test_trouble_at_the_start_costs_one_warning(
    init: Callable[..., Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(module, "_PATIENCE", -4.9)
    said: list[str] = []
    recorder = Recorder([("wandb", factory())], said.append)
    recorder.start(info(), None)
    recorder.log(1, {"loss": 1.0})
    recorder.finish("finished", {}, [], None)
    assert len(said) == 1 and said[0].startswith("warning: tracker wandb stopped:") and told in said[0]


def test_online_without_a_key_records_offline_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    said: list[str] = []
    tracker = WandbTracker(project="p", entity=None, mode="online", tags=[], student=True, wait=0.0)
    recorder = Recorder([("wandb", tracker)], said.append)
    recorder.start(info(), None)
    recorder.log(1, {"loss": 1.0})
    recorder.finish("finished", {}, [], None)
    recorder.compare("r", "| variant |\n| --- |\n| a |", [], Path("runs/r"))
    assert len(said) == 1 and said[0].startswith("warning: wandb: not logged in")
    assert of("history", records(info().directory))[0]["item"]["loss"] == 1.0


def test_online_without_a_network_keeps_everything_and_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(module.upload, "GRACE", 0.5)
    said: list[str] = []
    recorder = Recorder([("wandb", factory(wait=0.2))], said.append)
    started = time.monotonic()
    recorder.start(info(), None)
    recorder.log(1, {"loss": 1.0})
    recorder.finish("finished", {}, [], None)
    recorder.compare("r", "| variant |\n| --- |\n| a |", [], Path("runs/r"))
    assert time.monotonic() - started < 60
    assert len(said) == 1 and "uploads are not complete" in said[0] and "wandb sync" in said[0]
    assert of("history", records(info().directory))[0]["item"]["loss"] == 1.0
    for process in module.upload._open:  # told, as by the end of the program, that there will be no more
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)


def test_disabled_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = factory()
    tracker.start(info(), None)
    tracker.log(1, {"loss": 1.0})
    tracker.finish("finished", {}, [], None)
    tracker.compare("r", "| a |\n| --- |\n| b |", [], Path("runs/r"))
    assert not list(Path("runs").rglob("*wandb*"))


def test_waiting_is_bounded_and_errors_pass() -> None:
    assert within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)
    with pytest.raises(TimeoutError, match="did not answer"):
        within(0.01, lambda: time.sleep(5))
