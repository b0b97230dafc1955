"""The recipes of this family: all are checked, the small ones run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[3] / "recipes"
OURS = [*sorted((RECIPES / "distillation").glob("*.yaml")), *sorted((RECIPES / "paper").glob("figure4*.yaml"))]


def sobolev(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300"}
    command = [sys.executable, "-m", "sobolev", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def test_all_are_valid() -> None:
    done = sobolev("validate", *map(str, OURS))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("valid, ") == len(OURS) > 5


def test_cartpole_runs_from_nothing(tmp_path: Path) -> None:
    recipe = RECIPES / "distillation" / "cartpole-variants.yaml"
    done = sobolev("run", str(recipe), "--smoke", "--device", "cpu", "-j", "1", "--runs", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    runs = tmp_path / "cartpole-variants.smoke"
    variants = ["full-jacobian", "input-side", "regular", "sobolev", "temperature-2"]
    assert sorted(p.name for p in runs.iterdir() if (p / "seed-0").is_dir()) == variants
    for variant in variants:
        summary = json.loads((runs / variant / "seed-0" / "status.json").read_text())["summary"]
        assert summary["score"] >= 8 and summary["jacobian-kept/train"] == 1
        assert 0 <= summary["test/action-error"] <= 1 and summary["test/kl-student-teacher"] > 0
        assert summary["test/policy/d/dx"] > 0
    assert len(list((tmp_path / ".cache" / "teachers").iterdir())) == 1  # one teacher for all


def test_the_digits_are_compressed(tmp_path: Path) -> None:
    recipe = RECIPES / "distillation" / "digits.yaml"
    done = sobolev("run", str(recipe), "--smoke", "--device", "cpu", "-j", "1", "--runs", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "digits.smoke" / "sobolev" / "seed-0" / "status.json").read_text())["summary"]
    assert 0 < summary["accuracy"] <= 1 and 0 < summary["teacher-accuracy"] <= 1
    assert summary["test/kl-teacher-student"] > 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"teacher": "pongo"}, "there is no teacher 'pongo'; did you mean 'pong'"),
        ({"teacher": "pong", "environment": "brekout"}, "unknown environment 'brekout'; did you mean breakout"),
        ({"teacher": "pong", "environment": "breakout"}, "teacher pong has 6 outputs, breakout has 4 actions"),
    ],
)
def test_mistakes_are_said_in_a_sentence_and_leave_nothing(
    options: dict[str, str], expected: str, tmp_path: Path
) -> None:
    changes = [f"target.{name}={value}" for name, value in options.items()]
    flags = [part for change in changes for part in ("--set", change)]
    recipe = RECIPES / "distillation" / "pong-quick.yaml"
    done = sobolev(
        "run", str(recipe), "--device", "cpu", "-j", "1", "--only", "sobolev", "--runs", str(tmp_path), *flags
    )
    said = done.stdout + done.stderr
    assert done.returncode == 2 and expected in said and "Traceback" not in said, said
    assert not list(tmp_path.rglob("*.npy"))
