"""What commands say about finished runs, and what runs say while they are trained."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console

from sobolev import load
from sobolev.cli import cli, main
from sobolev.cli.display import RichDisplay
from sobolev.errors import ComponentError, DataError, RecipeError
from sobolev.tables import read_numbers, split_unit

RECIPE = """\
name: small
target: {use: table, file: t.csv, inputs: [a, b, c], values: [f, g]}
student: {use: mlp, hidden: [4], activation: tanh}
objective: {derivatives: []}
train: {steps: 2}
seeds: 2
figures: [surface, bars]
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The folder of two finished runs, and what was shown."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "r.yaml").write_text(RECIPE)
    (folder / "t.csv").write_text("a,b,c,f,g\n" + "".join(f"{i},{i % 3},{i % 4},{i * i},{-i}\n" for i in range(10)))
    given = ["run", str(folder / "r.yaml"), "--runs", str(folder / "runs"), "--jobs", "1"]
    return folder, CliRunner().invoke(cli, given, env={"COLUMNS": "160"})


def test_what_runs_say_alike_is_shown_once(trained: tuple[Path, Result]) -> None:
    _, result = trained
    assert result.exit_code == 0, result.output
    assert result.output.count("t.csv: 10 rows") == 1
    assert "small: 2 runs" in result.output


def test_warnings_are_shown_every_time() -> None:
    stream = io.StringIO()
    display = RichDisplay([], Console(file=stream, width=80))
    for line in ("t.csv: 10 rows", "warning: slow", "t.csv: 10 rows", "warning: slow"):
        display.say(line)
    assert stream.getvalue().splitlines() == ["t.csv: 10 rows", "warning: slow", "warning: slow"]


def test_a_figure_that_has_nothing_to_show_says_where_to_look(trained: tuple[Path, Result]) -> None:
    _, result = trained
    assert "figure surface: nothing was recorded that it can show; `sobolev show surface` says" in result.output
    shown = CliRunner().invoke(cli, ["show", "surface"]).output
    assert "values with one component, of an input with two" in shown


@pytest.mark.parametrize("command", [["predict"], ["export"]])
def test_a_folder_of_runs_names_the_runs_in_it(trained: tuple[Path, Result], command: list[str]) -> None:
    folder, _ = trained
    data = [str(folder / "t.csv")] if command == ["predict"] else []
    result = CliRunner().invoke(cli, [*command, str(folder / "runs" / "small"), *data])
    assert isinstance(result.exception, RecipeError)
    runs = [str(folder / "runs" / "small" / "default" / f"seed-{seed}") for seed in (0, 1)]
    assert str(result.exception).endswith(f"no run directory (it has no recipe.yaml); there are {', '.join(runs)}")


def test_predictions_are_no_parquet_file(trained: tuple[Path, Result]) -> None:
    folder, _ = trained
    run = folder / "runs" / "small" / "default" / "seed-0"
    result = CliRunner().invoke(cli, ["predict", str(run), str(folder / "t.csv"), "-o", str(folder / "p.parquet")])
    assert result.exit_code == 2 and "predictions are written as CSV; name the file .csv" in result.output
    assert not (folder / "p.parquet").exists()
    for place in (folder, folder / "none" / "p.csv"):
        result = CliRunner().invoke(cli, ["predict", str(run), str(folder / "t.csv"), "-o", str(place)])
        assert result.exit_code == 2 and f"--output {place}: cannot be written: " in result.output


