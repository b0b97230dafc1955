"""``sobolev compare`` and ``predict``."""

from __future__ import annotations

from pathlib import Path

import click

_OTHER_TABLES = (".parquet", ".pq", ".npz", ".npy", ".xlsx", ".json")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--metric", "metrics", multiple=True, help="Only these metrics.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--transpose", is_flag=True, default=None, help="A row per metric, a column per variant.")
def compare(runs: tuple[Path, ...], metrics: tuple[str, ...], as_json: bool, transpose: bool | None) -> None:
    """Compare RUNS: run directories, or folders that hold some.

    Rows are variants, with mean and standard deviation over seeds; a ratio says how many times smaller a number is
    than the first variant's; in a matrix, than that of the first variant in the same cell.
    """
    from sobolev.compare import compare as make
    from sobolev.compare import table
    from sobolev.errors import RecipeError
    from sobolev.registry import did_you_mean
    from sobolev.rundir import find_runs, jsonable

    records = [record for path in runs for record in find_runs(path)]
    if not records:
        raise RecipeError(f"no run directories at or below {', '.join(map(str, runs))}")
    known = {name for record in records for name in record.summary}
    for metric in metrics:
        if metric not in known:
            raise RecipeError(f"--metric {metric}: {did_you_mean(metric, known)}")
    comparison = make(records, metrics)
    if as_json:
        import json

        click.echo(json.dumps(jsonable(comparison.to_json()), indent=1))
        return
    from rich.console import Console

    console = Console()
    for record in records:
        if record.status != "finished":
            console.print(f"{record.directory}: {record.status}, left out", style="yellow")
    console.print(table(comparison, ", ".join(map(str, runs)), console.width, transpose or None))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), help="CSV file to write instead of the terminal.")
@click.option("--site", help="Which site, where the run has several.")
def predict(run: Path, data: Path, output: Path | None, site: str | None) -> None:
    """Values and partials of the student of RUN for the inputs in DATA, a CSV file with one column per input.

    Columns of DATA are found by their names; their units, where they say some, must be those of the training data.
    An ensemble gives the mean over its members, and their standard deviation as the spread.
    """
    import csv
    import sys

    import torch

    from sobolev.loading import load
    from sobolev.tables import partial_label, read_numbers, to_text

    if output is not None and output.suffix.lower() in _OTHER_TABLES:
        raise click.UsageError(f"--output {output}: predictions are written as CSV; name the file .csv")
    student = load(run)
    asked = site or student.names[0]
    site = student.members(asked)[0]
    where, axes = student.experiment.sites[site], student.experiment.target.axes(site)
    columns = {name: [f"{name}{i}" for i in range(torch.Size(shape).numel())] for name, shape in where.inputs.items()}
    if axes is not None:
        columns[next(iter(where.differentiate or where.inputs))] = list(axes.inputs)
    rows = read_numbers(data, [column for group in columns.values() for column in group])
    numbers = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), sum(map(len, columns.values())))
    parted = zip(where.inputs.items(), numbers.split([len(group) for group in columns.values()], dim=1), strict=True)
    inputs = {name: part.reshape(len(rows), *shape) for (name, shape), part in parted}
    jet, spread = student(inputs, asked), student.spread(inputs, asked)
    outputs = list(axes.outputs) if axes else [f"value{i}" for i in range(jet.value.shape[1])]
    head = [column for group in columns.values() for column in group] + outputs
    parts = [numbers, jet.value]
    for (name,), derivative in jet.derivatives.items():
        parts.append(derivative.flatten(1))
        head += [partial_label(o, c) for o in outputs for c in columns[name]]
    if spread is not None:
        parts.append(spread.value)
        head += [f"spread {o}" for o in outputs]
    try:
        stream = output.open("w", newline="") if output else sys.stdout
    except OSError as error:
        raise click.UsageError(f"--output {output}: cannot be written: {error.strerror}") from None
    writer = csv.writer(stream)
    writer.writerow(head)
    for of_row in zip(*(part.tolist() for part in parts), strict=True):
        cells: list[str] = []
        for part, row in zip(parts, of_row, strict=True):  # digits that give the numbers back
            cells += map(to_text, row) if part.dtype == torch.float64 else (f"{number:.9g}" for number in row)
        writer.writerow(cells)
    if output:
        stream.close()
        click.echo(f"{len(rows)} rows written to {output}")
