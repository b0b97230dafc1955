"""The figure by game and share, and its table."""

import json
from pathlib import Path
from typing import Any

from PIL import Image
from sobolev_atari.report import DistillationReport

from sobolev import RunRecord


def record(folder: Path, game: Any, percent: float, approach: str, seed: int, kl: float, **more: Any) -> RunRecord:
    directory = folder / f"{approach},teacher={game},train_percent={percent}" / f"seed-{seed}"
    directory.mkdir(parents=True)
    lines = [{"step": step, "test/kl-student-teacher": 10 * kl / step} for step in (10, 20)]
    (directory / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    config = {"target": {"teacher": game, "train_percent": percent}}
    summary = {"test/kl-student-teacher": kl, "score": -3.0, "teacher-score": 12.5}
    return RunRecord(directory.parent.name, seed, directory, config, more.get("status", "finished"), summary)


def test_a_panel_per_game_and_share_and_a_line_of_the_table_per_approach(tmp_path: Path) -> None:
    runs = [record(tmp_path, "pong", 1, "regular", seed, kl) for seed, kl in enumerate((0.3, 0.5, 0.1))]
    runs += [record(tmp_path, "pong", 1, "sobolev", 0, 0.2)]
    runs += [record(tmp_path, {"environment": "breakout"}, 5, "sobolev", 0, 0.25)]
    runs += [record(tmp_path, "pong", 5, "sobolev", 1, 0.2, status="failed")]
    figure, table = DistillationReport(["test/kl-student-teacher"]).draw(runs, tmp_path / "figures")
    with Image.open(figure) as picture:
        assert picture.size[0] > 500 and len(picture.convert("RGB").getcolors(1 << 24) or []) > 20
    assert table.read_text().splitlines() == [
        "| game | states that train | approach | seeds | KL(student, teacher) | score | teacher's score |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| pong | 1 % | regular | 3 | 0.3 (0.1 to 0.5) | -3 | 12.5 |",
        "| pong | 1 % | sobolev | 1 | 0.2 | -3 | 12.5 |",
        "| breakout | 5 % | sobolev | 1 | 0.25 | -3 | 12.5 |",
    ]


def test_nothing_is_drawn_of_runs_that_did_not_finish(tmp_path: Path) -> None:
    assert DistillationReport(["x"]).draw([record(tmp_path, "pong", 1, "a", 0, 1.0, status="failed")], tmp_path) == []
