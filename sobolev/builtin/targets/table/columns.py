"""Which column plays which part, by names and naming patterns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sobolev.builtin.targets.table.files import Faults, TableFile
from sobolev.registry import did_you_mean

Partials = str | Mapping[str, Mapping[str, str]] | None
_SEVERAL = ("*", "?")


@dataclass(frozen=True)
class Columns:
    """The columns of a table by the part that they play.

    Attributes:
        inputs: d names.
        outputs: m names.
        partials: (output, input) as positions -> column; positions that are absent are not recorded at all.
        weight: column of sample weights, or None.
        label: column that says to which split or group a sample belongs, or None.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    partials: Mapping[tuple[int, int], str]
    weight: str | None = None
    label: str | None = None

    @property
    def numbers(self) -> tuple[str, ...]:
        """All columns that hold numbers, in the order in which they are stored: inputs, values, partials, weight."""
        weight = () if self.weight is None else (self.weight,)
        return (*self.inputs, *self.outputs, *self.partials.values(), *weight)


def assign(
    table: TableFile,
    inputs: str | Sequence[str],
    values: str | Sequence[str],
    partials: Partials,
    weight: str | None,
    label: str | None,
    faults: Faults,
) -> Columns:
    """Find the columns that a recipe names; what does not fit is noted in ``faults``."""
    named_inputs = _select(table, "inputs", inputs, faults)
    outputs = _select(table, "values", values, faults)
    both = set(named_inputs) & set(outputs)
    if both:
        faults.add(f"{table.file}: {', '.join(map(repr, sorted(both)))}: input and value at the same time")
    if not isinstance(partials, str):
        found = _listed(table, partials or {}, named_inputs, outputs, faults)
    elif "{" in partials:
        found = _by_pattern(table, partials, named_inputs, outputs, faults)
    else:
        found = _by_array(table, partials, named_inputs, outputs, faults)
    _check_roles(table, named_inputs, outputs, found, faults)
    for what, column in (("weights.samples", weight), ("split", label)):
        if column is not None and column not in table.names:
            faults.add(f"{table.file}: {what}: {_absent(table, column)}")
    return Columns(tuple(named_inputs), tuple(outputs), found, weight, label)


def _check_roles(
    table: TableFile,
    inputs: Sequence[str],
    outputs: Sequence[str],
    partials: Mapping[tuple[int, int], str],
    faults: Faults,
) -> None:
    """Note columns of partials that are something else as well."""
    seen: dict[str, str] = {name: f"the input {name!r}" for name in inputs}
    seen |= {name: f"the value {name!r}" for name in outputs}
    for (o, i), column in partials.items():
        part = f"the partial of {outputs[o]!r} by {inputs[i]!r}"
        if column in seen:
            faults.add(f"{table.file}: partials: column {column!r} is {seen[column]} and {part} at the same time")
        seen[column] = part


def _absent(table: TableFile, name: str) -> str:
    return f"there is no column {name!r}; {did_you_mean(name, [*table.names, *table.arrays])}"


def _select(table: TableFile, part: str, wanted: str | Sequence[str], faults: Faults) -> list[str]:
    """Return the columns that names, arrays and patterns (``x*``) select, in the order of the file for patterns."""
    found: list[str] = []
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        faults.add(f"{table.file}: {part}: {name!r} is named twice")
    for name in names:
        if name in table.names:
            matches = [name]
        elif name in table.arrays:
            matches = table.arrays[name]
        elif any(sign in name for sign in _SEVERAL):
            matches = [column for column in table.names if fnmatchcase(column, name)]
            if not matches:
                faults.add(f"{table.file}: {part}: no column matches {name!r}; there are {', '.join(table.names)}")
        else:
            faults.add(f"{table.file}: {part}: {_absent(table, name)}")
            continue
        found += [column for column in matches if column not in found]
    return found