def test_a_place_that_cannot_be_written_to_is_a_mistake(
    trained: tuple[Path, Result], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = trained
    (folder / "file").touch()
    run = folder / "runs" / "small" / "default" / "seed-0"
    monkeypatch.setattr("sys.argv", ["sobolev", "export", str(run), "-o", str(folder / "file"), "--values-only"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and f"error: {folder / 'file'}: File exists; name a place" in capsys.readouterr().err


def test_a_single_seed_has_no_standard_deviation(trained: tuple[Path, Result]) -> None:
    folder, result = trained
    assert "small: mean ± standard deviation over seeds" in result.output
    given = ["run", str(folder / "r.yaml"), "--runs", str(folder / "runs"), "--set", "seeds=1"]
    again = CliRunner().invoke(cli, given, env={"COLUMNS": "160"})
    assert again.exit_code == 0 and "standard deviation" not in again.output


def test_a_student_takes_arrays_and_names_the_shape_that_it_expects(trained: tuple[Path, Result]) -> None:
    folder, _ = trained
    student = load(folder / "runs" / "small" / "default" / "seed-0")
    rows = [[1.0, 2.0, 3.0], [0.0, 1.0, 2.0]]
    expected = student(torch.tensor(rows)).value
    assert expected.shape == (2, 2)
    for given in (rows, np.array(rows), {"x": np.array(rows)}):
        assert torch.equal(student(given).value, expected)
    for wrong, shape in (([[1.0, 2.0]], r"\(1, 2\)"), ([1.0, 2.0, 3.0], r"\(3,\)"), (1.0, r"\(\)")):
        with pytest.raises(
            ComponentError, match=rf"input 'x' has the shape {shape}, expected \(B, 3\): a row per sample"
        ):
            student(wrong)
    with pytest.raises(ComponentError, match=r"reads the inputs \['x'\], given are \['z'\]"):
        student({"z": rows})


def test_an_empty_cell_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,\n")
    with pytest.raises(DataError, match=r"t.csv:3: column 'b': the cell is empty; every row needs a number"):
        read_numbers(tmp_path / "t.csv", ["a", "b"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a,b\n0,5,0,1\n", r":2: 4 cells, 2 columns in the header; decimal commas\? write points, or separate"),
        ("a,b\n1,2\n3\n", r":3: 1 cell, 2 columns in the header$"),
        ("a;b\n1,5;2\n", r":2: column 'a': '1,5' is no number \(a decimal comma\? write a point\)"),
        ("a;b\n1;2\n-,5E-3;2\n", r":3: column 'a': '-,5E-3' is no number \(a decimal comma"),
        ("a,b\n1_000,2\n", r":2: column 'a': '1_000' is no number$"),
        ("a,b\n1,nan\n", r":2: column 'b': 'nan' is no finite number; every row needs one"),
        ("a,b\n1,2\n-inf,2\n", r":3: column 'a': '-inf' is no finite number"),
        ("a,b,a\n1,2,3\n", "several columns are called 'a'"),
        ("a [m],b,a [mm]\n1,2,3\n", "several columns are called 'a'"),
        ("# of today\na,b\n1,2\n", "the first line is the comment '# of today'; it must name the columns"),
        ('a,b\n\n"1\n",2\n\n3,two\n', ":6: column 'b': 'two' is no number"),
    ],
)
def test_inputs_that_are_not_what_they_seem_are_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=rf"t\.csv.*{told}"):
        read_numbers(tmp_path / "t.csv", ["a", "b"])


def test_columns_that_are_not_asked_for_may_be_anything(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("c,a,c\nx,1,\n\n,2,inf\n\n")
    assert read_numbers(tmp_path / "t.csv", ["a"]) == [[1.0], [2.0]]


def test_inputs_in_another_unit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a [mm],b\n1,2\n")
    with pytest.raises(DataError, match=r"column 'a \[mm\]': the unit must be \[m\]"):
        read_numbers(tmp_path / "t.csv", ["a [m]"])
    assert read_numbers(tmp_path / "t.csv", ["a", "b [s]"]) == [[1.0, 2.0]]


def test_a_place_in_an_array_is_no_unit(tmp_path: Path) -> None:
    assert split_unit("x[0]") == ("x[0]", "") and split_unit("x[0,1] [m]") == ("x[0,1]", "m")
    assert split_unit("x[m]") == ("x", "m") and split_unit("x [1]") == ("x", "1")
    (tmp_path / "t.csv").write_text("x[1],x[0]\n1,2\n")
    assert read_numbers(tmp_path / "t.csv", ["x[0] [m]", "x[1]"]) == [[2.0, 1.0]]
    with pytest.raises(DataError, match=r"there is no column 'x\[2\]'"):
        read_numbers(tmp_path / "t.csv", ["x[2]"])


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_predictions_have_the_digits_that_give_them_back(tmp_path: Path, kind: str) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE.replace("seeds: 2\n", f"seeds: 1\ndtype: {kind}\n"))
    (tmp_path / "t.csv").write_text("a,b,c,f,g\n" + "".join(f"{i},{i % 3},{i % 4},{i * i},{-i}\n" for i in range(10)))
    done = CliRunner().invoke(cli, ["run", str(tmp_path / "r.yaml"), "--runs", str(tmp_path / "runs"), "--jobs", "1"])
    assert done.exit_code == 0, done.output
    run = tmp_path / "runs" / "small" / "default" / "seed-0"
    (tmp_path / "q.csv").write_text("a,b,c\n0.1234567890123456,1,1e-300\n")
    done = CliRunner().invoke(cli, ["predict", str(run), str(tmp_path / "q.csv")])
    cells = done.output.splitlines()[1].split(",")
    assert cells[:3] == ["0.1234567890123456", "1", "1e-300"], done.output
    expected = load(run)(torch.tensor([[0.1234567890123456, 1.0, 1e-300]], dtype=torch.float64)).value[0]
    written = torch.tensor([float(cell) for cell in cells[3:5]], dtype=torch.float64)
    assert torch.equal(written.to(expected.dtype), expected) and str(expected.dtype) == f"torch.{kind}"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_inputs_may_be_separated_as_in_tables_and_begin_with_a_mark(tmp_path: Path, separator: str) -> None:
    text = separator.join(["a [m]", "b"]) + "\n" + separator.join(["1", "2.5"]) + "\n"
    (tmp_path / "t.csv").write_text(text, encoding="utf-8-sig")
    assert read_numbers(tmp_path / "t.csv", ["b", "a [m]"]) == [[2.5, 1.0]]


def test_inputs_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1\x15\x80\xff")
    with pytest.raises(DataError, match=r"t.parquet: not text in UTF-8; inputs are read from CSV files"):
        read_numbers(tmp_path / "t.parquet", ["a"])
