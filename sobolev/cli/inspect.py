"""``sobolev validate``, ``list`` and ``show``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sobolev.cli import host_of
from sobolev.errors import SobolevError
from sobolev.wording import plural

if TYPE_CHECKING:
    from sobolev.describe import Option


@click.command()
@click.argument("recipes", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Change a field of the recipe.")
@click.pass_context
def validate(ctx: click.Context, recipes: tuple[Path, ...], overrides: tuple[str, ...]) -> None:
    """Check RECIPES without running anything; every problem is shown with its place."""
    from sobolev.recipe.plan import load_plans

    registry = host_of(ctx).registry
    failed = False
    for recipe in recipes:
        try:
            plans = load_plans(recipe, registry, overrides)
            load_plans(recipe, registry, overrides, smoke=True)
        except SobolevError as error:
            failed = True
            click.echo(str(error), err=True)
        else:
            click.echo(f"{recipe}: valid, {plural(len(plans), 'run')}")
    ctx.exit(2 if failed else 0)


@click.command("list")
@click.argument("kind", required=False)
@click.pass_context
def list_components(ctx: click.Context, kind: str | None) -> None:
    """List plugins and components, of one KIND (target, estimator, student, ...) or of all.

    The plugin that a component comes from stands behind it, unless it is built in. A plugin that cannot be loaded is
    shown as broken, with the reason.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sobolev.registry import KINDS, did_you_mean

    host = host_of(ctx)
    if kind is not None:
        kind = kind.rstrip("s") if kind.rstrip("s") in KINDS else kind
        if kind not in KINDS:
            raise click.UsageError(f"there is no kind {kind!r}; {did_you_mean(kind, KINDS)}")
    console = Console()
    for name in KINDS if kind is None else (kind,):
        made = Table(title=name, title_justify="left", box=None, padding=(0, 2), show_header=False)
        for entry in sorted(host.registry.entries[name].values(), key=lambda e: e.name):
            origin = "" if entry.plugin.startswith(("sobolev ", "torch")) else f"  [dim]{escape(entry.plugin)}[/]"
            made.add_row(f"[bold]{entry.name}[/]", escape(entry.summary) + origin)
        if made.row_count:
            console.print(made)
    if kind is None:
        made = Table(title="plugin", title_justify="left", box=None, padding=(0, 2), show_header=False)
        for plugin in host.plugins:
            state = f"[red]broken: {escape(plugin.error)}[/]" if plugin.error else escape(plugin.origin)
            made.add_row(f"[bold]{plugin.name}[/]", plugin.version, state)
        console.print(made)


@click.command()
@click.argument("name")
@click.option("--kind", help="Which kind, where two share the name.")
@click.pass_context
def show(ctx: click.Context, name: str, kind: str | None) -> None:
    """Show a component: what it is, its options, types and defaults."""
    import inspect

    from sobolev.describe import fields_of, groups_of, options_of
    from sobolev.registry import did_you_mean

    registry = host_of(ctx).registry
    found = [entries[name] for k, entries in registry.entries.items() if name in entries and kind in (None, k)]
    if not found:
        names = [n for k, entries in registry.entries.items() if kind in (None, k) for n in entries]
        raise click.UsageError(f"there is no component {name!r}; {did_you_mean(name, names)}")
    for entry in found:
        click.echo(click.style(f"{entry.kind} {entry.name}", bold=True) + f"  ({entry.plugin})")
        click.echo((inspect.getdoc(entry.factory) or entry.summary).strip())
        if entry.kind == "command":
            continue
        groups = groups_of(entry.options)
        for option in options_of(entry):
            click.echo("\n" + _option(option, "  "))
            for group in groups.get(option.name, ()):
                click.echo("\n".join(_option(inner, "      ") for inner in fields_of(group)))


def _option(option: Option, indent: str) -> str:
    """Return an option with its type, default and description."""
    default = "  (required)" if option.default is None else f" = {option.default}"
    line = f"{indent}{click.style(option.name, bold=True)}: {option.type}{default}"
    if not option.description:
        return line
    return line + "\n" + click.wrap_text(option.description, 100, f"{indent}    ", f"{indent}    ")
