"""Lint, format and types: what a contributor's editor shows, checked."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = [ROOT / "sobolev", *sorted(p for p in ROOT.glob("plugins/*/*") if (p / "__init__.py").is_file())]


def _run(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_lint():
    _run("ruff", "check", ".")


def test_format():
    _run("ruff", "format", "--check", ".")


def test_types():
    _run("mypy", *map(str, PACKAGES))
