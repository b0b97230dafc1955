"""``sobolev check-data``: do partials agree with the values of their neighbours, before anything is trained?"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sobolev.errors import DataError, RecipeError
from sobolev.wording import plural

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sobolev.builtin.targets.table.columns import Columns, Partials
    from sobolev.builtin.targets.table.diagnose import Array, Diagnosis, Samples
    from sobolev.builtin.targets.table.files import TableFile
    from sobolev.recipe.plan import RunPlan

_ROWS = 200_000  # of a larger table a random part is looked at
_ANSWERS = 2000  # samples that are asked of a target that is no table
_PATTERNS = ("d{output}/d{input}", "d{output}_d{input}", "d{output}d{input}", "{output}_{input}")


@click.command("check-data")
@click.argument("what", metavar="RECIPE|FILE", type=click.Path(path_type=Path))
@click.option("--inputs", help="Columns of a FILE that are inputs, with commas between; patterns such as 'x*'.")
@click.option("--values", help="Columns of a FILE that are values.")
@click.option("--partials", help="Pattern of a FILE's partials, such as 'd{output}/d{input}'.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Change a field of the recipe.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def check_data(
    ctx: click.Context,
    what: Path,
    inputs: str | None,
    values: str | None,
    partials: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compare the partials of a RECIPE's data, or of a FILE, with what neighbouring values say.

    Finds wrong signs, swapped columns, wrong units, partials by scaled inputs, constant or missing columns, and equal
    inputs with different numbers. Roles of a FILE's columns are guessed from their names where they are not given.

    The exit code is 0 if nothing is wrong, else 2.
    """
    from sobolev.builtin.targets.table.diagnose import diagnose

    if what.suffix.lower() in (".yaml", ".yml"):
        if inputs or values or partials:
            raise click.UsageError("--inputs, --values and --partials are for a FILE; the RECIPE says them itself")
        cases = list(_of_recipe(ctx, what, overrides))
    else:
        cases = [(str(what), _of_file(what, inputs, values, partials))]
    wrong = 0
    reports = []
    for name, samples in cases:
        diagnosis = diagnose(samples)
        wrong += len(diagnosis.problems)
        if as_json:
            reports.append(_plain(name, samples, diagnosis))
        else:
            _show(name, samples, diagnosis)
    if as_json:
        click.echo(json.dumps(reports, indent=1))
    ctx.exit(2 if wrong else 0)


# -- what is read ------------------------------------------------------------------------------------------------------


def _of_file(file: Path, inputs: str | None, values: str | None, partials: str | None) -> Samples:
    from sobolev.builtin.targets.table.columns import assign
    from sobolev.builtin.targets.table.files import Faults, open_table

    table, faults = open_table(file), Faults()
    if inputs is None or values is None or partials is None:
        found = _guess(table, partials)
        if found is None:
            raise DataError(
                f"{file}: no columns are named like partials ({', '.join(_PATTERNS[:3])}); say what is what: "
                f"--inputs a,b --values u --partials 'd{{output}}/d{{input}}'. Columns: {', '.join(table.names)}"
            )
        guessed_inputs, guessed_values, partials = found
        inputs, values = inputs or ",".join(guessed_inputs), values or ",".join(guessed_values)
    columns = assign(table, _names(inputs), _names(values), partials, None, None, faults)
    faults.raise_any()
    return _read(table, columns)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _guess(table: TableFile, pattern: str | None) -> tuple[list[str], list[str], str] | None:
    """Return inputs, values and the pattern that the names of the partials follow, or None."""
    for tried in _PATTERNS if pattern is None else (pattern,):
        expression = re.escape(tried)
        for place in ("output", "input"):
            expression = expression.replace(rf"\{{{place}\}}", f"(?P<{place}>.+)", 1)
        try:
            matches = [re.fullmatch(expression, name) for name in table.names]
        except re.error:
            return None
        pairs = [match.groupdict() for match in matches if match]
        pairs = [p for p in pairs if p.get("input") in table.names and p.get("output") in table.names]
        if pairs:
            inputs, outputs = {p["input"] for p in pairs}, {p["output"] for p in pairs}
            return [n for n in table.names if n in inputs], [n for n in table.names if n in outputs], tried
    return None


