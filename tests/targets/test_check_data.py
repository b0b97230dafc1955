"""`sobolev check-data`: every diagnosis on data broken in just that way; clean data give no false alarm."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from sobolev.builtin import check_data as module
from sobolev.builtin.targets.blackbox.target import JetBlackbox
from sobolev.builtin.targets.functions import FUNCTIONS
from sobolev.builtin.targets.table.diagnose import Diagnosis, Samples, diagnose
from sobolev.cli import cli
from sobolev.errors import DataError

ROWS = 200
Array = np.ndarray


def function(name: str, rows: int, seed: int, d: int = 2) -> tuple[Array, Array, Array]:
    """Points in the box of one of the paper's functions, values ``(N, 1)``, partials ``(N, 1, d)``."""
    made = FUNCTIONS[name]
    low, high = (np.array([*edge, *[edge[-1]] * d][:d]) for edge in (made.low, made.high))
    x = low + np.random.default_rng(seed).random((rows, d)) * (high - low)
    point = torch.tensor(x, requires_grad=True)
    y = made.value(point)
    (g,) = torch.autograd.grad(y.sum(), point)
    return x, y.detach().numpy()[:, None].copy(), g.numpy()[:, None].copy()


def plant(rows: int = ROWS, seed: int = 0) -> tuple[Array, Array, Array]:
    """Two values of three inputs of different ranges: sin(a) b + c^2 / 50 and exp(a / 2) + b c / 30."""
    r = np.random.default_rng(seed)
    a, b, c = r.uniform(-1, 2, rows), r.uniform(0, 6, rows), r.uniform(-10, 10, rows)
    y = np.stack([np.sin(a) * b + c**2 / 50, np.exp(a / 2) + b * c / 30], axis=1)
    zero = np.zeros_like(a)
    first = np.stack([np.cos(a) * b, np.sin(a), c / 25], axis=1)
    second = np.stack([np.exp(a / 2) / 2, c / 30 + zero, b / 30], axis=1)
    return np.stack([a, b, c], axis=1), y, np.stack([first, second], axis=1)


def samples(x: Array, y: Array, g: Array) -> Samples:
    inputs = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"][: x.shape[1]]
    outputs = ["u", "v"][: y.shape[1]]
    columns = {(o, i): f"d{outputs[o]}/d{inputs[i]}" for o in range(len(outputs)) for i in range(len(inputs))}
    return Samples(x, y, g, inputs, outputs, columns, lambda row: f"row {row + 1}")


def kinds(found: Diagnosis) -> dict[str, set[str]]:
    """Columns of the problems, by kind."""
    made: dict[str, set[str]] = {}
    for finding in found.problems:
        made.setdefault(finding.kind, set()).update(finding.column.split(", "))
    return made


# -- no false alarms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("rows", [50, 100, 400])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_clean_data_give_no_alarm_noisy_or_not(name: str, rows: int, noise: float) -> None:
    for seed in range(4):
        x, y, g = function(name, rows, seed)
        random = np.random.default_rng(seed)
        y = y + noise * y.std() * random.standard_normal(y.shape)
        g = g + noise * g.std(axis=0) * random.standard_normal(g.shape)
        assert kinds(diagnose(samples(x, y, g))) == {}


@pytest.mark.parametrize("name", ["rosenbrock", "styblinski-tang", "ackley"])
def test_clean_data_of_ten_inputs_give_no_alarm(name: str) -> None:
    for seed in range(3):
        assert kinds(diagnose(samples(*function(name, 500, seed, 10)))) == {}


def test_clean_columns_agree_and_are_counted() -> None:
    found = diagnose(samples(*plant()))
    assert [a.verdict for a in found.agreements] == ["agrees"] * 6
    assert all(abs(a.coefficient - 1) < 0.05 for a in found.agreements)
    assert all(share > 0.99 for share in found.share.values())


def test_a_linear_function_has_constant_partials_rightly() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (100, 2))
    g = np.broadcast_to([3.0, 0.0], (100, 1, 2)).copy()
    assert kinds(diagnose(samples(x, 3 * x[:, :1], g))) == {}
    g[:, 0, 1] = np.cos(x[:, 1])
    assert kinds(diagnose(samples(x, 3 * x[:, :1] + np.sin(x[:, 1:]), g))) == {}


