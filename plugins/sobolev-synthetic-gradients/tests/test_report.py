"""The figure of methods, and the table in the shape of Table 1."""

from __future__ import annotations

import json
from pathlib import Path

from sobolev_synthetic_gradients.report import MethodsReport

from sobolev import RunRecord


def record(folder: Path, variant: str, seed: int, top: float, cosine: float, status: str = "finished") -> RunRecord:
    directory = folder / variant / f"seed-{seed}"
    directory.mkdir(parents=True)
    lines = [json.dumps({"step": step, "test/top-1": top * step / 100}) for step in (50, 100)]
    (directory / "metrics.jsonl").write_text("\n".join(lines))
    summary = {"test/top-1": top, "test/top-5": 0.9, "test/block1/cosine": cosine, "train/block1/cosine": 0.1}
    return RunRecord(variant, seed, directory, {}, status, summary)


def test_table_has_a_column_per_method_and_the_reference_in_front(tmp_path: Path) -> None:
    runs = [
        record(tmp_path, "backprop", 0, 0.9, 0.0),
        record(tmp_path, "backprop", 1, 0.8, 0.0),
        record(tmp_path, "critic", 0, 0.7, 0.3),
        record(tmp_path, "critic", 1, 0.72, float("nan")),
        record(tmp_path, "direct", 0, 0.5, 0.3),
        record(tmp_path, "direct", 1, 0.1, 0.3, status="failed"),
    ]
    drawn = MethodsReport("test").draw(runs, tmp_path / "figures")
    assert [path.name for path in drawn] == ["synthetic-gradients.png", "table1.md"]
    assert drawn[0].stat().st_size > 10_000
    assert drawn[1].read_text().splitlines() == [
        "| | critic | direct |",
        "|---|---|---|",
        "| Top 1 (85.0%) | 71.0% ± 1.41 | 50.0% |",
        "| Top 5 (90.0%) | 90.0% ± 0.00 | 90.0% |",
    ]


def test_nothing_is_drawn_where_nothing_was_measured(tmp_path: Path) -> None:
    assert MethodsReport("validation").draw([record(tmp_path, "critic", 0, 0.7, 0.3)], tmp_path / "figures") == []


def test_the_split_that_was_measured_is_shown(tmp_path: Path) -> None:
    drawn = MethodsReport("auto").draw([record(tmp_path, "critic", 0, 0.95, 0.3)], tmp_path / "figures")
    assert "| Top 1 | 95.0% |" in drawn[1].read_text()
    summary = {"validation/top-1": 0.5}
    directory = tmp_path / "critic/seed-0"
    (directory / "metrics.jsonl").write_text(json.dumps({"step": 1, **summary}))
    drawn = MethodsReport("auto").draw([RunRecord("critic", 0, directory, {}, "finished", summary)], tmp_path)
    assert "| Top 1 | 50.0% |" in drawn[1].read_text()
