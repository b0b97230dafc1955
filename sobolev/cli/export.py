"""``sobolev export``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Folder for the files; by default RUN/export.")
@click.option(
    "--format",
    "formats",
    type=click.Choice(["torch", "onnx"]),
    multiple=True,
    help="torch (torch.export) or onnx; both by default. May be repeated.",
)
@click.option("--site", help="Which site, or ensemble, where the run has several.")
@click.option("--values-only", is_flag=True, help="Without partials: for students whose Jacobian is not written out.")
def export(run: Path, output: Path | None, formats: tuple[str, ...], site: str | None, values_only: bool) -> None:
    """Write the student of RUN as graphs that run without sobolev: values and partials, in the user's units.

    The graph takes x (B, *x) and returns value (B, m), partials (B, m, *x) and, of an ensemble, spread (B, m).
    It is compared with the student to 1e-5 (relative) before it is kept.
    """
    import json

    from sobolev.export import FORMATS, export_run

    directory = output or run / "export"
    files = export_run(run, directory, formats or FORMATS, site, partials=not values_only)
    errors = json.loads((directory / "student.json").read_text())["relative_error"]
    for file in files:
        shown = "  ".join(f"{name} {error:.1e}" for name, error in errors.get(file.name, {}).items())
        click.echo(f"{file}" + (f"  (from the student: {shown})" if shown else ""))
