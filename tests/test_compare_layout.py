"""A comparison stands on its side where it would not fit otherwise, and holds numbers that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from sobolev.compare import compare, table
from sobolev.components import RunRecord


def shown(metrics: int, width: int, transposed: bool | None = None) -> list[str]:
    runs = [
        RunRecord(
            variant, seed, Path(), {"name": "r"}, "finished", {f"test/a/metric{i}": value for i in range(metrics)}
        )
        for variant, value in (("regular", 1.0), ("sobolev", 2.0))
        for seed in (0, 1)
    ]
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table(compare(runs), "title", width, transposed))
    return capture.get().splitlines()


def test_rows_are_variants_where_there_is_room() -> None:
    lines = shown(2, 100)
    assert any("regular" in line and "sobolev" not in line for line in lines)
    assert any("0.5x" in line for line in lines)


def test_rows_are_metrics_where_there_is_none_or_on_demand() -> None:
    for lines in (shown(12, 80), shown(2, 100, transposed=True)):
        assert any("regular" in line and "sobolev" in line for line in lines)
        assert any("test/a/metric1" in line for line in lines)
        assert any("0.5x" in line for line in lines)
        assert all(len(line) <= 100 for line in lines)


def test_many_variants_and_few_metrics_stay_upright_where_neither_way_fits() -> None:
    runs = [
        RunRecord(f"a-variant-with-a-long-name-{i}", 0, Path(), {"name": "r"}, "finished", {"test/a/value": 0.25 * i})
        for i in range(6)
    ]
    console = Console(width=40)
    with console.capture() as capture:
        console.print(table(compare(runs), "title", 40))
    shown = capture.get()
    assert shown.count("…") == 0 and all(len(line) <= 40 for line in shown.splitlines())
    assert all(f"{0.25 * i:.3g}" in shown for i in range(6))


def matrix() -> list[RunRecord]:
    made = []
    for arm, value in (("regular", 1.0), ("sobolev", 0.5)):
        for game in ("pong", "breakout"):
            for train in (20, 100):
                summary = {"test/a/value": value * train}
                made.append(
                    RunRecord(f"{arm},target={game},train={train}", 0, Path(), {"name": "r"}, "finished", summary)
                )
    return made


def test_in_a_matrix_arms_are_compared_within_their_cell() -> None:
    found = compare(matrix())
    assert found.ratio("sobolev,target=breakout,train=100", "test/a/value") == 2.0
    assert found.first["sobolev,target=pong,train=20"] == "regular,target=pong,train=20"
    alone = compare([run for run in matrix() if run.variant.startswith("regular")])
    assert alone.first["regular,target=breakout,train=100"] == "regular,target=pong,train=20"


def test_a_matrix_that_does_not_fit_is_shown_cell_by_cell() -> None:
    console = Console(width=50)
    with console.capture() as capture:
        console.print(table(compare(matrix()), "title", 50))
    lines = [line.strip() for line in capture.get().splitlines()]
    titles = [lines.index(f"{game}, train {train}") for game in ("pong", "breakout") for train in (20, 100)]
    assert lines[0] == "title" and titles == sorted(titles) and max(map(len, lines)) <= 50
    assert sum("regular" in line and "sobolev" in line for line in lines) == 4
    assert sum("2x" in line for line in lines) == 4


def folder(root: Path, name: str, variant: str = "v", seed: int = 0, value: float = 1.0) -> RunRecord:
    return RunRecord(variant, seed, root / name / variant / f"seed-{seed}", {"name": name}, "finished", {"n": value})


def test_runs_of_two_folders_are_no_seeds_of_one_variant(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    both = compare([folder(first, "r"), folder(first, "r", seed=1), folder(second, "r", value=3.0)])
    assert both.seeds == {"first/r/v": 2, "second/r/v": 1}
    assert both.cells["second/r/v"]["n"].mean == 3.0
    assert compare([folder(first, "r"), folder(second, "q")]).seeds == {"r/v": 1, "q/v": 1}
    assert compare([folder(first, "r"), folder(second, "r", seed=1)]).seeds == {"v": 2}


def test_a_title_is_not_broken() -> None:
    runs = [RunRecord("v", 0, Path(), {"name": "r"}, "finished", {"n": 1.0})]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table(compare(runs), "a recipe: mean and standard deviation over seeds", 80))
    lines = capture.get().splitlines()
    assert lines[0].strip() == "a recipe: mean and standard deviation over seeds"
    assert len(lines[1]) < len(lines[0])


def test_a_metric_that_is_not_a_number_takes_nothing_down() -> None:
    runs = [
        RunRecord("regular", seed, Path(), {"name": "r"}, "finished", {"test/a": value, "test/b": 1.0})
        for seed, value in enumerate((1.0, float("nan")))
    ]
    cells = compare(runs).cells["regular"]
    assert cells["test/a"].text == "nan ± nan" and cells["test/b"].text == "1 ± 0"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1400.0], "1400"),
        ([233_120.0], "233120"),
        ([64.0, 1130.0, 627.0], "607 ± 530"),
        ([1234.5], "1230"),
        ([0.0462, 0.0548], "0.0505 ± 0.0061"),
        ([2.5e-5], "2.5e-05"),
        ([3.2e7, 4.4e7], "3.8e+07 ± 8.5e+06"),
    ],
)
def test_numbers_have_no_exponent_where_they_need_none(values: list[float], said: str) -> None:
    runs = [RunRecord("v", seed, Path(), {"name": "r"}, "finished", {"n": n}) for seed, n in enumerate(values)]
    assert compare(runs).cells["v"]["n"].text == said
