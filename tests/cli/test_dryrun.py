"""``--dry-run`` lists the runs, tries the parts and estimates the time; a changed recipe is refused, or forced."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sobolev.cli import cli
from sobolev.errors import ComponentError, RecipeError

RECIPE = """\
name: small
target: {use: booth, train: 8, test: 4}
student: {use: mlp, hidden: [4], activation: tanh}
train: {steps: 4, batch_size: 4}
seeds: 2
variants:
  regular: {objective.derivatives.0.weight: 0}
  sobolev: {}
objective: {derivatives: [{order: 1}]}
"""


def run(folder: Path, text: str, *arguments: str) -> Result:
    file = folder / "r.yaml"
    file.write_text(text)
    given = ["run", str(file), "--runs", str(folder / "runs"), "--device", "cpu", "--jobs", "1", *arguments]
    return CliRunner().invoke(cli, given, env={"COLUMNS": "160"})


def rows(result: Result) -> dict[str, list[str]]:
    """Return the cells of the table by run."""
    found = {}
    for line in result.output.splitlines():
        cells = [cell.strip() for cell in line.split("│")[1:-1]]
        if cells and cells[0].startswith("small/"):
            found[cells[0]] = cells[1:]
    return found


def test_a_dry_run_lists_runs_checks_the_gradient_and_estimates_the_time(tmp_path: Path) -> None:
    result = run(tmp_path, RECIPE, "--dry-run", "--set", "train.steps=100000")
    assert result.exit_code == 0, result.output
    found = rows(result)
    assert list(found) == [f"small/{v}/seed-{s}" for v in ("regular", "sobolev") for s in (0, 1)]
    for state, steps, checked, each, about in found.values():
        assert (state, steps, checked) == ("new", "100000", "agrees")
        assert float(each) > 0
        assert about.split()[1] in ("s", "min", "h")
        seconds = float(each) * 1e-3 * 100_000
        unit = {"s": 1, "min": 60, "h": 3600}[about.split()[1]]
        assert abs(float(about.split()[0]) * unit - seconds) <= unit / 2 + 0.05 * seconds
    assert not (tmp_path / "runs").exists(), "nothing is written"


def test_a_dry_run_knows_what_is_finished_and_what_is_of_another_recipe(tmp_path: Path) -> None:
    assert run(tmp_path, RECIPE, "--only", "regular").exit_code == 0
    found = rows(run(tmp_path, RECIPE, "--dry-run"))
    assert [cells[0] for cells in found.values()] == ["finished", "finished", "new", "new"]
    found = rows(run(tmp_path, RECIPE, "--dry-run", "--set", "train.steps=5"))
    assert [cells[0] for cells in found.values()] == ["other recipe", "other recipe", "new", "new"]


def test_an_arm_that_trains_nothing(tmp_path: Path) -> None:
    found = rows(run(tmp_path, RECIPE, "--dry-run", "--set", "student='null'", "--only", "regular"))
    assert {cells[2] for cells in found.values()} == {"no parameters"}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["objective.head=log-softmax"], "the target 'booth' answers for the head identity, not 'log-softmax'"),
        (["objective.derivatives.0.input=y"], "input 'y' is not differentiated here; allowed"),
        (["estimator={use: projected, probes: 5, orthogonal: true}"], "5 orthogonal probes on the output side"),
        (["train.optimizer=lbfgs", "train.ema=0.5", "train.update=hogwild"], "exclude each other"),
        (["target.dimension=3"], "is a function of 2 variables"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_found_before_anything_is_trained(
    tmp_path: Path, overrides: list[str], said: str
) -> None:
    options = [word for override in overrides for word in ("--set", override)]
    result = run(tmp_path, RECIPE, "--dry-run", *options)
    assert isinstance(result.exception, ComponentError), result.output
    assert said in str(result.exception)
    assert not (tmp_path / "runs").exists()


def test_a_second_run_with_nothing_changed_finds_the_finished_runs(tmp_path: Path) -> None:
    assert run(tmp_path, RECIPE).exit_code == 0
    students = sorted((tmp_path / "runs").rglob("student.safetensors"))
    times = [file.stat().st_mtime_ns for file in students]
    result = run(tmp_path, RECIPE)
    assert result.exit_code == 0
    assert "4 of them were finished before and are not repeated" in result.output
    assert [file.stat().st_mtime_ns for file in students] == times


def test_a_changed_recipe_in_an_existing_directory_is_refused_with_the_difference_or_forced(tmp_path: Path) -> None:
    assert run(tmp_path, RECIPE, "--only", "sobolev").exit_code == 0
    student = tmp_path / "runs" / "small" / "sobolev" / "seed-0" / "student.safetensors"
    before = student.read_bytes()
    changed = RECIPE.replace("steps: 4", "steps: 5").replace("hidden: [4]", "hidden: [6]")
    result = run(tmp_path, changed, "--only", "sobolev")
    assert isinstance(result.exception, RecipeError)
    said = str(result.exception)
    assert "holds a run of another recipe" in said
    assert "train.steps: 4 -> 5" in said
    assert "student.hidden.0: 4 -> 6" in said
    assert "another --runs folder, or start over with --force" in said
    assert student.read_bytes() == before, "what is there stays as it is"
    assert run(tmp_path, changed, "--only", "sobolev", "--force").exit_code == 0
    assert student.read_bytes() != before


def test_only_names_variants(tmp_path: Path) -> None:
    result = run(tmp_path, RECIPE, "--only", "sobolov")
    assert isinstance(result.exception, RecipeError)
    assert "--only sobolov: did you mean 'sobolev'?" in str(result.exception)
