"""The target ``blackbox``: parallel evaluation, its cache, and functions that hang, crash, raise or lie."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sobolev import HEADS, Batch, ComponentError, Context, Contraction, Probe
from sobolev.build import build
from sobolev.builtin.examples import cantilever, pendulum
from sobolev.builtin.targets.blackbox.pool import Task, check
from sobolev.builtin.targets.blackbox.results import Result, Results, append
from sobolev.builtin.targets.ensemble import ensemble_of
from sobolev.distributed import World
from sobolev.host import default_host
from sobolev.recipe.plan import load_plans

FUNCTIONS = """
import os, time
import numpy as np

def note(x):
    with open(os.environ["CALLS"], "a") as file:
        file.write(f"{os.getpid()} {x.tolist()}\\n")

def quadratic(x):
    note(x)
    return float(x @ x), 2 * x

def plain(x):
    note(x)
    return np.array([x[0] * x[1], x[0] + x[1]])

def hangs(x):
    note(x)
    while x[0] > 0.8:
        time.sleep(0.05)
    return x.sum()

def dies(x):
    note(x)
    if x[0] > 0.8:
        os.kill(os.getpid(), 11)
    return x.sum()

def raises(x):
    note(x)
    if x[0] > 0.8:
        raise ValueError("the mesh cannot be made")
    return x.sum()

def shape(x):
    return np.zeros(3)

def nan(x):
    return np.nan

def slow(x):
    note(x)
    time.sleep(0.1)
    return x.sum()

