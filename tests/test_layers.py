"""Data flows one way: recipe -> build -> train -> run directory -> compare and report. Imports say whether it does."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "sobolev"
PLUGINS = ROOT / "plugins"


@cache
def imports(file: Path, lazy: bool = True) -> frozenset[str]:
    """Return what a file imports, as dotted names; those for type checkers alone are left out.

    ``lazy`` includes imports inside functions.
    """
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not lazy:
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.level == 0 and child.module:
                found.update({child.module, *(f"{child.module}.{alias.name}" for alias in child.names)})
            visit(child)

    visit(ast.parse(file.read_text()))
    return frozenset(found)


def module(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files(*places: str) -> list[Path]:
    made: list[Path] = []
    for place in places:
        path = CORE / place
        made += sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    assert all(file.is_file() for file in made), made
    return made


def reached(start: str, lazy: bool) -> set[str]:
    """Return the modules of sobolev that importing one of them brings in, itself included."""
    everything = {module(file): file for file in CORE.rglob("*.py")}
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in everything:
            continue
        seen.add(name)
        waiting += [found for found in imports(everything[name], lazy) if found in everything]
    return seen


def plugin_files() -> Iterator[Path]:
    for file in sorted(PLUGINS.rglob("*.py")):
        if "build" not in file.parts and "tests" not in file.parts:
            yield file


def test_the_check_itself_sees_imports() -> None:
    assert "sobolev.vocabulary" in imports(CORE / "train.py")
    assert "torch" in imports(CORE / "train.py", lazy=False)
    assert "sobolev.builtin.optimizers" in imports(CORE / "host.py")
    assert "sobolev.builtin.optimizers" not in imports(CORE / "host.py", lazy=False)
    assert "sobolev.errors" in reached("sobolev.train", lazy=False)


@pytest.mark.parametrize(
    "name", ["train", "evaluate", "build", "preflight", "sampler", "checkpoint", "records", "loss"]
)
def test_training_never_sees_yaml(name: str) -> None:
    """It gets checked models: of the recipe only `model` and the finished plan, and no YAML library."""
    for found in imports(CORE / f"{name}.py"):
        assert not found.startswith(("ruamel", "yaml", "sobolev.recipe.source", "sobolev.cli")), found
        assert "load_plans" not in found


def test_derivatives_know_neither_recipes_nor_components_by_name() -> None:
    for file in files("differentiate"):
        for found in imports(file):
            allowed = not found.startswith(("sobolev.recipe", "sobolev.registry", "sobolev.build", "sobolev.train"))
            assert allowed, f"{file.name} imports {found}"


def test_comparisons_and_reports_never_see_a_model() -> None:
    """They read run directories: nothing that they import brings torch in."""
    for file in [CORE / "compare.py", CORE / "rundir.py", *files("builtin/reports")]:
        for name in reached(module(file), lazy=False):
            found = imports(CORE.parent / Path(*name.split(".")).with_suffix(".py"), lazy=False) \
                if (CORE.parent / Path(*name.split(".")).with_suffix(".py")).is_file() \
                else imports(CORE.parent / Path(*name.split(".")) / "__init__.py", lazy=False)  # fmt: skip
            heavy = {part for part in found if part.split(".")[0] in ("torch", "safetensors")}
            assert not heavy, f"{module(file)} reaches {name}, which imports {heavy}"
        direct = imports(file)
        models = (
            "sobolev.build",
            "sobolev.train",
            "sobolev.loading",
            "sobolev.records",
            "sobolev.differentiate",
            "torch",
        )
        assert not [name for name in direct if name.startswith(models)], module(file)


FRONT = ("host.py", "regressor.py")
"""Files that stand before the core: the host loads built-ins; the estimator for scikit-learn is made of them."""


def test_the_core_knows_no_family_of_problems() -> None:
    """No file of the core names a built-in component's module, or a plugin."""
    for file in CORE.glob("*.py"):
        for found in imports(file):
            if found.startswith("sobolev.builtin"):
                assert file.name in FRONT, f"{file.name} imports {found}"
            assert not found.startswith(("sobolev_", "gymnasium", "ale_py", "timm", "wandb")), f"{file.name}: {found}"


@pytest.mark.parametrize("file", [*files("builtin"), *plugin_files()], ids=lambda f: str(f.relative_to(ROOT)))
def test_components_import_public_names_only(file: Path) -> None:
    for found in imports(file):
        if found.split(".")[0] == "sobolev":
            private = [part for part in found.split(".") if part.startswith("_") and not part.startswith("__")]
            assert not private, f"{found} is private"


def test_plugins_do_not_import_each_other() -> None:
    packages = {file.parent.name for file in PLUGINS.glob("*/*/plugin.py")}
    assert len(packages) >= 4
    for file in plugin_files():
        own = file.relative_to(PLUGINS).parts[1]
        others = {found.split(".")[0] for found in imports(file)} & (packages - {own})
        assert not others, f"{file} imports {others}"


LIGHT = ["sobolev", "sobolev.components", "sobolev.errors", "sobolev.hookspecs", "sobolev.host", "sobolev.registry",
         "sobolev.builtin", "sobolev.builtin.optimizers", "sobolev.recipe.plan", "sobolev.rundir", "sobolev.compare",
         "sobolev.cli", "sobolev.cli.inspect", "sobolev.cli.run", "sobolev.cli.results", "sobolev.cli.check",
         "sobolev.cli.newplugin"]  # fmt: skip


def test_light_modules_import_no_torch() -> None:
    """In a fresh process, with every installed plugin loaded."""
    program = (
        "import importlib, sys\n"
        f"for name in {LIGHT}:\n    importlib.import_module(name)\n"
        "from sobolev.host import load_host\n"
        "host = load_host()\n"
        "assert not host.registry.broken, host.registry.broken\n"
        "heavy = [m for m in ('torch', 'wandb', 'matplotlib', 'scipy', 'gymnasium', 'timm') if m in sys.modules]\n"
        "print(heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
