"""``sobolev validate``, ``list`` and ``show``."""

from __future__ import annotations

from pathlib import Path

import click

from sobolev.cli import host_of
from sobolev.errors import SobolevError


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
            click.echo(f"{recipe}: valid, {len(plans)} runs")
    ctx.exit(2 if failed else 0)


@click.command("list")
@click.argument("kind", required=False)
@click.pass_context
def list_components(ctx: click.Context, kind: str | None) -> None:
    """List plugins and components, of one KIND (target, estimator, student, ...) or of all."""
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
            made.add_row(f"[bold]{entry.name}[/]", escape(entry.summary), f"[dim]{escape(entry.plugin)}[/]")
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

    from pydantic_core import PydanticUndefined
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sobolev.registry import default_of, did_you_mean

    registry = host_of(ctx).registry
    found = [entries[name] for k, entries in registry.entries.items() if name in entries and kind in (None, k)]
    if not found:
        names = [n for k, entries in registry.entries.items() if kind in (None, k) for n in entries]
        raise click.UsageError(f"there is no component {name!r}; {did_you_mean(name, names)}")
    console = Console()
    for entry in found:
        console.print(f"[bold]{entry.kind} {entry.name}[/]  [dim]{escape(entry.plugin)}[/]")
        console.print(inspect.getdoc(entry.factory) or "", markup=False, highlight=False)
        if entry.kind == "command":
            continue
        made = Table(box=None, padding=(0, 2))
        for column in ("option", "type", "default", ""):
            made.add_column(column)
        for option, info in entry.options.model_fields.items():
            default = default_of(entry.options, option)
            shown = "required" if default is PydanticUndefined else repr(default)
            inner = entry.nested.get(option)
            made.add_row(
                option,
                escape(f"a {inner.name}" if inner else _type_name(info.annotation)),
                escape(shown),
                escape(info.description or ""),
            )
        if made.row_count:
            console.print(made)


def _type_name(annotation: object) -> str:
    name = getattr(annotation, "__name__", None)
    text = name if isinstance(annotation, type) and name else str(annotation)
    return text.replace("typing.", "").replace("NoneType", "None")