def _read(table: TableFile, columns: Columns, dtype: str = "float64") -> Samples:
    """Read all rows, or `_ROWS` of more at random, in float64; ``dtype`` is that of training.

    Raises:
        DataError: no partials, no rows, cells that are no numbers, or infinite: training refuses them, too.
    """
    import numpy as np

    from sobolev.builtin.targets.table.diagnose import Samples
    from sobolev.builtin.targets.table.files import Faults, note_infinite

    if not columns.partials:
        raise DataError(f"{table.file}: no partials are named; there is nothing to compare")
    faults = Faults()
    d, m = len(columns.inputs), len(columns.outputs)
    usable = _Kept(len(columns.numbers))
    incomplete: list[int] = []
    for chunk in table.chunks(columns.numbers, (), np.dtype(np.float64), faults):
        note_infinite(table, chunk.start, chunk.numbers, columns.numbers, np.dtype(dtype), faults)
        whole = ~np.isnan(chunk.numbers[:, :d]).any(axis=1)
        incomplete += (chunk.start + np.flatnonzero(~whole)).tolist()
        usable.add(chunk.numbers[whole], chunk.start + np.flatnonzero(whole))
    faults.raise_any()
    if not usable.total + len(incomplete):
        raise DataError(f"{table.file}: there are no rows below the header")
    numbers, of_row = usable.chosen()

    def place(row: int) -> str:
        return table.place(row).removeprefix(f"{table.file}").lstrip(", :") or "?"

    if not len(numbers):
        raise DataError(f"{table.file}: every row lacks some input ({', '.join(columns.inputs)}); nothing to compare")
    partials = np.full((len(numbers), m, d), np.nan)
    for column, (o, i) in enumerate(columns.partials):
        partials[:, o, i] = numbers[:, d + m + column]
    return Samples(
        numbers[:, :d], numbers[:, d : d + m], partials, columns.inputs, columns.outputs, columns.partials,
        lambda row: place(int(of_row[row])), incomplete=[place(row) for row in incomplete], total=usable.total,
    )  # fmt: skip


class _Kept:
    """All rows, or `_ROWS` of more at random, of a table that is read once: those whose random numbers are smallest."""

    def __init__(self, width: int) -> None:
        import numpy as np

        self.total = 0
        self._random = np.random.default_rng(0)
        self._parts = [(np.empty((0, width)), np.empty(0, dtype=np.int64), np.empty(0))]

    def add(self, numbers: Array, rows: NDArray[np.int64]) -> None:
        """Take rows ``(n, width)`` and where they stand ``(n,)``."""
        self.total += len(rows)
        self._parts.append((numbers, rows, self._random.random(len(rows))))
        if sum(len(part[0]) for part in self._parts) > 2 * _ROWS:
            self._merge()

    def chosen(self) -> tuple[Array, NDArray[np.int64]]:
        """Return rows and where they stand, in order."""
        self._merge()
        numbers, rows, _ = self._parts[0]
        return numbers, rows

    def _merge(self) -> None:
        import numpy as np

        numbers, rows, drawn = (np.concatenate(each) for each in zip(*self._parts, strict=True))
        if len(rows) > _ROWS:
            smallest = np.sort(np.argpartition(drawn, _ROWS)[:_ROWS])
            numbers, rows, drawn = numbers[smallest], rows[smallest], drawn[smallest]
        self._parts = [(numbers, rows, drawn)]


def _of_recipe(ctx: click.Context, recipe: Path, overrides: Sequence[str]) -> Iterator[tuple[str, Samples]]:
    """Yield the data of every different target of a recipe."""
    from sobolev.cli import host_of
    from sobolev.recipe.plan import load_plans

    registry = host_of(ctx).registry
    seen: list[Mapping[str, Any]] = []
    for plan in load_plans(recipe, registry, overrides):
        spec = plan.recipe.target
        while isinstance(spec.get("of"), Mapping):  # an ensemble
            spec = spec["of"]
        roles = {
            k: v for k, v in spec.items() if spec["use"] != "table" or k in ("file", "inputs", "values", "partials")
        }
        if roles in seen:
            continue
        seen.append(roles)
        name = f"{recipe}, {spec['use']}" + (f" {spec['file']}" if "file" in spec else "")
        if spec["use"] == "table":
            yield name, _of_table(plan, spec)
        else:
            plan.recipe.target = dict(spec)
            yield name, _of_target(plan, registry, spec["use"])


def _of_table(plan: RunPlan, spec: Mapping[str, Any]) -> Samples:
    from sobolev.builtin.targets.table.columns import assign
    from sobolev.builtin.targets.table.files import Faults, open_table

    file = Path(spec["file"]).expanduser()
    table, faults = open_table(file if file.is_absolute() else plan.file.parent / file), Faults()
    partials: Partials = spec.get("partials")
    columns = assign(table, spec["inputs"], spec["values"], partials, None, None, faults)
    faults.raise_any()
    return _read(table, columns, plan.recipe.dtype)


