"""What the benchmark of surrogates decides by itself: configurations to try, the one that is chosen, its tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def surrogates(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    import surrogates

    return surrogates


def row(function: str, points: int, method: str, config: int, seed: int, error: float | None) -> dict[str, Any]:
    where = {"function": function, "dimension": 2, "points": points, "method": method, "config": config, "seed": seed}
    measured = {"value": error, "partials": error, "processor_seconds": 1.0, "status": "finished"}
    return where | (measured if error is not None else {"status": "unfinished"})


def written(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


def test_every_peer_has_as_many_different_configurations(surrogates: ModuleType) -> None:
    for method in ("jenn", "genn", "gekpls", "kriging"):
        configs = surrogates.METHODS[method][1]
        assert configs[0] == {} and len(configs) == 60
        assert len({json.dumps(c, sort_keys=True) for c in configs}) == 60


def test_the_better_half_of_those_added_is_tried_at_further_sizes(surrogates: ModuleType, tmp_path: Path) -> None:
    development = surrogates.DEVELOPMENT
    found = [row("booth", 20, "jenn", c, development, 2.0 + c if c % 2 else 1.0 + c) for c in range(60)]
    file = written(tmp_path / "r.jsonl", found)
    first = surrogates.development(20, 20, ["jenn"], ["booth"], file)
    later = surrogates.development(100, 20, ["jenn"], ["booth"], file)
    assert [unit[2] for unit in first] == [*range(60)]
    assert [unit[2] for unit in later] == [*range(45)]
    assert all(unit[3] == development and unit[0].points == 100 for unit in later)


def test_the_best_in_all_cases_is_chosen(surrogates: ModuleType, tmp_path: Path) -> None:
    development = surrogates.DEVELOPMENT
    errors = {0: (1.0, 1.0), 1: (0.1, 4.0), 2: (0.1, None), 3: (0.01,), 4: (10.0, 10.0)}
    rows = [
        row("booth", points, "genn", config, development, error)
        for config, of in errors.items()
        for points, error in zip((20, 100), of, strict=False)
    ]
    rows += [row("booth", 20, "genn", 4, 0, 1e-9)]  # of a seed that is reported: it must not count
    file = written(tmp_path / "r.jsonl", rows)
    best = surrogates.chosen(file)
    assert best["genn"] == 1 and best["kriging"] == 0
    assert [unit[2:] for unit in surrogates.fresh([surrogates.Case("booth", 2, 20)], [3], ["genn"], file)] == [
        (0, 3), (1, 3),
    ]  # fmt: skip


def test_the_table_is_printed_without_any_peer(tmp_path: Path) -> None:
    rows = [row("booth", 20, "sobolev", 0, seed, 1.0 + seed) for seed in range(3)]
    rows += [row("booth", 20, "kriging", 0, 0, None)]
    file = written(tmp_path / "r.jsonl", rows)
    command = [sys.executable, str(FOLDER / "surrogates.py"), "table", "--results", str(file)]
    done = subprocess.run([*command, "--json", str(tmp_path / "n.json")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    of_values, *_ = [line for line in done.stdout.splitlines() if line.startswith("| booth | 20 ")]
    assert "| **2** |" in of_values and "unfinished" in of_values
    assert json.loads((tmp_path / "n.json").read_text())["machine"]["clock"] == "cpu"
