"""``--dry-run`` lists the runs, tries the parts and estimates the time; a changed recipe is refused, or forced."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from sobolev.cli import cli
from sobolev.errors import ComponentError, RecipeError
from sobolev.train import Trainer

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


def run(folder: Path, text: str, *arguments: str, columns: int = 160) -> Result:
    file = folder / "r.yaml"
    file.write_text(text)
    given = ["run", str(file), "--runs", str(folder / "runs"), "--device", "cpu", "--jobs", "1", *arguments]
    return CliRunner().invoke(cli, given, env={"COLUMNS": str(columns)})


def rows(result: Result) -> dict[str, list[str]]:
    """Return the cells of the table by variant."""
    found = {}
    for line in result.output.splitlines():
        cells = [cell.strip() for cell in line.split("│")[1:-1]]
        if cells:
            found[cells[0]] = cells[1:]
    return found


def seconds_of(text: str) -> tuple[float, float]:
    """Return a span such as ``12 min`` and how far it may be rounded, in seconds."""
    number, unit = text.split()
    size = {"s": 1, "min": 60, "h": 3600}[unit]
    return float(number) * size, 0.5 * size


def test_a_dry_run_lists_runs_checks_the_gradient_and_estimates_the_time(tmp_path: Path) -> None:
    result = run(tmp_path, RECIPE, "--dry-run", "--set", "train.steps=100000")
    assert result.exit_code == 0, result.output
    assert "small: 4 runs" in result.output
    found = rows(result)
    assert list(found) == ["regular", "sobolev"]
    for seeds, state, steps, checked, each, about in found.values():
        assert (seeds, state, steps, checked) == ("0, 1", "new", "100,000", "agrees")
        assert float(each) > 0
        seconds, rounding = seconds_of(about)
        assert abs(seconds - float(each) * 1e-3 * 100_000) <= rounding + 0.05 * seconds
    left = re.search(r"training that is left: (\d\S* \w+)", result.output)
    assert left
    seconds, rounding = seconds_of(left[1])
    each_of = [seconds_of(cells[-1]) for cells in found.values()]
    assert abs(seconds - 2 * sum(s for s, _ in each_of)) <= rounding + 2 * sum(r for _, r in each_of)
    assert not (tmp_path / "runs").exists(), "nothing is written"


def test_a_dry_run_fits_in_a_terminal_of_eighty_columns(tmp_path: Path) -> None:
    result = run(tmp_path, RECIPE, "--dry-run", columns=80)
    assert "a run" in result.output
    assert all(len(line) <= 80 for line in result.output.splitlines())
    assert all(len(cells) == 6 and all(cells) for cells in rows(result).values()), result.output


def test_every_phase_is_timed_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that a step of Adam moves by 1 s and one of L-BFGS by 10 s."""
    now = 0.0

    def update(self: Trainer, batches: object, step: int) -> object:
        nonlocal now
        now += 10.0 if isinstance(self.optimizer, torch.optim.LBFGS) else 1.0
        return dict

    monkeypatch.setattr(Trainer, "_update", update)
    monkeypatch.setattr("sobolev.cli.dryrun.time.perf_counter", lambda: now)
    phases = "[{steps: 30, optimizer: adam}, {steps: 2, optimizer: lbfgs, batch_size: all}]"
    result = run(tmp_path, RECIPE, "--dry-run", "--only", "regular", "--set", f"train={{phases: {phases}}}")
    assert result.exit_code == 0, result.output
    assert rows(result)["regular"][2:] == ["32", "agrees", f"{1e3 * 50 / 32:.2f}", "50 s"]
    assert "left: 2 min" in result.output


def test_a_dry_run_knows_what_is_finished_and_what_is_of_another_recipe(tmp_path: Path) -> None:
    assert run(tmp_path, RECIPE, "--only", "regular", "--set", "seeds=1").exit_code == 0
    found = rows(run(tmp_path, RECIPE, "--dry-run"))
    assert [cells[1] for cells in found.values()] == ["1 finished, 1 new", "new"]
    changed = run(tmp_path, RECIPE, "--dry-run", "--set", "train.steps=5")
    assert "other recipe: 1 run of a recipe that has changed since would be refused" in changed.output
    found = rows(changed)
    assert [cells[1] for cells in found.values()] == ["1 other recipe, 1 new", "new"]


def test_an_arm_that_trains_nothing(tmp_path: Path) -> None:
    found = rows(run(tmp_path, RECIPE, "--dry-run", "--set", "student='null'", "--only", "regular"))
    assert {cells[3] for cells in found.values()} == {"no parameters"}


TABLE = """\
name: recorded
target:
  {{use: table, file: {file}, inputs: [a, b], values: f, partials: "d{{output}}/d{{input}}", split: {{test: 0.4}}}}
student: {{use: mlp, hidden: [4], activation: tanh, scale: standard}}
objective: {{balance: joint, derivatives: [{{weight: 1}}]}}
train: {{steps: 4, batch_size: 4}}
variants:
  values: {{objective.derivatives.0.weight: 0}}
  sobolev: {{}}
"""


@pytest.mark.parametrize("file", ["data.csv", "data.parquet"])
def test_a_dry_run_on_a_table_says_what_is_in_it_once(tmp_path: Path, file: str) -> None:
    pandas = pytest.importorskip("pandas")
    a, b = np.random.default_rng(0).uniform(size=(2, 10))
    frame = pandas.DataFrame({"a": a, "b": b, "f": a * b, "df/da": b, "df/db": a})
    frame.loc[[1, 4, 5], "df/db"] = np.nan
    if file.endswith(".csv"):
        frame.to_csv(tmp_path / file, index=False)
    else:
        pytest.importorskip("pyarrow")
        frame.to_parquet(tmp_path / file)
    result = run(tmp_path, TABLE.format(file=file), "--dry-run")
    assert result.exit_code == 0, result.output
    told = f"{file}: 10 rows (train 6, test 4), 2 inputs, 1 value, 2 of 2 partials; missing and masked: df/db 3"
    assert result.output.count(told) == 1, result.output
    assert {v: cells[:4] for v, cells in rows(result).items()} == {
        "values": ["0", "new", "4", "agrees"],
        "sobolev": ["0", "new", "4", "agrees"],
    }
    assert not (tmp_path / "runs").exists()


FUNCTION = """\
name: function
target:
  use: blackbox
  function: pendulum
  inputs: {angle: [0.2, 2.5], length: [0.5, 2.0], damping: [0.05, 0.5]}
  outputs: [angle3]
  train: 5
  workers: 1
estimator: {use: finite-difference, of: exact}
objective: {derivatives: []}
student: {use: mlp, hidden: [4], activation: tanh}
train: {steps: 2}
"""


def test_what_a_dry_run_computes_for_a_target_is_kept(tmp_path: Path) -> None:
    assert "5 points to compute, 0 known already" in run(tmp_path, FUNCTION, "--dry-run").output
    again = run(tmp_path, FUNCTION, "--dry-run")
    assert again.exit_code == 0 and "points to compute" not in again.output
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".cache"]


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
