"""``sobolev new-plugin`` makes plugins whose own tests pass, from the repository and from a wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from sobolev.cli import cli
from sobolev.cli.newplugin import KINDS, component_name, content, template, without

ROOT = Path(__file__).parents[2]


def run(folder: Path, *command: str) -> str:
    """Run a Python program that finds plugins in a folder; returns what it printed."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], env=environment, cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def installed(plugin: Path, site: Path) -> None:
    """Lay a plugin out as pip would: its package, and the metadata that name its entry point."""
    project = tomllib.loads((plugin / "pyproject.toml").read_text())["project"]
    package = project["name"].replace("-", "_")
    (site / package).symlink_to(plugin / package)
    info = site / f"{package}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
    entries = [f"{name} = {module}" for name, module in project["entry-points"]["sobolev"].items()]
    (info / "entry_points.txt").write_text("[sobolev]\n" + "\n".join(entries) + "\n")


def test_every_kind_gives_a_plugin_whose_tests_pass(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    for kind in KINDS:
        result = CliRunner().invoke(cli, ["new-plugin", f"sobolev-my-{kind}", "--kind", kind, "--into", str(tmp_path)])
        assert result.exit_code == 0, result.output
        assert f"sobolev check my-{kind} --kind {kind}" in result.output
        installed(tmp_path / f"sobolev-my-{kind}", site)
    tests = [str(tmp_path / f"sobolev-my-{kind}" / "tests") for kind in KINDS]
    out = run(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-W", "error", *tests)
    assert "passed" in out
    assert "failed" not in out
    assert "my-student " in run(site, "-m", "sobolev", "list", "student")


def test_nothing_of_the_teaching_plugin_remains() -> None:
    for kind in KINDS:
        files = content("sobolev-heat", kind)
        assert set(files) == {
            "README.md", "pyproject.toml", f"recipes/{kind}.yaml", f"sobolev_heat/{kind}.py",
            "sobolev_heat/__init__.py", "sobolev_heat/plugin.py", "sobolev_heat/py.typed",
            "tests/test_conformance.py", "tests/test_recipes.py",
        }  # fmt: skip
        for file, text in files.items():
            assert "example" not in text, f"{kind}: {file}"
            if file.endswith(".py"):
                compile(text, file, "exec")
        hooks = [line for line in files["sobolev_heat/plugin.py"].splitlines() if line.startswith("def ")]
        assert hooks == [f"def register_{kind}(register: Register) -> None:"]
        assert tomllib.loads(files["pyproject.toml"])["project"]["entry-points"]["sobolev"] == {
            "heat": "sobolev_heat.plugin"
        }


def test_names() -> None:
    assert component_name("sobolev-heat") == "heat"
    assert component_name("heat") == "heat"
    assert without("x = 1\n\n\n@d\ndef register_target():\n    pass\n\n\ny = 2\n", ["target"]) == "x = 1\n\n\ny = 2\n"


@pytest.mark.parametrize("name", ["My-Plugin", "a_b", "1a", "a--b", "sobolev", "../up", ""])
def test_a_name_that_cannot_be_a_package_is_refused(tmp_path: Path, name: str) -> None:
    result = CliRunner().invoke(cli, ["new-plugin", name, "--into", str(tmp_path)])
    assert result.exit_code == 2
    assert "cannot name a package" in result.output
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    result = CliRunner().invoke(cli, ["new-plugin", "mine", "--into", str(tmp_path)])
    assert result.exit_code == 2
    assert "exists; choose another name" in result.output
    assert not list((tmp_path / "mine").iterdir())


def test_it_works_from_an_installed_wheel(tmp_path: Path) -> None:
    """The wheel holds the teaching plugin; a plugin made by it is installed by pip and found."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for name in ("sobolev", "plugins"):
        (source / name).symlink_to(ROOT / name)
    pip = ["-m", "pip", "--disable-pip-version-check", "-q"]
    run(tmp_path, *pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path / "wheels"), str(source))
    (wheel,) = (tmp_path / "wheels").glob("sobolev-*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    found = {str(file.relative_to(template())): file.read_text() for file in template().rglob("*.py")}
    packed = site / "sobolev" / "example_plugin"
    assert {str(file.relative_to(packed)): file.read_text() for file in packed.rglob("*.py")} == found
    run(site, "-m", "sobolev", "new-plugin", "heat", "--kind", "student", "--into", str(tmp_path))
    run(site, *pip, "install", "--no-deps", "--no-build-isolation", "--target", str(site), str(tmp_path / "heat"))
    assert "10 ok" in run(site, "-m", "sobolev", "check", "heat")