def _of_target(plan: RunPlan, registry: Any, name: str) -> Samples:
    """Ask a target that answers jets for its training samples.

    Raises:
        RecipeError: no partials of its own, several sites or inputs.
        DataError: infinite answers.
    """
    import numpy as np
    import torch

    from sobolev.build import answers, build
    from sobolev.builtin.targets.table.diagnose import Samples
    from sobolev.distributed import World
    from sobolev.sampler import some
    from sobolev.tables import split_unit
    from sobolev.vocabulary import Batch, Probe

    plan.recipe.dtype = "float64"
    target = registry.build("target", plan.recipe.target)
    if not answers(target) or target.needs:
        raise RecipeError(
            f"{plan.file}: the target {name!r} brings no partials of its own: its derivatives are made from its "
            "values, so that there is nothing to compare"
        )
    say = functools.partial(click.echo, err=True)
    experiment = build(plan, registry, World(torch.device("cpu")), smoke=True, say=say)
    target = experiment.target
    try:
        if len(experiment.sites) != 1:
            raise RecipeError(
                f"{plan.file}: the target {name!r}: only one site is compared, not {len(experiment.sites)}"
            )
        ((site, where),) = experiment.sites.items()
        if len(where.differentiate) != 1 or len(where.inputs[where.differentiate[0]]) != 1:
            raise RecipeError(f"{plan.file}: the target {name!r}: only one vector of inputs with partials is compared")
        key = (where.differentiate[0],)
        total = target.size("train")
        ids = some(total, _ANSWERS)
        points = target.points(Batch("train", ids, target.load("train", ids)), training=False)
        jet = target.answer(points, {site: Probe.full((key,))}, None)[site]
        axes = target.axes(site)
    finally:
        target.close()
    x, y, partials = points[site].inputs[key[0]].numpy(), jet.value.numpy().copy(), jet[key].numpy().copy()
    for numbers, mask in ((y, jet.known.get(())), (partials, jet.known.get(key))):
        if mask is not None:
            numbers[~mask.numpy()] = float("nan")
    for numbers, what in ((y, "value"), (partials, "partial")):
        infinite = np.flatnonzero(np.isinf(numbers).reshape(len(numbers), -1).any(axis=1))
        if len(infinite):
            raise DataError(
                f"{plan.file}: the target {name!r}: training sample {ids[infinite[0]]} has an infinite {what}"
                + (f", and {plural(len(infinite) - 1, 'other')} too" if len(infinite) > 1 else "")
                + "; mark what is not known as such (`Jet.known`)"
            )
    inputs = [split_unit(n)[0] for n in axes.inputs] if axes else [f"x{i}" for i in range(x.shape[1])]
    outputs = [split_unit(n)[0] for n in axes.outputs] if axes else [f"y{i}" for i in range(y.shape[1])]
    columns = {(o, i): f"d{b}/d{a}" for o, b in enumerate(outputs) for i, a in enumerate(inputs)}
    return Samples(x, y, partials, inputs, outputs, columns, lambda row: f"training sample {ids[row]}", total=total)


# -- what is said ------------------------------------------------------------------------------------------------------

_VERDICTS = {
    "agrees": "[green]agrees[/]", "undecided": "[yellow]cannot be told[/]", "sign": "[red]wrong sign[/]",
    "factor": "[red]wrong unit or factor[/]", "swapped": "[red]swapped[/]", "constant": "[red]constant[/]",
    "scaled-inputs": "[red]scaled[/]", "scaled-values": "[red]scaled[/]", "unrelated": "[red]unrelated[/]",
}  # fmt: skip


def _counted(samples: Samples) -> str:
    looked_at = plural(len(samples.x), "sample")
    return looked_at if samples.total in (None, len(samples.x)) else f"{looked_at} at random of {samples.total:,}"


def _show(name: str, samples: Samples, diagnosis: Diagnosis) -> None:
    import numpy as np
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    console.print(
        f"[bold]{escape(name)}[/]: {_counted(samples)}, {plural(len(samples.inputs), 'input')}, "
        f"{plural(len(samples.outputs), 'value')}, {plural(len(samples.columns), 'partial')}"
    )
    made = Table(box=None, padding=(0, 2))
    made.add_column("partials")
    made.add_column("slope of values / partial", justify="right")
    made.add_column("")
    order = list(samples.columns.values())
    for agreement in sorted(diagnosis.agreements, key=lambda a: order.index(a.column)):
        known = agreement.coefficient == agreement.coefficient
        shown = f"{agreement.coefficient:.4g} ± {agreement.error:.1g}" if known else ""
        made.add_row(escape(agreement.column), shown, _VERDICTS.get(agreement.verdict, agreement.verdict))
    if made.row_count:
        console.print(made)
    missing = [finding for finding in diagnosis.findings if finding.kind == "missing" and finding.note]
    if len(missing) > 1:
        shares = {(o, i): float(np.isnan(samples.partials[:, o, i]).mean()) for o, i in samples.columns}
        named = {column: f"{column} {100 * shares[place]:.3g} %" for place, column in samples.columns.items()}
        console.print(f"note: missing and masked: {escape(', '.join(named[f.column] for f in missing))}")
    for finding in diagnosis.findings:
        if len(missing) > 1 and finding in missing:
            continue
        console.print(f"{'note' if finding.note else '[red]wrong[/]'}: {escape(finding.message)}")
    if not diagnosis.problems:
        console.print("nothing wrong was found")


def _plain(name: str, samples: Samples, diagnosis: Diagnosis) -> dict[str, Any]:
    def number(value: float) -> float | None:
        return float(value) if value == value else None

    return {
        "data": name,
        "samples": len(samples.x),
        "of": len(samples.x) if samples.total is None else samples.total,
        "explained": {output: number(share) for output, share in diagnosis.share.items()},
        "partials": [
            {"column": a.column, "coefficient": number(a.coefficient), "error": number(a.error), "verdict": a.verdict}
            for a in diagnosis.agreements
        ],
        "findings": [
            {"kind": f.kind, "column": f.column, "message": f.message, "problem": not f.note}
            for f in diagnosis.findings
        ],
    }
