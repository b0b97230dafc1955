"""Every recipe of the plugin runs, in its smoke form."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from sobolev.cli import cli

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.stem for recipe in RECIPES])
def test_a_recipe_runs(recipe: Path, tmp_path: Path) -> None:
    arguments = ["run", str(recipe), "--smoke", "--jobs", "1", "--device", "cpu", "--runs", str(tmp_path)]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert list(tmp_path.glob("*/*/seed-0/student.safetensors"))
