"""``sobolev run`` from a user's side: what is there afterwards, what is said, and what a mistake leaves (nothing)."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sobolev.cli import main
from sobolev.errors import SobolevError
from sobolev.loading import load
from sobolev.recording import MetricsFile

RECIPE = """
name: r
target: {use: mccormick, train: 12, test: 30}
student: {use: mlp, hidden: [6], activation: tanh}
objective: {derivatives: [{order: 1}]}
train: {steps: 8, batch_size: 6, compile: never}
seeds: 2
variants:
  regular: {objective.derivatives.0.weight: 0}
  sobolev: {}
figures: [{use: surface, grid: 9}, bars]
smoke: {train.steps: 2, seeds: 1}
"""
FAMILIES = Path(__file__).parent / "families.py"

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def sobolev(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs a command in a folder of its own; returns the exit code and what was shown."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["sobolev", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
        except SystemExit as left:
            code = left.code
        shown = capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err
        return int(code or 0), shown.out + shown.err

    return call


def test_a_recipe_becomes_runs_a_table_and_figures(sobolev: Call, tmp_path: Path) -> None:
    code, text = sobolev("run", "recipe.yaml", "-j", 1)
    assert code == 0
    for word in (
        "r: 4 runs",
        "regular/seed-1",
        "trained in",
        "test/function/value",
        "ratio",
        "surface.png",
        "bars.png",
    ):
        assert word in text, word
    assert text.count("done") == 4
    for variant in ("regular", "sobolev"):
        for seed in (0, 1):
            run = tmp_path / "runs/r" / variant / f"seed-{seed}"
            present = {path.name for path in run.iterdir()}
            assert present == {
                "recipe.yaml", "env.json", "status.json", "metrics.jsonl", "checkpoints", "student.safetensors",
                "records", "figures",
            }  # fmt: skip
            assert json.loads((run / "status.json").read_text())["status"] == "finished"
    home = tmp_path / "runs/r"
    assert (home / "figures/surface.png").stat().st_size > 1000 and "| sobolev | 2 |" in (
        home / "comparison.md"
    ).read_text()

    before = {file: file.stat().st_mtime_ns for file in home.rglob("student.safetensors")}
    code, text = sobolev("run", "recipe.yaml", "-j", 1)
    assert code == 0 and "4 of them were finished before and are not repeated" in text and "ratio" in text
    assert {file: file.stat().st_mtime_ns for file in home.rglob("student.safetensors")} == before

    (home / "sobolev/seed-1/status.json").unlink()  # as if it had been cut off
    code, text = sobolev("run", "recipe.yaml", "-j", 1)
    assert code == 0 and "3 of them were finished before" in text and text.count("done") == 1


def test_a_changed_recipe_is_refused_and_the_difference_shown(sobolev: Call, tmp_path: Path) -> None:
    only = ("--only", "sobolev", "--set", "seeds=1", "--set", "figures=[]", "-j", 1)
    assert sobolev("run", "recipe.yaml", *only)[0] == 0
    run = tmp_path / "runs/r/sobolev/seed-0"
    before = (run / "student.safetensors").read_bytes()
    code, text = sobolev("run", "recipe.yaml", *only, "--set", "train.batch_size=5")
    assert code == 2 and "train.batch_size: 6 -> 5" in text and "--force" in text
    assert (run / "student.safetensors").read_bytes() == before
    code, _ = sobolev("run", "recipe.yaml", *only, "--set", "train.batch_size=5", "--force")
    assert code == 0 and (run / "student.safetensors").read_bytes() != before
    assert not (run / "lock.json").exists()


MISTAKES = {
    "no such component": (["--set", "target=mccormik"], "did you mean 'mccormick'?"),
    "misspelt key": (["--set", "train.step=5"], "did you mean 'steps'?"),
    "wrong type": (["--set", "train.steps=many"], "train.steps"),
    "no such variant": (["--only", "sobolef"], "did you mean 'sobolev'?"),
    "no such device": (["--device", "tpu"], "expected auto, cpu, cuda"),
    "order 2 of a piecewise linear student": (
        ["--only", "sobolev", "--set", "student.activation=relu", "--set", "objective.derivatives=[{order: 2}]"],
        "zero everywhere",
    ),
    "a head that the target cannot answer for": (["--set", "objective.head=log-softmax"], "the head identity"),
    "early stopping without evaluations": (
        ["--set", "train.stop={metric: test/function/value}"], "evaluate.every",
    ),
    "no such metric": (["--set", "evaluate.best=test/function/valeu"], "did you mean 'test/function/value'?"),
    "L-BFGS and averages without waiting": (
        ["--set", "train.update=hogwild", "--set", "train.ema=0.9"], "hogwild",
    ),
    "a target that computes NaN": (["--set", "target={use: sines, bad: value, sample: 3, rows: 8}"], "samples 3"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_explained_and_leaves_nothing(sobolev: Call, tmp_path: Path, mistake: str) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/families.py").write_text(FAMILIES.read_text())
    changes, told = MISTAKES[mistake]
    code, text = sobolev("--plugins-dir", "plugins", "run", "recipe.yaml", "-j", 1, *changes)
    assert code == 2, text
    assert told in " ".join(text.split()), text
    runs = tmp_path / "runs"
    assert not runs.exists() or not [path for path in runs.rglob("*") if ".cache" not in path.parts], (
        "something is left"
    )


def test_no_recipe_is_there(sobolev: Call, tmp_path: Path) -> None:
    code, text = sobolev("run", "recip.yaml")
    assert code == 2 and "did you mean 'recipe.yaml'?" in text and not (tmp_path / "runs").exists()


def test_a_run_that_fails_takes_no_other_down_and_can_be_mended(sobolev: Call, tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/families.py").write_text(FAMILIES.read_text())
    changes = ["--set", "target={use: sines, rows: 12}", "--set", "figures=[]", "--set", "variants={a: {}, b: {}}",
               "--set", "variants.a={target.bad: value, target.sample: 5}", "--set", "seeds=1",
               "--set", "train.preflight=false"]  # fmt: skip
    command = ("--plugins-dir", "plugins", "run", "recipe.yaml", "-j", 1, *changes)
    code, text = sobolev(*command)
    assert code == 2 and "a/seed-0" in text and "samples 5" in text
    states = {v: json.loads((tmp_path / f"runs/r/{v}/seed-0/status.json").read_text())["status"] for v in "ab"}
    assert states == {"a": "failed", "b": "finished"}
    # The failed one has nothing worth keeping: the mended recipe needs no --force.
    code, text = sobolev(*command, "--set", "variants.a={}")
    assert code == 0 and "1 of them were finished before" in text


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(
    sobolev: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ("--set", "seeds=1", "--set", "variants={only: {}}", "--set", "train.checkpoint.every=2")
    write, full = MetricsFile.log, True

    def log(self: MetricsFile, step: int, metrics: Mapping[str, float]) -> None:
        if full and step > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, step, metrics)

    monkeypatch.setattr(MetricsFile, "log", log)
    code, text = sobolev("run", "recipe.yaml", "-j", 1, *changes)
    run = tmp_path / "runs/r/only/seed-0"
    assert code != 0 and "nothing more can be written (No space left on device" in text
    assert "goes on from the last checkpoint" in " ".join(text.split())
    assert json.loads((run / "status.json").read_text())["status"] == "failed"
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step-00000002", "step-00000004"]
    full = False
    code, text = sobolev("run", "recipe.yaml", "-j", 1, *changes)
    assert code == 0 and json.loads((run / "status.json").read_text())["status"] == "finished"
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == [*range(1, 9)]


def test_a_dry_run_tries_everything_and_leaves_nothing(sobolev: Call, tmp_path: Path) -> None:
    code, text = sobolev("run", "recipe.yaml", "--dry-run")
    assert code == 0 and text.count("agrees") == 2 and "ms per step" in text
    assert not (tmp_path / "runs").exists()


def test_a_smoke_run_has_a_name_of_its_own(sobolev: Call, tmp_path: Path) -> None:
    assert sobolev("run", "recipe.yaml", "--smoke", "-j", 1)[0] == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["r.smoke"]


def test_runs_in_parallel_stop_together_and_continue(sobolev: Call, tmp_path: Path) -> None:
    slow = [
        "--set",
        "train.steps=1000",
        "--set",
        "train.checkpoint.every=20",
        "--set",
        "figures=[]",
        "--set",
        "seeds=1",
    ]
    command = [sys.executable, "-m", "sobolev", "run", "recipe.yaml", "-j", "2", *slow]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    home = tmp_path / "runs/r"
    deadline = time.monotonic() + 200
    while not list(home.glob("*/*/checkpoints/step-????????/manifest.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does for Ctrl-C
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 130, out
    assert "Traceback" not in out and "the same command continues from the last checkpoints" in out.replace("\n", " ")
    statuses = [json.loads(file.read_text()) for file in home.glob("*/*/status.json")]
    assert "interrupted" in {status["status"] for status in statuses}

    assert sobolev("run", "recipe.yaml", "-j", 1, *slow)[0] == 0
    assert sobolev("run", "recipe.yaml", "-j", 1, "--runs", "serial", *slow)[0] == 0
    for variant in ("regular", "sobolev"):
        student = f"r/{variant}/seed-0/student.safetensors"
        assert (tmp_path / "runs" / student).read_bytes() == (tmp_path / "serial" / student).read_bytes()


# -- looking back ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with finished runs."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sobolev", "run", str(folder / "recipe.yaml"), "--runs", str(folder), "-j", "1"])
        with pytest.raises(SystemExit) as left:
            main()
    assert not left.value.code
    return folder / "r"


def test_compare_gives_mean_spread_and_ratio(sobolev: Call, finished: Path) -> None:
    code, text = sobolev("compare", finished, "--json")
    assert code == 0
    found = json.loads(text)
    assert list(found) == ["regular", "sobolev"]
    means = {}
    for variant, cells in found.items():
        files = [finished / variant / f"seed-{seed}/status.json" for seed in (0, 1)]
        values = torch.tensor([json.loads(f.read_text())["summary"]["test/function/d/dx"] for f in files]).double()
        cell = cells["test/function/d/dx"]
        means[variant] = float(values.mean())
        assert cell["mean"] == pytest.approx(means[variant], rel=1e-6)
        assert cell["std"] == pytest.approx(float(values.std()), rel=1e-4) and cell["seeds"] == 2
    ratio = found["sobolev"]["test/function/d/dx"]["ratio"]
    assert ratio == pytest.approx(means["regular"] / means["sobolev"], rel=1e-6)

    code, text = sobolev("compare", finished / "sobolev", "--metric", "test/function/value")
    assert code == 0 and "test/function/value" in text and "d/dx" not in text
    code, text = sobolev("compare", finished, "--metric", "test/function/valeu")
    assert code == 2 and "did you mean 'test/function/value'?" in text
    code, text = sobolev("compare", finished / "figures")
    assert code == 2 and "no run directories" in text


def test_predict_writes_values_and_partials(sobolev: Call, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("id, y, x\n1, 0.5, -1\n2, 2, 3.25\n")
    run = finished / "sobolev/seed-0"
    code, text = sobolev("predict", run, "data.csv")
    assert code == 0
    lines = [line.split(",") for line in text.split()]
    assert lines[0][:3] == ["x", "y", "f"] and len(lines) == 3 and len(lines[0]) == 5
    weights = load_file(run / "student.safetensors")
    for row, (x, y) in zip(lines[1:], ((-1.0, 0.5), (3.25, 2.0)), strict=True):
        w = [weights[f"function.{name}"].double() for name in ("0.weight", "0.bias", "2.weight", "2.bias")]
        hidden = torch.tanh(w[0] @ torch.tensor([x, y]).double() + w[1])
        value, slope = w[2] @ hidden + w[3], (w[2] * (1 - hidden.square())) @ w[0]
        expected = [x, y, *value.tolist(), *slope[0].tolist()]
        assert [float(cell) for cell in row] == pytest.approx(expected, rel=1e-4)

    code, text = sobolev("predict", run, "data.csv", "-o", "out.csv")
    assert code == 0 and "2 rows written to out.csv" in text
    assert (tmp_path / "out.csv").read_text().split() == [",".join(line) for line in lines]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("x,z\n1,2\n", "there is no column 'y'"),
        ("x,y\n1,2\n1,two\n", "data.csv:3: column 'y': 'two' is no number"),
        ("x,y\n1\n", "data.csv:2: 1 cell, 2 columns in the header"),
        ("", "there is no column 'x'"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(
    sobolev: Call, finished: Path, tmp_path: Path, content: str, told: str
) -> None:
    (tmp_path / "data.csv").write_text(content)
    code, text = sobolev("predict", finished / "sobolev/seed-0", "data.csv")
    assert code == 2 and told in text.replace("\n", "")
    (tmp_path / "data.csv").write_text("x,y\n")
    code, text = sobolev("predict", finished / "sobolev/seed-0", "data.csv")
    assert code == 0 and len(text.split()) == 1, "no rows, no predictions"


def test_predict_of_what_is_no_run(sobolev: Call, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("x,y\n1,2\n")
    assert "no run directory" in sobolev("predict", finished, "data.csv")[1]
    code, text = sobolev("predict", finished / "sobolev/seed-0", "data.csv", "--site", "functoin")
    assert code == 2 and "did you mean 'function'?" in text


def test_a_student_comes_back_with_its_derivatives(finished: Path) -> None:
    student = load(finished / "sobolev/seed-0")
    x = torch.tensor([[0.5, -1.0], [1.0, 2.0]])
    jet = student(x)
    again = x.clone().requires_grad_()
    value = student.module["function"](again)
    (slope,) = torch.autograd.grad(value.sum(), again)
    assert torch.allclose(jet.value, value) and jet.value.shape == (2, 1)
    assert torch.allclose(jet.derivatives[("x",)][:, 0], slope, atol=1e-6)
    with pytest.raises(SobolevError, match="no run directory"):
        load(finished)


def test_a_student_comes_back_wherever_one_is(sobolev: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, elsewhere = tmp_path / "study", tmp_path / "elsewhere"
    study.mkdir()
    elsewhere.mkdir()
    rows = [f"{x / 7},{(x / 7) ** 2},{2 * x / 7}" for x in range(-10, 11)]
    (study / "data.csv").write_text("\n".join(["x,y,dy/dx", *rows]) + "\n")
    table = "target: {use: table, file: data.csv, inputs: x, values: y, partials: 'd{output}/d{input}'}"
    text = RECIPE.replace("target: {use: mccormick, train: 12, test: 30}", table).replace("surface, grid: 9", "bars")
    (study / "recipe.yaml").write_text(text)
    changes = ("--set", "seeds=1", "--set", "figures=[]", "--only", "sobolev", "-j", 1)
    code, shown = sobolev("run", "study/recipe.yaml", *changes)  # the file lies beside the recipe
    assert code == 0, shown
    monkeypatch.chdir(elsewhere)
    jet = load(tmp_path / "runs/r/sobolev/seed-0")(torch.zeros(3, 1))
    assert jet.value.shape == (3, 1) and jet.derivatives[("x",)].shape == (3, 1, 1)
    (elsewhere / "points.csv").write_text("x\n0.5\n")
    code, shown = sobolev("predict", tmp_path / "runs/r/sobolev/seed-0", "points.csv")
    assert code == 0 and shown.splitlines()[0].startswith("x,y,"), shown
    assert not list(elsewhere.glob("runs"))
