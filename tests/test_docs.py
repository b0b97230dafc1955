"""The pages say what the code does: reference pages, commands and code blocks."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sobolev.cli import cli
from sobolev.host import default_host
from sobolev.recipe.model import Recipe
from sobolev.recipe.plan import load_plans
from sobolev.registry import KINDS, PLUGGABLE

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md")), *sorted((ROOT / "plugins").glob("*/README.md"))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

sys.path.insert(0, str(DOCS))
import generate  # noqa: E402


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in _FENCE.findall(page.read_text()) if language in languages]


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", generate.PAGES)
def test_a_reference_page_is_what_the_code_says(page: str) -> None:
    text = (DOCS / page).read_text()
    assert "<!-- generated:" in text
    assert generate.render(text) == text, "run: python docs/generate.py"


def test_every_hook_is_documented_with_its_arguments() -> None:
    text = (DOCS / "hooks.md").read_text()
    for kind in PLUGGABLE:
        assert f"### `register_{kind}(register)`" in text


def test_every_component_of_this_repository_is_documented() -> None:
    text = (DOCS / "components.md").read_text()
    for kind in KINDS:
        for entry in default_host().registry.entries[kind].values():
            if kind != "command" and entry.plugin.startswith(generate.FIRST_PARTY):
                assert f"### {kind} `{entry.name}`" in text


def test_every_field_of_a_recipe_and_every_option_says_something() -> None:
    text = (DOCS / "recipes.md").read_text()
    for name, info in Recipe.model_fields.items():
        assert f"| `{name}` |" in text
        assert info.description, name
    silent = [line for page in ("recipes.md", "components.md") for line in (DOCS / page).read_text().splitlines()
              if line.startswith("| `") and line.endswith("|  |") and "`use`" not in line]  # fmt: skip
    assert not silent


def test_every_command_is_documented_and_has_help() -> None:
    text = (DOCS / "commands.md").read_text()
    for name in generate.own_commands():
        assert f"## `sobolev {name}`" in text
        help_text = CliRunner().invoke(cli, [name, "--help"]).output
        assert len(help_text.splitlines()) > 5, name


def commands(page: Path) -> list[str]:
    """Return the calls of `sobolev` in a page's shell blocks."""
    found = []
    for block in blocks(page, "sh", "bash", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\||;|\|", line.split(" # ")[0].removeprefix("$ ")):
                words = part.strip().split()
                if words and words[0].rpartition("/")[2] == "sobolev":
                    found.append(part.strip())
    return found


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_command_in_a_page_parses(page: Path) -> None:
    for line in commands(page):
        _, *arguments = shlex.split(line)
        context = click.Context(cli, info_name="sobolev")
        context.obj = default_host()
        with cli.make_context("sobolev", list(arguments), resilient_parsing=False) as root:
            root.obj = default_host()
            name, command, rest = cli.resolve_command(root, [*root._protected_args, *root.args])
            assert name is not None and command is not None, line
            if "--help" not in rest:
                _parse(command, rest, line)


def _parse(command: click.Command, arguments: list[str], line: str) -> None:
    """Check the words of a call against a command's parameters; files that are named need not exist here."""
    for parameter in command.params:
        if isinstance(parameter.type, click.Path):
            parameter.type.exists = False
    try:
        command.make_context(command.name, list(arguments), resilient_parsing=False)
    except click.ClickException as error:
        pytest.fail(f"{line}: {error.format_message()}")


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page_name(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_python_blocks_compile(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(textwrap.dedent(block), page_name(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_whole_recipes_in_pages_are_valid(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(page, "yaml")):
        if re.search(r"^name: ", block, re.MULTILINE) and re.search(r"^target", block, re.MULTILINE):
            file = tmp_path / f"{number}.yaml"
            file.write_text(block)
            assert load_plans(file, default_host().registry)


def test_recipe_of_the_recipe_page_runs(tmp_path: Path) -> None:
    (block,) = [b for b in blocks(DOCS / "recipes.md", "yaml") if "name: first" in b]
    file = tmp_path / "first.yaml"
    file.write_text(block)
    arguments = ["run", str(file), "--smoke", "--jobs", "1", "--device", "cpu", "--runs", str(tmp_path)]
    assert CliRunner().invoke(cli, arguments).exit_code == 0


def test_cheap_commands_of_the_readme_run() -> None:
    ran = 0
    for line in commands(ROOT / "README.md"):
        _, name, *rest = shlex.split(line)
        if name in ("list", "show", "check"):
            result = CliRunner().invoke(cli, [name, *rest])
            assert result.exit_code == 0, result.output
            ran += 1
    assert ran >= 2


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a run of the quickstart in its smoke form, which stands where a whole one would."""
    arguments = ["run", str(ROOT / "recipes" / "quickstart.yaml"), "--smoke", "--jobs", "1", "--device", "cpu"]
    overrides = ["--set", "track=[]", "--set", "figures=[]", "--only", "sobolev", "--runs", str(tmp_path / "runs")]
    result = CliRunner().invoke(cli, [*arguments, *overrides])
    assert result.exit_code == 0, result.output
    (tmp_path / "runs" / "quickstart.smoke").rename(tmp_path / "runs" / "quickstart")
    monkeypatch.chdir(tmp_path)
    text = "\n".join(blocks(ROOT / "README.md", "python"))
    assert "sobolev.load" in text
    names: dict[str, object] = {}
    exec(compile(text, "README.md", "exec"), names)
    assert names


def test_the_first_plugin_is_made_as_its_page_says(tmp_path: Path) -> None:
    """All shell blocks in order, where pip's part is done by hand; all code stands in what is made."""
    page = DOCS / "first-plugin.md"
    (single,) = re.findall(r"<!-- single file -->\n```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "tryout").mkdir()
    (tmp_path / "tryout" / "wave.py").write_text(single)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    said = {}
    for line in "".join(blocks(page, "sh")).splitlines():
        program, *arguments = shlex.split(line)
        if program == "pip":
            lay_out(tmp_path / arguments[-1], tmp_path)
            continue
        called = ["-m", "sobolev", *arguments] if program == "sobolev" else [*arguments, "-p", "no:cacheprovider"]
        done = subprocess.run([sys.executable, *called], env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        said[line] = done.stdout
    assert "wrong" not in said["sobolev check ripple"]
    assert "wave" in said["sobolev --plugins-dir tryout list target"]
    files = [file for file in (tmp_path / "sobolev-ripple").rglob("*") if file.suffix in (".py", ".toml")]
    made = "".join(file.read_text() for file in files)
    for block in blocks(page, "python", "toml"):
        assert block == single or block in made, block


def lay_out(plugin: Path, site: Path) -> None:
    """Do what pip would: put the package on the path, and the metadata that name its entry point."""
    package = plugin.name.replace("-", "_")
    (site / package).symlink_to(plugin / package)
    info = site / f"{package}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {plugin.name}\nVersion: 0.1.0\n")
    short = plugin.name.removeprefix("sobolev-")
    (info / "entry_points.txt").write_text(f"[sobolev]\n{short} = {package}.plugin\n")


def test_shell_of_the_set_up_commands_parses() -> None:
    for block in blocks(ROOT / "README.md", "sh"):
        done = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr


def test_the_first_page_for_contributors_names_files_that_are_there() -> None:
    text = (DOCS / "architecture.md").read_text()
    for name in re.findall(r"`((?:sobolev/|tests/)?[a-z_/]+\.py)`", text):
        places = [ROOT / name, ROOT / "sobolev" / name]
        assert any(place.is_file() for place in places), name
