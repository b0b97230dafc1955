"""``sobolev check``."""

from __future__ import annotations

from typing import Any

import click

from sobolev.cli import host_of


@click.command()
@click.argument("name")
@click.option("--kind", help="Which kind, where two share the name.")
@click.option(
    "--set", "options", multiple=True, metavar="OPTION=VALUE", help="An option of the component, as in a recipe."
)
@click.option("--verbose", "-v", is_flag=True, help="Also show the checks that pass.")
@click.pass_context
def check(ctx: click.Context, name: str, kind: str | None, options: tuple[str, ...], verbose: bool) -> None:
    """Check the component NAME: does it do what its kind must do?

    Runs the conformance checks of sobolev.testing on it and says in sentences what is wrong. The exit code is 0 if
    nothing is, else 2.

    \b
      sobolev check mccormick
      sobolev check mlp --set 'hidden=[8]' --set activation=tanh
    """  # noqa: D301
    from sobolev.recipe.plan import load_options
    from sobolev.registry import did_you_mean

    registry = host_of(ctx).registry
    from sobolev import testing

    found = [k for k in testing.KINDS if name in registry.entries[k] and kind in (None, k)]
    if not found:
        names = {n for k in testing.KINDS if kind in (None, k) for n in registry.entries[k]}
        raise click.UsageError(f"there is no component {name!r} that can be checked; {did_you_mean(name, names)}")
    if len(found) > 1:
        raise click.UsageError(f"{name!r} is a {' and a '.join(found)}; say which by --kind")
    spec: dict[str, Any] = {"use": name, **load_options(options)}
    entry = registry.entries[found[0]][name]
    click.secho(f"{found[0]} {name}  ({entry.plugin})", bold=True)
    counts = {"ok": 0, "wrong": 0, "not applicable": 0}
    for finding in testing.check(found[0], spec, registry):
        counts[finding.verdict] += 1
        if finding.verdict == "ok" and not verbose:
            continue
        colour = {"wrong": "red", "ok": "green"}.get(finding.verdict)
        if finding.verdict == "wrong" or verbose:
            click.secho(f"{finding.verdict:15} {finding.check}: {finding.about}.", fg=colour)
            if finding.message:
                click.echo(click.wrap_text(finding.message, 100, "    ", "    "))
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    click.echo(f"{sum(counts.values())} checks: {said}")
    ctx.exit(2 if counts["wrong"] else 0)