number = 3
"""
NAMES = ("quadratic", "plain", "hangs", "dies", "raises", "shape", "nan", "slow", "number")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that offers functions by entry points, for this process and its children."""
    folder = tmp_path / "site"
    info = folder / "blackbox_tests-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "blackbox_functions.py").write_text(FUNCTIONS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: blackbox-tests\nVersion: 1.0\n")
    lines = [f"test-{name} = blackbox_functions:{name}" for name in NAMES]
    lines.append("test-absent = blackbox_functions:absent")
    (info / "entry_points.txt").write_text("[sobolev.functions]\n" + "\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    importlib.invalidate_caches()
    return folder


def calls(folder: Path) -> list[str]:
    """Points that were evaluated, one entry per call."""
    file = folder / "calls"
    return [line.partition(" ")[2] for line in file.read_text().splitlines()] if file.is_file() else []


def target(folder: Path, function: str, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    spec = {"use": "blackbox", "function": function, "inputs": {"a": [0, 1], "b": [0, 1]}, "outputs": ["f"],
            "train": 12, "test": 0, "workers": 2, "timeout": 20, **options}  # fmt: skip
    checked, problems = default_host().registry.check("target", spec, ("target",))
    assert not problems, problems
    made = default_host().registry.build("target", checked)
    device = torch.device("cpu")
    made.prepare(
        Context(device, dtype, World(device), 0, HEADS["identity"], folder, folder / "cache", say=lambda _: None)
    )
    return made


def points(made: Any, split: str = "train") -> Any:
    return made.points(Batch(split, torch.arange(made.size(split))), True)


def test_returned_partials_answer_every_probe_and_are_computed_once(tmp_path: Path, package: Path) -> None:
    made = target(tmp_path, "test-quadratic", partials="returned", train=9)
    try:
        where = points(made)
        x = where["function"].inputs["x"]
        v = torch.randn(9, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        jet = made.answer(where, {"function": Probe({("x",): Contraction(None, (v,))})}, None)["function"]
        torch.testing.assert_close(jet.value, x.square().sum(1, keepdim=True))
        torch.testing.assert_close(jet["x",], torch.einsum("nkd,nd->nk", v, 2 * x)[..., None])
        jet = made.answer(where, {"function": Probe.full((("x",),))}, None)["function"]
        torch.testing.assert_close(jet["x",], 2 * x[:, None])
        assert len(calls(tmp_path)) == len(set(calls(tmp_path))) == 9
        assert made.finish(None) == {"evaluations/computed": 9.0, "evaluations/train": 9.0}
    finally:
        made.close()
    again = target(tmp_path, "test-quadratic", partials="returned", train=9)
    points(again)
    assert len(calls(tmp_path)) == 9
    assert again.finish(None) == {"evaluations/computed": 0.0, "evaluations/train": 9.0}
    again.close()
    resumed = ensemble_of(target(tmp_path, "test-quadratic", partials="returned", train=9), 2)
    resumed.load_state_dict(ensemble_of(made, 2).state_dict())  # a run goes on counting, members or none
    assert resumed.of.finish(None) == {"evaluations/computed": 9.0, "evaluations/train": 9.0}
    resumed.close()


def test_work_is_shared_by_the_workers(tmp_path: Path, package: Path) -> None:
    made = target(tmp_path, "test-slow")
    points(made)
    made.close()
    processes = {line.partition(" ")[0] for line in (tmp_path / "calls").read_text().splitlines()}
    assert len(processes) == 2 and len(calls(tmp_path)) == 12


def test_float32_points_are_evaluated_where_the_student_sees_them(tmp_path: Path, package: Path) -> None:
    made = target(tmp_path, "test-plain", torch.float32, outputs=["f", "g"], train=3)
    x = points(made)["function"].inputs["x"]
    made.close()
    assert x.dtype == torch.float32 and {str(row) for row in x.double().tolist()} == set(calls(tmp_path))


def test_finite_differences_of_a_function_in_a_recipe(tmp_path: Path, package: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: r\ntarget: {use: blackbox, function: test-plain, inputs: {a: [0, 1], b: [0, 1]}, outputs: [f, g],\n"
        "  train: 4, test: 0, workers: 1}\nstudent: mlp\ndtype: float64\n"
        "estimator: {use: finite-difference, of: {use: exact}}\n"
    )
    (plan,) = load_plans(recipe, default_host().registry)
    experiment = build(plan, default_host().registry, World(torch.device("cpu")), cache=tmp_path, say=lambda _: None)
    try:
        for _ in range(2):
            drawn = experiment.draw(Batch("train", torch.arange(4)), 0, training=True)
        x = drawn.points["function"].inputs["x"]
        expected = torch.stack([x.flip(1), torch.ones_like(x)], dim=1)
        assert drawn.reference is not None
        torch.testing.assert_close(drawn.reference["function"]["x",], expected, rtol=1e-7, atol=1e-7)
        assert len(calls(tmp_path)) == 4 * (1 + 4)  # the second time everything is known
        assert experiment.estimator.metrics()["evaluations"] == 2 * 4 * (1 + 4)
        assert experiment.target.finish(experiment)["evaluations/train"] == 4 * (1 + 4)
    finally:
        experiment.target.close()


def test_autograd_of_a_function_is_refused_with_the_way_out(tmp_path: Path, package: Path) -> None:
    made = target(tmp_path, "test-plain", outputs=["f", "g"], train=2)
    where = points(made)["function"]
    made.close()
    with pytest.raises(ComponentError, match=r"estimator: \{use: finite-difference"):
        made.value("function", {"x": where.inputs["x"].requires_grad_()}, where)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("test-hangs", "did not return within 1 seconds and was stopped"),
        ("test-dies", r"killed its process by signal 11 \(SIGSEGV\)"),
        ("test-raises", r"ValueError: the mesh cannot be made \(blackbox_functions.py:\d+\)"),
    ],
)
def test_what_fails_is_named_and_what_was_computed_is_kept(
    tmp_path: Path, package: Path, function: str, reason: str
) -> None:
    made = target(tmp_path, function, timeout=1, train=10)
    bad = [row for row in made._x["train"].tolist() if row[0] > 0.8]
    with pytest.raises(ComponentError, match=f"gave no result at {len(bad)} points") as caught:
        points(made)
    made.close()
    assert len(bad) == 2
    for a, b in bad:
        assert f"a={a!r}, b={b!r}: " in str(caught.value)
    assert len(re.findall(reason, str(caught.value))) == 2
    kept = Results(made._task.file, 2, 1)
    kept.refresh()
    assert len(kept) == 8 and "8 results are kept in" in str(caught.value)
    again = target(tmp_path, function, timeout=1, train=10)
    with pytest.raises(ComponentError):
        points(again)
    again.close()
    assert len(calls(tmp_path)) == 10 + 2  # only the points without a result are tried again


def test_a_function_that_always_fails_is_given_up(tmp_path: Path, package: Path) -> None:
    made = target(tmp_path, "test-shape", train=500, workers=1)
    with pytest.raises(ComponentError, match=r"at [89] points(.|\n)*a value of shape \(3,\), not 1 numbers \(f\)"):
        points(made)
    made.close()


def test_numbers_that_are_not_finite_are_no_results(tmp_path: Path, package: Path) -> None:
    made = target(tmp_path, "test-nan", train=1)
    with pytest.raises(ComponentError, match="a number that is not finite"):
        points(made)
    made.close()


def test_functions_that_are_not_there(tmp_path: Path, package: Path) -> None:
    with pytest.raises(ComponentError, match="did you mean 'test-hangs'") as caught:
        target(tmp_path, "test-hang")
    assert '[project.entry-points."sobolev.functions"]' in str(caught.value)
    for name, message in (
        ("test-absent", "cannot be imported: AttributeError"),
        ("test-number", "is a int, not a function"),
    ):
        made = target(tmp_path, name)
        with pytest.raises(ComponentError, match=message):
            points(made)
        made.close()


def test_a_changed_source_or_version_computes_anew(tmp_path: Path, package: Path) -> None:
    first = target(tmp_path, "test-plain", outputs=["f", "g"])
    pinned = target(tmp_path, "test-plain", outputs=["f", "g"], version="1")
    (package / "blackbox_functions.py").write_text(FUNCTIONS + "\n# changed\n")
    assert target(tmp_path, "test-plain", outputs=["f", "g"])._task.file != first._task.file
    assert target(tmp_path, "test-plain", outputs=["f", "g"], version="1")._task.file == pinned._task.file
    assert target(tmp_path, "test-plain", outputs=["f", "g"], version="2")._task.file != pinned._task.file


def test_results_survive_torn_and_foreign_lines(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    append(file, (0.1, 0.2), Result((1.0,)))
    append(file, (0.3, 0.2), Result((2.0,), ((3.0, 4.0),)))
    with file.open("a") as stream:
        stream.write(
            '{"x": [1, 2, 3], "value": [1], "partials": null}\n{"x": [5, 5], "value": [NaN], "partials": null}\nhm\n'
        )
        stream.write('{"x": [0.5, 0.5], "val')  # killed while it wrote
    found = Results(file, 2, 1)
    found.mend()
    found.refresh()
    append(file, (0.7, 0.7), Result((7.0,)))
    found.refresh()
    assert len(found) == 3 and found.get((0.7, 0.7)) == Result((7.0,)) and found.get((0.5, 0.5)) is None
    assert found.get((0.3, 0.2)) == Result((2.0,), ((3.0, 4.0),))


def test_killing_everything_loses_nothing_that_was_computed(tmp_path: Path, package: Path) -> None:
    script = textwrap.dedent(f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_blackbox import points, target
        if __name__ == "__main__":
            points(target(Path({str(tmp_path)!r}), "test-slow", train=200))
    """)
    (tmp_path / "main.py").write_text(script)
    process = subprocess.Popen([sys.executable, str(tmp_path / "main.py")], start_new_session=True, env=os.environ)
    deadline = time.monotonic() + 60
    while len(calls(tmp_path)) < 12 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)  # the parent alone: its workers notice
    process.wait()
    time.sleep(2.5)
    finished = len(calls(tmp_path))
    time.sleep(0.5)
    assert 12 <= len(calls(tmp_path)) == finished < 200  # nobody works on
    made = target(tmp_path, "test-slow", train=200)
    kept = Results(made._task.file, 2, 1)
    kept.refresh()
    assert finished - 2 <= len(kept) <= finished  # a worker that is computing when it ends takes one point with it


def test_checks_of_returned_values() -> None:
    task = Task("f", ("a", "b"), ("u",), True, Path())
    assert check((1.0, [1, 2]), task) == Result((1.0,), ((1.0, 2.0),))
    assert check((np.array([1.0]), np.array([[1, 2]])), task) == Result((1.0,), ((1.0, 2.0),))
    for returned, message in (
        (1.0, r"must return \(value, partials\)"),
        ((1.0, [1, 2, 3]), r"partials of shape \(3,\)"),
        ((None, [1, 2]), "returned None as value: is there a 'return'"),
        ((1.0 + 1e-9j, [1, 2]), "complex value"),
        ((1.0, [1, 2j]), "complex partials"),
        (("high", [1, 2]), "value that holds no numbers: 'high'"),
        ((1.0, [[1], [2, 3]]), "partials of uneven lengths"),
    ):
        with pytest.raises(ValueError, match=message):
            check(returned, task)
    assert check((torch.tensor(1.0), [torch.tensor(1.0), 2]), task) == Result((1.0,), ((1.0, 2.0),))
    values = Task("f", ("a", "b"), ("u",), False, Path())
    with pytest.raises(ValueError, match=r"returned two things, as \(value, partials\): set 'partials: returned'"):
        check((1.0, [1, 2]), values)


@pytest.mark.parametrize("x", [[1000.0, 2.0, 40.0, 80.0], [300.0, 0.7, 25.0, 30.0]])
def test_example_partials_against_differences(x: list[float]) -> None:
    point = np.array(x)
    value, partials = cantilever(point)
    for i in range(4):
        step = np.zeros(4)
        step[i] = 1e-6 * point[i]
        difference = (cantilever(point + step)[0] - cantilever(point - step)[0]) / (2 * step[i])
        np.testing.assert_allclose(partials[:, i], difference, rtol=1e-7)
    assert value[0] == pytest.approx(4e9 * x[0] * x[1] ** 3 / (210e3 * x[2] * x[3] ** 3))


def test_example_pendulum_swings_at_its_period() -> None:
    small = pendulum(np.array([1e-3, 9.81 * 9 / (2 * np.pi) ** 2, 0.0]))  # three seconds are one period
    assert small == pytest.approx(1e-3, rel=1e-6)


def test_a_recipe_runs_and_resumes_from_what_is_known(tmp_path: Path, package: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: r\ntarget: {use: blackbox, function: test-quadratic, partials: returned,\n"
        "  inputs: {a: [0, 1], b: [0, 1]}, outputs: [f], train: 6, test: 4, workers: 1}\n"
        "student: {use: mlp, hidden: [4], activation: tanh}\n"
        "train: {steps: 3, batch_size: 3, compile: never}\nvariants: {one: {}, two: {train.steps: 4}}\n"
    )
    command = [sys.executable, "-m", "sobolev", "run", str(recipe), "--runs", str(tmp_path / "runs"), "--device", "cpu",
               "--jobs", "2"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(calls(tmp_path)) == 10  # both variants together: nothing is computed twice
    statuses = [
        json.loads((tmp_path / f"runs/r/{v}/seed-0/status.json").read_text())["summary"] for v in ("one", "two")
    ]
    assert sum(s["evaluations/computed"] for s in statuses) == 10