def _listed(
    table: TableFile,
    partials: Mapping[str, Mapping[str, str]],
    inputs: Sequence[str],
    outputs: Sequence[str],
    faults: Faults,
) -> dict[tuple[int, int], str]:
    found = {}
    for output, by_input in partials.items():
        if output not in outputs:
            faults.add(f"{table.file}: partials: {output!r} is none of the values; {did_you_mean(output, outputs)}")
            continue
        for name, column in by_input.items():
            if name not in inputs:
                faults.add(f"{table.file}: partials of {output}: {name!r} is no input; {did_you_mean(name, inputs)}")
            elif column not in table.names:
                faults.add(f"{table.file}: partials of {output} by {name}: {_absent(table, column)}")
            else:
                found[outputs.index(output), inputs.index(name)] = column
    return dict(sorted(found.items()))


def _by_pattern(
    table: TableFile, pattern: str, inputs: Sequence[str], outputs: Sequence[str], faults: Faults
) -> dict[tuple[int, int], str]:
    places = re.findall(r"{([^{}]*)}", pattern)
    unknown = [place for place in places if place not in ("output", "input")]
    if unknown or "input" not in places or ("output" not in places and len(outputs) > 1):
        faults.add(
            f"{table.file}: partials: the pattern {pattern!r} must hold {{output}} and {{input}}"
            + (f", not {{{unknown[0]}}}" if unknown else "")
        )
        return {}
    found, absent = {}, []
    for i, output in enumerate(outputs):
        for j, name in enumerate(inputs):
            column = pattern.replace("{output}", output).replace("{input}", name)
            if column in table.names:
                found[i, j] = column
            else:
                absent.append(column)
    if absent:
        hint = did_you_mean(absent[0], table.names)
        shown = ", ".join(map(repr, absent[:8])) + (f" and {len(absent) - 8} more" if len(absent) > 8 else "")
        faults.add(
            f"{table.file}: partials: the pattern {pattern!r} expects {shown}, which "
            f"{'is' if len(absent) == 1 else 'are'} not there; {hint}{'' if hint.endswith('?') else '.'} If these were "
            "not recorded, list those that were: partials: {output: {input: column}}"
        )
    roles = {*inputs, *outputs, *found.values()}
    expression = re.escape(pattern)
    for place in ("output", "input"):
        expression = expression.replace(rf"\{{{place}\}}", f"(?P<{place}>.+)", 1)
        expression = expression.replace(rf"\{{{place}\}}", f"(?P={place})")
    for column in table.names:
        match = re.fullmatch(expression, column)
        if column in roles or match is None:
            continue
        parts = match.groupdict()
        # Of a value or an input that the table has, and that is not used here, nothing is wanted.
        if all(part in inputs or part in outputs or part in table.names for part in parts.values()):
            continue
        if parts.get("output", outputs[0] if outputs else "") in outputs and parts["input"] not in inputs:
            faults.add(f"{table.file}: partials: column {column!r}: {parts['input']!r} is none of the inputs")
        elif "output" in parts and parts["input"] in inputs and parts["output"] not in outputs:
            faults.add(f"{table.file}: partials: column {column!r}: {parts['output']!r} is none of the values")
    return found


def _by_array(
    table: TableFile, name: str, inputs: Sequence[str], outputs: Sequence[str], faults: Faults
) -> dict[tuple[int, int], str]:
    """Partials of an array ``(N, m, d)``, or of a single column where there is one of them."""
    columns = table.arrays.get(name, [name] if name in table.names else None)
    if columns is None:
        faults.add(
            f"{table.file}: partials: {_absent(table, name)}, or give a pattern such as 'd{{output}}/d{{input}}'"
        )
        return {}
    if len(columns) != len(outputs) * len(inputs):
        faults.add(
            f"{table.file}: partials: {name!r} holds {len(columns)} numbers per sample, not {len(outputs)} x "
            f"{len(inputs)} (values x inputs)"
        )
        return {}
    expected = (len(outputs), len(inputs))
    shape = table.shapes.get(name, expected)
    if len(shape) > 1 and shape != expected:
        faults.add(
            f"{table.file}: partials: {name!r} has the shape (N, {', '.join(map(str, shape))}), expected "
            f"(N, {expected[0]}, {expected[1]}): samples, values, inputs"
        )
        return {}
    pairs = [(i, j) for i in range(len(outputs)) for j in range(len(inputs))]
    return dict(zip(pairs, columns, strict=True))