def test_too_few_samples_or_too_far_apart_say_so() -> None:
    found = diagnose(samples(*(part[:4] for part in plant())))
    assert {a.verdict for a in found.agreements} == {"undecided"} and not found.problems
    assert any("pairs of neighbours" in f.message for f in found.findings)
    x = np.random.default_rng(0).uniform(-1, 1, (100, 2))
    y, g = (
        np.sin(300 * x.sum(axis=1, keepdims=True)),
        300 * np.cos(300 * x.sum(axis=1))[:, None, None] * np.ones((1, 1, 2)),
    )
    found = diagnose(samples(x, y, g))
    assert {a.verdict for a in found.agreements} == {"undecided"} and not found.problems
    assert any("too far apart" in f.message for f in found.findings)


# -- each thing that can be wrong --------------------------------------------------------------------------------------

Break = Callable[[Array, Array, Array], None]


def broken(change: Break, noise: float = 0.0, seed: int = 0) -> Diagnosis:
    x, y, g = plant(seed=seed)
    change(x, y, g)
    y = y + noise * y.std(axis=0) * np.random.default_rng(seed).standard_normal(y.shape)
    return diagnose(samples(x, y, g))


@pytest.mark.parametrize("noise", [0.0, 0.03])
@pytest.mark.parametrize("seed", range(2))
def test_wrong_sign_is_named(noise: float, seed: int) -> None:
    def one(x: Array, y: Array, g: Array) -> None:
        g[:, 0, 1] *= -1

    def all_of_one(x: Array, y: Array, g: Array) -> None:
        g[:, 0] *= -1

    assert kinds(broken(one, noise, seed)) == {"sign": {"du/db"}}
    assert kinds(broken(all_of_one, noise, seed)) == {"sign": {"du/da", "du/db", "du/dc"}}


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_swapped_columns_are_named(noise: float) -> None:
    def two(x: Array, y: Array, g: Array) -> None:
        g[:, 0, [0, 2]] = g[:, 0, [2, 0]]

    found = broken(two, noise)
    assert kinds(found) == {"swapped": {"du/da", "du/dc"}}
    assert [f.message for f in found.problems] == ["columns 'du/da' and 'du/dc' are swapped"]


def test_columns_of_two_outputs_swapped() -> None:
    def across(x: Array, y: Array, g: Array) -> None:
        g[:, [0, 1], 0] = g[:, [1, 0], 0]

    assert kinds(broken(across)) == {"swapped": {"du/da", "dv/da"}}


def test_three_columns_in_a_circle() -> None:
    def circle(x: Array, y: Array, g: Array) -> None:
        g[:, 0] = g[:, 0][:, [1, 2, 0]]

    assert kinds(broken(circle)) == {"swapped": {"du/da", "du/db", "du/dc"}}


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (1000.0, "1000 times as large as the values say; a factor of 1000"),
        (1e-3, "1000 times smaller than the values say; a factor of 1000"),
        (180 / np.pi, "degrees for radians"),
        (3.6, "km/h"),
        (1 / 1.8, "1.8 times smaller"),
    ],
)
def test_wrong_units_are_named_with_their_factor(factor: float, said: str) -> None:
    def scale(x: Array, y: Array, g: Array) -> None:
        g[:, 0, 0] *= factor

    found = broken(scale)
    assert kinds(found) == {"factor": {"du/da"}}
    # The factor is measured, to a few percent: compared as a number, and by what it hints at.
    (agreement,) = [a for a in found.agreements if a.column == "du/da"]
    assert 1 / agreement.coefficient == pytest.approx(factor, rel=0.03)
    assert said.split("times")[-1].strip() in found.problems[0].message or said in found.problems[0].message


def test_partials_of_values_in_another_unit() -> None:
    def scale(x: Array, y: Array, g: Array) -> None:
        g[:, 1] *= 1000

    found = broken(scale)
    assert kinds(found) == {"factor": {"dv/da", "dv/db", "dv/dc"}} and len(found.problems) == 1


@pytest.mark.parametrize("how", ["[0, 1]", "[-1, 1]", "standardised"])
def test_partials_by_scaled_inputs(how: str) -> None:
    def scale(x: Array, y: Array, g: Array) -> None:
        width = np.ptp(x, axis=0)
        g[:, 0] *= {"[0, 1]": width, "[-1, 1]": width / 2, "standardised": x.std(axis=0)}[how]

    found = broken(scale)
    assert kinds(found) == {"scaled-inputs": {"du/da", "du/db", "du/dc"}}
    assert how in found.problems[0].message and "by inputs" in found.problems[0].message


