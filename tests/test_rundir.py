"""The run directory: files in one piece, numbers that JSON has no word for, and where a recipe came from."""

from __future__ import annotations

import itertools
import json
import math
import threading
from pathlib import Path

import pytest
from families import experiment, plan

from sobolev.components import RunInfo
from sobolev.errors import RecipeError
from sobolev.recording import MetricsFile, Recorder
from sobolev.rundir import Lock, RunDirectory, find_runs, jsonable, read_metrics, read_run, write_atomic


def test_a_directory_describes_its_run(tmp_path: Path) -> None:
    made = plan(tmp_path)
    directory = RunDirectory(tmp_path / "runs" / made.directory)
    assert directory.state(made) == "new"
    directory.create(made)
    assert directory.state(made) == "unfinished" and directory.origin() == (tmp_path / "recipe.yaml").resolve()
    environment = json.loads((directory.path / "env.json").read_text())
    assert {"python", "packages", "command", "started"} <= environment.keys() and environment["packages"]["torch"]
    directory.write_status("finished", summary={"a": 1.0, "b": math.nan})
    assert directory.state(made) == "finished"
    record = read_run(directory.path)
    assert (record.variant, record.seed, record.status) == ("default", 0, "finished")
    assert record.summary["a"] == 1.0 and math.isnan(record.summary["b"])
    assert [found.directory for found in find_runs(tmp_path / "runs")] == [directory.path]
    with pytest.raises(RecipeError, match=r"train\.steps: 6 -> 7"):
        directory.state(plan(tmp_path, "train.steps=7"))
    assert directory.state(plan(tmp_path, "figures=[bars]", "tags=[new]", "track=[console]")) == "finished"
    for other in (tmp_path, tmp_path / "runs"):  # the first holds the recipe of a user
        with pytest.raises(RecipeError, match="no run directory"):
            read_run(other)
    assert [found.directory for found in find_runs(tmp_path)] == [directory.path]


def test_what_failed_before_its_first_checkpoint_is_not_worth_keeping(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create(plan(tmp_path))
    directory.write_status("failed")
    assert directory.state(plan(tmp_path)) == "unfinished"
    assert directory.state(plan(tmp_path, "train.steps=7")) == "new"
    (directory.checkpoints / "step-00000001").mkdir()
    with pytest.raises(RecipeError, match="another recipe"):
        directory.state(plan(tmp_path, "train.steps=7"))


def test_only_one_holds_the_lock(tmp_path: Path) -> None:
    with Lock(tmp_path), pytest.raises(RecipeError, match=r"is in use by process \d+ on"), Lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "lock.json").write_text('{"pid": 1, "host": "elsewhere"}')  # of a process that is gone
    with Lock(tmp_path):
        pass


def test_of_many_that_want_the_lock_one_has_it_at_a_time(tmp_path: Path) -> None:
    inside, most = 0, 0

    def want() -> None:
        nonlocal inside, most
        had = 0
        while had < 50:
            try:
                with Lock(tmp_path):
                    inside += 1
                    most = max(most, inside)
                    had += 1
                    inside -= 1
            except RecipeError:
                continue

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_clearing_leaves_the_lock(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create(plan(tmp_path))
    (directory.path / "link").symlink_to(tmp_path)
    with Lock(directory.path):
        directory.clear()
        assert [path.name for path in directory.path.iterdir()] == ["lock.json"]
    assert (tmp_path / "recipe.yaml").is_file()


def test_numbers_that_json_has_no_word_for() -> None:
    assert jsonable({"a": math.inf, "b": (1, math.nan), 3: 2.5}) == {"a": "inf", "b": [1, "nan"], "3": 2.5}


def test_files_are_written_in_one_piece(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    write_atomic(file, "one")
    write_atomic(file, "two")
    assert file.read_text() == "two" and [path.name for path in tmp_path.iterdir()] == ["status.json"]


def info(folder: Path) -> RunInfo:
    return RunInfo("r", "v", 0, folder, {}, 10)


def test_a_resumed_run_drops_what_it_will_record_again(tmp_path: Path) -> None:
    for resumed, steps in ((None, (1, 2, 3, 4)), (2, (3, 4))):
        file = MetricsFile()
        file.start(info(tmp_path), resumed)
        for step in steps:
            file.log(step, {"a": float(step), "b": math.nan})
        file.finish("finished", {}, [], None)
    rows = list(read_metrics(tmp_path / "metrics.jsonl"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and rows[0]["b"] == "nan"
    assert all(a["seconds"] <= b["seconds"] for a, b in itertools.pairwise(rows))


def test_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 1}\n{"step": 2, "a"')
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1]
    assert list(read_metrics(tmp_path / "none.jsonl")) == []


def test_a_tracker_that_fails_is_left_out_and_warned_about_once(tmp_path: Path) -> None:
    from sobolev import Tracker

    class Failing(Tracker):
        logged = 0

        def log(self, step: int, metrics: object) -> None:
            self.logged += 1
            if step > 1:
                raise ConnectionError("gone")

    said: list[str] = []
    failing, file = Failing(), MetricsFile()
    recorder = Recorder([("metrics.jsonl", file), ("failing", failing)], said.append)
    recorder.start(info(tmp_path), None)
    for step in (1, 2, 3):
        recorder.log(step, {"a": 0.0})
    recorder.finish("finished", {}, [], None)
    assert said == ["warning: tracker failing stopped: ConnectionError: gone"] and failing.logged == 2
    assert len(list(read_metrics(tmp_path / "metrics.jsonl"))) == 3


def test_parts_are_closed_and_prepared_once(tmp_path: Path) -> None:
    made = experiment(tmp_path, "target={use: online}")
    assert made.target.prepared == 1 and made.target.closed == 0  # type: ignore[attr-defined]
