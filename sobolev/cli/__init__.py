"""The command line. Nothing here imports torch before a command needs it."""

from __future__ import annotations

import errno
import importlib
import sys
from pathlib import Path
from typing import Any

import click

from sobolev.errors import PluginError, SobolevError

_COMMANDS = {
    "run": ("sobolev.cli.run:run", "Run a recipe: train all its runs, compare them, draw its figures."),
    "validate": ("sobolev.cli.inspect:validate", "Check recipes without running anything."),
    "list": ("sobolev.cli.inspect:list_components", "List plugins and components."),
    "show": ("sobolev.cli.inspect:show", "Show a component: what it is and its options."),
    "check": ("sobolev.cli.check:check", "Check a component against what its kind must do."),
    "new-plugin": ("sobolev.cli.newplugin:new_plugin", "Make a plugin to start from, with tests that pass."),
    "compare": ("sobolev.cli.results:compare", "Compare run directories in a table."),
    "export": ("sobolev.cli.export:export", "Write a trained student as a graph: values and partials, ONNX or torch."),
    "predict": ("sobolev.cli.results:predict", "Values and partials of a trained student for a table of inputs."),
}


class _Lazy(click.Group):
    """Loads a command when it is called; those of plugins come from the host."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*_COMMANDS, *_plugin_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS:
            module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        entry = _plugin_commands(ctx).get(cmd_name)
        return None if entry is None else entry.factory

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from sobolev.registry import did_you_mean

        name = click.utils.make_str(args[0]) if args else ""
        if args and not name.startswith("-") and self.get_command(ctx, name) is None:
            ctx.fail(f"there is no command {name!r}; {did_you_mean(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        plugins = _plugin_commands(ctx)
        rows = []
        for name in self.list_commands(ctx):
            rows.append((name, _COMMANDS[name][1] if name in _COMMANDS else plugins[name].given_summary))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _plugin_commands(ctx: click.Context) -> dict[str, Any]:
    commands: dict[str, Any] = host_of(ctx).registry.entries["command"]
    for name in commands.keys() & _COMMANDS.keys():
        raise PluginError(f"plugin {commands[name].plugin} registers the command {name!r}, which sobolev itself has")
    return commands


def host_of(ctx: click.Context) -> Any:
    """Return the host of this call, loaded once."""
    from sobolev.host import load_host

    root = ctx.find_root()
    if root.obj is None:
        options = root.params
        trace = (lambda line: click.echo(f"hook  {line}", err=True)) if options.get("trace_hooks") else None
        root.obj = load_host(options.get("plugins_dir"), trace)
    return root.obj


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--plugins-dir",
    type=click.Path(path_type=Path),
    is_eager=True,
    help="Folder with single-file plugins (*.py) to try out.",
)
@click.option(
    "--trace-hooks",
    is_flag=True,
    is_eager=True,
    envvar="SOBOLEV_TRACE_HOOKS",
    help="Print every hook call and what it registers (also by SOBOLEV_TRACE_HOOKS=1).",
)
@click.version_option(package_name="sobolev", prog_name="sobolev")
def cli(plugins_dir: Path | None, trace_hooks: bool) -> None:
    """Train networks to match a target's values and its derivatives.

    \b
      sobolev run recipes/quickstart.yaml     train, compare, draw
      sobolev list                            what recipes can name
      sobolev show mccormick                  a component and its options
    """  # noqa: D301


_OF_PLACES = (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)
"""What is said where a folder that the user named cannot be written to."""


def main() -> None:
    """Run the command line; a user's mistake is shown without a traceback, exit code 2."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SobolevError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _OF_PLACES or not error.filename:
            raise
        click.echo(f"error: {error.filename}: {error.strerror}; name a place that can be written to", err=True)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)