def test_partials_of_scaled_values() -> None:
    def scale(x: Array, y: Array, g: Array) -> None:
        y[:, 0] *= 7  # so that its deviation is no number that could be something else
        g[:, 0] *= 7 / y[:, 0].std()

    found = broken(scale)
    assert kinds(found) == {"scaled-values": {"du/da", "du/db", "du/dc"}}
    assert "standardised" in found.problems[0].message


@pytest.mark.parametrize("number", [0.0, 0.5])
def test_constant_partials_of_what_is_not_linear(number: float) -> None:
    def flatten(x: Array, y: Array, g: Array) -> None:
        g[:, 0, 2] = number

    found = broken(flatten)
    assert kinds(found) == {"constant": {"du/dc"}}
    assert f"column 'du/dc' is {number:g} in every row" in found.problems[0].message


def test_constant_inputs_and_values() -> None:
    def flatten(x: Array, y: Array, g: Array) -> None:
        x[:, 1] = 2.0
        y[:, 1] = 5.0
        g[:, 1] = 0.0

    found = broken(flatten)
    assert kinds(found)["constant"] >= {"b", "v"}


def test_a_column_of_other_data_is_unrelated() -> None:
    def mix(x: Array, y: Array, g: Array) -> None:
        g[:, 0, 2] = np.random.default_rng(1).permutation(g[:, 0, 2])

    assert kinds(broken(mix)) == {"unrelated": {"du/dc"}}


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_partials_that_are_zero_up_to_rounding(noise: float) -> None:
    x, y, g = plant()
    random = np.random.default_rng(1)
    g[:, 0, 2] = 1e-17 * random.standard_normal(ROWS)
    spread = noise * y.std(axis=0) * random.standard_normal(y.shape)
    assert kinds(diagnose(samples(x, y + spread, g))) == {"constant": {"du/dc"}}
    y[:, 0] -= x[:, 2] ** 2 / 50  # so that u does not hang on c
    found = diagnose(samples(x, y + spread, g))
    assert [(f.kind, f.message) for f in found.findings] == [("rounding", "column 'du/dc' is zero up to rounding")]
    (agreement,) = [a for a in found.agreements if a.column == "du/dc"]
    assert agreement.verdict == "agrees" and np.isnan(agreement.coefficient) and not found.problems
    g[:, 0, 0] *= 1e-9  # small, but no rounding errors
    assert kinds(diagnose(samples(x, y + spread, g))) == {"factor": {"du/da"}}


def test_missing_partials_are_counted_and_do_not_disturb() -> None:
    def drop(x: Array, y: Array, g: Array) -> None:
        g[np.random.default_rng(0).random(g.shape) < 0.1] = np.nan
        g[:, 0, 1] *= -1

    found = broken(drop)
    assert kinds(found) == {"sign": {"du/db"}}
    assert sum("are missing" in f.message for f in found.findings) == 6
    many = broken(lambda x, y, g: g[:-5, 0, 0].fill(np.nan))
    assert kinds(many) == {"missing": {"du/da"}}


def test_duplicates_that_disagree_are_named_with_their_rows() -> None:
    x, y, g = plant()
    x, y, g = (np.concatenate([part, part[:3]]) for part in (x, y, g))
    assert kinds(diagnose(samples(x, y, g))) == {}
    y[201, 0] += 3.0
    g[202, 1, 2] *= 2.0
    found = diagnose(samples(x, y, g))
    assert kinds(found) == {"duplicates": {"u", "dv/dc"}}
    assert all("1 set of equal inputs with" in f.message for f in found.problems)
    assert "row 2)" in found.problems[0].message and "row 202)" in found.problems[0].message


def test_repeated_measurements_within_the_noise_are_no_problem() -> None:
    x, y, g = (np.concatenate([part, part[:50]]) for part in plant())
    y = y + 0.03 * y.std(axis=0) * np.random.default_rng(0).standard_normal(y.shape)
    found = diagnose(samples(x, y, g))
    assert kinds(found) == {} and {f.kind for f in found.findings} == {"repeated"}


# -- the command -------------------------------------------------------------------------------------------------------


