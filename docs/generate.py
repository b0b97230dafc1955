"""Writes what pages take from the code and from results: ``python docs/generate.py``. Tests compare it with the pages.

A page holds blocks ``<!-- generated: NAME ARGUMENTS -->`` ... ``<!-- end -->``; all else is written by hand.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import click

from sobolev import hookspecs
from sobolev.cli import cli
from sobolev.describe import Option, fields_of, groups_of, options_of
from sobolev.host import default_host
from sobolev.recipe import model
from sobolev.registry import KINDS, PLUGGABLE, Entry

DOCS = Path(__file__).parent
FIRST_PARTY = (
    "sobolev ",
    "torch",
    "sobolev-atari ",
    "sobolev-synthetic-gradients ",
    "sobolev-wandb ",
    "sobolev-least-squares ",
)


def hooks() -> str:
    """Return every hook with its arguments."""
    parts = []
    for kind in PLUGGABLE:
        hook = getattr(hookspecs, f"register_{kind}")
        arguments = ", ".join(inspect.signature(hook).parameters)
        parts.append(f"### `register_{kind}({arguments})`\n\n{inspect.getdoc(hook)}")
    return "\n\n".join(parts)


def components() -> str:
    """Return every component of the packages in this repository, by kind."""
    registry = default_host().registry
    parts = []
    for kind in KINDS:
        if kind == "command":
            continue
        parts.append(f"## {kind.capitalize()}s")
        entries = [e for e in registry.entries[kind].values() if e.plugin.startswith(FIRST_PARTY)]
        parts += [_component(entry) for entry in sorted(entries, key=lambda e: e.name)]
    return "\n\n".join(parts)


def _component(entry: Entry) -> str:
    package = entry.plugin.partition(" ")[0]
    origin = "" if package in ("sobolev", "torch") else f" ({package})"
    text = (inspect.getdoc(entry.factory) or entry.summary).partition("\nArgs:")[0].strip()
    parts = [f"### {entry.kind} `{entry.name}`{origin}", _plain(text)]
    options = options_of(entry)
    if options:
        parts.append(_table(options, groups_of(entry.options)))
    for name, groups in groups_of(entry.options).items():
        for group in groups:
            parts.append(f"`{name}`: {_plain((inspect.getdoc(group) or '').partition(chr(10))[0])}")
            parts.append(_table(fields_of(group)))
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    return text.replace("``", "`")


def _table(options: list[Option], groups: Collection[str] = ()) -> str:
    """Return options as a table; those of ``groups`` have one of their own, where their defaults stand."""
    lines = ["| option | type | default | |", "|---|---|---|---|"]
    for option in options:
        default = "required" if option.default is None else f"`{option.default}`"
        if option.name in groups and (option.default or "").startswith(("{", "[{")):
            default = "see below"
        cells = [f"`{option.name}`", option.type, default, option.description]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def fields() -> str:
    """Return every field of a recipe, group by group."""
    parts = []
    for title, group in (
        ("The top level", model.Recipe), ("`train`", model.Train), ("One of `train.phases`", model.Phase),
        ("`train.stop`", model.EarlyStop), ("`train.checkpoint`", model.Checkpoints), ("`evaluate`", model.Evaluate),
    ):  # fmt: skip
        parts += [f"### {title}", _plain(inspect.getdoc(group) or ""), _table(fields_of(group), groups_of(group))]
    return "\n\n".join(parts)


def commands() -> str:
    """Return the help of every command of `sobolev` itself."""
    # As `sobolev` makes it; click keeps the names of the help option with the command that was asked first.
    names = cli.context_settings["help_option_names"]
    context = click.Context(cli, None, "sobolev", max_content_width=100, terminal_width=100, help_option_names=names)
    context.obj = default_host()
    parts = []
    for name in own_commands():
        command = cli.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context, max_content_width=100, terminal_width=100)
        parts.append(f"## `sobolev {name}`\n\n```text\n{command.get_help(inner).strip()}\n```")
    return "\n\n".join(parts)


def own_commands() -> list[str]:
    """Return the names of the commands that come with `sobolev`."""
    from sobolev.cli import _COMMANDS

    built_in = [e.name for e in default_host().registry.entries["command"].values() if e.plugin.startswith("sobolev ")]
    return sorted({*_COMMANDS, *built_in})


def regression(*recipes: str) -> str:
    """Return the tables of ``docs/experiments/regression/collect.py``, those of several recipes as one."""
    tables = [(DOCS / f"experiments/regression/{recipe}.md").read_text().splitlines() for recipe in recipes]
    if any(table[:2] != tables[0][:2] for table in tables):
        raise ValueError(f"{', '.join(recipes)}: their tables have different columns")
    return "\n".join([*tables[0][:2], *(line for table in tables for line in table[2:])])


def surrogates(dimension: str) -> str:
    """Return the tables of ``benchmarks/surrogates.py`` for so many inputs."""
    program = DOCS.parent / "benchmarks" / "surrogates.py"  # a process of its own: it binds itself to one core
    command = [sys.executable, str(program), "table", "--dimension", dimension]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = {
        "value": "Root mean squared error of values",
        "partials": "Root mean squared error of partials",
        "processor_seconds": "Processor seconds of one fit",
    }
    tables = dict(re.findall(r"^(\w+)\n((?:\|.*\n)+)", printed, flags=re.MULTILINE))
    return "\n\n".join(f"{title}:\n\n{tables[name].strip()}" for name, title in names.items())


BLOCKS: dict[str, Callable[..., str]] = {
    "hooks": hooks, "components": components, "fields": fields, "commands": commands,
    "regression": regression, "surrogates": surrogates,
}  # fmt: skip
PAGES = ("hooks.md", "components.md", "recipes.md", "commands.md", "surrogates.md", "experiments/regression.md")


def render(text: str) -> str:
    """Return a page with its blocks as the code and the results are now."""

    def block(found: re.Match[str]) -> str:
        name, *arguments = found[1].split()
        return f"<!-- generated: {found[1]} -->\n\n{BLOCKS[name](*arguments)}\n\n<!-- end -->"

    return re.sub(r"<!-- generated: ([\w\- ]+) -->.*?<!-- end -->", block, text, flags=re.DOTALL)


if __name__ == "__main__":
    for page in PAGES:
        file = DOCS / page
        file.write_text(render(file.read_text()))
        print(file, file=sys.stderr)
