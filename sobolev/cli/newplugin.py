"""``sobolev new-plugin``: a copy of the teaching plugin under another name, with one of its components."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click

KINDS = ("target", "estimator", "student", "objective", "tracker", "report")


@click.command("new-plugin")
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), default="target", show_default=True, help="What it adds to sobolev.")
@click.option("--into", type=click.Path(path_type=Path, file_okay=False), default=Path("."), show_default=True,
              help="Folder in which the plugin's own folder is made.")  # fmt: skip
def new_plugin(name: str, kind: str, into: Path) -> None:
    """Make the plugin NAME: a package with one working component, a recipe and tests that pass.

    The component is called NAME too, without a leading 'sobolev-'.

    \b
      sobolev new-plugin sobolev-heat --kind target
      pip install -e sobolev-heat
      sobolev check heat
    """  # noqa: D301
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or name in ("sobolev", "sobolev-example"):
        raise click.UsageError(f"{name!r} cannot name a package; use small letters and digits, with '-' between words")
    folder = into / name
    if folder.exists():
        raise click.UsageError(f"{folder} exists; choose another name, or remove it")
    for file, text in content(name, kind).items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    short = component_name(name)
    click.echo(f"{folder}: a plugin with the {kind} {short!r}. Next:")
    for line in (
        f"pip install -e {folder}",
        f"sobolev check {short} --kind {kind}",
        f"python -m pytest {folder}",
        f"sobolev run {folder}/recipes/{kind}.yaml",
    ):
        click.echo(f"  {line}")


def component_name(name: str) -> str:
    """Return what recipes call the component of a plugin."""
    return name.removeprefix("sobolev-") or name


def content(name: str, kind: str) -> dict[str, str]:
    """Return the files of a new plugin by their path: those of the teaching plugin, without its other kinds."""
    package, short = name.replace("-", "_"), component_name(name)
    others = [other for other in KINDS if other != kind]
    made = {}
    for path in sorted(template().rglob("*")):
        relative = path.relative_to(template())
        skipped = any(part == "__pycache__" or part.endswith(".egg-info") for part in relative.parts)
        if skipped or not path.is_file() or path.suffix not in (".py", ".toml", ".md", ".yaml", ".typed"):
            continue
        if path.stem in others:
            continue
        text = path.read_text()
        if path.suffix == ".py":
            text = without(text, others)
        made[rename(str(relative), package, name, short)] = rename(text, package, name, short)
    return made


def without(source: str, kinds: list[str]) -> str:
    """Return Python source without the hooks ``register_<kind>`` and the classes ``Test<Kind>`` of some kinds."""
    unwanted = {f"register_{kind}" for kind in kinds} | {f"Test{kind.capitalize()}" for kind in kinds}
    lines: list[str | None] = [*source.splitlines(keepends=True)]
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in unwanted:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            lines[first - 1 : node.end_lineno] = [None] * ((node.end_lineno or first) - first + 1)
    kept = "".join(line for line in lines if line is not None)
    return re.sub(r"\n{4,}", "\n\n\n", kept).rstrip("\n") + "\n" if kept else kept


def rename(text: str, package: str, name: str, short: str) -> str:
    """Put a plugin's names in the place of those of the teaching plugin."""
    text = text.replace("sobolev_example", package).replace("sobolev-example", name)
    text = re.sub(r"""(["'])example\1""", rf"\g<1>{short}\g<1>", text)
    text = re.sub(r"\bname: example-\w+", f"name: {short}", text)
    text = re.sub(r"\b(use: |show |check )example\b", rf"\g<1>{short}", text)
    text = re.sub(r"\[example\]", f"[{short}]", text)
    return re.sub(r"^example = ", f"{short} = ", text, flags=re.MULTILINE)


def template() -> Path:
    """Return the folder of the teaching plugin: in an installed package beside the code, else in the repository."""
    installed = Path(__file__).parents[1] / "example_plugin"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "plugins" / "example-plugin"