def check(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["check-data", *arguments], env={"COLUMNS": "200"})


def write(file: Path, x: Array, y: Array, g: Array, pattern: str = "d{}/d{}") -> None:
    head = ["a", "b", "c", "u", "v", *(pattern.format(o, i) for o in "uv" for i in "abc")]
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(head)
        for row in np.concatenate([x, y, g.reshape(len(g), -1)], axis=1):
            writer.writerow(["" if c != c else repr(float(c)) for c in row])


@pytest.mark.parametrize("pattern", ["d{}/d{}", "d{}_d{}", "d{}d{}"])
def test_a_file_whose_names_tell_their_roles(tmp_path: Path, pattern: str) -> None:
    x, y, g = plant()
    write(tmp_path / "data.csv", x, y, g, pattern)
    done = check(str(tmp_path / "data.csv"))
    assert done.exit_code == 0 and "nothing wrong was found" in done.output, done.output
    g[:, 1, 0] *= -1
    write(tmp_path / "data.csv", x, y, g, pattern)
    done = check(str(tmp_path / "data.csv"))
    assert done.exit_code == 2 and f"column '{pattern.format('v', 'a')}' has the wrong sign" in done.output, done.output


def test_columns_are_shown_in_order_and_what_is_missing_in_one_line(tmp_path: Path) -> None:
    x, y, g = plant()
    g[:, 0, 0] = 2.0
    y[:, 0] = 2 * x[:, 0]
    g[:, 0, 1:] = 0.0
    g[:20, 0, 1] = g[:50, 1, 2] = np.nan
    write(tmp_path / "data.csv", x, y, g)
    done = check(str(tmp_path / "data.csv"))
    columns = [line.split()[0] for line in done.output.splitlines() if line.startswith("  d")]
    assert columns == ["du/da", "du/db", "du/dc", "dv/da", "dv/db", "dv/dc"], done.output
    share = {name: 100 * count / len(x) for name, count in (("du/db", 20), ("dv/dc", 50))}
    assert f"note: missing and masked: du/db {share['du/db']:.3g} %, dv/dc {share['dv/dc']:.3g} %" in done.output
    g[:20, 0, 1] = 0.0
    write(tmp_path / "data.csv", x, y, g)
    assert "note: column 'dv/dc': " in check(str(tmp_path / "data.csv")).output


def test_rows_without_an_input_are_counted_and_named(tmp_path: Path) -> None:
    x, y, g = plant()
    x[[4, 9, 20, 30], [0, 1, 2, 0]] = np.nan
    write(tmp_path / "data.csv", x, y, g)
    done = check(str(tmp_path / "data.csv"))
    assert done.exit_code == 0 and f"{ROWS - 4} samples" in done.output, done.output
    assert "note: 4 rows without some input (6, 11, 22, ...): not looked at" in done.output, done.output
    x[:] = np.nan
    write(tmp_path / "data.csv", x, y, g)
    assert "every row lacks some input (a, b, c)" in str(check(str(tmp_path / "data.csv")).exception)


@pytest.mark.parametrize("kind", ["file", "recipe"])
@pytest.mark.parametrize("column", ["a", "u", "du/db"])
def test_infinite_numbers_are_named_as_training_names_them(tmp_path: Path, kind: str, column: str) -> None:
    x, y, g = plant()
    {"a": x[:, 0], "u": y[:, 0], "du/db": g[:, 0, 1]}[column][[3, 8]] = np.inf if kind == "file" else 1e39
    write(tmp_path / "data.csv", x, y, g)
    (tmp_path / "r.yaml").write_text(
        "name: r\ntarget: {use: table, file: data.csv, inputs: [a, b, c], values: [u, v],\n"
        "  partials: 'd{output}/d{input}'}\nstudent: mlp\n"
    )
    done = check(str(tmp_path / ("data.csv" if kind == "file" else "r.yaml")))
    assert isinstance(done.exception, DataError) and done.exit_code != 0
    text = "an infinite number" + (", or one too large for float32" if kind == "recipe" else "")
    lines = [f"{tmp_path / 'data.csv'}:{line}: column {column!r}: {text}" for line in (5, 10)]
    assert str(done.exception).splitlines() == [*lines, "2 problems"]


def test_roles_by_options_and_json(tmp_path: Path) -> None:
    x, y, g = plant()
    g[:, 0, 0] *= 1000
    np.savez(tmp_path / "data.npz", x=x, y=y, J=g)
    done = check(str(tmp_path / "data.npz"), "--inputs", "x", "--values", "y", "--partials", "J", "--json")
    (report,) = json.loads(done.output)
    assert done.exit_code == 2 and [f["kind"] for f in report["findings"]] == ["factor"]
    assert report["partials"][0]["column"] == "J[0,0]" and report["partials"][0]["verdict"] == "factor"
    done = check(str(tmp_path / "data.npz"))
    assert isinstance(done.exception, Exception) and "say what is what: --inputs a,b" in str(done.exception)


def test_recipes_of_tables_are_read_and_others_are_told(tmp_path: Path) -> None:
    x, y, g = plant()
    g[:, 0, [0, 1]] = g[:, 0, [1, 0]]
    write(tmp_path / "data.csv", x, y, g)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: r\ntarget:\n  use: ensemble\n  of: {use: table, file: data.csv, inputs: [a, b, c], values: [u, v],\n"
        "    partials: 'd{output}/d{input}'}\nstudent: mlp\nvariants: {one: {}, two: {train.steps: 3}}\n"
    )
    done = check(str(recipe))
    assert done.exit_code == 2 and done.output.count("are swapped") == 1, done.output
    recipe.write_text("name: r\ntarget: mccormick\nstudent: mlp\n")
    done = check(str(recipe))
    assert "brings no partials of its own" in str(done.exception)


def test_rows_are_named_by_their_lines(tmp_path: Path) -> None:
    x, y, g = (np.concatenate([part, part[:1]]) for part in plant())
    y[-1, 0] += 50.0
    write(tmp_path / "data.csv", x, y, g)
    done = check(str(tmp_path / "data.csv"))
    assert done.exit_code == 2 and "(2)" in done.output and f"({ROWS + 2})" in done.output, done.output


CANTILEVER = (
    "name: r\ntarget:\n  use: blackbox\n  function: cantilever\n  partials: returned\n  train: 80\n  test: 0\n"
    "  workers: 1\n  outputs: [deflection, stress]\n  units: {load: N}\n"
    "  inputs: {load: [1000, 1200], length: [1.0, 1.2], width: [40, 50], height: [80, 90]}\nstudent: mlp\n"
)


def test_a_function_that_returns_its_partials_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the cache of its results is below the working directory
    recipe = tmp_path / "r.yaml"
    recipe.write_text(CANTILEVER)
    done = check(str(recipe), "--json")
    assert done.exit_code == 0, done.output + repr(done.exception)
    (report,) = json.loads(done.stdout)
    assert report["partials"][0]["column"] == "ddeflection/dload" and report["samples"] == 80
    assert {p["verdict"] for p in report["partials"]} == {"agrees"}
    of = CANTILEVER.partition("target:\n")[2].partition("student:")[0].replace("\n  ", "\n    ")
    recipe.write_text(f"name: r\ntarget:\n  use: ensemble\n  members: 2\n  of:\n  {of}student: mlp\n")
    done = check(str(recipe), "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)[0]["partials"] == report["partials"]


@pytest.mark.parametrize("where", ["value", "partial"])
def test_infinite_answers_are_named_with_their_sample(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = JetBlackbox.answer

    def spoiled(*given: Any) -> Any:
        jets = answer(*given)
        for jet in jets.values():
            (jet.value if where == "value" else next(iter(jet.derivatives.values())))[[5, 7]] = math.inf
        return jets

    monkeypatch.setattr(JetBlackbox, "answer", spoiled)
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(CANTILEVER)
    done = check(str(recipe))
    assert isinstance(done.exception, DataError), done.output
    assert f"training sample 5 has an infinite {where}, and 1 other too" in str(done.exception)


def test_of_a_large_table_a_random_part_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", 500)
    x = np.linspace(0, 1, 7000)
    lines = [f"{a:.6f},{np.sin(a):.9f},{np.cos(a):.9f}" for a in x]
    for row in (10, 3000, 6999):
        lines[row] = lines[row].replace(f"{x[row]:.6f}", "", 1)
    (tmp_path / "d.csv").write_text("x,u,du/dx\n" + "\n".join(lines) + "\n")
    samples = module._of_file(tmp_path / "d.csv", None, None, None)
    assert len(samples.x) == 500 and samples.total == 6997 and len(samples.incomplete) == 3
    np.testing.assert_allclose(samples.y[:, 0], np.sin(samples.x[:, 0]), atol=2e-6)
    assert np.histogram(samples.x, bins=5, range=(0, 1))[0].min() > 60
    assert samples.place(0) != samples.place(499) == str(2 + round(samples.x[499, 0] * 6999))
    monkeypatch.setattr(module, "_ROWS", 200_000)
    found = json.loads(CliRunner().invoke(cli, ["check-data", str(tmp_path / "d.csv"), "--json"]).output)
    assert found[0]["samples"] == found[0]["of"] == 6997


def bump(x: Array) -> tuple[Array, Array]:
    y = np.exp(-50 * (x**2).sum(1))
    return y, -100 * x * y[:, None]


def logarithms(x: Array) -> tuple[Array, Array]:
    x[:] = np.exp(6 * x)
    return np.log(x).sum(1), 1 / x


def quotient(x: Array) -> tuple[Array, Array]:
    x[:] = 0.505 + 0.495 * x
    return x[:, 1] / x[:, 0], np.stack([-x[:, 1] / x[:, 0] ** 2, 1 / x[:, 0]], 1)


def plane(x: Array) -> tuple[Array, Array]:
    x[:] = x.round(4)
    return (3 * x[:, 0] - 2 * x[:, 1] + 1).round(6), np.tile([3.0, -2.0], (len(x), 1))


def hinge(x: Array) -> tuple[Array, Array]:
    return np.maximum(x[:, 0] - 0.6, 0) * 10 + x[:, 1], np.stack([10.0 * (x[:, 0] > 0.6), np.ones(len(x))], 1)


@pytest.mark.parametrize("rows", [20, 60, 300])
@pytest.mark.parametrize("made", [bump, logarithms, quotient, plane, hinge])
def test_what_the_samples_do_not_resolve_is_not_called_wrong(
    made: Callable[[Array], tuple[Array, Array]], rows: int
) -> None:
    for seed in range(3):
        x = np.random.default_rng(seed).uniform(-1, 1, (rows, 2))
        y, g = made(x)
        found = diagnose(samples(x, y[:, None], g[:, None]))
        assert not [problem.message for problem in found.problems], (seed, found.agreements)


@pytest.mark.parametrize("rows", [60, 100, 400])
@pytest.mark.parametrize("inputs", [[0], [1], [0, 1]])
def test_columns_swapped_between_values(inputs: list[int], rows: int) -> None:
    r = np.random.default_rng(rows)
    a, b = r.uniform(-1, 1, rows), r.uniform(0, 2, rows)
    y = np.stack([np.sin(2 * a) * b + b**2, a * b], 1)
    g = np.stack([np.stack([2 * np.cos(2 * a) * b, np.sin(2 * a) + 2 * b], 1), np.stack([b, a], 1)], 1)
    assert not diagnose(samples(np.stack([a, b], 1), y, g)).problems
    g[:, :, inputs] = g[:, ::-1, inputs]
    found = diagnose(samples(np.stack([a, b], 1), y, g))
    said = sorted(problem.message for problem in found.problems)
    assert said == [f"columns 'du/d{'ab'[i]}' and 'dv/d{'ab'[i]}' are swapped" for i in inputs]


def test_of_a_constant_value_nothing_can_be_told_of_its_partials() -> None:
    x, y, g = plant()
    y[:, 0] = 5.0
    found = diagnose(samples(x, y, g))
    assert len(found.agreements) == 6
    assert {a.verdict for a in found.agreements if a.column.startswith("du/")} == {"undecided"}


def test_roles_of_a_recipe_are_not_given_again(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").touch()
    done = check(str(tmp_path / "r.yaml"), "--inputs", "a")
    assert done.exit_code == 2 and "are for a FILE" in done.output


def test_a_coefficient_that_is_off_is_not_said_to_agree() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (30, 2))
    y, g = np.sin(8 * x[:, 0]) + x[:, 1], np.stack([8 * np.cos(8 * x[:, 0]), np.ones(30)], 1)
    for agreement in diagnose(samples(x, y[:, None], g[:, None])).agreements:
        b, e = agreement.coefficient, agreement.error
        assert agreement.verdict != "agrees" or b != b or 1 / 1.4 < b < 1.4 or abs(b - 1) < 3 * e
